"""Tiny models with random weights, built by the real classes in a second."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from safetune.tinysd import architecture


def build_tiny_pipeline(folder: Path, seed: int = 0) -> Path:
    """A Stable Diffusion 1.x with TinySD's tokenizer and latents, but a UNet of 0.2 M random weights."""
    torch.manual_seed(seed)
    tokenizer = architecture.build_tokenizer(folder / "tokenizer-source")
    text_encoder = architecture.build_text_encoder(len(tokenizer))
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=2,
        norm_num_groups=8,
        cross_attention_dim=text_encoder.config.hidden_size,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=architecture.build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def build_tiny_sd2(folder: Path, seed: int = 0) -> Path:
    """A Stable Diffusion 2.x: v-prediction, linear projections, a tokenizer that pads with "!"."""
    torch.manual_seed(seed)
    tokenizer = padding_with_bang(folder)
    pipeline = StableDiffusionPipeline(
        vae=tiny_vae(),
        text_encoder=CLIPTextModel(clip_config(len(tokenizer), 32)),
        tokenizer=tokenizer,
        unet=tiny_unet(cross_attention_dim=32, use_linear_projection=True),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            steps_offset=1,
            prediction_type="v_prediction",
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def build_tiny_sdxl(folder: Path, seed: int = 0, force_zeros: bool = True) -> Path:
    """A Stable Diffusion XL: text widths 32 and 64, pooled width 48, its usual Euler scheduler."""
    torch.manual_seed(seed)
    tokenizer = architecture.build_tokenizer(folder / "tokenizer-source")
    tokenizer_2 = padding_with_bang(folder)
    unet = tiny_unet(
        cross_attention_dim=32 + 64,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 48,
    )
    pipeline = StableDiffusionXLPipeline(
        vae=tiny_vae(),
        text_encoder=CLIPTextModel(clip_config(len(tokenizer), 32)),
        text_encoder_2=CLIPTextModelWithProjection(clip_config(len(tokenizer), 64, projection=48)),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=unet,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        ),
        force_zeros_for_empty_prompt=force_zeros,
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def build_tiny_sd3(folder: Path, seed: int = 0, with_t5: bool = True) -> Path:
    """A Stable Diffusion 3.5: text widths 32 and 64 filled up to 112, pooled width 80, shift 3."""
    torch.manual_seed(seed)
    tokenizer = architecture.build_tokenizer(folder / "tokenizer-source")
    tokenizer_3 = tiny_t5_tokenizer() if with_t5 else None
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=112,
        pooled_projection_dim=32 + 48,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
    )
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny_vae(
            scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False
        ),
        text_encoder=CLIPTextModelWithProjection(clip_config(len(tokenizer), 32, projection=32)),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(clip_config(len(tokenizer), 64, projection=48)),
        tokenizer_2=padding_with_bang(folder),
        text_encoder_3=T5EncoderModel(t5_config(len(tokenizer_3))) if tokenizer_3 else None,
        tokenizer_3=tokenizer_3,
    )
    pipeline.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def tiny_unet(**options: object) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=(2, 4),
        norm_num_groups=8,
        **options,
    )


def tiny_vae(**options: object) -> AutoencoderKL:
    """Autoencoder 64x64x3 to 16x16x4 of 20 k weights."""
    return AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
        **options,
    )


def clip_config(vocabulary: int, width: int, projection: int = 32) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=projection,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=architecture.MAX_TOKENS,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )


def t5_config(vocabulary: int) -> T5Config:
    return T5Config(vocab_size=vocabulary, d_model=112, d_kv=16, d_ff=64, num_layers=2, num_heads=4)


def padding_with_bang(folder: Path) -> CLIPTokenizer:
    """TinySD's tokenizer, but padded with "!" as OpenCLIP's are."""
    source = folder / "bang-source"
    tokenizer = architecture.build_tokenizer(source)
    return CLIPTokenizer(
        vocab=str(source / "vocab.json"),
        merges=str(source / "merges.txt"),
        model_max_length=tokenizer.model_max_length,
        pad_token="!",
    )


def tiny_t5_tokenizer() -> T5Tokenizer:
    """A T5 tokenizer whose pieces are the world's words and single letters."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    words = [f"▁{word}" for word in architecture.world_words()]
    return T5Tokenizer(
        vocab=[(piece, -float(rank)) for rank, piece in enumerate([*pieces, *words])], extra_ids=0
    )
