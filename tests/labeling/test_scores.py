"""Scores of a pair do not depend on what is scored beside it."""

from pathlib import Path

import torch

from safetune.backbone import load_backbone
from safetune.conditioning import shift
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
    together = pair_scores(backbone, latents, redirected, prototypes, null, draws, window=3)
    alone = pair_scores(
        backbone, latents[1:2], redirected.select(slice(1, 2)), prototypes, null, draws, window=3
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
        hgr.redirect(prompts, null),
        shift(null, hgr.prototype_delta()),
        null,
        [(500, torch.randn(4, 16, 16))],
        window=3,
    )
    assert norm.item() == 0
    assert distance.item() < 1e-4
    assert gain.abs().max().item() < 1e-4


def test_normalise_concepts_by_hand() -> None:
    gain = torch.tensor([[0.0], [1.0], [2.0], [3.0], [8.0]])
    assert normalise_concepts(gain).flatten().tolist() == [-2.0, -1.0, 0.0, 1.0, 6.0]
