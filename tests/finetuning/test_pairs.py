"""What labels and pictures say, row by row: encoded once, or read from what `safetune cache` wrote."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from safetune.backbone import Backbone, load_backbone
from safetune.backbone.frozen import FrozenPipeline
from safetune.data.encodings import PAIRS_FILE, TensorStore, encoder_of, prompt_tensors
from safetune.data.shards import stacked_rows
from safetune.files import write_json, write_parquet
from safetune.finetuning.pairs import TrainingPairs, training_pairs
from safetune.pairs import image_tensor, load_pairs, open_pairs
from tests.finetuning.pools import ALONE, CAPTIONS, CONCEPTS, write_labelled

Build = Callable[..., TrainingPairs]


@pytest.fixture(scope="module")
def backbone(tiny_pipeline: Path) -> Backbone:
    return load_backbone(tiny_pipeline)


@pytest.fixture
def labels(tmp_path: Path) -> pd.DataFrame:
    return write_labelled(tmp_path / "pool")


@pytest.fixture
def build(tmp_path: Path, backbone: Backbone, labels: pd.DataFrame) -> Build:
    """A function that reads the training pairs of the pool, with other arguments or labels."""

    def call(
        labels: pd.DataFrame = labels, resolution: int = 64, run: str = "run", **options: object
    ) -> TrainingPairs:
        source = open_pairs(tmp_path / "pool", kind="images")
        arguments = (ALONE, backbone, source, labels, CONCEPTS, tmp_path / run, resolution)
        return training_pairs(*arguments, **options)

    return call


def test_what_the_labels_say(build: Build) -> None:
    pairs = build()
    assert pairs.captions == CAPTIONS and pairs.keys[5] == "000005.png"
    assert pairs.harm.tolist() == pytest.approx([0.9, 0.0, 0.8, 0.0, 0.7, 0.55])
    assert pairs.weight.tolist() == [1.0, 1.0, 1.0, 1.0, 1.0, 0.0]
    assert pairs.harmful.tolist() == [0, 2, 4] and pairs.clean.tolist() == [1, 3]
    assert pairs.by_image.tolist() == [False, False, False, False, True, False]
    assert pairs.concept.tolist() == [0, 0, 1, 1, 1, 0]
    assert pairs.safe.tolist() == [-1] * 6 and pairs.sizes is None and pairs.bucket is None


@pytest.mark.parametrize(("harm", "side"), [(0.55, "harmful"), (0.45, "clean")])
def test_uncertain_pairs_join_the_side_they_lean_to(
    harm: float, side: str, build: Build, labels: pd.DataFrame
) -> None:
    pairs = build(labels.assign(harm=[*labels.harm[:5], harm]), uncertain_weight=0.3)
    assert pairs.weight[5].item() == pytest.approx(0.3) and pairs.harm[5].item() == pytest.approx(harm)
    assert 5 in getattr(pairs, side) and len(pairs.harmful) + len(pairs.clean) == 6


@pytest.mark.parametrize("name", ["tiny_pipeline", "tiny_sdxl", "tiny_sd3"])
def test_encodings_are_those_of_the_backbone(
    name: str, labels: pd.DataFrame, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    backbone = load_backbone(request.getfixturevalue(name))
    source = open_pairs(tmp_path / "pool", kind="images")
    pairs = training_pairs(ALONE, backbone, source, labels, CONCEPTS, tmp_path / "run", 64)
    close = {"atol": 1e-5, "rtol": 1e-5}  # other batches are rounded otherwise
    latents = backbone.encode_images(image_tensor(load_pairs(tmp_path / "pool"), 64))
    torch.testing.assert_close(pairs.latents.read([4, 0]), latents[[4, 0]], **close)
    expected, read = backbone.encode_prompts(CAPTIONS), pairs.prompts.read(torch.tensor([5, 1, 4]))
    torch.testing.assert_close(read.embeds, expected.embeds[[5, 1, 4]], **close)
    assert (read.pooled is None) == (expected.pooled is None)
    spread = pairs.prompts.spread()
    torch.testing.assert_close(spread.embeds, expected.embeds.flatten(0, 1).std(0), **close)
    if expected.pooled is not None:
        torch.testing.assert_close(read.pooled, expected.pooled[[5, 1, 4]], **close)
        torch.testing.assert_close(spread.pooled, expected.pooled.std(0), **close)


def test_encoded_once(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two equal captions are one encoding, and a second run encodes nothing."""
    told: list[str] = []
    encode = FrozenPipeline.encode_prompts
    monkeypatch.setattr(FrozenPipeline, "encode_prompts", lambda self, x: told.extend(x) or encode(self, x))
    first = build()
    assert told == ["a cat with a knife", "a cat", "a dog with a bomb", "a dog", "a fox in the city"]
    monkeypatch.setattr(FrozenPipeline, "encode_prompts", None)
    monkeypatch.setattr(FrozenPipeline, "encode_images", None)
    again = build()
    assert torch.equal(again.latents.read(range(6)), first.latents.read(range(6)))
    assert again.fingerprint == first.fingerprint


def test_a_review_encodes_nothing_but_changes_the_fingerprint(
    build: Build, labels: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = build()
    monkeypatch.setattr(FrozenPipeline, "encode_images", None)
    after = build(labels.assign(label=["clean", *labels.label[1:]], harm=[0.0, *labels.harm[1:]]))
    assert after.clean.tolist() == [0, 1, 3] and after.fingerprint != before.fingerprint


def test_other_settings_in_the_same_folder(build: Build) -> None:
    build()
    with pytest.raises(ValueError, match="Give another --output_dir"):
        build(resolution=32)


@pytest.mark.parametrize("gone", [[3], range(6)])
def test_pictures_that_are_gone_or_cannot_be_read(gone: list[int], build: Build, tmp_path: Path) -> None:
    """The whole pool is a batch without a single picture."""
    for number in gone:
        (tmp_path / "pool" / f"{number:06d}.png").write_bytes(b"no picture")
    (tmp_path / "pool" / "000005.png").unlink()
    with pytest.raises(ValueError, match=rf"{len({*gone, 5})} of 6 labelled pictures are not there any more"):
        build()


def test_labels_of_pictures_alone(build: Build, labels: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="labels are of pictures without captions"):
        build(labels.assign(text=""))


def test_safe_pictures_follow_the_own_ones(build: Build, tmp_path: Path) -> None:
    drawn = torch.stack([torch.full((4, 16, 16), float(number)) for number in range(2)])
    save_file({"latents": drawn}, tmp_path / "part-00000.safetensors")
    before = build()
    pairs = before.with_safe_pictures(np.array([0, 2]), stacked_rows([tmp_path / "part-00000.safetensors"]))
    assert pairs.safe.tolist() == [6, -1, 7, -1, -1, -1] and len(pairs.latents) == 8
    assert torch.equal(pairs.latents.read([7, 6]), drawn[[1, 0]])
    assert torch.equal(pairs.latents.read(range(6)), before.latents.read(range(6)))
    assert before.safe.tolist() == [-1] * 6 and before.latents.shape(5) == (4, 16, 16)


def test_buckets(backbone: Backbone, labels: pd.DataFrame, tmp_path: Path) -> None:
    """Of 128 pixels: 64 x 256 to 256 x 64. SIZES go to 128 x 128, 64 x 256 (twice) and so on."""
    source = open_pairs(tmp_path / "pool", kind="images")
    pairs = training_pairs(ALONE, backbone, source, labels, CONCEPTS, tmp_path / "run", 128, buckets=True)
    shapes = [pairs.latents.shape(row)[1:] for row in range(6)]
    assert shapes[0] == (32, 32) and shapes[5][0] > shapes[5][1] and shapes[2][0] < shapes[2][1]
    assert [pairs.bucket[row] == pairs.bucket[0] for row in range(6)] == [
        shape == (32, 32) for shape in shapes
    ]
    assert pairs.sizes[0].tolist() == [64, 64, 0, 0, 128, 128]
    assert pairs.sizes[5, :2].tolist() == [130, 64]
    assert (pairs.sizes[:, 4:] == torch.tensor([[4 * h, 4 * w] for h, w in shapes])).all()
    groups = dict(pairs.by_size(np.array([0, 2, 5])))
    assert groups[32, 32].tolist() == [0] and sorted(np.concatenate(list(groups.values()))) == [0, 2, 5]
    save_file({"latents": torch.zeros(1, 4, *shapes[5])}, tmp_path / "drawn")
    with_safe = pairs.with_safe_pictures(np.array([5]), stacked_rows([tmp_path / "drawn"]))
    height, width = pairs.sizes[5, 4:].tolist()
    assert with_safe.sizes[6].tolist() == [height, width, 0, 0, height, width]


def write_cache(folder: Path, backbone: Backbone, pool: Path, resolution: int = 64) -> Path:
    """What `safetune cache` leaves, in the order of the pool turned round."""
    encoder, dataset = encoder_of(backbone, resolution), load_pairs(pool)
    names = [f"picture-{number}" for number in range(6)]
    latents = backbone.encode_images(image_tensor(dataset, resolution))
    TensorStore(folder, "latents").add(dict(zip(names, latents, strict=True)))
    prompts = [encoder.prompt_name(text) for text in CAPTIONS]
    TensorStore(folder, "prompts").add(prompt_tensors(prompts, backbone.encode_prompts(CAPTIONS)))
    keys = [f"{number:06d}.png" for number in range(6)]
    frame = pd.DataFrame({"key": keys, "text": CAPTIONS, "picture": names, "prompt": prompts})
    write_parquet(frame[::-1], folder / PAIRS_FILE)
    write_json(folder / "cache.json", {"encoder": asdict(encoder)})
    return folder


def test_from_the_cache(
    build: Build, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = write_cache(tmp_path / "cache", backbone, tmp_path / "pool")
    own = build()
    monkeypatch.setattr(FrozenPipeline, "encode_prompts", None)
    monkeypatch.setattr(FrozenPipeline, "encode_images", None)
    pairs = build(cache=cache)
    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(pairs.latents.read([5, 2]), own.latents.read([5, 2]), **close)
    torch.testing.assert_close(pairs.prompts.read([4, 3]).embeds, own.prompts.read([4, 3]).embeds, **close)
    assert pairs.fingerprint == own.fingerprint


def test_mistakes_of_the_cache(
    build: Build, labels: pd.DataFrame, backbone: Backbone, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="holds no cached pairs: run `safetune cache DATA --out"):
        build(cache=tmp_path / "cache")
    cache = write_cache(tmp_path / "cache", backbone, tmp_path / "pool")
    with pytest.raises(ValueError, match="another autoencoder, text encoder, resolution or precision"):
        build(resolution=32, cache=cache)
    more = labels.assign(key=[*labels.key[:5], "other.png"])
    with pytest.raises(ValueError, match=r"1 of 6 labelled pairs are not in .*cache, such as 'other\.png'"):
        build(more, cache=cache)
    told = labels.assign(text=["another caption", *labels.text[1:]])
    with pytest.raises(ValueError, match=r"1 of 6 labelled pairs are not in .*cache, such as '000000\.png'"):
        build(told, cache=cache)
    with pytest.raises(ValueError, match="another autoencoder, text encoder, resolution or precision"):
        write_json(cache / "cache.json", {})
        build(cache=cache)
    with pytest.raises(ValueError, match="holds squares: leave out --buckets, or --cache"):
        build(cache=cache, buckets=True)


def test_rows_follow_the_labels_whatever_the_order_of_the_source(build: Build, labels: pd.DataFrame) -> None:
    straight = build()
    turned = build(labels.iloc[::-1].reset_index(drop=True), run="turned")
    assert turned.keys == straight.keys[::-1]
    torch.testing.assert_close(turned.latents.read(range(6)), straight.latents.read(range(5, -1, -1)))
    assert not torch.allclose(straight.latents.row(0), straight.latents.row(5))
