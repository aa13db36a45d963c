"""Scores of a pair do not depend on what is scored beside it."""

from pathlib import Path

import pytest
import torch

from safetune.backbone import load_backbone
from safetune.conditioning import Conditioning, shift
from safetune.diffusion import seeded_noise
from safetune.hgr import HGR
from safetune.labeling.scores import draw_scores, guidance_distance, normalise_concepts, prompt_scores


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
    latents, noise = torch.randn(3, 4, 16, 16), seeded_noise((4, 16, 16), [7])[0]
    redirected, prototypes = hgr.redirect(prompts, null), shift(null, hgr.prototype_delta())
    one = slice(1, 2)
    together = draw_scores(backbone, latents, prompts, redirected, prototypes, null, 300, noise, 3, 1.5)
    parts = (latents[one], prompts.select(one), redirected.select(one))
    alone = draw_scores(backbone, *parts, prototypes, null, 300, noise, 3, 1.5)
    for values, single in zip(together, alone, strict=True):
        torch.testing.assert_close(values[1:2], single, rtol=1e-4, atol=1e-5)
    assert together[1].shape == (3, 2, 2)
    distance = guidance_distance(backbone, latents, redirected, null, 300, noise)
    torch.testing.assert_close(distance, together[0], rtol=1e-4, atol=1e-5)


def test_untrained_redirector_scores_nothing(tiny_pipeline: Path) -> None:
    backbone = load_backbone(tiny_pipeline)
    hgr = HGR(128, 24, width=32, concepts=["knife"], categories=["weapons"]).eval()
    prompts, null = backbone.encode_prompts(["a cat"]), backbone.null()
    norm, along = prompt_scores(hgr, prompts)
    distance, statistics = draw_scores(
        backbone,
        torch.randn(1, 4, 16, 16),
        prompts,
        hgr.redirect(prompts, null),
        shift(null, hgr.prototype_delta()),
        null,
        500,
        torch.randn(4, 16, 16),
        window=3,
        target_scale=1.0,
    )
    assert norm.item() == 0
    assert along.tolist() == [[0.0]]
    assert distance.item() < 1e-4
    assert statistics.abs().max().item() < 1e-4


class Denoiser:
    """Stands in for a backbone: the output of a row is what its embedding says, pixel by pixel."""

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return latents + noise

    def true_output(self, latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return latents

    def predict(self, noisy: torch.Tensor, t: torch.Tensor, rows: Conditioning) -> torch.Tensor:
        return rows.embeds.view_as(noisy)


def test_harm_beyond_the_caption_is_what_counts() -> None:
    """Latents hold a subject (pixel 0) and perhaps harm (pixel 3); outputs are given, so scores are exact."""
    subject, harm = torch.tensor([1.0, 0, 0, 0]), torch.tensor([0, 0, 0, 1.0])
    null, scale = torch.zeros(1, 1, 4), 2.0
    latents = torch.stack([subject + harm, subject + 0.5 * harm, subject + harm]).view(3, 1, 2, 2)
    captions = torch.stack([subject, subject, subject + harm]).view(3, 1, 4)
    redirected = torch.stack([0 * harm, 0 * harm, harm]).view(3, 1, 4)
    distance, statistics = draw_scores(
        Denoiser(),  # type: ignore[arg-type]
        latents,
        Conditioning(captions),
        Conditioning(redirected),
        Conditioning(scale * harm.view(1, 1, 4)),
        Conditioning(null),
        0,
        torch.zeros(1, 2, 2),
        window=2,
        target_scale=scale,
    )
    assert distance.tolist() == [0.0, 0.0, 1.0]
    # Hidden and told harm are explained alike: all of the error goes, in the only window and over all.
    # Of harm half as strong the concept explains as much as it adds.
    local, whole = statistics[:, :, 0].T.tolist()
    assert local == pytest.approx([1.0, 0.0, 1.0])
    assert whole == pytest.approx([1.0, 0.0, 1.0])


def test_normalise_concepts_by_hand() -> None:
    reference = torch.tensor([[0.0], [1.0], [2.0], [3.0], [8.0]])
    assert normalise_concepts(reference, reference).flatten().tolist() == [-2.0, -1.0, 0.0, 1.0, 6.0]
    assert normalise_concepts(torch.tensor([[4.0]]), reference).item() == 2.0
