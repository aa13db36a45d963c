"""Train TinySD's judge on rendered scenes (never on generated pictures) and measure it on fresh ones.

accelerate launch --config_file launch/cpu.yaml recipes/train_judge.py --config recipes/configs/tinysd_judge.yaml
"""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers.optimization import get_cosine_schedule_with_warmup
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from safetune.config import parse_config
from safetune.files import replace_folder
from safetune.precision import resolve_precision
from safetune.tinysd.judge import (
    CLASSES,
    Judge,
    augment,
    images_to_tensor,
    judge_images,
    save_judge,
    smear,
    truth_indices,
)
from safetune.tinysd.world import Scene, render, sample_scene, without_object

logger = logging.getLogger("train_judge")


@dataclass(frozen=True)
class JudgeConfig:
    output_dir: Path = Path("runs/judge")
    """Folder that receives the judge (output_dir/judge)."""
    seed: int = 7
    """Seed of scenes and augmentation; its renders share none with TinySD's training set."""
    steps: int = 2500
    """Optimizer steps."""
    batch_size: int = 64
    """Rendered scenes per step."""
    lr: float = 2e-3
    """Peak learning rate, warmed up and decayed by a cosine."""
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = "auto"
    """Precision of the passes; auto takes what the hardware is fast in."""
    faded: float = 0.25
    """Share of scenes whose object is faded, to 40% of its opacity at most: still that object."""
    smeared: float = 0.25
    """Share of scenes with a shapeless patch of colour in the place of the object: no object."""
    fresh: int = 2000
    """Fresh renders that the accuracy is measured on, without augmentation."""

    def __post_init__(self) -> None:
        if min(self.faded, self.smeared) < 0 or self.faded + self.smeared > 1:
            raise ValueError(
                f"faded {self.faded} and smeared {self.smeared}: give shares that are 1 at most together"
            )


def main() -> None:
    config = parse_config(JudgeConfig, __doc__ or "")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    accelerator = Accelerator(mixed_precision=resolve_precision(config.mixed_precision))
    set_seed(config.seed)
    judge = Judge()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=config.lr, weight_decay=1e-2)
    schedule = get_cosine_schedule_with_warmup(optimizer, 100, config.steps)
    judge, optimizer = accelerator.prepare(judge, optimizer)
    bar = tqdm(range(config.steps), desc="judge")
    for step in bar:
        scenes, images = training_batch(config, step)
        images = images.to(accelerator.device)
        with accelerator.autocast():
            logits = judge(images)
        truth = {head: index.to(accelerator.device) for head, index in truth_indices(scenes).items()}
        losses = {head: F.cross_entropy(logits[head].float(), truth[head]) for head in CLASSES}
        loss = torch.stack(list(losses.values())).sum()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(list(judge.parameters()), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 25 == 0:
            bar.set_postfix({head: f"{value.item():.3f}" for head, value in losses.items()})
    judge = accelerator.unwrap_model(judge).float().eval()
    accuracy = measure(judge, draw_scenes(config, 0, config.fresh), accelerator.device)
    facts = {"accuracy_on_fresh_renders": accuracy, "fresh_renders": config.fresh, "config": asdict(config)}
    with replace_folder(config.output_dir / "judge") as temporary:
        save_judge(
            judge.cpu(), temporary, {**facts, "config": {k: str(v) for k, v in asdict(config).items()}}
        )
    logger.info("judge written to %s; accuracy on fresh renders: %s", config.output_dir / "judge", accuracy)


def draw_scenes(config: JudgeConfig, step: int, count: int) -> list[Scene]:
    rng = np.random.default_rng([config.seed, 3, step])
    return [sample_scene(rng, harmful=i % 2 == 0) for i in range(count)]


def training_batch(config: JudgeConfig, step: int) -> tuple[list[Scene], Tensor]:
    """The step's scenes and their pictures, (B, 3, 64, 64) in [-1, 1]: whole, faded, or smeared, then augmented."""
    generator = torch.Generator().manual_seed(step)
    kind = torch.rand(config.batch_size, generator=generator)
    smeared, faded = kind < config.smeared, kind > 1 - config.faded
    scenes = [
        without_object(scene) if smeared[i] else scene
        for i, scene in enumerate(draw_scenes(config, 1 + step, config.batch_size))
    ]
    images = images_to_tensor([render(scene) for scene in scenes])
    images[smeared] = smear(images[smeared], generator)
    if faded.any():
        emptied = images_to_tensor([render(without_object(scenes[i])) for i in faded.nonzero()[:, 0]])
        opacity = 0.4 + 0.6 * torch.rand(len(emptied), 1, 1, 1, generator=generator)
        images[faded] = torch.lerp(emptied, images[faded], opacity)
    return scenes, augment(images, generator)


def measure(judge: Judge, scenes: list[Scene], device: torch.device) -> dict[str, float]:
    scores = judge_images(judge, images_to_tensor([render(scene) for scene in scenes]).to(device))
    truth = truth_indices(scenes)
    return {head: float((scores[head].argmax(1) == truth[head].numpy()).mean()) for head in CLASSES}


if __name__ == "__main__":
    main()
