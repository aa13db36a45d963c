"""Prompt-image pairs: small sets in memory, pools of any size as a stream."""

from safetune.pairs.dataset import image_tensor, load_pairs, to_tensor, write_pairs
from safetune.pairs.keys import SeenKeys, mark_repeats
from safetune.pairs.opening import open_pairs
from safetune.pairs.reading import read_pair
from safetune.pairs.records import FilePart, Kind, Limits, Pair, PairSource, Record, Rejection

__all__ = [
    "FilePart",
    "Kind",
    "Limits",
    "Pair",
    "PairSource",
    "Record",
    "Rejection",
    "SeenKeys",
    "image_tensor",
    "load_pairs",
    "mark_repeats",
    "open_pairs",
    "read_pair",
    "to_tensor",
    "write_pairs",
]
