"""Pictures of fixed prompts and seeds as the student trains, beside the base's, and what the judge finds."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file, save_file
from torch import Tensor

from safetune.backbone import Backbone
from safetune.conditioning import Conditioning
from safetune.files import check_settings, fingerprint_of, write_json, write_text
from safetune.finetuning.alarms import without_dropout
from safetune.finetuning.best import Best, choose_best
from safetune.finetuning.judging import draws_tinysd, harm_found, judge_facts, judged_rates
from safetune.finetuning.prompts import ValidationPrompt
from safetune.finetuning.samples import write_grid
from safetune.runs import Metrics
from safetune.tinysd.judge import load_judge
from safetune.tinysd.world import IMAGE_SIZE


class Validator:
    """Draws prompts by plain CFG with the weights that the backbone's denoiser has by then, and judges them.

    Build it on every process while the text encoders are there and the denoiser is the base: it encodes the
    prompts, and draws the base's pictures or reads those that an earlier start left in folder/samples. Every
    process draws its share in equally many batches, so that a sharded denoiser is called in step. Nothing
    random is taken from the global generators. ValueError when `folder` holds pictures of other settings.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        backbone: Backbone,
        prompts: Sequence[ValidationPrompt],
        folder: Path,
        seed: int,
        resolution: int,
        steps: int,
        guidance_scale: float,
        batch_size: int,
        clean_floor: float,
    ) -> None:
        self.accelerator, self.backbone, self.prompts, self.folder = accelerator, backbone, prompts, folder
        self.batch_size, self.clean_floor = batch_size, clean_floor
        seeds = np.random.SeedSequence([seed, 0, 2]).generate_state(len(prompts))
        self.seeds = [int(number) for number in seeds]
        texts = [prompt.text for prompt in prompts]
        self.settings = {
            "base": backbone.fingerprint,
            "prompts": len(prompts),
            "prompts_sha256": hashlib.sha256("\n".join(texts).encode()).hexdigest(),
            "seeds": fingerprint_of(self.seeds),
            "resolution": resolution,
            "steps": steps,
            "guidance_scale": guidance_scale,
            "scheduler": type(backbone.pipeline.scheduler).__name__,
        }
        self.embeds = backbone.encode_prompts(texts).to(torch.device("cpu"))
        self.null = backbone.null().to(torch.device("cpu"))
        self.judge = load_judge() if resolution == IMAGE_SIZE and draws_tinysd(backbone) else None
        self.base = self._base_pictures()
        self.base_rates = self._rates(self.base)
        self.validations: list[dict[str, float]] = []
        self.lines: Metrics | None = None

    @property
    def best(self) -> Best:
        """The choice among the validations so far, the same on every process."""
        return choose_best(self.base_rates, self.validations, self.clean_floor)

    def resume(self, first_step: int) -> None:
        """Open validation.jsonl after `first_step` steps: lines up to there stay, later ones are dropped."""
        path = self.folder / "validation.jsonl"
        self.lines = Metrics(self.accelerator, path, first_step + 1, prefix="validation/")
        self.accelerator.wait_for_everyone()
        self.validations = [json.loads(line) for line in path.read_text().splitlines()][1:]
        self.accelerator.wait_for_everyone()
        if not path.stat().st_size:
            self.lines.write(0, self.base_rates)

    def validate(self, step: int) -> dict[str, float]:
        """Draw and judge after `step` steps; every process calls it and gets the same rates.

        harm_rate is of harmful prompts; clean_harm_rate, clean_subject, clean_place and clean_object of clean
        ones. harmful_change and clean_change, all there is without a judge, are the mean difference to the
        base's pictures, 0 to 1.
        """
        if self.lines is None:
            raise RuntimeError("call resume(first_step) before validate: it opens validation.jsonl")
        pictures = self._draw()
        rates = self._rates(pictures)
        self.lines.write(step, rates)
        self.validations.append({"step": step, **rates})
        if self.accelerator.is_main_process:
            self._write_grid(pictures, step)
        return rates

    def summary(self) -> dict[str, object]:
        """For run.json: what was drawn, who judged it, what the base had, what was chosen and why."""
        return {
            **self.settings,
            "judge": None if self.judge is None else judge_facts(),
            "base_rates": self.base_rates,
            "clean_floor": self.clean_floor,
            "best": asdict(self.best),
        }

    def _base_pictures(self) -> Tensor:
        """Pictures (N, 3, H, W) of the base, drawn at the first start of the run."""
        samples = self.folder / "samples"
        check_settings(samples / "samples.json", self.settings, "--output_dir")
        self.accelerator.wait_for_everyone()
        path = samples / "base.safetensors"
        if not path.is_file():
            pictures = self._draw()
            if self.accelerator.is_main_process:
                write_json(samples / "samples.json", self.settings)
                prompts = [{**asdict(p), "seed": s} for p, s in zip(self.prompts, self.seeds, strict=True)]
                write_text(samples / "prompts.jsonl", "".join(json.dumps(p) + "\n" for p in prompts))
                save_file({"pictures": pictures}, path.with_suffix(".tmp"))
                path.with_suffix(".tmp").replace(path)
        self.accelerator.wait_for_everyone()
        return load_file(path)["pictures"]

    @torch.no_grad()
    def _draw(self) -> Tensor:
        """Pictures (N, 3, H, W) uint8 on the CPU, of all processes in the prompts' order."""
        count, process = len(self.prompts), self.accelerator.process_index
        share = -(-count // self.accelerator.num_processes)
        # The last process fills its share up with the last prompt: all make the same number of calls.
        mine = [min(row, count - 1) for row in range(process * share, (process + 1) * share)]
        drawn = []
        with without_dropout(self.backbone.denoiser):
            for start in range(0, share, self.batch_size):
                pictures = self.backbone.decode(self._latents(mine[start : start + self.batch_size]))
                drawn.append(((pictures + 1) * 127.5).round().to(torch.uint8))
        gathered: Tensor = self.accelerator.gather(torch.cat(drawn))
        return gathered[:count].cpu().contiguous()

    def _latents(self, rows: list[int]) -> Tensor:
        """Latents (len(rows), C, h, w) that the pipeline draws by plain CFG."""
        device, side = self.backbone.device, self.settings["resolution"]
        prompts = self.embeds.select(torch.tensor(rows)).to(device)
        null = self.null.expand(len(rows)).to(device)
        with without_vae(self.backbone), self.accelerator.autocast():
            output = self.backbone.pipeline(
                **pipeline_embeds(prompts, null),
                height=side,
                width=side,
                num_inference_steps=self.settings["steps"],
                guidance_scale=self.settings["guidance_scale"],
                generator=[torch.Generator().manual_seed(self.seeds[row]) for row in rows],
                output_type="latent",
            )
        latents: Tensor = output.images
        return latents

    def _rates(self, pictures: Tensor) -> dict[str, float]:
        """The main process's rates, on every process: one decides, or they might keep different adapters."""
        rates = [judged_rates(pictures, self.base, self.prompts, self.judge)]
        broadcast_object_list(rates)
        return rates[0]

    def _write_grid(self, pictures: Tensor, step: int) -> None:
        harmful = torch.tensor([prompt.harmful for prompt in self.prompts])
        rows = []
        for kind, mask in (("harmful", harmful), ("clean", ~harmful)):
            for name, drawn in (("base", self.base[mask]), (f"step {step}", pictures[mask])):
                hidden = [kind == "harmful"] * len(drawn)
                if self.judge is not None:
                    hidden = harm_found(drawn, self.judge).tolist()
                rows.append((f"{kind}, {name}", drawn, hidden))
        write_grid(rows, self.folder / "samples" / f"step-{step:06d}" / "grid.png")


def pipeline_embeds(prompts: Conditioning, null: Conditioning) -> dict[str, Tensor]:
    """A pipeline's arguments in the place of prompts and negative prompts; both of B rows."""
    embeds = {"prompt_embeds": prompts.embeds, "negative_prompt_embeds": null.embeds}
    if prompts.pooled is None or null.pooled is None:
        return embeds
    return {
        **embeds,
        "pooled_prompt_embeds": prompts.pooled,
        "negative_pooled_prompt_embeds": null.pooled,
    }


@contextmanager
def without_vae(backbone: Backbone) -> Iterator[None]:
    """Within the block the pipeline draws latents on the denoiser's device, wherever its autoencoder lies."""
    vae = backbone.pipeline.vae
    backbone.pipeline.vae = None
    try:
        yield
    finally:
        backbone.pipeline.vae = vae
