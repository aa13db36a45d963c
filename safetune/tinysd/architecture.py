"""The parts of TinySD, a Stable Diffusion 1.x in miniature, and the tokenizer of its small world."""

import json
from pathlib import Path

from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from safetune.tinysd.vocabulary import OBJECTS, PLACES, STYLES, SUBJECTS, TEMPLATES

MAX_TOKENS = 24
TEXT_WIDTH = 128


def build_vae() -> AutoencoderKL:
    """Autoencoder 64x64x3 to 16x16x4 (4 times smaller each way)."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        sample_size=64,
        block_out_channels=(32, 64, 96),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=16,
        mid_block_add_attention=False,
    )


def build_unet() -> UNet2DConditionModel:
    """Epsilon-predicting UNet on 16x16x4 latents, cross-attention at every resolution."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 128, 160),
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        layers_per_block=1,
        attention_head_dim=4,
        norm_num_groups=16,
        cross_attention_dim=TEXT_WIDTH,
    )


def build_text_encoder(vocab_size: int) -> CLIPTextModel:
    """CLIP text encoder, three layers of width 128; token ids follow CLIPTokenizer's order of specials."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocab_size,
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=TEXT_WIDTH,
            bos_token_id=vocab_size - 2,
            eos_token_id=vocab_size - 1,
            pad_token_id=vocab_size - 1,
        )
    )


def build_scheduler() -> DDIMScheduler:
    """DDIM over Stable Diffusion's scaled-linear betas, steps spaced from the noisy end."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )


def world_words() -> list[str]:
    """Every word that a caption of the world can hold, sorted."""
    names = (name for thing in (*SUBJECTS, *OBJECTS, *PLACES, *STYLES) for name in thing.names)
    templates = (template for group in TEMPLATES.values() for template in group)
    text = " ".join([*names, *templates, "an"])
    for mark in "{s} {o} {p} {d} : ,".split():
        text = text.replace(mark, " ")
    return sorted(set(text.split()))


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Train a byte-level BPE in CLIP's form until every word of the world is one token; write and load it.

    Writes vocab.json and merges.txt into `folder`. Any other text falls back to smaller pieces.
    """
    words = world_words()
    bpe = Tokenizer(BPE(end_of_word_suffix="</w>"))
    alphabet = sorted(ByteLevel.alphabet())
    bpe.train_from_iterator(
        [[word] for word in words],
        BpeTrainer(
            vocab_size=10_000, end_of_word_suffix="</w>", initial_alphabet=alphabet, show_progress=False
        ),
    )
    model = json.loads(bpe.to_str())["model"]
    vocab = alphabet + [symbol + "</w>" for symbol in alphabet]
    vocab += ["".join(merge) for merge in model["merges"] if "".join(merge) not in vocab]
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocab)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, model["merges"])]) + "\n")
    return CLIPTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=MAX_TOKENS
    )
