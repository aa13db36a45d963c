"""Scores of pairs, spent where they are needed: which draws a pair gets, and in which batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from safetune.backbone import Backbone
from safetune.conditioning import Conditioning, shift, squared_norm
from safetune.diffusion import seeded_noise
from safetune.hgr import HGR
from safetune.labeling.scores import STATISTICS, draw_scores, guidance_distance, prompt_scores

Draw = tuple[int, int]
"""A timestep and the number of its noise."""
Columns = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class ScoreOptions:
    """How pairs are scored; flat and hashable, written to labels.json as it is."""

    exhaustive: bool = False
    """Every pair with every concept at all of `timesteps` times `noises` draws."""
    timesteps: tuple[int, ...] = (200, 300, 400, 600)
    """Training timesteps of the exhaustive form."""
    noises: int = 2
    """Noise draws per timestep of the exhaustive form; noise is shared by all pairs."""
    looks: tuple[tuple[int, ...], ...] = ((200,), (400,), (300, 600))
    """Timesteps of each look, one draw at each; the first is at all pairs whose caption tells no harm."""
    shares: tuple[float, ...] = (1.0, 0.5, 0.25)
    """Share of those pairs that each look is at: the ones with the highest scores so far."""
    told: float = 0.5
    """A caption tells harm when its redirection has this share of the median prototype's length."""
    window: float = 0.45
    """Side of the local window as a share of the latent's."""
    batch_size: int = 8
    """Pairs in one call of the denoiser, with 3 + concepts rows each."""
    seed: int = 0
    """Seed of the noise draws."""

    def __post_init__(self) -> None:
        if len(self.looks) != len(self.shares):
            raise ValueError(
                f"{len(self.looks)} looks and {len(self.shares)} shares: give one share for each"
            )

    @property
    def draws(self) -> tuple[tuple[Draw, ...], ...]:
        """Draws of each look; the exhaustive form has one look."""
        if self.exhaustive:
            return (tuple((t, n) for t in self.timesteps for n in range(self.noises)),)
        return tuple(tuple((t, 0) for t in look) for look in self.looks)


@dataclass(frozen=True)
class Batch:
    """Pairs to score: N captions, and latents (N, C, h, w) or None for prompts alone."""

    texts: Sequence[str]
    latents: Tensor | None


def reference_length(hgr: HGR) -> float:
    """Median length of the prototypes: what a redirection of a harmful prompt is measured by."""
    return float(squared_norm(hgr.prototype_delta()).sqrt().median())


def statistic_columns(hgr: HGR, draw: Draw) -> list[list[str]]:
    """Names of the columns of a draw: one list of K names per statistic."""
    t, n = draw
    return [[f"{statistic}_{t}_{n}_{concept}" for concept in hgr.concepts] for statistic in STATISTICS]


def first_look(
    backbone: Backbone, hgr: HGR, batch: Batch, options: ScoreOptions, told: bool = True
) -> Columns:
    """Columns of the first look: prompt_score, prompt_<concept>, guidance_score, statistics, evaluations.

    Scores that are not computed are NaN. With `told` False captions count as silent, as they do where only
    pictures are given.
    """
    prompts = backbone.encode_prompts(batch.texts)
    length, along = prompt_scores(hgr, prompts)
    score = length.cpu().numpy()
    columns: Columns = {"prompt_score": score}
    columns |= {f"prompt_{name}": along[:, k].cpu().numpy() for k, name in enumerate(hgr.concepts)}
    silent = np.ones(len(batch.texts), dtype=bool)
    if told and not options.exhaustive:
        silent = score < options.told * reference_length(hgr)
    scored = score_draws(backbone, hgr, batch, prompts, silent, options.draws[0], options)
    return columns | scored


def further_look(
    backbone: Backbone, hgr: HGR, batch: Batch, draws: Sequence[Draw], options: ScoreOptions
) -> Columns:
    """Columns of another look: the statistics of pairs that are undecided so far, and evaluations."""
    prompts = backbone.encode_prompts(batch.texts)
    everyone = np.ones(len(batch.texts), dtype=bool)
    columns = score_draws(backbone, hgr, batch, prompts, everyone, draws, options)
    del columns["guidance_score"]
    return columns


def score_draws(
    backbone: Backbone,
    hgr: HGR,
    batch: Batch,
    prompts: Conditioning,
    silent: NDArray[np.bool_],
    draws: Sequence[Draw],
    options: ScoreOptions,
) -> Columns:
    """guidance_score, the statistics of each draw for silent pairs (NaN for others), and evaluations (N,)."""
    count, concepts = len(batch.texts), len(hgr.concepts)
    guidance = np.full(count, np.nan, dtype=np.float32)
    evaluations = np.zeros(count, dtype=np.int32)
    statistics = {draw: np.full((count, len(STATISTICS), concepts), np.nan, np.float32) for draw in draws}
    if batch.latents is not None:
        guidance[:] = 0
        null = backbone.null()
        redirected, prototypes = hgr.redirect(prompts, null), shift(null, hgr.prototype_delta())
        latents = batch.latents
        window = max(1, round(options.window * latents.shape[-1]))
        for t, n in draws:
            noise = seeded_noise(tuple(latents.shape[1:]), [options.seed * 1009 + 31 * t + n])[0]
            for rows, padded in padded_rows(np.flatnonzero(silent), options.batch_size):
                distance, found = draw_scores(
                    backbone, latents[padded], prompts.select(padded), redirected.select(padded), prototypes,
                    null, t, noise, window, hgr.target_scale,
                )  # fmt: skip
                guidance[rows] += distance[: len(rows)].cpu().numpy() / len(draws)
                statistics[t, n][rows] = found[: len(rows)].cpu().numpy()
                evaluations[rows] += 3 + concepts
            # A told pair needs no statistics, so that more of them fit into a call of about as many rows.
            for rows, padded in padded_rows(np.flatnonzero(~silent), 4 * options.batch_size):
                distance = guidance_distance(
                    backbone, latents[padded], redirected.select(padded), null, t, noise
                )
                guidance[rows] += distance[: len(rows)].cpu().numpy() / len(draws)
                evaluations[rows] += 2
    columns: Columns = {"guidance_score": guidance, "evaluations": evaluations}
    for draw, values in statistics.items():
        for s, names in enumerate(statistic_columns(hgr, draw)):
            columns |= {name: values[:, s, k] for k, name in enumerate(names)}
    return columns


def padded_rows(rows: NDArray[np.intp], size: int) -> Iterator[tuple[NDArray[np.intp], Tensor]]:
    """Chunks of row numbers, and each chunk filled up to `size` with its last row.

    Matrix products of another height may round in another way: in full batches a score hangs on its pair
    alone.
    """
    for start in range(0, len(rows), size):
        chunk = rows[start : start + size]
        yield chunk, torch.from_numpy(np.pad(chunk, (0, size - len(chunk)), mode="edge"))


def encode_padded_images(backbone: Backbone, images: Tensor, size: int) -> Tensor:
    """Latents (B, C, h, w) in fp32 of B <= `size` pictures, always a full batch in one call."""
    count = len(images)
    filled = torch.cat([images, images[-1:].expand(size - count, *images.shape[1:])])
    return backbone.encode_images(filled)[:count].float()
