"""The judges that are networks of torch: TinySD's, Q16, CLIP-score, any classifier."""

import pickle
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel, pipeline

from safetune.evaluation.judges import JUDGES, open_features, open_judge
from safetune.evaluation.judges.base import check_pictures
from safetune.evaluation.judges.q16 import CONVERT, prompt_probabilities
from safetune.evaluation.metrics import harm_probability
from safetune.tinysd.judge import HARMFUL_CLASSES, images_to_tensor, judge_images, load_judge
from safetune.tinysd.world import render, sample_scene
from tests.evaluation.judges.conftest import as_tensor, build_vit

PROMPTS = ["a fox on a beach", "a robot in a city"] * 20


def test_tinysd_as_the_metrics(rng: np.random.Generator) -> None:
    scenes = [sample_scene(rng, harmful) for harmful in (True, False, True, False)]
    pictures = [render(scene) for scene in scenes]
    judge = open_judge("tinysd")
    scores = judge.score(as_tensor(pictures))
    heads = judge_images(load_judge(), images_to_tensor(pictures))
    harmful = [label in HARM_LABELS for label in scores.classes]
    np.testing.assert_allclose(scores.values[:, harmful].sum(1), harm_probability(heads), rtol=1e-6)
    assert (scores.values[:, harmful].sum(1) >= 0.5).tolist() == [True, False, True, False]
    np.testing.assert_allclose(scores.values.sum(1), 4, rtol=1e-5)  # four heads
    assert judge.facts()["classes"] == list(scores.classes)


HARM_LABELS = {
    f"object:{key}"
    for key in (
        "knife swords pistol axe bow bomb dynamite explosion cigarette pill syringe skull blood brain heart"
    ).split()
}


def test_tinysd_harm_labels_are_all() -> None:
    assert len(HARM_LABELS) == len(HARMFUL_CLASSES)


def test_tinysd_knows_its_size_alone(tensor: Tensor) -> None:
    with pytest.raises(ValueError, match=r"\(600, 512\): TinySD's judge knows its scenes of 64x64 alone"):
        open_judge("tinysd").score(tensor)


def test_q16_probability_by_hand() -> None:
    """Cosines 0.8 and 0.79, so the softmax of 80 and 79: 1 / (1 + e^-1)."""
    prompts = torch.tensor([[0.8, 0.6], [1.58, 2 * 0.613107]])
    found = prompt_probabilities(torch.tensor([[3.0, 0.0]]), prompts)
    np.testing.assert_allclose(found, [[0.7310586, 0.2689414]], atol=1e-4)


def test_q16_tells_by_the_nearer_prompt(tiny_clip: Path, noise: Tensor, tmp_path: Path) -> None:
    """Prompts that are the embeddings of two pictures: one is found harmless, the other inappropriate."""
    clip, processor = (
        CLIPModel.from_pretrained(tiny_clip).eval(),
        CLIPImageProcessorPil.from_pretrained(tiny_clip),
    )
    arrays = [array.numpy() for array in noise.permute(0, 2, 3, 1)]
    with torch.inference_mode():
        pixels = processor(images=arrays, return_tensors="pt")["pixel_values"]
        embeds = clip.visual_projection(clip.vision_model(pixel_values=pixels).pooler_output)
    save_file({"prompts": embeds[[3, 39]].clone()}, tmp_path / "prompts.safetensors")
    judge = open_judge("q16", str(tiny_clip), tmp_path / "prompts.safetensors")
    scores = judge.score(noise)
    assert scores.classes == ("non_inappropriate", "inappropriate")
    assert scores.values[3, 0] > 0.5 and scores.values[39, 1] > 0.5
    cosines = torch.nn.functional.cosine_similarity(embeds[:, None], embeds[[3, 39]], dim=-1)
    np.testing.assert_allclose(
        scores.values[:, 1], torch.sigmoid(100 * (cosines[:, 1] - cosines[:, 0])), atol=1e-3
    )
    facts = judge.facts()
    assert (
        facts["model"] == str(tiny_clip)
        and len(facts["weights_sha256"]) == len(facts["prompts_sha256"]) == 64
    )


def test_q16_refuses_pickles(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs its two prompts.*python -c"):
        open_judge("q16")
    (tmp_path / "prompts.p").write_bytes(pickle.dumps(np.zeros((2, 16))))
    with pytest.raises(ValueError, match="pickle can run code when it is read and is refused"):
        open_judge("q16", weights=tmp_path / "prompts.p")
    (tmp_path / "renamed.safetensors").write_bytes(pickle.dumps(np.zeros((2, 16))))
    with pytest.raises(ValueError, match=r"renamed\.safetensors is no readable safetensors file"):
        open_judge("q16", weights=tmp_path / "renamed.safetensors")
    with pytest.raises(ValueError, match=r"gone\.safetensors: there is no such file"):
        open_judge("q16", weights=tmp_path / "gone.safetensors")
    save_file({"prompts": torch.zeros(3, 16)}, tmp_path / "three.safetensors")
    with pytest.raises(ValueError, match=r"\{'prompts': \(3, 16\)\}, expected prompts \(2, P\)"):
        open_judge("q16", weights=tmp_path / "three.safetensors")


def test_q16_conversion_that_the_error_tells(tmp_path: Path) -> None:
    prompts = np.arange(32, dtype=np.float16).reshape(2, 16)
    (tmp_path / "prompts.p").write_bytes(pickle.dumps(prompts))
    subprocess.run([sys.executable, *shlex.split(CONVERT)[1:]], cwd=tmp_path, check=True)
    assert load_file(tmp_path / "q16-prompts.safetensors")["prompts"].tolist() == prompts.tolist()


def test_q16_refuses_prompts_of_another_clip(tiny_clip: Path, tmp_path: Path) -> None:
    save_file({"prompts": torch.zeros(2, 768)}, tmp_path / "prompts.safetensors")
    with pytest.raises(ValueError, match=r"prompts \(2, 768\) of .* do not fit .* embeddings are 16 wide"):
        open_judge("q16", str(tiny_clip), tmp_path / "prompts.safetensors")


def test_clip_score_as_clips_own_logits(tiny_clip: Path, noise: Tensor) -> None:
    """Logits of CLIP are the cosine times a scale of its own; long prompts are cut."""
    prompts = [*PROMPTS[:-1], "a fox on a beach " * 30]
    scores = open_judge("clip-score", str(tiny_clip)).score(noise, prompts)
    clip, tokenizer = CLIPModel.from_pretrained(tiny_clip).eval(), AutoTokenizer.from_pretrained(tiny_clip)
    processor = CLIPImageProcessorPil.from_pretrained(tiny_clip)
    length = clip.config.text_config.max_position_embeddings
    for index in (0, 33, 39):
        pixels = processor(images=[noise[index].permute(1, 2, 0).numpy()], return_tensors="pt")
        text = tokenizer([prompts[index]], truncation=True, max_length=length, return_tensors="pt")
        with torch.inference_mode():
            logit = clip(**pixels, **text).logits_per_image.item() / clip.logit_scale.exp().item()
        assert scores.values[index, 0] == pytest.approx(100 * logit, abs=1e-3)


@pytest.mark.parametrize(("prompts", "given"), [(None, "no"), (["a fox"], "1")])
def test_clip_score_needs_prompts(
    tiny_clip: Path, noise: Tensor, prompts: list[str] | None, given: str
) -> None:
    with pytest.raises(ValueError, match=f"{given} prompts for 40 pictures"):
        open_judge("clip-score", str(tiny_clip)).score(noise, prompts)


def test_classifier_as_transformers_pipeline(tiny_vit: Path, noise: Tensor) -> None:
    scores = open_judge(f"transformers:{tiny_vit}").score(noise)
    assert scores.classes == ("safe", "unsafe", "unsure") and len(scores) == 40
    classify = pipeline("image-classification", str(tiny_vit), device="cpu")
    for index in (0, 39):
        picture = Image.fromarray(noise[index].permute(1, 2, 0).numpy())
        own = {one["label"]: one["score"] for one in classify(picture)}
        np.testing.assert_allclose(scores.values[index], [own[label] for label in scores.classes], atol=1e-5)


def test_classifier_of_several_labels(tmp_path: Path, noise: Tensor) -> None:
    """Labels that do not exclude each other get a sigmoid each: their probabilities need not sum to 1."""
    folder = build_vit(tmp_path, ["blood", "weapon"], "multi_label_classification")
    scores = open_judge(f"transformers:{folder}").score(noise[:2])
    plain = open_judge(f"transformers:{build_vit(tmp_path / 'plain', ['blood', 'weapon'])}").score(noise[:2])
    logits = np.log(scores.values / (1 - scores.values))
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(plain.values, expected, atol=1e-5)
    assert abs(scores.values.sum(1) - 1).min() > 0.01


def test_pickled_model_is_refused(tiny_vit: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_vit / "config.json", tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"no \.safetensors weights\. A pickle can run code"):
        open_judge(f"transformers:{tmp_path}")


def test_model_that_is_nowhere() -> None:
    with pytest.raises(ValueError, match="nobody/nothing is no folder, and the hub gave no such model"):
        open_judge("transformers:nobody/nothing")


def test_names_and_options() -> None:
    assert set(JUDGES) == {"tinysd", "nudenet", "nudenet-classifier", "open-nsfw", "q16", "clip-score"}
    with pytest.raises(ValueError, match=r"no judge 'nudnet' \(did you mean nudenet\?\); allowed: tinysd"):
        open_judge("nudnet")
    with pytest.raises(ValueError, match="no judge 'transformers:'"):
        open_judge("transformers:")
    with pytest.raises(ValueError, match="judge 'tinysd' takes no model, given x: leave it out"):
        open_judge("tinysd", model="x")
    with pytest.raises(ValueError, match="judge 'clip-score' takes no weights"):
        open_judge("clip-score", weights=Path("x"))


@pytest.mark.parametrize(
    "pictures", [torch.zeros(1, 3, 8, 8), torch.zeros(1, 8, 8, 3).byte(), torch.zeros(0, 3, 8, 8).byte()]
)
def test_other_tensors_are_refused(pictures: Tensor) -> None:
    with pytest.raises(ValueError, match=r"give \(N, 3, H, W\) uint8 with N > 0"):
        check_pictures(pictures)


def test_features(tiny_clip: Path, tiny_vit: Path, noise: Tensor, rng: np.random.Generator) -> None:
    scenes = as_tensor([render(sample_scene(rng, False)) for _ in range(3)])
    tinysd = open_features("tinysd")
    judge = load_judge()
    np.testing.assert_allclose(
        tinysd.extract(scenes), judge.features(scenes.float() / 127.5 - 1).numpy(), atol=1e-5
    )
    assert len(tinysd.facts["weights_sha256"]) == 64
    assert open_features(f"transformers:{tiny_clip}").extract(noise).shape == (40, 16)
    vit = open_features(f"transformers:{tiny_vit}").extract(noise)
    assert vit.shape == (40, 32) and vit.dtype == np.float64


def test_features_that_are_not_there() -> None:
    with pytest.raises(ValueError, match=r"features 'inception'.*both need torchvision"):
        open_features("inception")
    with pytest.raises(ValueError, match=r"no features 'tinisd' \(did you mean tinysd\?\)"):
        open_features("tinisd")
