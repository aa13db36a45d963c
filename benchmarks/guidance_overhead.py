"""What SafeCFG costs over plain CFG: four kinds of guidance, in turn, in one run.

    python benchmarks/guidance_overhead.py --rounds 7 --json overhead.json
    python benchmarks/guidance_overhead.py --sd15   # adds one UNet step of Stable Diffusion 1.5 size

The peers: a negative prompt, and a third denoiser pass as Safe Latent Diffusion (arXiv 2211.05105) takes it.
Ratios are medians of the pairs of a round, so that a machine whose speed drifts does not bend them.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from safetune.backbone.loading import TINYSD_DIR
from safetune.files import write_json
from safetune.guidance import disable_safecfg, enable_safecfg
from safetune.hgr import HGR
from safetune.hgr.model import SIZES

PROMPTS = ["a cartoon of a cat holding a knife in the forest", "a cartoon of a dog on the beach"]
KINDS = ("cfg", "safecfg", "negative_prompt", "sld")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7, help="rounds, after one that is not counted")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps per picture")
    parser.add_argument("--sd15", action="store_true", help="also one step of a UNet of SD 1.5's size")
    parser.add_argument("--json", type=Path, help="file that receives seconds and ratios")
    args = parser.parse_args()
    results = {"tinysd": measure_tinysd(args.rounds, args.steps)}
    if args.sd15:
        results["sd15_step"] = measure_sd15_step(max(2, args.rounds // 3))
    print(json.dumps(results, indent=1))
    if args.json:
        write_json(args.json, results)


def measure_tinysd(rounds: int, steps: int) -> dict[str, float]:
    """Seconds per picture and ratios on TinySD, with the number of denoiser calls of each kind."""
    pipeline = StableDiffusionPipeline.from_pretrained(TINYSD_DIR, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    width, tokens = pipeline.text_encoder.config.hidden_size, pipeline.tokenizer.model_max_length
    hgr = HGR(width, tokens).eval()
    calls = CallCounter(pipeline.unet)

    def draw(negative_prompt: list[str] | None = None) -> None:
        pipeline(PROMPTS, negative_prompt=negative_prompt, num_inference_steps=steps, output_type="latent")

    def safecfg() -> None:
        enable_safecfg(pipeline, hgr)
        draw()
        disable_safecfg(pipeline)

    def sld() -> None:
        third = ThirdPass(pipeline)
        draw()
        third.remove()

    kinds: dict[str, Callable[[], None]] = {
        "cfg": draw,
        "safecfg": safecfg,
        "negative_prompt": lambda: draw(["knife, bomb, cigarette, skull"] * len(PROMPTS)),
        "sld": sld,
    }
    counted = {}
    for name, run in kinds.items():
        calls.count = 0
        run()
        counted[f"{name}_calls_per_step"] = calls.count / steps
    seconds = in_turn(kinds, rounds)
    return {**ratios(seconds, len(PROMPTS)), **counted}


class CallCounter:
    """Counts rows of the denoiser in units of the prompt batch: 2 for classifier-free guidance."""

    def __init__(self, unet: nn.Module) -> None:
        self.count = 0.0
        unet.register_forward_hook(self.add)

    def add(self, module: nn.Module, args: tuple[Tensor, ...], output: object) -> None:
        self.count += len(args[0]) / len(PROMPTS)


class ThirdPass:
    """Safe Latent Diffusion's extra pass: the denoiser once more, on the harm concept's prompt."""

    def __init__(self, pipeline: StableDiffusionPipeline) -> None:
        self.unet, self.busy = pipeline.unet, False
        self.concept = pipeline.encode_prompt("a knife", "cpu", len(PROMPTS), False)[0]
        self.handle = pipeline.unet.register_forward_hook(self.again, with_kwargs=True)

    def again(self, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict, output: object) -> None:
        if not self.busy:
            self.busy = True
            latents = args[0][: len(PROMPTS)]
            self.unet(latents, args[1], encoder_hidden_states=self.concept, return_dict=False)
            self.busy = False

    def remove(self) -> None:
        self.handle.remove()


def measure_sd15_step(rounds: int) -> dict[str, float]:
    """The same on one guided step of a UNet with SD 1.5's sizes and random weights."""
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768).eval()
    hgr = HGR(768, 77, *SIZES["base"]).eval()
    latents, timestep = torch.randn(2, 4, 64, 64), torch.tensor(500)
    embeds, concept = torch.randn(2, 77, 768), torch.randn(1, 77, 768)

    @torch.no_grad()
    def step(redirect: bool = False, third: bool = False) -> None:
        given = embeds
        if redirect:
            given = torch.cat([embeds[:1] + hgr(embeds[1:])[0], embeds[1:]])
        unet(latents, timestep, encoder_hidden_states=given)
        if third:
            unet(latents[:1], timestep, encoder_hidden_states=concept)

    kinds: dict[str, Callable[[], None]] = {
        "cfg": step,
        "safecfg": lambda: step(redirect=True),
        "negative_prompt": step,
        "sld": lambda: step(third=True),
    }
    return ratios(in_turn(kinds, rounds), 1)


def in_turn(kinds: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each kind, one after the other in every round; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(rounds + 1):
        for name, run in kinds.items():
            started = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratios(seconds: dict[str, list[float]], pictures: int) -> dict[str, float]:
    """Median seconds per picture and median ratios to plain CFG."""
    found = {f"{name}_seconds": statistics.median(values) / pictures for name, values in seconds.items()}
    for name in KINDS[1:]:
        pairs = zip(seconds[name], seconds["cfg"], strict=True)
        found[f"{name}_over_cfg"] = statistics.median(mine / plain for mine, plain in pairs)
    return found


if __name__ == "__main__":
    main()
