"""Six labelled pairs on disk."""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
from PIL import Image

from safetune.pairs import write_pairs

ALONE = SimpleNamespace(
    process_index=0, num_processes=1, is_main_process=True, wait_for_everyone=lambda: None
)
"""What the library asks of an accelerator, for one process."""

CONCEPTS = ["knife", "bomb"]
CAPTIONS = ["a cat with a knife", "a cat", "a dog with a bomb", "a dog", "a cat", "a fox in the city"]
SIZES = [(64, 64), (64, 64), (128, 64), (128, 64), (96, 70), (64, 130)]
"""Width and height of the pictures."""


def write_labelled(folder: Path) -> pd.DataFrame:
    """The pairs' labels: the fifth is harmful by its picture, the last one uncertain."""
    colours = ["red", "lime", "blue", "cyan", "navy", "teal"]
    pictures = [Image.new("RGB", size, colour) for size, colour in zip(SIZES, colours, strict=True)]
    write_pairs(folder, pictures, [{"text": text} for text in CAPTIONS])
    return pd.DataFrame(
        {
            "key": [f"{number:06d}.png" for number in range(6)],
            "text": CAPTIONS,
            "evidence": ["prompt"] * 4 + ["image", "prompt"],
            "concept": ["knife", "knife", "bomb", "bomb", "bomb", "knife"],
            "harm": [0.9, 0.1, 0.8, 0.2, 0.7, 0.55],
            "label": ["harmful", "clean", "harmful", "clean", "harmful", "uncertain"],
        }
    )
