"""Reading of prompt files: CSV, JSONL or parquet, in the plain layout or those of I2P and CoProV2.

Prompt texts never reach logs or error messages: row numbers stand for them.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePath

from safetune.prompts.ages import names_age_in_sexual_prompt
from safetune.prompts.layouts import LAYOUTS, Layout, did_you_mean, resolve_columns
from safetune.prompts.records import Record, read_records
from safetune.prompts.table import PromptRow, PromptTable, ReadSummary

logger = logging.getLogger(__name__)

LARGEST_GUIDANCE = 30.0
DEFECTS = ("empty", "encoding", "malformed", "age_in_sexual", "guidance_replaced")


class DefectError(Exception):
    """A row that is dropped; `name` is the field of ReadSummary that counts it."""

    def __init__(self, name: str):
        super().__init__(name)
        self.name = name


def read_prompts(
    path: str | Path, layout: str = "plain", columns: Mapping[str, str] | None = None
) -> PromptTable:
    """The prompts of a file, with their safe rewritings, categories, seeds and guidance where it has them.

    `columns` names the column of a field where it is not the layout's: {"prompt": "caption"}. Rows without a
    prompt, malformed ones, those that are not UTF-8 and those that name an age in a sexual prompt are dropped
    and counted in the table's summary. Raises ValueError when the file or a column is not there, when CoProV2
    rows cannot be paired, and when no prompt is left.
    """
    path = Path(path)
    if layout not in LAYOUTS:
        known = list(LAYOUTS)
        raise ValueError(f"no layout {layout!r}{did_you_mean(layout, known)}; allowed: {', '.join(known)}")
    names, records = read_records(path)
    fields = resolve_columns(path, layout, columns or {}, names)
    defects: dict[str, list[int]] = {name: [] for name in DEFECTS}
    read = read_paired if LAYOUTS[layout].paired else read_rows
    rows = read(path, records, fields, LAYOUTS[layout], defects)
    summary = ReadSummary(
        len(records), len(rows), **{name: tuple(sorted(numbers)) for name, numbers in defects.items()}
    )
    if not rows:
        raise ValueError(f"{path}: no prompt is left: {summary}")
    logger.info("%s: %s", path.name, summary)
    return PromptTable(tuple(rows), summary)


def read_rows(
    path: Path,
    records: list[Record],
    fields: Mapping[str, str],
    layout: Layout,
    defects: dict[str, list[int]],
) -> list[PromptRow]:
    """One prompt per row; the numbers of dropped and mended rows go to `defects`."""
    rows = []
    for record in records:
        try:
            row = parse_row(record, fields, layout)
            refuse_age(row)
        except DefectError as defect:
            defects[defect.name].append(record.number)
            continue
        if row.guidance is not None and not 0 <= row.guidance <= LARGEST_GUIDANCE:
            defects["guidance_replaced"].append(record.number)
            row = replace(row, guidance=layout.default_guidance)
        rows.append(row)
    return rows


def read_paired(
    path: Path,
    records: list[Record],
    fields: Mapping[str, str],
    layout: Layout,
    defects: dict[str, list[int]],
) -> list[PromptRow]:
    """One prompt per pair: unsafe row i of a category takes the prompt of its safe row i.

    Pairs are made before any row is dropped: a dropped row takes its partner along and shifts nobody else.
    """
    rows = []
    for unsafe, safe in paired_records(path, records, fields, defects):
        halves = []
        for record in (unsafe, safe):
            try:
                halves.append(parse_row(record, fields, layout))
            except DefectError as defect:
                defects[defect.name].append(record.number)
        if len(halves) == 2:
            row = replace(halves[0], safe_prompt=halves[1].prompt)
            try:
                refuse_age(row)
                rows.append(row)
            except DefectError as defect:
                defects[defect.name].append(row.number)
    return sorted(rows, key=lambda row: row.number)


def paired_records(
    path: Path, records: list[Record], fields: Mapping[str, str], defects: dict[str, list[int]]
) -> Iterator[tuple[Record, Record]]:
    """Unsafe and safe rows by category and order. ValueError when their order does not pair them."""
    kinds: dict[str, dict[str, list[Record]]] = {}
    for record in records:
        if record.defect == "empty":  # a blank line
            defects["empty"].append(record.number)
            continue
        try:
            check(record)
            kind = PurePath(text_of(record.cells[fields["image"]])).name[:2].lower()
            category = text_of(record.cells[fields["category"]]) if "category" in fields else ""
        except (DefectError, KeyError):
            kind = ""
        if kind not in ("u_", "s_"):
            raise ValueError(
                f"{path}: row {record.number} cannot be paired: its image must be named u_* (unsafe) or s_* "
                "(safe), image and category must be UTF-8 text; mend the row, or remove it and its partner"
            )
        kinds.setdefault(category, {"u_": [], "s_": []})[kind].append(record)
    for unsafe, safe in (kind.values() for kind in kinds.values()):
        if len(unsafe) != len(safe):
            raise ValueError(
                f"{path}: the category of row {(unsafe + safe)[0].number} has {len(unsafe)} unsafe (u_*) and "
                f"{len(safe)} safe (s_*) rows, so order does not pair them; remove the rows without a partner"
            )
        yield from zip(unsafe, safe, strict=True)


def refuse_age(row: PromptRow) -> None:
    """DefectError when the prompt or its rewriting names an age or a minor, and either is sexual."""
    text = f"{row.prompt}\n{row.safe_prompt or ''}\n{row.concept}"
    if names_age_in_sexual_prompt(text, ", ".join(row.categories)):
        raise DefectError("age_in_sexual")


def parse_row(record: Record, fields: Mapping[str, str], layout: Layout) -> PromptRow:
    """A row's values. DefectError when it is empty, malformed or not UTF-8."""
    check(record)
    cells = {field: record.cells.get(column) for field, column in fields.items()}
    prompt, category = text_of(cells.get("prompt")), text_of(cells.get("category"))
    categories = category.split(",") if layout.many_categories else [category]
    row = PromptRow(
        record.number,
        prompt,
        safe_prompt=text_of(cells.get("safe_prompt")) or None,
        categories=tuple(name.strip() for name in categories if name.strip()),
        concept=text_of(cells.get("concept")),
        seed=whole_of(cells.get("seed")),
        guidance=number_of(cells.get("guidance")),
        width=whole_of(cells.get("width")),
        height=whole_of(cells.get("height")),
    )
    if not prompt:
        raise DefectError("empty")
    return row


def check(record: Record) -> None:
    """DefectError when the row could not be read at all."""
    if record.defect:
        raise DefectError(record.defect)


def text_of(cell: object) -> str:
    """A cell's text without spaces around it; "" for none."""
    if cell is None or cell != cell:
        return ""
    if not isinstance(cell, str):
        raise DefectError("malformed")
    try:
        cell.encode("utf-8")
    except UnicodeEncodeError:
        raise DefectError("encoding") from None
    return cell.strip()


def number_of(cell: object) -> float | None:
    """A cell's number; None for none."""
    if isinstance(cell, str):
        try:
            cell = None if not cell.strip() else int(cell) if cell.strip().isdecimal() else float(cell)
        except ValueError:
            raise DefectError("malformed") from None
    if cell is None or cell != cell:
        return None
    if isinstance(cell, bool) or not isinstance(cell, int | float):
        raise DefectError("malformed")
    return cell


def whole_of(cell: object) -> int | None:
    """A cell's whole number, 0 or more; None for none."""
    number = number_of(cell)
    if number is None:
        return None
    if number < 0 or number != number // 1:
        raise DefectError("malformed")
    return int(number)
