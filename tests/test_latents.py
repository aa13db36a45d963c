"""Latents on disk: made once, shard by shard, by one process or several, for one key."""

import json
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from safetune.backbone import load_backbone
from safetune.latents import cached_latents, draw_latents, native_resolution

ALONE = SimpleNamespace(
    process_index=0, num_processes=1, is_main_process=True, wait_for_everyone=lambda: None
)
KEY = {"base": "abc", "seed": 0}


class Maker:
    """Row i of the latents is full of i; remembers what it was asked for, and fails at `dies_at`."""

    def __init__(self, dies_at: int = -1) -> None:
        self.rows: list[int] = []
        self.dies_at = dies_at

    def __call__(self, rows: range) -> Tensor:
        if self.dies_at in rows:
            raise KeyboardInterrupt
        self.rows += rows
        return torch.tensor(list(rows)).float().view(-1, 1, 1, 1).expand(-1, 4, 2, 2)


def test_made_once(tmp_path: Path) -> None:
    first, second = Maker(), Maker()
    latents = cached_latents(ALONE, tmp_path, KEY, 10, first, shard_rows=4)
    assert latents.shape == (10, 4, 2, 2) and latents[:, 0, 0, 0].tolist() == list(range(10))
    assert torch.equal(cached_latents(ALONE, tmp_path, KEY, 10, second, shard_rows=4), latents)
    assert first.rows == list(range(10)) and second.rows == []
    names = {"latents.json", *(f"part-{number:05d}.safetensors" for number in range(3))}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_an_interrupted_run_goes_on_with_the_missing_shards(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        cached_latents(ALONE, tmp_path, KEY, 10, Maker(dies_at=5), shard_rows=4)
    (tmp_path / "part-00001.tmp").write_bytes(b"half a shard")
    rest = Maker()
    latents = cached_latents(ALONE, tmp_path, KEY, 10, rest, shard_rows=4)
    assert rest.rows == list(range(4, 10))
    assert latents[:, 0, 0, 0].tolist() == list(range(10))


def test_another_key_is_an_error_that_says_what_changed(tmp_path: Path) -> None:
    cached_latents(ALONE, tmp_path, KEY, 4, Maker())
    with pytest.raises(ValueError, match=r"seed was 0, is 1\. Give another --output_dir, or those settings"):
        cached_latents(ALONE, tmp_path, {**KEY, "seed": 1}, 4, Maker())
    with pytest.raises(ValueError, match="rows was 4, is 6"):
        cached_latents(ALONE, tmp_path, KEY, 6, Maker())
    assert json.loads((tmp_path / "latents.json").read_text())["seed"] == 0


def test_processes_share_the_missing_shards(tmp_path: Path) -> None:
    barrier, makers = threading.Barrier(2), [Maker(), Maker()]
    results: dict[int, Tensor] = {}

    def process(rank: int) -> None:
        told = SimpleNamespace(
            process_index=rank, num_processes=2, is_main_process=rank == 0, wait_for_everyone=barrier.wait
        )
        results[rank] = cached_latents(told, tmp_path, KEY, 10, makers[rank], shard_rows=2)

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert makers[0].rows == [0, 1, 4, 5, 8, 9] and makers[1].rows == [2, 3, 6, 7]
    assert torch.equal(results[0], results[1])


@pytest.mark.parametrize("name", ["tiny_pipeline", "tiny_sd2", "tiny_sdxl", "tiny_sd3"])
def test_drawn_latents_are_the_pipelines_own(name: str, request: pytest.FixtureRequest) -> None:
    backbone = load_backbone(request.getfixturevalue(name))
    assert native_resolution(backbone) == 64
    prompts, seeds = ["a cat", "a dog in the forest", "a fox"], [5, 6, 7]
    backbone.pipeline.vae.decode = None  # nothing is decoded
    latents = draw_latents(backbone, prompts, seeds, 32, steps=2, guidance_scale=5.0, batch_size=2)
    assert latents.shape == (3, 4, 8, 8)
    alone = backbone.pipeline(
        prompts[1],
        height=32,
        width=32,
        num_inference_steps=2,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(6),
        output_type="latent",
    ).images
    torch.testing.assert_close(latents[1:2], alone, atol=1e-4, rtol=1e-4)


def test_prompts_stay_out_of_the_logs(
    tiny_pipeline: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    backbone = load_backbone(tiny_pipeline)
    prompt = "a cat in the forest" + " and a secret knife" * 20
    draw_latents(backbone, [prompt], [0], 32, steps=1, guidance_scale=5.0, batch_size=1)
    assert "secret" not in caplog.text + "".join(capfd.readouterr())
