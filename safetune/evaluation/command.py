"""`safetune evaluate`: from options to methods, suite, preset and judges."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetune.backbone import load_backbone
from safetune.evaluation.baselines.concepts import read_concepts, tinysd_concepts
from safetune.evaluation.evaluate import evaluate
from safetune.evaluation.judging import TINYSD_PRESET, open_judging
from safetune.evaluation.methods import methods_of, read_methods
from safetune.evaluation.presets import PRESETS, Generation
from safetune.evaluation.sampling import SamplingOptions
from safetune.evaluation.suites import Suite, read_suite, tinysd_suite
from safetune.evaluation.suites.tinysd import CELLS
from safetune.finetuning.judging import draws_tinysd
from safetune.prompts.layouts import did_you_mean


def measure(
    out: Path,
    model: str = "tinysd",
    hgr: Path | None = None,
    adapter: Path | None = None,
    denoiser: Path | None = None,
    methods_file: Path | None = None,
    suite: str = "tinysd",
    prompts_file: Path | None = None,
    columns: Mapping[str, str] | None = None,
    cells: Sequence[str] = (),
    count: int = 64,
    concepts_file: Path | None = None,
    preset: str | None = None,
    q16_clip: str | None = None,
    judge_weights: Mapping[str, Path] | None = None,
    steps: int | None = None,
    guidance_scale: float | None = None,
    images_per_prompt: int | None = None,
) -> dict[str, Any]:
    """See evaluate. The preset is TinySD's where TinySD draws; pictures are drawn as it says, or as asked.

    ValueError for a model of another world without a preset, or with TinySD's.
    """
    methods = methods_of(hgr, adapter, denoiser)
    methods += read_methods(methods_file) if methods_file else []
    prompts, preset = chosen_suite(suite, prompts_file, columns, cells, count), preset or TINYSD_PRESET
    if preset == TINYSD_PRESET and not draws_tinysd(load_backbone(model)):
        others = ", ".join(name for name in PRESETS if name != TINYSD_PRESET)
        raise ValueError(
            f"TinySD's judge knows TinySD's pictures alone, not those of {model}: give --preset, "
            f"one of {others}"
        )
    judging = open_judging(preset, q16_clip, judge_weights)
    return evaluate(
        out,
        methods,
        model,
        prompts,
        judging,
        sampling_of(judging.preset.generation, steps, guidance_scale, images_per_prompt),
        concepts=read_concepts(concepts_file) if concepts_file else tinysd_concepts(),
    )


def sampling_of(
    wanted: Generation, steps: int | None, guidance_scale: float | None, images_per_prompt: int | None
) -> SamplingOptions:
    """What was asked for, else what the preset demands, else the defaults; seeds are a prompt's pictures."""
    usual = SamplingOptions()
    scales = (guidance_scale, wanted.guidance_scale, usual.guidance_scale)
    return SamplingOptions(
        steps or wanted.steps or usual.steps,
        next(scale for scale in scales if scale is not None),
        seeds=tuple(range(images_per_prompt or wanted.images_per_prompt)),
        scheduler=wanted.scheduler,
    )


def chosen_suite(
    name: str, file: Path | None, columns: Mapping[str, str] | None, cells: Sequence[str], count: int
) -> Suite:
    """TinySD's suite or the cells asked for, or one read from a file."""
    if name != "tinysd":
        return read_suite(name, file, columns, count)
    for cell in cells:
        if cell not in CELLS:
            raise ValueError(
                f"no cell {cell!r}{did_you_mean(cell, CELLS)}; allowed: {', '.join(CELLS)}, with commas"
            )
    return tinysd_suite(count, tuple(cells) or CELLS)
