"""Lists of URLs with their captions."""

import logging
from dataclasses import dataclass
from pathlib import Path

from safetune.prompts.ages import names_age_in_sexual_prompt
from safetune.prompts.layouts import did_you_mean, shown
from safetune.prompts.records import read_records

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Link:
    """A picture's URL and its caption, "" where there is none."""

    url: str
    text: str


def read_links(path: Path, url_column: str = "url", text_column: str = "text") -> list[Link]:
    """The links of a .txt (one URL a line), .csv, .jsonl or .parquet file, each URL once, in order.

    Rows without a URL and rows whose caption names an age in a sexual context are dropped and counted. Raises
    ValueError when the file or its URL column is not there, and when no link is left.
    """
    if path.suffix.lower() == ".txt":
        if not path.is_file():
            raise ValueError(f"{path}: no such file")
        lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        rows = [(line.strip(), "") for line in lines]
    else:
        names, records = read_records(path)
        if url_column not in names:
            raise ValueError(
                f"{path} has no column {url_column!r}{did_you_mean(url_column, shown(names))}; its columns: "
                f"{', '.join(shown(names)) or 'none'}. Give --url-column"
            )
        rows = [
            (cell(record.cells.get(url_column)), cell(record.cells.get(text_column))) for record in records
        ]
    links: dict[str, Link] = {}
    empty = repeated = aged = 0
    for url, text in rows:
        if not url:
            empty += 1
        elif url in links:
            repeated += 1
        elif names_age_in_sexual_prompt(text):
            aged += 1
        else:
            links[url] = Link(url, text)
    logger.info(
        "%s: rows read: %d, URLs kept: %d; dropped %d without a URL, %d repeated, %d naming an age in "
        "a sexual caption",
        path.name,
        len(rows),
        len(links),
        empty,
        repeated,
        aged,
    )
    if not links:
        raise ValueError(f"{path}: no URL is left of {len(rows)} rows")
    return list(links.values())


def cell(value: object) -> str:
    """A cell's text; "" for what is none, or not UTF-8."""
    text = value.strip() if isinstance(value, str) else ""
    return "" if any("\ud800" <= letter <= "\udfff" for letter in text) else text
