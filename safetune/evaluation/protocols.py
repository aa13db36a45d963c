"""Which evaluations may stand in one table, and in what the others differ."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from safetune.evaluation.finished import Evaluation

NOT_PROTOCOL = ("versions", "seconds")
ATTACKED = ("denoiser_sha256", "adapter_sha256", "hgr_sha256", "negative_prompt", "sld")
"""Keys of an attack's protocol that say what was attacked, not how."""


def flatten(value: object, place: str = "") -> dict[str, Any]:
    """Nested objects as one: {"judge": {"threshold": 0.5}} becomes {"judge.threshold": 0.5}."""
    if not isinstance(value, Mapping) or not value:
        return {place: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= flatten(inner, f"{place}.{key}" if place else str(key))
    return flat


def protocol_of(evaluation: Evaluation) -> dict[str, Any]:
    """All that numbers of an evaluation depend on besides the method, flat."""
    told = {key: value for key, value in evaluation.protocol.items() if key not in NOT_PROTOCOL}
    return flatten({**told, "cell_kinds": evaluation.kinds})


def attack_protocol_of(evaluation: Evaluation) -> dict[str, Any]:
    """The same of its attacks. Attacks whose protocol is not told agree with no other's."""
    if evaluation.attack_protocol is None:
        return {"protocol of": f"unknown, of {evaluation.folder.resolve()}"}
    skipped = (*NOT_PROTOCOL, *ATTACKED)
    return flatten({key: value for key, value in evaluation.attack_protocol.items() if key not in skipped})


def group_by_protocol(
    evaluations: Sequence[Evaluation], protocol: Callable[[Evaluation], dict[str, Any]] = protocol_of
) -> list[list[Evaluation]]:
    """Evaluations of equal protocols together, in the order given."""
    groups: list[list[Evaluation]] = []
    for evaluation in evaluations:
        equal = (group for group in groups if protocol(group[0]) == protocol(evaluation))
        found = next(equal, None)
        if found is None:
            groups.append([evaluation])
        else:
            found.append(evaluation)
    return groups


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Key and both values, as text, of each place where two flat protocols differ."""
    return [
        (key, _shown(first, key), _shown(second, key))
        for key in [*first, *(key for key in second if key not in first)]
        if key not in first or key not in second or first[key] != second[key]
    ]


def describe_differences(groups: Sequence[Sequence[Evaluation]]) -> str:
    """Why evaluations do not belong in one table: every key that differs from the first protocol."""
    first = groups[0][0]
    lines = ["numbers of different protocols do not belong in one column:"]
    for group in groups[1:]:
        lines.append(f"{first.folder} and {group[0].folder} differ in")
        for key, one, other in differences(protocol_of(first), protocol_of(group[0])):
            lines.append(f"  {key}: {one} in {first.folder}, {other} in {group[0].folder}")
    lines.append("Evaluate by one protocol, or give --separate (separate=True) for a table of each")
    return "\n".join(lines)


def _shown(flat: Mapping[str, Any], key: str) -> str:
    """A value as text, cut where it is long; "nothing" where there is none."""
    if key not in flat:
        return "nothing"
    text = json.dumps(flat[key], ensure_ascii=False, default=str)
    return text if len(text) <= 100 else text[:97] + "..."
