"""One draw of pairs as the denoiser sees it, and what the frozen teacher says to it."""

from dataclasses import dataclass

from torch import Tensor, nn

from safetune.backbone import Backbone
from safetune.conditioning import Conditioning, jitter, replace_rows, shift
from safetune.diffusion import seeded_noise
from safetune.finetuning.draws import Draw
from safetune.finetuning.objective import teacher_targets
from safetune.finetuning.pairs import TrainingPairs
from safetune.hgr import HGR


@dataclass(frozen=True)
class Inputs:
    """B rows on the denoiser's device."""

    noisy: Tensor
    """Noised latents (B, C, h, w)."""
    timesteps: Tensor
    """(B,)."""
    prompts: Conditioning
    harm: Tensor
    """(B,) in [0, 1]; 0 for clean pairs."""
    time_ids: Tensor | None
    """SDXL's sizes (B, 6), where pictures keep their aspect ratio."""


class Lessons:
    """From draws of training pairs to inputs and teacher targets, which hang on nothing but the draw."""

    def __init__(
        self,
        backbone: Backbone,
        hgr: HGR,
        pairs: TrainingPairs,
        null: Conditioning,
        eta: float,
        prompt_noise: float,
    ) -> None:
        self.backbone, self.hgr, self.pairs, self.null = backbone, hgr, pairs, null
        self.eta, self.prompt_noise = eta, prompt_noise
        self.prototypes = shift(null, hgr.prototype_delta())
        self.spread = pairs.prompts.spread().to(backbone.device)

    def inputs(self, draw: Draw) -> Inputs:
        """Pictures noised, prompts with noise of their own, some of them emptied."""
        device, pairs = self.backbone.device, self.pairs
        clean = pairs.latents.read(draw.pictures).to(device)
        timesteps = draw.timesteps.to(device)
        noise = seeded_noise(tuple(clean.shape[1:]), draw.seeds).to(clean)
        prompts = jitter(pairs.prompts.read(draw.rows).to(device), self.spread, self.prompt_noise, draw.seeds)
        return Inputs(
            self.backbone.add_noise(clean, noise, timesteps),
            timesteps,
            replace_rows(prompts, draw.emptied, self.null.expand(len(draw.rows))),
            pairs.harm[draw.rows].to(device),
            None if pairs.sizes is None else pairs.sizes[draw.pictures].to(device),
        )

    def targets(self, draw: Draw, inputs: Inputs, denoiser: nn.Module | None = None) -> Tensor:
        """Teacher targets (B, C, h, w); the base is `denoiser`, or the backbone's own.

        A harmful picture under a benign caption is led away from its concept's prototype.
        """
        redirected = self.hgr.redirect(inputs.prompts, self.null)
        by_concept = self.prototypes.select(self.pairs.concept[draw.rows].to(self.backbone.device))
        redirected = replace_rows(redirected, self.pairs.by_image[draw.rows], by_concept)
        return teacher_targets(
            self.backbone,
            inputs.noisy,
            inputs.timesteps,
            inputs.prompts,
            redirected,
            self.null,
            inputs.harm,
            self.eta,
            denoiser,
            inputs.time_ids,
        )
