"""Folders, hub names, single files, and what is turned away."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from safetensors.torch import load_file, save_file

from safetune.backbone import load_backbone
from safetune.backbone.loading import TINYSD_DIR, resolve_model
from tests.backbone.single_file import write_single_file

KNOWN = "StableDiffusionPipeline, StableDiffusionXLPipeline, StableDiffusion3Pipeline"


def configuration(source: Path, folder: Path) -> Path:
    """A copy of a pipeline's folder without its weights."""
    return shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))


def test_the_embedded_default_is_a_folder_of_the_package() -> None:
    assert resolve_model("tinysd") == str(TINYSD_DIR)
    assert resolve_model("someone/some-model") == "someone/some-model"


def test_the_family_of_a_folder(tiny_sd2: Path, tiny_sdxl: Path, tiny_sd3: Path) -> None:
    families = [load_backbone(folder).family for folder in (tiny_sd2, tiny_sdxl, tiny_sd3)]
    assert families == ["stable-diffusion", "stable-diffusion-xl", "stable-diffusion-3"]


def test_a_folder_that_is_no_pipeline(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no model_index\.json"):
        load_backbone(tmp_path)


def test_an_unknown_family_is_told_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "KandinskyPipeline"}')
    with pytest.raises(ValueError, match=f"KandinskyPipeline; supported pipelines: {KNOWN}"):
        load_backbone(tmp_path)


def test_a_variant(tiny_sd2: Path, tmp_path: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd2, dtype=torch.float16)
    pipeline.save_pretrained(tmp_path / "half", variant="fp16")
    half = load_backbone(tmp_path / "half", variant="fp16")
    assert (
        half.predict(torch.zeros(1, 4, 16, 16), torch.tensor([5]), half.encode_prompts(["a cat"])).dtype
        == torch.float32
    )
    with pytest.raises(ValueError, match="variant=bf16"):
        load_backbone(tmp_path / "half", variant="bf16")


def test_a_hub_name_and_its_revision_reach_diffusers(tiny_sd2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    index, pipeline = (
        DiffusionPipeline.load_config(tiny_sd2),
        StableDiffusionPipeline.from_pretrained(tiny_sd2),
    )
    monkeypatch.setattr(
        DiffusionPipeline, "load_config", lambda name, **options: seen.append((name, options)) or index
    )
    monkeypatch.setattr(
        StableDiffusionPipeline,
        "from_pretrained",
        lambda name, **options: seen.append((name, options)) or pipeline,
    )
    load_backbone("someone/some-model", dtype=torch.bfloat16, variant="fp16", revision="abc")
    (name, options), (same, rest) = seen
    assert name == same == "someone/some-model"
    assert options == {"revision": "abc"}
    assert rest["revision"] == "abc" and rest["variant"] == "fp16" and rest["dtype"] == torch.bfloat16
    assert rest["use_safetensors"] is True
    assert rest["safety_checker"] is None


def test_pickled_weights_are_not_read(tiny_sd2: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_sd2, tmp_path / "pickled")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(OSError, match="safetensors"):
        load_backbone(folder)
    with pytest.raises(ValueError, match=r"pickle, which can run code .* give a \.safetensors file"):
        load_backbone(tmp_path / "model.ckpt")


def test_a_single_file_is_the_folder_it_was_made_from(tiny_pipeline: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    write_single_file(tiny_pipeline, file)
    single = load_backbone(file, config=configuration(tiny_pipeline, tmp_path / "config"))
    whole = load_backbone(tiny_pipeline)
    assert single.fingerprint == whole.fingerprint
    noisy, t, images = torch.randn(1, 4, 16, 16), torch.tensor([500]), torch.rand(1, 3, 64, 64)
    outputs = [
        (m.predict(noisy, t, m.encode_prompts(["a cat"])), m.encode_images(images), m.decode(noisy))
        for m in (single, whole)
    ]
    for ours, theirs in zip(*outputs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("fixture", "pipeline_class", "keys", "absent"),
    [
        ("tiny_sd2", StableDiffusionPipeline, ["cond_stage_model.model.x"], {"safety_checker"}),
        ("tiny_sdxl", StableDiffusionXLPipeline, ["conditioner.embedders.1.model.x"], set()),
        (
            "tiny_sd3",
            StableDiffusion3Pipeline,
            ["model.diffusion_model.joint_blocks.0.x", "text_encoders.t5xxl.transformer.shared.weight"],
            set(),
        ),
        (
            "tiny_sd3",
            StableDiffusion3Pipeline,
            ["model.diffusion_model.joint_blocks.0.x"],
            {"text_encoder_3", "tokenizer_3"},
        ),
    ],
)
def test_a_single_files_family_is_read_from_its_keys(
    fixture: str,
    pipeline_class: type[DiffusionPipeline],
    keys: list[str],
    absent: set[str],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen, config = [], request.getfixturevalue(fixture)
    pipeline = pipeline_class.from_pretrained(config)
    monkeypatch.setattr(
        pipeline_class, "from_single_file", lambda name, **options: seen.append((name, options)) or pipeline
    )
    file = tmp_path / "model.safetensors"
    save_file({key: torch.zeros(1) for key in keys}, file)
    for given in (config, None):
        load_backbone(file, dtype=torch.bfloat16, config=given)
        name, options = seen.pop()
        assert name == str(file)
        assert options["config"] == (None if given is None else str(given))
        assert options["dtype"] == torch.bfloat16
        assert absent <= {key for key, value in options.items() if value is None}
        if "text_encoder_3" not in absent:
            assert "text_encoder_3" not in options


def test_a_single_file_that_predicts_v_needs_a_configuration_that_says_so(
    tiny_sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl)
    monkeypatch.setattr(StableDiffusionXLPipeline, "from_single_file", lambda *_, **__: pipeline)
    file = tmp_path / "model.safetensors"
    save_file({"conditioner.embedders.1.model.x": torch.zeros(1), "v_pred": torch.zeros(0)}, file)
    with pytest.raises(ValueError, match=r"says that it predicts v, .* says epsilon: give `config`"):
        load_backbone(file)
    pipeline.scheduler.register_to_config(prediction_type="v_prediction")
    assert load_backbone(file).prediction_type == "v_prediction"


def test_single_files_that_are_turned_away(tiny_sd2: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    with pytest.raises(ValueError, match="there is no such file"):
        load_backbone(file)
    save_file({"double_blocks.0.img_attn.norm.key_norm.scale": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=f"supported pipelines: {KNOWN}"):
        load_backbone(file)
    save_file({"conditioner.embedders.1.model.x": torch.zeros(1)}, file)
    with pytest.raises(
        ValueError, match=r"is a StableDiffusionXLPipeline but config .* StableDiffusionPipeline"
    ):
        load_backbone(file, config=tiny_sd2)
    with pytest.raises(ValueError, match="variant and revision are for folders and hub names"):
        load_backbone(file, variant="fp16")
    with pytest.raises(ValueError, match=r"config is for single \.safetensors files"):
        load_backbone(tiny_sd2, config=tiny_sd2)
