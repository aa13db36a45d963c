"""Pictures, captions and facts in webdataset tars."""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Sample:
    """One picture of a shard: files KEY.jpg (or png, webp), KEY.txt and KEY.json."""

    key: str
    content: bytes
    extension: str
    text: str
    facts: Mapping[str, object]


def write_shard(path: Path, samples: Sequence[Sample]) -> None:
    """Write a tar whole or not at all; equal samples give equal bytes."""
    temporary = path.with_name(f".{path.name}.tmp")
    with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            files = {
                sample.extension: sample.content,
                "txt": sample.text.encode(),
                "json": json.dumps(sample.facts).encode(),
            }
            for extension, content in files.items():
                member = tarfile.TarInfo(f"{sample.key}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    temporary.replace(path)
