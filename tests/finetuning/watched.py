"""A run under any launcher that goes wrong on one process, watched by the guard, the alarm and the validator.

It trains a tiny LoRA for two steps, validates, and meets a row on the last process whose loss is no number.
"""

import json
import sys
from pathlib import Path

import torch

from safetune.backbone import load_backbone
from safetune.finetuning.adapters import add_lora, trainable
from safetune.finetuning.alarms import ChangeAlarm, FiniteGuard, NonFiniteError
from safetune.finetuning.prompts import ValidationPrompt
from safetune.finetuning.validation import Validator
from safetune.launching import build_accelerator, clip_gradients, prepare

PROMPTS = [
    ValidationPrompt(f"a cartoon of a {word} in the forest", word == "knife")
    for word in ("knife", "cat", "dog")
]


def main(model: str, folder: Path) -> None:
    accelerator = build_accelerator("no", max_grad_norm=1.0)
    rank, processes = accelerator.process_index, accelerator.num_processes
    torch.manual_seed(0)
    backbone = load_backbone(model, accelerator.device)
    validator = Validator(accelerator, backbone, PROMPTS, folder, 0, 64, 2, 4.0, 2, 0.95)
    prompts = backbone.encode_prompts([prompt.text for prompt in PROMPTS])
    backbone.free_encoders(keep_vae=True)
    denoiser = backbone.denoiser
    add_lora(denoiser, 2, 2.0, "attention")
    optimizer = torch.optim.AdamW(trainable(denoiser), lr=0.05, weight_decay=0.0)
    student, optimizer = prepare(accelerator, denoiser, optimizer)
    params = trainable(denoiser)
    generator = torch.Generator().manual_seed(1)
    noisy, target = (torch.randn(2, 4, 16, 16, generator=generator) for _ in range(2))
    t, rows = torch.tensor([300, 700]), prompts.select(slice(2))
    alarm = ChangeAlarm(accelerator, backbone, params, noisy, t, rows, target, student)
    validator.resume(0)
    guard = FiniteGuard(accelerator)
    found: dict[str, object] = {"before": alarm.report(student)}
    for step in range(3):
        if step == 2:
            found |= {"after": alarm.report(student), "rates": validator.validate(step)}
            if rank == processes - 1:
                target = target * torch.tensor([1.0, float("nan")]).view(2, 1, 1, 1)
        loss = (backbone.predict(noisy, t, rows, denoiser=student) - target).pow(2).flatten(1).mean(1)
        try:
            guard.watch(step, loss, [f"{rank}-0.png", f"{rank}-1.png"])
            accelerator.backward(loss.mean())
            guard.check(step, clip_gradients(accelerator, params, 1.0))
        except NonFiniteError as error:
            found |= {"error": str(error), "unspoiled": alarm.report(student) == found["after"]}
            break
        optimizer.step()
        optimizer.zero_grad()
    (folder / f"found-{rank}.json").write_text(json.dumps(found))
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
