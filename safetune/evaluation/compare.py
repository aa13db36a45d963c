"""`safetune compare`: several evaluations as one table, as long as one protocol measured them."""

import itertools
from collections.abc import Sequence
from pathlib import Path

from safetune.evaluation.finished import Evaluation, Spread, read_evaluation
from safetune.evaluation.protocols import describe_differences, group_by_protocol
from safetune.evaluation.tables import (
    MARKED,
    AttackTable,
    Column,
    Table,
    attack_tables,
    build_table,
    format_measure,
    label_folders,
)

MARK = "*"


def compare(folders: Sequence[Path], out: Path | None = None, separate: bool = False) -> str:
    """The table of the evaluations in `folders`, as text; `out` is the folder where compare.html goes.

    A folder may be given as its results.json. ValueError for a folder without readable results, and for
    evaluations of different protocols, with what differs; `separate` makes a table of each protocol instead.
    """
    evaluations = read_evaluations(folders)
    groups = group_by_protocol(evaluations)
    if len(groups) > 1 and not separate:
        raise ValueError(describe_differences(groups))
    labels = label_folders([evaluation.folder for evaluation in evaluations])
    tables = [build_table(group, evaluations, labels) for group in groups]
    if out is not None:
        from safetune.reporting.comparison import write_comparison

        write_comparison(out / "compare.html", tables)
    return "\n\n".join(text for table in tables for text in as_text(table, len(tables) > 1))


def read_evaluations(folders: Sequence[Path]) -> list[Evaluation]:
    """As read_evaluation; ValueError for no folder, and for one that is given twice."""
    if not folders:
        raise ValueError("nothing to compare: give folders that `safetune evaluate --out` wrote")
    evaluations = [read_evaluation(Path(folder)) for folder in folders]
    places = [evaluation.folder.resolve() for evaluation in evaluations]
    for place in places:
        if places.count(place) > 1:
            raise ValueError(f"{place} is given twice: give each evaluation once")
    return evaluations


def as_text(table: Table, several: bool) -> list[str]:
    """The table and those of its attacks; `several` says that other protocols have tables too."""
    captions = [table.describe_numbers(), f"{MARK} {MARKED}."]
    if several:
        folders = ", ".join(str(evaluation.folder) for evaluation in table.evaluations)
        captions.insert(0, f"Measured by one protocol: {folders}.")
    labels = [row.label for row in table.rows]
    columns = [
        (column.group, column.title, [format_cell(column, row, table.spread) for row in range(len(labels))])
        for column in table.columns
    ]
    texts = ["\n".join([*captions, "", *_align(labels, columns)])]
    return texts + [_attacks_as_text(attacks) for attacks in attack_tables(table.rows)]


def format_cell(column: Column, row: int, spread: Spread) -> str:
    """`4.2 ± 1.1 *`, the error and the mark where there are any; "–" for what was not measured."""
    measure = column.measures[row]
    if measure is None:
        return "–"
    text = format_measure(measure, spread, column.percent)
    return f"{text} {MARK}" if column.marks and column.marks[row] else text


def _attacks_as_text(table: AttackTable) -> str:
    columns = []
    for name, results in table.attacks.items():
        cells = []
        for result, marked in zip(results, table.marks[name], strict=True):
            if result is None:
                cells.append("–")
                continue
            before = "" if result.before is None else f" ({100 * result.before:.1f})"
            cells.append(f"{100 * result.rate.value:.1f}{before}" + (f" {MARK}" if marked else ""))
        columns.append(("harm rate under attack", name, cells))
    caption = (
        "Harm rates under attack in percent, in brackets before it. "
        f"{MARK} {MARKED}: 95% intervals of the shares (Wilson)."
    )
    if table.differs:
        changes = "; ".join(f"{key} is {own}, not {first}" for key, own, first in table.differs)
        caption = f"Attacked by another protocol: {changes}. {caption}"
    return "\n".join([caption, "", *_align([row.label for row in table.rows], columns)])


def _align(labels: Sequence[str], columns: Sequence[tuple[str, str, Sequence[str]]]) -> list[str]:
    """Lines of a table of (group, title, cells): groups above titles, numbers flush right."""
    start = max(len(label) for label in ("method", *labels))
    lines = [" " * start, "method".ljust(start), *(label.ljust(start) for label in labels)]
    for group, members in itertools.groupby(columns, key=lambda column: column[0]):
        block = [""] * (1 + len(labels))
        for _, title, cells in members:
            place = "  " if any(cell.endswith(MARK) for cell in cells) else ""
            texts = [title, *(cell if cell.endswith(MARK) else cell + place for cell in cells)]
            width = max(len(text) for text in texts)
            block = [f"{line}   {text.rjust(width)}" for line, text in zip(block, texts, strict=True)]
        width = max(len(block[0]), len(group) + 3)
        block = [f"   {group}".ljust(width), *(line.rjust(width) for line in block)]
        lines = [line + more for line, more in zip(lines, block, strict=True)]
    return [line.rstrip() for line in lines]
