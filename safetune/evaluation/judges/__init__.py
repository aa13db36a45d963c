"""Judges of pictures: every one gives raw scores, which presets count by their thresholds and classes."""

from safetune.evaluation.judges.base import (
    ClassScores,
    Detection,
    Detections,
    Judge,
    Scores,
    join_scores,
    pick_scores,
)
from safetune.evaluation.judges.features import Features, open_features
from safetune.evaluation.judges.opening import JUDGES, open_judge
from safetune.evaluation.judges.storage import read_scores, score_frame, write_scores

__all__ = [
    "JUDGES",
    "ClassScores",
    "Detection",
    "Detections",
    "Features",
    "Judge",
    "Scores",
    "join_scores",
    "open_features",
    "open_judge",
    "pick_scores",
    "read_scores",
    "score_frame",
    "write_scores",
]
