"""compare.html: several evaluations side by side, in one file that opens offline."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from safetune.evaluation.protocols import differences, protocol_of
from safetune.evaluation.tables import (
    MARKED,
    AttackTable,
    Column,
    Table,
    attack_tables,
    format_measure,
    mark_lowest,
    rate_column,
)
from safetune.evaluation.tradeoff import find_tradeoff
from safetune.files import write_text
from safetune.reporting.comparison_plots import category_chart, tradeoff_chart
from safetune.reporting.rates import NOT_MEASURED, format_seconds
from safetune.reporting.sheets import read_sheets


def write_comparison(path: Path, tables: Sequence[Table]) -> None:
    """Write the self-contained page of `tables`, one for each protocol, whole or not at all.

    ValueError for a grid that is no readable picture, or lies outside of its evaluation's folder.
    """
    folder = files("safetune.reporting")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(folder.joinpath("comparison.html.j2").read_text(encoding="utf-8"))
    page = template.render(
        title="Comparison of evaluations",
        style=Markup(folder.joinpath("report.css").read_text(encoding="utf-8")),
        script=Markup(folder.joinpath("report.js").read_text(encoding="utf-8")),
        marked=MARKED,
        not_measured=NOT_MEASURED,
        parts=[_render_part(table, number, tables[0]) for number, table in enumerate(tables, start=1)],
    )
    write_text(path, page)


def _render_part(table: Table, number: int, first: Table) -> dict[str, object]:
    """What the page shows of one protocol."""
    tradeoff = find_tradeoff(table)
    evaluations = table.evaluations
    return {
        "number": number,
        "folders": [str(evaluation.folder) for evaluation in evaluations],
        "numbers": table.describe_numbers(),
        "rows": [row.label for row in table.rows],
        "rates": _numbers(table, table.columns),
        "kept": _numbers(table, _kept_columns(table)),
        "tradeoff": tradeoff,
        "tradeoff_chart": tradeoff and tradeoff_chart(f"tradeoff-{number}", tradeoff, table.spread),
        "beaten": tradeoff.beaten() if tradeoff else {},
        "categories": _categories(table, number),
        "attacks": [_attack_lines(attacks) for attacks in attack_tables(table.rows)],
        "sheets": read_sheets(table.rows),
        "facts": [(row.label, str(row.evaluation.folder), row.method.facts) for row in table.rows],
        "protocol": {**evaluations[0].protocol, "cell_kinds": evaluations[0].kinds},
        "attack_protocols": [
            (str(one.folder), one.attack_protocol) for one in evaluations if one.attack_protocol
        ],
        "versions": [(str(one.folder), one.versions) for one in evaluations if one.versions],
        "differs": differences(protocol_of(evaluations[0]), protocol_of(first.evaluations[0])),
    }


def _numbers(table: Table, columns: Sequence[Column]) -> dict[str, object]:
    """Heads (group, columns in it), titles with units, and for each row its cells (text, marked, none is)."""
    groups: list[list[object]] = []
    for column in columns:
        if groups and groups[-1][0] == column.group:
            groups[-1][1] = int(str(groups[-1][1])) + 1
        else:
            groups.append([column.group.replace("_", " "), 1])
    lines = [
        [
            (
                NOT_MEASURED if measure is None else format_measure(measure, table.spread, column.percent),
                bool(column.marks and column.marks[row]),
                not any(column.marks),
            )
            for column in columns
            for measure in [column.measures[row]]
        ]
        for row in range(len(table.rows))
    ]
    return {"groups": groups, "titles": [column.title for column in columns], "lines": lines}


def _kept_columns(table: Table) -> list[Column]:
    """Every other rate of harmful prompts, such as subject and place."""
    columns = []
    for cell in (cell for cell, kind in table.kinds.items() if kind == "harmful"):
        measured = [row.method.cells.get(cell, {}) for row in table.rows]
        for name in dict.fromkeys(name for rates in measured for name in rates if name != "harm_rate"):
            columns.append(
                rate_column(cell, name, [rates.get(name) for rates in measured], table.spread, name)
            )
    return columns


def _categories(table: Table, number: int) -> list[tuple[str, Markup]]:
    names = dict.fromkeys(name for row in table.rows for name in row.method.categories)
    labels = [row.label for row in table.rows]
    charts = []
    for index, name in enumerate(names):
        measures = [row.method.categories.get(name) for row in table.rows]
        marks = mark_lowest(measures, table.spread)
        svg = f"category-{number}-{index}"
        charts.append((name, category_chart(svg, name, labels, measures, marks, table.spread)))
    return charts


def _attack_lines(table: AttackTable) -> dict[str, object]:
    """For each attack its lines: label, before, under attack, marked, steps, seconds, count."""
    attacks = []
    for name, results in table.attacks.items():
        lines = []
        for row, result, marked in zip(table.rows, results, table.marks[name], strict=True):
            if result is None:
                lines.append((row.label, NOT_MEASURED, NOT_MEASURED, False, "", "", ""))
                continue
            before = "–" if result.before is None else f"{100 * result.before:.1f}"
            low, high = result.rate.bounds("interval")
            span = f" ({100 * low:.1f} to {100 * high:.1f})" if result.rate.has("interval") else ""
            seconds = "" if result.seconds is None else format_seconds(result.seconds)
            counts = ["" if value is None else str(value) for value in (result.steps, result.count)]
            rate = f"{100 * result.rate.value:.1f}{span}"
            lines.append((row.label, before, rate, marked, counts[0], seconds, counts[1]))
        attacks.append((name, lines))
    return {"attacks": attacks, "differs": table.differs}
