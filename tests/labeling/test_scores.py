"""Scores of a pair do not depend on what is scored beside it."""

from pathlib import Path

import pytest
import torch

from safetune.backbone import load_backbone
from safetune.conditioning import Conditioning, shift
from safetune.diffusion import seeded_noise
from safetune.hgr import HGR
from safetune.labeling.scores import normalise_concepts, pair_scores, prompt_scores


def build_hgr(fingerprint: str = "") -> HGR:
    torch.manual_seed(0)
    concepts, categories = ["knife", "bomb"], ["weapons", "explosives"]
    hgr = HGR(128, 24, width=32, base_fingerprint=fingerprint, concepts=concepts, categories=categories)
    torch.nn.init.normal_(hgr.project_out.weight, std=0.1)
    hgr.prototypes.normal_()
    return hgr.eval().requires_grad_(False)


def test_scores_of_a_pair_are_its_own(tiny_pipeline: Path) -> None:
    backbone, hgr = load_backbone(tiny_pipeline), build_hgr()
    prompts, null = backbone.encode_prompts(["a cat with a knife", "a dog", "a fox"]), backbone.null()
    latents = torch.randn(3, 4, 16, 16)
    draws = [(t, seeded_noise((4, 16, 16), [t])[0]) for t in (300, 600)]
    redirected, prototypes = hgr.redirect(prompts, null), shift(null, hgr.prototype_delta())
    together = pair_scores(backbone, latents, prompts, redirected, prototypes, null, draws, 3, 1.5)
    one = slice(1, 2)
    alone = pair_scores(
        backbone, latents[one], prompts.select(one), redirected.select(one), prototypes, null, draws, 3, 1.5
    )
    torch.testing.assert_close(together[0][1:2], alone[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together[1][1:2], alone[1], rtol=1e-4, atol=1e-5)
    assert together[1].shape == (3, 2)


def test_untrained_redirector_scores_nothing(tiny_pipeline: Path) -> None:
    backbone = load_backbone(tiny_pipeline)
    hgr = HGR(128, 24, width=32, concepts=["knife"], categories=["weapons"]).eval()
    prompts, null = backbone.encode_prompts(["a cat"]), backbone.null()
    norm, _ = prompt_scores(hgr, prompts)
    distance, gain = pair_scores(
        backbone,
        torch.randn(1, 4, 16, 16),
        prompts,
        hgr.redirect(prompts, null),
        shift(null, hgr.prototype_delta()),
        null,
        [(500, torch.randn(4, 16, 16))],
        window=3,
        target_scale=1.0,
    )
    assert norm.item() == 0
    assert distance.item() < 1e-4
    assert gain.abs().max().item() < 1e-4


class Denoiser:
    """Stands in for a backbone: the output of a row is what its embedding says, pixel by pixel."""

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return latents + noise

    def true_output(self, latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return latents

    def predict(self, noisy: torch.Tensor, t: torch.Tensor, rows: Conditioning) -> torch.Tensor:
        return rows.embeds.view_as(noisy)


def test_harm_beyond_the_caption_is_what_counts() -> None:
    """Latents hold a subject (pixel 0) and perhaps harm (pixel 3); outputs are given, so gains are exact."""
    subject, harm = torch.tensor([1.0, 0, 0, 0]), torch.tensor([0, 0, 0, 1.0])
    null, scale = torch.zeros(1, 1, 4), 2.0
    latents = torch.stack([subject + harm, subject, subject + harm]).view(3, 1, 2, 2)
    captions = torch.stack([subject, subject, subject + harm]).view(3, 1, 4)
    redirected = torch.stack([0 * harm, 0 * harm, harm]).view(3, 1, 4)
    distance, gain = pair_scores(
        Denoiser(),  # type: ignore[arg-type]
        latents,
        Conditioning(captions),
        Conditioning(redirected),
        Conditioning(scale * harm.view(1, 1, 4)),
        Conditioning(null),
        [(0, torch.zeros(1, 2, 2))],
        window=2,
        target_scale=scale,
    )
    assert distance.tolist() == [0.0, 0.0, 1.0]
    # Hidden harm and told harm are explained alike; a clean picture gets worse by it.
    assert gain[0, 0] == gain[2, 0] == pytest.approx(1.0)
    assert gain[1, 0] < 0


def test_normalise_concepts_by_hand() -> None:
    gain = torch.tensor([[0.0], [1.0], [2.0], [3.0], [8.0]])
    assert normalise_concepts(gain).flatten().tolist() == [-2.0, -1.0, 0.0, 1.0, 6.0]
