"""Options of recipes/finetune.py, which `safetune estimate` reads too."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Method = Literal["lora", "dora", "full"]
Targets = Literal["cross-attention", "self-attention", "attention", "linear", "linear+conv"]
Optimizer = Literal["adamw", "adamw8bit", "paged_adamw", "paged_adamw8bit"]


@dataclass(frozen=True)
class FinetuneConfig:
    """Data, method, objective, memory and trust of one fine-tuning run."""

    data: str
    """Labelled pairs: image folder with metadata.jsonl, folder of parquet files or tars, or hub name. Of
    prompts alone (`safetune label --kind prompts`) the labels are read, and SafeCFG draws the pictures."""
    hgr: Path
    """Folder of the redirector that wrote the labels."""
    labels: Path | None = None
    """Folder of labels; data/labels by default."""
    cache: Path | None = None
    """Folder that `safetune cache` wrote for this data: its latents and embeddings are read, not computed."""
    model: str = "tinysd"
    """Base model: "tinysd", a folder in diffusers layout, a .safetensors file, or a hub name."""
    variant: str | None = None
    """Infix of the weight files, such as fp16."""
    output_dir: Path = Path("runs/finetune")
    """Run folder; the result is written to output_dir/adapter, or output_dir/denoiser for method full."""
    resolution: int | None = None
    """Pictures are scaled and cut to this many pixels a side; the model's own by default."""
    buckets: bool = False
    """Keep each picture's aspect ratio, near resolution squared pixels in all, as SDXL was trained."""

    method: Method = "lora"
    """lora, dora (LoRA with learned magnitudes) or full (all weights of the denoiser)."""
    rank: int = 16
    """Rank of the LoRA."""
    alpha: float = 16.0
    """LoRA alpha: the update is scaled by alpha / rank."""
    dropout: float = 0.0
    """Dropout before the LoRA."""
    targets: Targets = "attention"
    """Group of modules that get a LoRA."""

    steps: int = 600
    """Optimizer steps."""
    batch_size: int = 16
    """Pairs per process and pass. A step's pairs (batch_size x accumulation x processes) are half harmful,
    half clean by pseudo-label."""
    accumulation: int = 1
    """Passes whose gradients make one step."""
    lr: float = 1e-3
    """Peak learning rate, warmed up over 5% of the steps and decayed by a cosine."""
    optimizer: Optimizer = "adamw"
    """The others are bitsandbytes': states in 8 bits, or paged to CPU memory."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""

    guidance_scale: float = 5.0
    """Guidance scale w that the student will be sampled with; sets the default of eta."""
    eta: float | None = None
    """Strength of the redirection; (w-1)/w reproduces SafeCFG, more unlearns harder."""
    clean_weight: float = 2.0
    """Weight of the error on clean pairs."""
    uncertain_weight: float = 0.0
    """Weight of pairs labelled uncertain, which learn by their harm in [0, 1]; 0 leaves them out."""
    balance_concepts: bool = True
    """Draw harmful pairs so that each concept is seen as often as the others, however rare in the data."""
    empty_prompts: float = 0.1
    """Share of clean rows whose prompt is emptied, which keeps the unconditional branch."""
    safe_pictures: float = 0.7
    """Share of harmful prompts that stand beside a picture that SafeCFG draws for them: where the student's
    sampling will lead. Beside their own pictures alone it would learn to see harm, not to leave it out."""
    picture_steps: int = 20
    """Denoising steps of those pictures."""
    prompt_noise: float = 0.5
    """Noise on prompt embeddings, up to this many standard deviations: what is unlearned then reaches beyond
    the very words of the data."""
    min_timestep: int = 100
    """Smallest timestep that is drawn: below it there is next to no content left to decide."""
    max_timestep: int = 999
    """Largest timestep that is drawn."""
    timestep_sampling: Literal["uniform", "logit-normal"] = "uniform"
    """Uniform, or more from the middle as SD 3 was trained."""
    weighting: Literal["signal", "min-snr", "none"] = "signal"
    """Loss weight of a timestep: 1 / a_t, so that noisy timesteps count too; or min-SNR, arXiv 2303.09556."""
    weight_cap: float = 50.0
    """Largest weight of `signal`."""
    snr_gamma: float = 5.0
    """Gamma of `min-snr`."""

    cache_targets: int = 0
    """Draws (timestep, noise) per pair whose teacher targets are computed once and kept on disk; a step is
    then one forward and one backward pass. 0 asks the teacher at every step."""
    teacher: Literal["auto", "adapters-off", "copy"] = "auto"
    """Frozen base: the same weights with adapters off, or for method full a copy in half precision."""
    quantization: Literal["none", "4bit", "8bit"] = "none"
    """Bits of the frozen base's linear layers (bitsandbytes), for lora and dora."""
    gradient_checkpointing: bool = False
    """Compute activations again on the way back: less memory, a third more time."""
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = "auto"
    """Precision of the passes; auto takes the launch file's, or what the hardware is fast in."""
    base_dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Precision that the frozen base is held in; auto takes that of the passes on a GPU, float32 on a CPU."""

    seed: int = 0
    """Seed of weights, order, timesteps and noise."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """Newest checkpoints that stay."""
    validate_every: int = 0
    """Steps between validations, pictures of fixed prompts judged where there is a judge; 0 for none."""
    validation_prompts: Path | None = None
    """JSON lines of prompts (text, harmful); the data's own captions by default."""
    validation_count: int = 16
    """Prompts of each kind, harmful and clean, that are drawn."""
    clean_floor: float = 0.95
    """Best checkpoint: the lowest harm rate among those whose clean rates keep this share of the base's."""
    tracker: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    """Where metrics go besides metrics.jsonl."""
    dry_run: bool = False
    """Two steps, a checkpoint and a validation, in a folder of its own: does it fit, does it run?"""

    def __post_init__(self) -> None:
        """ValueError that names every mistake."""
        mistakes = []
        if self.guidance_scale <= 1:
            mistakes.append(
                f"guidance_scale {self.guidance_scale}: give more than 1, there is no guidance below"
            )
        if not 0 <= self.min_timestep <= self.max_timestep <= 999:
            mistakes.append(f"timesteps {self.min_timestep} to {self.max_timestep}: give some of 0 to 999")
        for name in ("rank", "steps", "batch_size", "accumulation", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                mistakes.append(f"{name} {getattr(self, name)}: give 1 or more")
        for name in ("dropout", "uncertain_weight", "empty_prompts", "safe_pictures", "clean_floor"):
            if not 0 <= getattr(self, name) <= 1:
                mistakes.append(f"{name} {getattr(self, name)}: give 0 to 1")
        if mistakes:
            raise ValueError("; ".join(mistakes))
