"""Pictures of a prompt file: an image folder, drawn once, by one process or two, the same to the bit."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image

from data_tools import generate
from safetune.backbone import load_backbone
from safetune.export.adapters import save_adapter
from safetune.finetuning.adapters import add_lora

Run = Callable[..., Path]

SECRET = "a secret rhinoceros"
PROMPTS = f"prompt,category,seed\na cat,,\na dog with a knife,weapons,7\n{SECRET},,\na fox,,\na bear,,\n"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.csv"
    path.write_text(PROMPTS)
    return path


def arguments(prompts: Path, out: Path, model: Path, *more: str) -> list[str]:
    words = f"--steps 2 --height 32 --width 32 --batch-size 2 --shard-size 2 --dtype float32 --model {model}"
    return [str(prompts), "--out", str(out), *words.split(), *more]


@pytest.fixture
def run(prompts: Path, tmp_path: Path, tiny_pipeline: Path) -> Run:
    """A function that draws the prompts into a folder of this name; returns it."""

    def call(name: str, *more: str, prompts: Path = prompts) -> Path:
        assert generate.main(arguments(prompts, tmp_path / name, tiny_pipeline, *more)) == 0
        return tmp_path / name

    return call


def rows_of(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    paths = [*folder.rglob("*.png"), *folder.rglob("*.jsonl")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def pixels(folder: Path) -> dict[tuple[str, int], np.ndarray]:
    """Pictures by prompt and seed."""
    return {
        (row["text"], row["seed"]): np.array(Image.open(folder / row["file_name"])) for row in rows_of(folder)
    }


def test_an_image_folder_that_datasets_reads(run: Run, tiny_pipeline: Path) -> None:
    out = run("out", "--images-per-prompt", "2")
    dataset = load_dataset("imagefolder", data_dir=str(out), split="train")
    assert set(dataset.column_names) == {"image", "text", "seed", "model", "category"}
    assert len(dataset) == 10 and dataset[0]["image"].size == (32, 32)
    assert list(dataset["text"])[:3] == ["a cat", "a cat", "a dog with a knife"]
    assert dataset[2]["seed"] == 7 and dataset[2]["category"] == "weapons"
    assert set(dataset["model"]) == {str(tiny_pipeline)}
    assert len({picture.tobytes() for picture in dataset["image"]}) == 10


def test_the_picture_is_the_pipelines_own(run: Run, tiny_pipeline: Path) -> None:
    import torch
    from diffusers import StableDiffusionPipeline

    out = run("out", "--guidance-scale", "4", "--batch-size", "1")
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_pipeline, safety_checker=None)
    expected = pipeline(
        "a dog with a knife",
        num_inference_steps=2,
        guidance_scale=4.0,
        height=32,
        width=32,
        generator=torch.Generator().manual_seed(7),
    ).images[0]
    assert np.array_equal(pixels(out)["a dog with a knife", 7], np.array(expected))


def test_order_and_batches_change_nothing(run: Run, tmp_path: Path) -> None:
    turned = tmp_path / "turned.csv"
    lines = PROMPTS.splitlines()
    turned.write_text("\n".join([lines[0], *reversed(lines[1:])]))
    first = pixels(run("first"))
    second = pixels(run("second", "--batch-size", "3", "--shard-size", "3", prompts=turned))
    assert first.keys() == second.keys()
    for key, picture in first.items():
        # Sums of other batches are rounded otherwise.
        assert np.abs(picture.astype(int) - second[key]).max() <= 1


def test_finished_shards_are_not_drawn_again(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = contents(run("whole"))
    draw, drawn = generate.draw_pictures, []

    def dying(pipeline: object, texts: list[str], *rest: object) -> object:
        if "a fox" in texts and "a fox" not in drawn:
            drawn.append("a fox")
            raise KeyboardInterrupt
        drawn.extend(texts)
        return draw(pipeline, texts, *rest)

    monkeypatch.setattr(generate, "draw_pictures", dying)
    with pytest.raises(KeyboardInterrupt):
        run("cut")
    names = {path.name for path in (tmp_path / "cut").iterdir()}
    assert names == {"generate.json", "part-00000"}
    (tmp_path / "cut" / ".part-00001.1.tmp").mkdir()  # as a killed run leaves it
    drawn[:] = ["a fox"]
    assert contents(run("cut")) == whole
    assert drawn == ["a fox", SECRET, "a fox", "a bear"]
    assert "5 pictures in" in capsys.readouterr().out.splitlines()[-1]
    assert not list((tmp_path / "cut").glob(".part*"))


def test_other_settings_into_the_same_folder(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    out = run("out")
    before = contents(out)
    for more, difference in (
        (["--guidance-scale", "3"], "options was"),
        (["--shard-size", "3"], "shard_size was 2, is 3"),
        (["--seed", "1"], "jobs was"),
        (["--model", "tinysd"], "model_fingerprint was"),
    ):
        with pytest.raises(AssertionError):
            run("out", *more)
        message = capsys.readouterr().err.splitlines()[-1]
        assert difference in message and "Give another --out" in message
    assert contents(run("out", "--batch-size", "1")) == before


def test_prompts_stay_out_of_all_that_is_said(
    run: Run, prompts: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    prompts.write_text(PROMPTS.replace(SECRET, SECRET + " in a field of flowers" * 30))
    run("out")
    said = caplog.text + "".join(capfd.readouterr())
    assert "rhinoceros" not in said and "flowers" not in said
    assert "5 pictures in" in said


def test_adapter(run: Run, tmp_path: Path, tiny_pipeline: Path) -> None:
    denoiser = load_backbone(tiny_pipeline).denoiser
    add_lora(denoiser, 2, 2.0, "attention")
    for name, weight in denoiser.named_parameters():
        if "lora_B" in name:
            weight.data.fill_(0.5)
    adapter = save_adapter(denoiser, tmp_path / "adapter")
    plain, tuned = run("plain"), run("tuned", "--adapter", str(adapter))
    assert pixels(plain).keys() == pixels(tuned).keys()
    assert all((pixels(plain)[key] != picture).any() for key, picture in pixels(tuned).items())
    facts = [json.loads((out / "generate.json").read_text()) for out in (plain, tuned)]
    assert facts[0]["model_fingerprint"] == facts[1]["model_fingerprint"]
    assert facts[0]["adapter_sha256"] is None and len(facts[1]["adapter_sha256"]) == 64


@pytest.mark.parametrize("name", ["tiny_sdxl", "tiny_sd3"])
def test_other_families(name: str, run: Run, request: pytest.FixtureRequest) -> None:
    out = run("out", "--model", str(request.getfixturevalue(name)))
    assert len(pixels(out)) == 5


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--batch-size", "0"], "--batch-size 0: give 1 or more"),
        (["--model", "{here}"], "holds no model_index.json"),
        (["--adapter", "{here}/lora.bin"], "an adapter is a .safetensors file"),
        (["--prompt-column", "caption"], "no column 'caption'"),
    ],
)
def test_mistakes(
    more: list[str], message: str, prompts: Path, tmp_path: Path, tiny_pipeline: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = [word.format(here=tmp_path) for word in more]
    assert generate.main(arguments(prompts, tmp_path / "out", tiny_pipeline, *words)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_options_that_the_pipeline_does_not_take() -> None:
    class Tokenless:
        def __call__(self, prompt: str, height: int) -> None: ...

    args = generate.build_parser().parse_args("p.csv --out o --steps 2 --height 8".split())
    with pytest.raises(ValueError, match="Tokenless takes no num_inference_steps: leave that option out"):
        generate.picture_options(args, Tokenless())
    args.steps = None
    assert generate.picture_options(args, Tokenless()) == {"height": 8}


@pytest.mark.slow
def test_two_processes_draw_the_same_to_the_bit(
    run: Run, prompts: Path, tmp_path: Path, tiny_pipeline: Path, repository: Path
) -> None:
    launch = [
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(repository / "launch" / "cpu_ddp.yaml"),
    ]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    script = str(repository / "data_tools" / "generate.py")

    def start(out: Path, *launcher: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *launcher, script, *arguments(prompts, out, tiny_pipeline)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
        return result

    start(tmp_path / "one")
    said = start(tmp_path / "two", *launch)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(contents(tmp_path / "two")) == 5 + 3 + 1
    assert said.stdout.count("5 pictures in") == 1 and "2 process(es)" in said.stderr
    assert "rhinoceros" not in said.stdout + said.stderr
