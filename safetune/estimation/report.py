"""What `safetune estimate` says: one estimate as text or as JSON, against common GPUs."""

from dataclasses import asdict

from safetune.estimation.estimate import ALLOWANCE, FRAGMENTS, Estimate

GPUS = (8, 12, 16, 24, 40, 48, 80)
"""GiB of common GPUs."""

TIGHT = 0.9
"""Share of a GPU's memory beyond which an estimate may be wrong about it."""


def verdict(peak: int, gigabytes: int) -> str:
    """Whether it fits, is tight (less than a tenth is left) or the GPU is too small."""
    share = peak / (gigabytes * 2**30)
    if share > 1:
        return "too small"
    return "tight" if share > TIGHT else "fits"


def as_json(found: Estimate) -> dict[str, object]:
    """The estimate, its peak and the verdicts; bytes throughout."""
    return {
        **asdict(found),
        "allocated": found.allocated,
        "peak": found.peak,
        "gpus": {str(size): verdict(found.peak, size) for size in GPUS},
    }


def as_text(found: Estimate) -> str:
    """The estimate as a page of lines."""
    counts, launch = found.parameters, found.launch
    others = sum(counts.values()) - counts["denoiser"] - counts["trained"]
    spread = f"{launch.processes} GPUs, {launch.mode}" if launch.processes > 1 else "1 GPU"
    highest = max(found.phases, key=lambda name: found.phases[name])
    lines = [
        f"{found.architecture} at {found.resolution} pixels, {found.precision} passes, {spread}"
        + (", offload to CPU memory" if launch.offload else ""),
        "",
        f"parameters  denoiser {millions(counts['denoiser'])}, trained {millions(counts['trained'])} "
        f"({counts['trained'] / counts['denoiser']:.2%}), text encoders and autoencoder {millions(others)}",
        "",
        "bytes by part, per GPU (not all there at once)",
        *table({name: size for name, size in found.parts.items() if size}),
        "",
        "peak of each phase, per GPU",
        *table(found.phases, marked=highest),
        "",
        f"expected peak per GPU: {gibibytes(found.peak)}, in {highest}, with {ALLOWANCE} GiB for CUDA and "
        f"{FRAGMENTS:.0%} for gaps",
        *(f"  {size:3d} GB  {verdict(found.peak, size)}" for size in GPUS),
    ]
    return "\n".join(lines)


def table(rows: dict[str, int], marked: str | None = None) -> list[str]:
    """Names and sizes in two columns; the marked row with an arrow."""
    width = max(map(len, rows)) + 2
    return [
        f"  {name:{width}}{gibibytes(size):>11}{'  <- highest' if name == marked else ''}"
        for name, size in rows.items()
    ]


def gibibytes(size: int) -> str:
    """A size for people: MiB below one GiB."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def millions(count: int) -> str:
    """A number of parameters for people."""
    return f"{count / 1e6:.2f} M"
