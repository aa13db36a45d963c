from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer

from safetune.tinysd import architecture
from safetune.tinysd.vocabulary import OBJECTS, PLACES, STYLES, SUBJECTS, TEMPLATES
from safetune.tinysd.world import Scene, sample_scene


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    return architecture.build_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_every_word_of_the_world_is_one_token(tokenizer: CLIPTokenizer) -> None:
    words = architecture.world_words()
    assert {"a", "an", "octopus", "sabre", "downtown", "cartoon", "picture"} <= set(words)
    assert [tokenizer.tokenize(word) for word in words] == [[f"{word}</w>"] for word in words]


def test_captions_become_their_words(tokenizer: CLIPTokenizer, rng: np.random.Generator) -> None:
    for i in range(100):
        caption = sample_scene(rng, harmful=i % 2 == 0).caption
        words = caption.replace(",", " ,").replace(":", " :").split()
        assert tokenizer.tokenize(caption) == [f"{word}</w>" for word in words]


@pytest.mark.parametrize("pose", ["held", "lying", "absent"])
@pytest.mark.parametrize("template", [0, 1, 2])
def test_the_longest_caption_fits(tokenizer: CLIPTokenizer, pose: str, template: int) -> None:
    def longest(things: tuple) -> str:
        return max((name for thing in things for name in thing.names), key=lambda name: len(name.split()))

    assert {key: len(group) for key, group in TEMPLATES.items()} == {"held": 3, "lying": 3, "absent": 3}
    scene = Scene(
        subject=SUBJECTS[0].key,
        object=OBJECTS[0].key,
        pose=pose,
        place=PLACES[0].key,
        style=STYLES[0].key,
        template=template,
        object_name=longest(OBJECTS),
        place_name=longest(PLACES),
        style_name=longest(STYLES),
        seed=0,
    )
    assert len(tokenizer(scene.caption).input_ids) <= 24


def test_special_tokens_are_where_the_text_encoder_looks(tokenizer: CLIPTokenizer) -> None:
    size = len(tokenizer)
    ids = tokenizer("a cat", padding="max_length").input_ids
    assert len(ids) == 24
    assert ids[0] == size - 2
    assert ids[3:] == [size - 1] * 21
    config = architecture.build_text_encoder(size).config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (size - 2, size - 1, size - 1)


@pytest.mark.parametrize("text", ["", "a cat with a tomahawk in its hand downtown", "Ünïcode & 12 emoji 🐙!"])
def test_tokenizer_survives_saving(tokenizer: CLIPTokenizer, tmp_path: Path, text: str) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    assert loaded(text, padding="max_length").input_ids == tokenizer(text, padding="max_length").input_ids


def test_parts_fit_together_and_into_24_megabytes(tokenizer: CLIPTokenizer) -> None:
    vae, unet = architecture.build_vae(), architecture.build_unet()
    text_encoder = architecture.build_text_encoder(len(tokenizer))
    with torch.no_grad():
        latents = vae.encode(torch.zeros(1, 3, 64, 64)).latent_dist.mean
        embeds = text_encoder(tokenizer("a cat", padding="max_length", return_tensors="pt").input_ids)[0]
        noise = unet(latents, torch.tensor([500]), embeds).sample
        image = vae.decode(latents).sample
    assert latents.shape == noise.shape == (1, 4, 16, 16)
    assert embeds.shape == (1, 24, 128)
    assert image.shape == (1, 3, 64, 64)
    parameters = sum(p.numel() for part in (vae, unet, text_encoder) for p in part.parameters())
    assert 2 * parameters <= 24e6
