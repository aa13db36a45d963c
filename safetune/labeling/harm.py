"""From raw scores of a whole pool to harm, labels and categories; nothing is read but the scores."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.special import expit

from safetune.hgr import HGR
from safetune.labeling.calibration import FEWEST, Array, Mixture, fit_mixture, label_of, threshold_for
from safetune.labeling.scores import STATISTICS, normalise_concepts
from safetune.labeling.scoring import Draw, ScoreOptions, reference_length, statistic_columns

Floats = NDArray[np.float32]
Reader = Callable[[list[str]], Floats]
"""Columns of raw scores by name -> (N, number of columns), NaN where a pair was not scored."""

PROMPT_REACH = 0.25
"""Harmful captions have, on average, at least this share of the prototypes' length."""
IMAGE_REACH = 4.0
"""Harmful pictures score, on average, at least this many spreads of the pool's clean half."""

IMAGE_SHARE = 0.01
"""Fewer harmful pictures than this share of those under silent captions are not told from odd clean ones."""


@dataclass(frozen=True)
class CalibrationOptions:
    """Where harm is cut into labels."""

    clean_below: float = 0.4
    """Pairs with harm at or below are labelled clean."""
    harmful_above: float = 0.6
    """Pairs with harm at or above are labelled harmful; those between are uncertain."""
    precision: float | None = None
    """Share of harmful labels that should be right by pairs of known truth; moves harmful_above."""


def image_scores(read: Reader, hgr: HGR, draws: Sequence[Draw]) -> Floats:
    """Scores (N, K) of each concept in each picture, in spreads of the pool's clean half.

    The mean over the draws that a pair has and the weighted statistics; NaN for pairs without any.
    """
    total: Array = np.zeros((1, 1))
    count: Array = np.zeros((1, 1))
    for draw in draws:
        for weight, names in zip(STATISTICS.values(), statistic_columns(hgr, draw), strict=True):
            values = torch.from_numpy(read(names))
            there = ~values[:, 0].isnan()
            if there.any():
                values = normalise_concepts(values, values[there])
            total = total + weight * values.nan_to_num(0.0).numpy()
            count = count + weight * there.numpy()[:, None]
    return np.where(count > 0, total / np.maximum(count, 1), np.float32(np.nan)).astype(np.float32)


def undecided_rows(read: Reader, hgr: HGR, options: ScoreOptions, look: int) -> NDArray[np.bool_]:
    """Which pairs (N,) get a look: its share of those with scores, the ones that have the highest so far."""
    draws = [draw for earlier in options.draws[:look] for draw in earlier]
    best = image_scores(read, hgr, draws).max(1)
    silent = ~np.isnan(best)
    if not silent.any():
        return silent
    return silent & (best >= np.quantile(best[silent], 1 - options.shares[look]))


def calibrate(
    read: Reader,
    keys: pd.Series,
    hgr: HGR,
    scoring: ScoreOptions,
    options: CalibrationOptions,
    pictures: bool = True,
    captions: bool = True,
    known: pd.Series | None = None,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Labels of N pairs, and the facts of the calibration for labels.json.

    Harm is the larger evidence of prompt and image, each from its own mixture. The image's mixture is fitted
    where the prompt is silent: there it decides, and harm that no caption tells scores lower than harm that
    one does. `known` is the truth (bool) of some keys. Raises ValueError when `known` names a key that is not
    there, or no threshold reaches the wanted precision.
    """
    count = len(keys)
    nothing = np.full(count, -np.inf)
    mixtures: dict[str, Mixture] = {}
    prompt_score = read(["prompt_score"])[:, 0]
    along = read([f"prompt_{name}" for name in hgr.concepts])
    prompt_odds = nothing
    if captions:
        value = np.log(prompt_score.astype(np.float64) + 1e-6)
        reach = float(np.log(PROMPT_REACH * reference_length(hgr) + 1e-6))
        mixtures["prompt"] = fit_mixture(value, reach)
        prompt_odds = mixtures["prompt"].log_odds(value)
    image = np.full((count, len(hgr.concepts)), np.nan, np.float32)
    image_odds = nothing
    if pictures:
        image = image_scores(read, hgr, [draw for look in scoring.draws for draw in look])
        image_odds, mixtures["image"] = image_evidence(image.max(1), prompt_odds)
    from_image = image_odds > prompt_odds if captions else np.ones(count, dtype=bool)
    concept = np.where(from_image, np.nan_to_num(image, nan=-np.inf).argmax(1), along.argmax(1))
    pair_score = np.maximum(prompt_odds, image_odds)
    harm = expit(pair_score)
    above = options.harmful_above
    if known is not None and options.precision is not None:
        above = max(known_threshold(keys, harm, known, options.precision), options.clean_below)
    category_of = dict(zip(hgr.concepts, hgr.categories, strict=True))
    names = np.array(hgr.concepts, dtype=object)[concept]
    labels = pd.DataFrame(
        {
            "key": keys,
            "prompt_score": prompt_score,
            "guidance_score": read(["guidance_score"])[:, 0],
            "image_score": image.max(1),
            "pair_score": finite(pair_score).astype(np.float32),
            "evidence": np.where(from_image, "image", "prompt"),
            "concept": names,
            "category": [category_of[name] for name in names],
            **per_category("prompt_score", along, hgr),
            **per_category("image_score", image, hgr),
            "harm": harm.astype(np.float32),
            "label": label_of(harm, options.clean_below, above),
        }
    )
    facts = {
        "mixtures": {name: asdict(mixture) for name, mixture in mixtures.items()},
        "one_kind": all(mixture.one_kind for mixture in mixtures.values()),
        "calibration": {**asdict(options), "harmful_above": above},
    }
    return labels, facts


def image_evidence(score: Floats, prompt_odds: Array) -> tuple[Array, Mixture]:
    """Log-odds (N,) of the image score, -inf where there is none, and the mixture behind them.

    No logarithm here: the score is a sum of noise and evidence, in spreads of its noise.
    """
    scored = ~np.isnan(score)
    value = np.nan_to_num(score.astype(np.float64))
    silent = scored & (prompt_odds < 0)
    fitted = value[silent] if silent.sum() >= FEWEST else value[scored]
    if len(fitted) < FEWEST:  # next to every caption tells harm: there is nothing for pictures to add
        return np.full(len(score), -np.inf), Mixture((0.0,), (1.0,), (1.0,))
    mixture = fit_mixture(fitted, IMAGE_REACH, least_share=IMAGE_SHARE)
    return np.where(scored, mixture.log_odds(value), -np.inf), mixture


def known_threshold(keys: pd.Series, harm: Array, known: pd.Series, precision: float) -> float:
    """The harm from which on labels are as precise as wanted, by the pairs of known truth."""
    places = pd.Series(np.arange(len(keys)), index=keys.to_numpy())
    unknown = [key for key in known.index if key not in places.index]
    if unknown:
        raise ValueError(
            f"{len(unknown)} known labels are about keys that the pool lacks, such as {unknown[0]!r}; keys "
            "are those in part-00000.parquet"
        )
    rows = places[known.index].to_numpy()
    return threshold_for(harm[rows], known.to_numpy(dtype=bool), precision)


def finite(odds: Array) -> Array:
    """Log-odds without infinite ones, for files and figures."""
    return np.clip(odds, -1e4, 1e4)


def per_category(title: str, values: Floats, hgr: HGR) -> dict[str, Floats]:
    """Columns <title>_<category> (N,): the largest of the category's concepts."""
    members = {
        name: [k for k, category in enumerate(hgr.categories) if category == name]
        for name in sorted(set(hgr.categories))
    }
    return {f"{title}_{name}": values[:, columns].max(1) for name, columns in members.items()}
