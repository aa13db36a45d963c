"""Weights of judges: where they lie, what they are, and that they are no pickles."""

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

FILES = ("*.json", "*.txt", "*.safetensors", "*.model")
"""What is fetched of a hub name: never code, never a pickle."""


def model_folder(model: str, purpose: str) -> Path:
    """The folder of a transformers model, fetched when `model` is a hub name.

    ValueError for a name that is neither, and for a model without safetensors.
    """
    folder = Path(model)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            folder = Path(snapshot_download(model, allow_patterns=list(FILES)))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
            raise ValueError(
                f"{purpose}: {model} is no folder, and the hub gave no such model ({error}). Give a folder "
                "in transformers' layout, or a hub name while online"
            ) from error
    if not list(folder.glob("*.safetensors")):
        raise ValueError(
            f"{purpose}: {model} has no .safetensors weights. A pickle can run code when it is read and is "
            "refused: load the model once where you trust it and save_pretrained(folder) it"
        )
    return folder


def sha256_of(paths: Sequence[Path]) -> str:
    """SHA-256 of a file; of several the SHA-256 of theirs, in the order of their names."""
    digests = []
    for path in sorted(paths):
        with path.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256"))
    if len(digests) == 1:
        return digests[0].hexdigest()
    return hashlib.sha256(b"".join(digest.digest() for digest in digests)).hexdigest()


def folder_facts(model: str, folder: Path) -> dict[str, object]:
    """Name and weights of a transformers model, and the version that runs it."""
    return {
        "package": "transformers",
        "version": version("transformers"),
        "model": model,
        "weights_sha256": sha256_of(list(folder.glob("*.safetensors"))),
        "licence": "of the model's own page; not told by its files",
    }


def image_processor(folder: Path) -> Any:
    """The model's own preprocessing, by PIL: the same whether torchvision is installed or not."""
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
