"""Parameters and bytes of a fine-tuning run, phase by phase, from its options and its model's configs."""

from dataclasses import dataclass, replace
from math import ceil

from torch import nn

from safetune.estimation.architectures import Architecture
from safetune.estimation.models import Passes, count_of, encoding_bytes, redirector_bytes
from safetune.estimation.passes import vae_bytes
from safetune.estimation.sharing import Resident, share, weight_bytes
from safetune.finetuning.adapters import trainable
from safetune.finetuning.config import FinetuneConfig
from safetune.finetuning.plan import Launch, check_plan
from safetune.precision import PASSES, held_dtype

ALLOWANCE = 0.75
"""GiB beside what PyTorch allocates, assumed: CUDA's context, and workspaces of its libraries."""

FRAGMENTS = 0.05
"""Share of the peak that is lost between allocations, assumed."""


@dataclass(frozen=True)
class Estimate:
    """What one run takes; bytes are those of one GPU."""

    architecture: str
    launch: Launch
    precision: str
    """Of the passes, by accelerate's name."""
    resolution: int
    parameters: dict[str, int]
    """Of the denoiser, of what is trained, and of each part that only encodes."""
    parts: dict[str, int]
    """Bytes by part. They are not all there at once: see `phases`."""
    phases: dict[str, int]
    """Peak of each phase of the run."""

    @property
    def allocated(self) -> int:
        """Peak of what PyTorch allocates."""
        return max(self.phases.values())

    @property
    def peak(self) -> int:
        """Expected peak on the GPU, with what is assumed for CUDA itself and for gaps."""
        return int(self.allocated * (1 + FRAGMENTS) + ALLOWANCE * 2**30)


def estimate(
    config: FinetuneConfig, architecture: Architecture, launch: Launch, on_cuda: bool = True
) -> Estimate:
    """Memory of recipes/finetune.py with these options; no weights are read and none are downloaded.

    Passes are counted on the meta device. Where nothing names their precision, it is bf16 on GPUs.
    ValueError for options that do not go together.
    """
    check_plan(config, launch, architecture.family)
    precision = config.mixed_precision if launch.mixed_precision == "no" else launch.mixed_precision
    if precision == "auto":
        precision = "bf16" if on_cuda else "no"
    passes, full = PASSES[precision], config.method == "full"
    base_dtype = held_dtype(config.base_dtype, passes, on_cuda, full)
    resolution = config.resolution or architecture.resolution
    counted = Passes(architecture, resolution, config, launch, passes, base_dtype, on_cuda)
    student = counted.student(in_passes=False)
    resident = share(
        student,
        launch,
        quantization=config.quantization,
        optimizer=config.optimizer,
        passes=passes,
    )
    copy = full and not config.cache_targets
    base = weight_bytes(counted.base, config.quantization)
    redirector = redirector_bytes(config.hgr, architecture)
    encoders = {part: architecture.build(part, base_dtype) for part in (*architecture.encoder_parts, "vae")}
    parts = {
        "weights": resident.weights,
        "gradients": resident.gradients,
        "optimizer states": resident.optimizer,
        "buffers of sharing": resident.buffers,
        "activations": counted.activations(),
        "teacher's copy": count_of(counted.base) * passes.itemsize if copy else 0,
        "teacher's pass": counted.asked(teacher_rows(config), of_copy=copy),
        "redirector": redirector,
        "text encoders": sum(weight_bytes(encoders[part], "none") for part in architecture.encoder_parts),
        "autoencoder": weight_bytes(encoders["vae"], "none"),
        "encoding": encoding_bytes(architecture, encoders, resolution),
    }
    trained = sum(param.numel() for param in trainable(student))
    parameters = {"denoiser": count_of(counted.base), "trained": trained}
    parameters |= {part: count_of(module) for part, module in encoders.items()}
    phases = phases_of(config, parts, resident, counted, base, encoders["vae"])
    return Estimate(architecture.name, launch, precision, resolution, parameters, parts, phases)


def phases_of(
    config: FinetuneConfig,
    parts: dict[str, int],
    resident: Resident,
    counted: Passes,
    base: int,
    vae: nn.Module,
) -> dict[str, int]:
    """Peak of each phase, in the order of the recipe; a GPU holds the whole base until it is shared."""
    held, redirector = parts["teacher's copy"], parts["redirector"]
    drawing = counted.asked(2 * config.batch_size)
    encoders = parts["text encoders"] + parts["autoencoder"]
    phases = {"encoding": base + redirector + encoders + parts["encoding"]}
    if config.safe_pictures:
        phases["drawing safe pictures"] = base + redirector + encoders + drawing
    if config.cache_targets:
        phases["caching targets"] = base + redirector + parts["teacher's pass"]
    elif held:
        phases["copying the teacher"] = 2 * base + redirector
    fixed = resident.weights + resident.optimizer + resident.buffers + held + redirector
    lasting = resident.gradients
    student = parts["activations"] + lasting
    if counted.launch.mode == "single" and config.accumulation == 1:
        lasting = 0  # no gradient lies there from an earlier pass: they come as activations go
        if config.method == "full":
            student = counted.activations(gradients_held=False)
    asked = 0 if config.cache_targets else parts["teacher's pass"] + lasting
    phases["training"] = fixed + max(student, asked, resident.gradients + resident.stepping)
    if config.validate_every:
        decoding = vae_bytes(vae, counted.latent[1] * counted.architecture.factor, decoding=True)
        phases["validation"] = fixed + max(drawing, parts["autoencoder"] + decoding)
    return phases


def teacher_rows(config: FinetuneConfig) -> int:
    """Rows of the largest pass of the frozen base, in which a harmful pair takes three.

    A pass is half harmful, but those whose targets are cached are four times as large and of any pairs.
    """
    if config.cache_targets:
        return 3 * 4 * config.batch_size
    return config.batch_size + 2 * ceil(config.batch_size / 2)


def with_processes(launch: Launch, processes: int | None) -> Launch:
    """The launch on so many GPUs; ValueError for fewer than one."""
    if processes is None:
        return launch
    if processes < 1:
        raise ValueError(f"--gpus {processes}: give 1 or more")
    if launch.mode in ("single", "ddp"):
        return replace(launch, mode="ddp" if processes > 1 else "single", processes=processes)
    return replace(launch, processes=processes)
