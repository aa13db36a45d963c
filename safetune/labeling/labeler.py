"""Label a pool of prompt-image pairs: score shard by shard, calibrate over the whole, write parquet."""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from scipy.special import expit
from tqdm.auto import tqdm

from safetune.backbone import Backbone
from safetune.conditioning import shift
from safetune.diffusion import seeded_noise
from safetune.files import write_json
from safetune.hgr import HGR
from safetune.labeling.calibration import FEWEST, Mixture, fit_mixture, label_of
from safetune.labeling.scores import normalise_concepts, pair_scores, prompt_scores
from safetune.pairs import image_tensor
from safetune.runs import versions

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelOptions:
    """How pairs are scored and split; flat and hashable, written to labels.json as it is."""

    text_column: str = "text"
    resolution: int = 64
    timesteps: tuple[int, ...] = (200, 350)
    """Training timesteps at which a pair is noised."""
    noises: int = 2
    """Noise draws per timestep, shared by all pairs."""
    window: int = 7
    """Side, in latent pixels, of the local window of image_score."""
    clean_below: float = 0.4
    """Pairs with harm at or below are labelled clean."""
    harmful_above: float = 0.6
    """Pairs with harm at or above are labelled harmful; those between are uncertain."""
    shard_size: int = 128
    """Pairs per shard: what an interrupted run may lose."""
    batch_size: int = 8
    """Pairs scored in one call of the denoiser; each takes 3 + concepts rows."""
    seed: int = 0
    """Seed of the noise draws."""


def label_pairs(
    backbone: Backbone, hgr: HGR, dataset: Dataset, folder: Path, options: LabelOptions
) -> pd.DataFrame:
    """Score and label every pair; returns the labels, also written to `folder` as parquet and labels.json.

    Shards whose scores are there are not computed again. Raises ValueError when `folder` holds scores of
    another model, HGR, data set or setting.
    """
    hgr.check_base(backbone.fingerprint)
    facts = {
        "base_fingerprint": backbone.fingerprint,
        "data_fingerprint": dataset._fingerprint,
        "hgr_prototypes": float(hgr.prototypes.double().pow(2).sum()),
        "options": asdict(options) | {"timesteps": list(options.timesteps)},
    }
    claim_folder(folder, facts)
    shards = range(0, len(dataset), options.shard_size)
    frames = []
    with tqdm(total=len(dataset), desc="label", unit="pair") as bar:
        for number, start in enumerate(shards):
            rows = range(start, min(start + options.shard_size, len(dataset)))
            path = folder / "scores" / f"part-{number:05d}.parquet"
            if not path.is_file():
                frame = score_shard(backbone, hgr, dataset.select(rows), rows, options)
                write_parquet(frame, path)
            frames.append(pd.read_parquet(path))
            bar.update(len(rows))
    scores = pd.concat(frames, ignore_index=True)
    labels, mixtures = calibrate(scores, hgr, options)
    for number, start in enumerate(shards):
        write_parquet(labels.iloc[start : start + options.shard_size], folder / f"part-{number:05d}.parquet")
    summary = {
        "pairs": len(labels),
        "labels": {name: int((labels.label == name).sum()) for name in ("clean", "uncertain", "harmful")},
        "mixtures": {name: asdict(mixture) for name, mixture in mixtures.items()},
        "one_kind": all(mixture.one_kind for mixture in mixtures.values()),
    }
    if summary["one_kind"]:
        logger.warning("the pool holds one kind of pair only: all are labelled clean, none was split off")
    write_json(folder / "labels.json", {**facts, **summary, "versions": versions()})
    return labels


def claim_folder(folder: Path, facts: dict[str, object]) -> None:
    """Write what the scores depend on, or check it against what an interrupted run wrote."""
    path = folder / "scores" / "scores.json"
    if path.is_file() and json.loads(path.read_text()) != json.loads(json.dumps(facts)):
        raise ValueError(
            f"{folder} holds scores of another model, HGR, data set or setting; remove it or give another "
            "--out"
        )
    write_json(path, facts)


def score_shard(
    backbone: Backbone, hgr: HGR, shard: Dataset, keys: range, options: LabelOptions
) -> pd.DataFrame:
    """Raw scores of a shard: key, text, prompt_score, prompt_concept, guidance_score, gain_<concept>."""
    texts = shard[options.text_column]
    prompts, null = backbone.encode_prompts(texts), backbone.null()
    latents = backbone.encode_images(image_tensor(shard, options.resolution)).float()
    prompt_score, prompt_concept = prompt_scores(hgr, prompts)
    redirected, prototypes = hgr.redirect(prompts, null), shift(null, hgr.prototype_delta())
    draws = [
        (t, seeded_noise(tuple(latents.shape[1:]), [options.seed * 1009 + 31 * t + n])[0])
        for t in options.timesteps
        for n in range(options.noises)
    ]
    guidance, gains = [], []
    for start in range(0, len(latents), options.batch_size):
        rows = slice(start, start + options.batch_size)
        one, many = pair_scores(
            backbone,
            latents[rows],
            prompts.select(rows),
            redirected.select(rows),
            prototypes,
            null,
            draws,
            options.window,
            hgr.target_scale,
        )
        guidance.append(one.cpu())
        gains.append(many.cpu())
    gain = torch.cat(gains).numpy()
    return pd.DataFrame(
        {
            "key": list(keys),
            "text": texts,
            "prompt_score": prompt_score.cpu().numpy(),
            "prompt_concept": [hgr.concepts[i] for i in prompt_concept.tolist()],
            "guidance_score": torch.cat(guidance).numpy(),
            **{f"gain_{name}": gain[:, k] for k, name in enumerate(hgr.concepts)},
        }
    )


def calibrate(
    scores: pd.DataFrame, hgr: HGR, options: LabelOptions
) -> tuple[pd.DataFrame, dict[str, Mixture]]:
    """Harm of each pair: the larger evidence of prompt and image, each from its own mixture.

    The image's mixture is fitted where the prompt is silent: there it decides, and harm that no caption tells
    scores lower than harm that one does.
    """
    gain = torch.tensor(scores[[f"gain_{name}" for name in hgr.concepts]].to_numpy())
    normal = normalise_concepts(gain)
    image_score, image_concept = normal.max(1).values.numpy(), normal.argmax(1).numpy()
    prompt_value = np.log(scores.prompt_score.to_numpy(dtype=np.float64) + 1e-6)
    image_value = np.log1p(np.maximum(image_score, 0))
    prompt_mixture = fit_mixture(prompt_value)
    prompt_odds = prompt_mixture.log_odds(prompt_value)
    silent = prompt_odds < 0
    image_mixture = fit_mixture(image_value[silent] if silent.sum() >= FEWEST else image_value)
    image_odds = image_mixture.log_odds(image_value)
    from_image = image_odds > prompt_odds
    pair_score = np.maximum(prompt_odds, image_odds)
    harm = expit(pair_score)
    image_names = np.array(hgr.concepts)[image_concept]
    concept = np.where(from_image, image_names, scores.prompt_concept)
    category_of = dict(zip(hgr.concepts, hgr.categories, strict=True))
    labels = pd.DataFrame(
        {
            "key": scores.key,
            "text": scores.text,
            "prompt_score": scores.prompt_score,
            "guidance_score": scores.guidance_score,
            "image_score": image_score,
            "pair_score": pair_score,
            "evidence": np.where(from_image, "image", "prompt"),
            "concept": concept,
            "category": [category_of[name] for name in concept],
            "harm": harm,
            "label": label_of(harm, options.clean_below, options.harmful_above),
        }
    )
    return labels, {"prompt": prompt_mixture, "image": image_mixture}


def write_parquet(frame: pd.DataFrame, path: Path) -> None:
    """Write a parquet file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    frame.to_parquet(temporary, index=False)
    temporary.replace(path)


def read_labels(folder: Path) -> pd.DataFrame:
    """All label shards of a folder, in order; ValueError when there are none."""
    parts = sorted(folder.glob("part-*.parquet"))
    if not parts or not (folder / "labels.json").is_file():
        raise ValueError(f"{folder} holds no finished labels: run `safetune label DATA --hgr DIR` first")
    return pd.concat([pd.read_parquet(part) for part in parts], ignore_index=True)
