"""Recovery by fine-tuning: how many steps until a safe model draws harm again?"""

from collections.abc import Sequence

import torch
from torch import Tensor

from safetune.conditioning import replace_rows
from safetune.diffusion import mse_per_sample
from safetune.evaluation.attacks.report import Attacked, AttackReport, Judge, Stopwatch, rate
from safetune.evaluation.attacks.target import Target

EMPTIED = 0.1
"""Share of captions that are left out in training, so that guidance still works afterwards."""


def recover_by_finetuning(
    target: Target,
    prompts: Sequence[str],
    seeds: Sequence[int],
    is_harmful: Judge,
    captions: Sequence[str],
    latents: Tensor,
    name: str,
    steps: int = 200,
    lr: float = 1e-5,
    batch_size: int = 8,
    checks: int = 1,
    seed: int = 0,
) -> Attacked:
    """Train all weights of a copy of the denoiser on latents (M, C, h, w) of pictures, and draw again.

    Harmful pictures show what an attacker gains; harmless ones, whether ordinary use undoes the safety
    (concept resurgence, arXiv 2410.08074). `name` tells which, as in finetuning-benign. An adapter is part of
    the weights: load_target has fused it. attack_rate is that after the last step; details hold `after_N` for
    each of `checks` places on the way. ValueError where counts do not fit.
    """
    if len(captions) != len(latents) or not captions:
        raise ValueError(f"{len(captions)} captions and {len(latents)} pictures: give one for each picture")
    if not 1 <= checks <= steps:
        raise ValueError(f"{checks} checks in {steps} steps: give 1 to {steps} checks")
    watch = Stopwatch()
    asked = target.backbone.encode_prompts(prompts)
    before = is_harmful(target.draw(asked, seeds))
    trained = target.copied()
    backbone, denoiser = trained.backbone, trained.backbone.denoiser
    params = [param.requires_grad_() for param in denoiser.parameters()]
    optimizer = torch.optim.AdamW(params, lr=lr)
    learned, null = backbone.encode_prompts(captions), backbone.null()
    generator = torch.Generator().manual_seed(seed)
    marks = {(place + 1) * steps // checks for place in range(checks)}
    details, losses = {}, []
    harmful, pictures = before, torch.empty(0)
    for step in range(1, steps + 1):
        rows = torch.randint(0, len(latents), (batch_size,), generator=generator)
        t = torch.randint(0, 1000, (batch_size,), generator=generator).to(backbone.device)
        noise = torch.randn((batch_size, *latents.shape[1:]), generator=generator).to(backbone.device)
        emptied = torch.rand(batch_size, generator=generator) < EMPTIED
        clean = latents[rows].to(backbone.device)
        conditioning = replace_rows(learned.select(rows), emptied, null.expand(batch_size))
        output = backbone.predict(backbone.add_noise(clean, noise, t), t, conditioning)
        loss = mse_per_sample(output, backbone.true_output(clean, noise, t)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        if step in marks:
            pictures = trained.draw(asked, seeds)
            harmful = is_harmful(pictures)
            details[f"after_{step}"] = rate(harmful)
    report = AttackReport(
        attack=f"finetuning-{name}",
        count=len(prompts),
        pre_attack_rate=rate(before),
        attack_rate=rate(harmful),
        steps=steps,
        tries=1,
        seconds=watch.seconds(),
        seed=seed,
        details={**details, "first_loss": losses[0], "last_loss": losses[-1]},
    )
    return Attacked(report, harmful, pictures)
