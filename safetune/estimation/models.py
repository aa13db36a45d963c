"""The models of a run on the meta device, and what their passes hold."""

from pathlib import Path

import torch
from huggingface_hub.constants import SAFETENSORS_SINGLE_FILE
from torch import nn

from safetune.backbone.sdxl import StableDiffusionXLBackbone
from safetune.backbone.stable_diffusion import StableDiffusionBackbone
from safetune.estimation.architectures import T5_TOKENS, Architecture
from safetune.estimation.passes import student_bytes, teacher_bytes, text_bytes, vae_bytes
from safetune.estimation.sharing import dequantized_bytes, weight_bytes
from safetune.finetuning.adapters import add_lora
from safetune.finetuning.config import FinetuneConfig
from safetune.finetuning.plan import Launch
from safetune.hgr.model import HGR, SIZES
from safetune.precision import use_plain_backward


class Passes:
    """The denoiser of a run on the meta device, and what its passes hold."""

    def __init__(
        self,
        architecture: Architecture,
        resolution: int,
        config: FinetuneConfig,
        launch: Launch,
        passes: torch.dtype,
        base_dtype: torch.dtype,
        on_cuda: bool,
    ) -> None:
        self.architecture, self.config, self.launch = architecture, config, launch
        self.passes, self.base_dtype, self.on_cuda = passes, base_dtype, on_cuda
        self.latent, self.tokens = architecture.latent_shape(resolution), architecture.tokens
        self.base = architecture.build(architecture.denoiser_part, base_dtype)
        self.dequantized = dequantized_bytes(self.base, config.quantization, passes)
        # DeepSpeed turns autocast off.
        self.autocast = None if passes == torch.float32 or launch.is_zero else passes
        self._asked: dict[tuple[int, bool], int] = {}

    def student(self, in_passes: bool) -> nn.Module:
        """A denoiser with what is trained; `in_passes` as the passes see it where processes share weights."""
        config = self.config
        denoiser = self.architecture.build(self.architecture.denoiser_part, self.base_dtype)
        if config.method == "full":
            denoiser.requires_grad_(True)
        else:
            is_dora = config.method == "dora"
            add_lora(denoiser, config.rank, config.alpha, config.targets, config.dropout, is_dora)
        if in_passes and (self.launch.is_zero or self.launch.mode == "fsdp2"):
            nn.Module.to(denoiser, self.passes)
        if not self.on_cuda:
            use_plain_backward(denoiser, torch.device("cpu"))
        return denoiser.train()

    def activations(self, gradients_held: bool = True) -> int:
        """Peak of the student's pass, without gradients or with those that come."""
        checkpointing = self.config.gradient_checkpointing
        return self.dequantized + student_bytes(
            self.student(in_passes=True),
            self.config.batch_size,
            self.latent,
            self.tokens,
            self.autocast,
            self.on_cuda,
            checkpointing,
            gradients_held,
        )

    def asked(self, rows: int, of_copy: bool = False) -> int:
        """Peak of a pass of so many rows without gradient: of the base, or its copy in the passes' dtype."""
        if (rows, of_copy) not in self._asked:
            asked = self.base
            if of_copy:
                asked = self.architecture.build(self.architecture.denoiser_part, self.passes)
            found = teacher_bytes(asked, rows, self.latent, self.tokens, self.autocast, self.on_cuda)
            self._asked[rows, of_copy] = self.dequantized + found
        return self._asked[rows, of_copy]


def encoding_bytes(architecture: Architecture, encoders: dict[str, nn.Module], resolution: int) -> int:
    """Peak of encoding pictures or prompts, whichever takes more."""
    small = architecture.family == "stable-diffusion"
    rows = StableDiffusionBackbone.prompts_at_once if small else StableDiffusionXLBackbone.prompts_at_once
    found = [vae_bytes(encoders["vae"], resolution, decoding=False)]
    for part in architecture.encoder_parts:
        is_t5 = "d_model" in architecture.parts[part]
        tokens = T5_TOKENS if is_t5 else int(architecture.parts["text_encoder"]["max_position_embeddings"])
        found.append(text_bytes(encoders[part], rows, tokens))
    return max(found)


def redirector_bytes(folder: Path, architecture: Architecture) -> int:
    """Bytes of the redirector in that folder, or of one of size `base` where there is none yet."""
    file = folder / SAFETENSORS_SINGLE_FILE
    if file.is_file():
        return file.stat().st_size
    denoiser = architecture.parts[architecture.denoiser_part]
    text_width = denoiser.get("joint_attention_dim") or denoiser["cross_attention_dim"]
    width, layers, heads = SIZES["base"]
    with torch.device("meta"):
        return weight_bytes(HGR(text_width, architecture.tokens, width, layers, heads), "none")


def count_of(module: nn.Module) -> int:
    """Parameters of a module."""
    return sum(param.numel() for param in module.parameters())
