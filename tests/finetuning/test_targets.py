"""Cached targets equal those that the teacher gives at the step, and are computed once."""

import multiprocessing
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from safetune.backbone import load_backbone
from safetune.conditioning import jitter, replace_rows
from safetune.diffusion import seeded_noise
from safetune.finetuning.draws import Draw, Draws
from safetune.finetuning.objective import teacher_targets
from safetune.finetuning.targets import cached_targets
from tests.finetuning.pools import ALONE
from tests.labeling.test_scores import build_hgr

HARM = torch.tensor([1.0, 0.0, 0.8, 0.0, 0.0])


def build_draws(**options: object) -> Draws:
    """Five pairs, of which the last one is left out; the first has a safe picture."""
    settings = {"min_timestep": 0, "max_timestep": 999, "cached": 3, **options}
    return Draws(
        np.array([0, 2]), np.array([1, 3]), np.array([5, -1, -1, -1, -1]), HARM, 0, 0.5, 0.5, **settings
    )


class Numbers:
    """A target that tells its draw; remembers its batches, and fails at the `dies_at`-th."""

    def __init__(self, dies_at: int = -1) -> None:
        self.batches: list[list[int]] = []
        self.dies_at = dies_at

    def __call__(self, draw: Draw) -> Tensor:
        if len(self.batches) == self.dies_at:
            raise KeyboardInterrupt
        self.batches.append(draw.rows.tolist())
        return (10 * draw.rows + draw.numbers).float().view(-1, 1, 1, 1).expand(-1, 4, 2, 2)


def test_each_draw_of_each_pair_once(tmp_path: Path) -> None:
    made = Numbers()
    cache = cached_targets(ALONE, tmp_path, {"eta": 1.0}, build_draws(), made, 4, shard_draws=6)
    assert made.batches == [[0, 0, 0, 1], [1, 1], [2, 2, 2, 3], [3, 3]]
    read = cache.read(torch.tensor([3, 0, 2, 3]), torch.tensor([0, 2, 1, 2]))
    assert read.shape == (4, 4, 2, 2) and read[:, 0, 0, 0].tolist() == [30.0, 2.0, 21.0, 32.0]
    again = cached_targets(ALONE, tmp_path, {"eta": 1.0}, build_draws(), Numbers(0), 4, shard_draws=6)
    assert torch.equal(again.read([3, 0], [0, 2]), read[:2])


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        cached_targets(ALONE, tmp_path, {}, build_draws(), Numbers(3), 4, shard_draws=6)
    rest = Numbers()
    cache = cached_targets(ALONE, tmp_path, {}, build_draws(), rest, 4, shard_draws=6)
    assert rest.batches == [[2, 2, 2, 3], [3, 3]]
    assert cache.read([1, 2], [1, 1])[:, 0, 0, 0].tolist() == [11.0, 21.0]


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def test_two_processes_write_what_one_does(tmp_path: Path) -> None:
    barrier = threading.Barrier(2)
    made = [Numbers(), Numbers()]

    def process(rank: int) -> None:
        told = SimpleNamespace(
            process_index=rank, num_processes=2, is_main_process=rank == 0, wait_for_everyone=barrier.wait
        )
        cached_targets(told, tmp_path / "two", {}, build_draws(), made[rank], 4, shard_draws=6)

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    cached_targets(ALONE, tmp_path / "one", {}, build_draws(), Numbers(), 4, shard_draws=6)
    assert made[0].batches == [[0, 0, 0, 1], [1, 1]] and made[1].batches == [[2, 2, 2, 3], [3, 3]]
    assert shard_bytes(tmp_path / "two") == shard_bytes(tmp_path / "one")


def make_slowly(folder: Path) -> None:
    def target(draw: Draw) -> Tensor:
        time.sleep(0.02)
        return Numbers()(draw)

    cached_targets(ALONE, folder, {}, build_draws(cached=50), target, 4, shard_draws=50)


@pytest.mark.slow
def test_kill_9_at_any_moment(tmp_path: Path) -> None:
    cached_targets(ALONE, tmp_path / "straight", {}, build_draws(cached=50), Numbers(), 4, shard_draws=50)
    killed, kills = tmp_path / "killed", 0
    while len(shard_bytes(killed)) < 4:
        process = multiprocessing.get_context("spawn").Process(target=make_slowly, args=(killed,))
        process.start()
        started, before = time.monotonic(), len(shard_bytes(killed))
        while len(shard_bytes(killed)) == before and time.monotonic() - started < 120:
            time.sleep(0.01)
        process.kill()
        process.join()
        kills += process.exitcode == -9
    assert kills >= 2
    make_slowly(killed)
    assert shard_bytes(killed) == shard_bytes(tmp_path / "straight")


def test_a_batch_has_one_picture_size(tmp_path: Path) -> None:
    made = Numbers()
    draws = build_draws(bucket=np.array([0, 1, 1, 0, 0]), cached=1)
    cache = cached_targets(ALONE, tmp_path, {}, draws, made, 8)
    assert made.batches == [[0, 3], [1, 2]]
    assert cache.read([2, 3], [0, 0])[:, 0, 0, 0].tolist() == [20.0, 30.0]


@pytest.mark.parametrize(
    ("facts", "options", "message"),
    [
        ({"eta": 0.5}, {}, "eta was 1.0, is 0.5"),
        ({"eta": 1.0}, {"cached": 4}, "cached was 3, is 4"),
        ({"eta": 1.0}, {"min_timestep": 100}, "min_timestep was 0, is 100"),
    ],
)
def test_other_settings_are_refused(
    facts: dict[str, object], options: dict[str, object], message: str, tmp_path: Path
) -> None:
    cached_targets(ALONE, tmp_path, {"eta": 1.0}, build_draws(), Numbers(), 4)
    with pytest.raises(ValueError, match=message):
        cached_targets(ALONE, tmp_path, facts, build_draws(**options), Numbers(), 4)


def teacher_of(folder: Path) -> Callable[[Draw], Tensor]:
    """The recipe's targets of a draw, from a tiny model and six random pictures."""
    backbone, hgr = load_backbone(folder), build_hgr()
    prompts = backbone.encode_prompts(["a cat with a knife", "a cat", "a dog with a bomb", "a dog", "a fox"])
    latents, null = seeded_noise((4, 16, 16), list(range(6))), backbone.null()

    def target(draw: Draw) -> Tensor:
        noise = seeded_noise((4, 16, 16), draw.seeds)
        noisy = backbone.add_noise(latents[draw.pictures], noise, draw.timesteps)
        batch = jitter(
            prompts.select(draw.rows), prompts.map(lambda x: x.flatten(0, 1).std(0)), 0.5, draw.seeds
        )
        batch = replace_rows(batch, draw.emptied, null.expand(len(draw)))
        redirected, harm = hgr.redirect(batch, null), HARM[draw.rows]
        return teacher_targets(backbone, noisy, draw.timesteps, batch, redirected, null, harm, 1.0)

    return target


def test_cached_is_uncached(tmp_path: Path, tiny_pipeline: Path) -> None:
    target, draws = teacher_of(tiny_pipeline), build_draws()
    cache = cached_targets(ALONE, tmp_path, {}, draws, target, batch_size=5)
    for step in range(3):
        draw = draws.draw_step(step, 4)
        expected = target(draw)
        assert expected.std() > 0.1
        torch.testing.assert_close(cache.read(draw.rows, draw.numbers), expected, atol=1e-6, rtol=1e-6)
