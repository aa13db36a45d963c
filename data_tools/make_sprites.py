"""Render TinySD's sprite sheets from open emoji sets: `python data_tools/make_sprites.py`.

Needs npm (which downloads the icon sets by package name) and `pip install resvg-py`. The result is committed
under safetune/tinysd/sprites/; nobody needs to run this again unless the world's vocabulary changes.
"""

import argparse
import io
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path

from PIL import Image

from safetune.tinysd.vocabulary import OBJECTS, STYLES, SUBJECTS
from safetune.tinysd.world import SCENERY, SPRITE_SIZE, SPRITES_DIR

# Per drawing style: the icon set drawn from, and the icons that another set draws better or alone has.
SETS = {"cartoon": "noto", "flat": "fluent-emoji-flat"}
EXCEPTIONS = {("cartoon", "pistol"): "noto-v1", ("flat", "pistol"): "fxemoji"}
ICONS = {
    "cat": "cat-face",
    "dog": "dog-face",
    "rabbit": "rabbit-face",
    "monkey": "monkey-face",
    "snowman": "snowman-without-snow",
    "pig": "pig-face",
    "apple": "red-apple",
    "book": "blue-book",
    "gift": "wrapped-gift",
    "ice cream": "soft-ice-cream",
    "football": "soccer-ball",
    "clock": "alarm-clock",
    "knife": "kitchen-knife",
    "swords": "crossed-swords",
    "bow": "bow-and-arrow",
    "dynamite": "firecracker",
    "explosion": "collision",
    "blood": "drop-of-blood",
    "heart": "anatomical-heart",
}


def fetch_set(name: str, folder: Path) -> tuple[dict, str]:
    """Download one icon set from npm; returns its icons.json and the package's version."""
    command = ["npm", "pack", "--silent", f"@iconify-json/{name}"]
    archive = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()
    with tarfile.open(folder / archive) as tar:
        icons = json.load(tar.extractfile("package/icons.json"))
        version = json.load(tar.extractfile("package/package.json"))["version"]
    return icons, version


def render_icon(icon_set: dict, icon: str, size: int) -> Image.Image:
    """Rasterise one icon of an iconify set to a square RGBA picture."""
    import resvg_py

    while icon not in icon_set["icons"]:
        icon = icon_set["aliases"][icon]["parent"]
    entry = icon_set["icons"][icon]
    width = entry.get("width", icon_set.get("width", 16))
    height = entry.get("height", icon_set.get("height", 16))
    left, top = entry.get("left", icon_set.get("left", 0)), entry.get("top", icon_set.get("top", 0))
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}">{entry["body"]}</svg>'
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, width=4 * size, height=4 * size)
    picture = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    return crop_square(picture).resize((size, size), Image.Resampling.LANCZOS)


def crop_square(picture: Image.Image) -> Image.Image:
    """Cut the transparent margin and centre the rest on a square, so that every sprite fills its cell."""
    picture = picture.crop(picture.getbbox())
    side = max(picture.size)
    square = Image.new("RGBA", (side, side))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=SPRITES_DIR, help="folder of the sheets")
    args = parser.parse_args()
    keys = [thing.key for thing in SUBJECTS + OBJECTS] + list(SCENERY)
    args.out.mkdir(parents=True, exist_ok=True)
    names = sorted({*SETS.values(), *EXCEPTIONS.values()})
    with tempfile.TemporaryDirectory() as temporary:
        sets = {name: fetch_set(name, Path(temporary)) for name in names}
    for style in (thing.key for thing in STYLES):
        sheet = Image.new("RGBA", (SPRITE_SIZE * len(keys), SPRITE_SIZE))
        for column, key in enumerate(keys):
            icon_set = sets[EXCEPTIONS.get((style, key), SETS[style])][0]
            sheet.paste(render_icon(icon_set, ICONS.get(key, key), SPRITE_SIZE), (SPRITE_SIZE * column, 0))
        sheet.save(args.out / f"{style}.png", optimize=True)
    index = {"keys": keys, "sets": {name: f"@iconify-json/{name}@{sets[name][1]}" for name in names}}
    (args.out / "index.json").write_text(json.dumps(index, indent=1) + "\n")


if __name__ == "__main__":
    main()
