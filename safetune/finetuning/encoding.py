"""Latents of pictures and embeddings of captions, encoded once, by all processes, into the run folder."""

from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from safetune.backbone import Backbone
from safetune.backbone.frozen import images_at_once
from safetune.data.encodings import PARTS, Encoder, PromptRows, prompt_tensors
from safetune.data.shards import Shards
from safetune.files import fingerprint_of
from safetune.finetuning.buckets import Size, fit
from safetune.labeling.pictures import read_picture
from safetune.pairs import PairSource, Record, mark_repeats

LATENTS, TIME_IDS = "latents", "time_ids"


def encode_pictures(
    accelerator: Accelerator,
    folder: Path,
    backbone: Backbone,
    encoder: Encoder,
    source: PairSource,
    keys: Sequence[str],
    sizes: Sequence[Size],
) -> Shards:
    """Latents and time ids of the pictures of N keys, each picture in the nearest of `sizes` (buckets.fit).

    One pass over the source, in which a process decodes the pictures of its own shards alone; a killed run
    goes on with the shards that are missing. Raises ValueError when the source lacks a picture or one can no
    longer be read, and when the folder holds others.
    """
    shards = Shards(folder, len(keys))
    facts = {
        "autoencoder": encoder.latents,
        "data": source.fingerprint,
        "keys": fingerprint_of(keys),
        "sizes": sizes,
    }
    mine = shards.claim(accelerator, facts)
    missing = {keys[row]: row for shard in mine for row in shards.rows(shard)}
    made: dict[int, dict[str, Tensor]] = {shard: {} for shard in mine}
    bar = tqdm(total=len(missing), desc="latents", unit="picture", disable=not accelerator.is_main_process)
    at_once = images_at_once(sizes[0][0] * sizes[0][1])
    for batch in batches(source if missing else (), frozenset(missing), at_once):
        for key, latents, time_ids in encode_batch(backbone, batch, sizes):
            row = missing.pop(key)
            shard = row // shards.size
            made[shard] |= {f"{row}.{LATENTS}": latents.cpu(), f"{row}.{TIME_IDS}": time_ids}
            if len(made[shard]) == 2 * len(shards.rows(shard)):
                shards.write(shard, made.pop(shard))
        bar.update(len(batch))
        if not missing:
            break
    bar.close()
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(keys)} labelled pictures are not there any more or cannot be read, such "
            f"as {next(iter(missing))!r}: run `safetune label` again on this data"
        )
    accelerator.wait_for_everyone()
    return shards


def batches(records: Iterable[Record], keys: Container[str], size: int) -> Iterator[list[Record]]:
    """The records of these keys that can be read, `size` at a time; of a repeated key the first one."""
    wanted = (record for record in mark_repeats(records) if record.key in keys and not record.defect)
    while batch := list(islice(wanted, size)):
        yield batch


def encode_batch(
    backbone: Backbone, records: Iterable[Record], sizes: Sequence[Size]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Key, latents (C, h, w) and time ids (6,) of the records whose picture can be read, size by size."""
    pictures = ((record.key, read_picture(record)) for record in records)
    fitted = [(key, *fit(picture, sizes)) for key, picture in pictures if picture is not None]
    for shape in {pixels.shape for _, pixels, _ in fitted}:
        alike = [(key, pixels, ids) for key, pixels, ids in fitted if pixels.shape == shape]
        latents = backbone.encode_images(torch.stack([pixels for _, pixels, _ in alike]))
        for (key, _, ids), latent in zip(alike, latents, strict=True):
            yield key, latent, ids


def encode_captions(
    accelerator: Accelerator, folder: Path, backbone: Backbone, encoder: Encoder, captions: Sequence[str]
) -> PromptRows:
    """Conditioning of N captions; each text is encoded once, whichever captions repeat it.

    Processes share the work and a killed run goes on, as in encode_pictures. ValueError when the folder holds
    other captions.
    """
    texts = list(dict.fromkeys(captions))
    shards = Shards(folder, len(texts))
    facts = {"text_encoders": encoder.prompts, "texts": fingerprint_of(texts)}
    mine = shards.claim(accelerator, facts)
    for shard in tqdm(mine, desc="prompts", unit="shard", disable=not accelerator.is_main_process):
        rows = shards.rows(shard)
        encoded = backbone.encode_prompts(texts[rows.start : rows.stop])
        shards.write(shard, prompt_tensors(map(str, rows), encoded))
    accelerator.wait_for_everyone()
    places = {text: place for place, text in enumerate(texts)}
    rows_of = [places[caption] for caption in captions]
    return PromptRows({part: shards.read(part).select(rows_of) for part in PARTS if part in shards.names()})
