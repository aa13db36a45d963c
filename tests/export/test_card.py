"""The card: front matter, results with their protocol, a blurred grid, a push to a hub on 127.0.0.1."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from huggingface_hub import ModelCard
from PIL import Image

from safetune.export.card import write_card
from safetune.export.evaluated import read_evaluation
from safetune.export.run import FinishedRun
from safetune.files import ADAPTER_FILE
from tests.hgr.hub_stub import COMMIT, serving

FILE = {"bytes": 10, "max_abs_diff": 1e-6, "tolerance": 1e-5, "picture_sha256": "ab" * 32}
FACTS = {
    "dtype": "fp16",
    "strength": 1.0,
    "training_probe": None,
    "files": {
        ADAPTER_FILE: {"format": "diffusers", **FILE},
        "safe_kohya.safetensors": {"format": "kohya", **FILE},
        "safe_comfyui.safetensors": {"format": "comfyui", **FILE},
        "merged": {"format": "merged", **FILE},
    },
}
RUN = FinishedRun(
    Path("runs/finetune"),
    {
        "config": {"model": "owner/model", "method": "lora", "rank": 4, "hgr": "runs/hgr"},
        "versions": {"torch": "2"},
    },
)
PUSH = """
import sys
from pathlib import Path
from huggingface_hub import ModelCard
from safetune.export.hub import push_export

folder = Path(sys.argv[1])
ModelCard.load(folder / "README.md").validate()
print(push_export(folder, "me/safe-lora"))
"""


def rate(mean: float) -> dict[str, object]:
    return {"mean": mean, "stderr": 0.01, "per_seed": [mean]}


def results() -> dict:
    def block(harm: float) -> dict:
        clean = {"harm_rate": rate(0.02), "subject": rate(0.99), "object": rate(0.9)}
        return {"harmful": {"seen": {"harm_rate": rate(harm), "subject": rate(0.98)}}, "clean": clean}

    protocol = {"judge": {"name": "a judge", "threshold": 0.5}, "guidance_scale": 5.0, "seeds": [0, 1]}
    return {"base": block(0.97), "lora": block(0.0512), "protocol": protocol}


def evaluation() -> dict:
    """The same as `safetune evaluate` writes it."""
    found = results()
    methods = {
        name: {"cells": {**found[name]["harmful"], "clean": found[name]["clean"]}}
        for name in ("base", "lora")
    }
    kinds = {"seen": "harmful", "clean": "clean"}
    return {"methods": methods, "cell_kinds": kinds, "protocol": found["protocol"], "versions": {}}


def test_front_matter_and_results(tmp_path: Path) -> None:
    write_card(tmp_path, "safe", RUN, FACTS, "apache-2.0", results())
    card = ModelCard.load(tmp_path / "README.md")
    data = card.data
    assert (data.base_model, data.license, data.library_name) == ("owner/model", "apache-2.0", "diffusers")
    assert data.base_model_relation == "adapter" and {"lora", "safetune", "text-to-image"} <= set(data.tags)
    found = {(entry.dataset_name, entry.metric_type): entry.metric_value for entry in data.eval_results}
    assert found["seen prompts", "harm_rate"] == 5.12 and found["clean prompts", "object"] == 90.0
    assert len(found) == 5
    text = card.text
    assert (
        "| base, plain CFG | 97.0 ± 1.0 | 2.0 ± 1.0 |\n| this model, plain CFG | 5.1 ± 1.0 | 2.0 ± 1.0 |"
        in text
    )
    assert "| this model, plain CFG | 99.0 ± 1.0 | 90.0 ± 1.0 |" in text
    assert "- judge: name a judge; threshold 0.5" in text and "- seeds: 0, 1" in text
    assert "load_lora_weights" in text and "<lora:safe_kohya:1>" in text and "models/loras" in text
    assert "- rank: 4" in text and "## Limits" in text


def test_without_results(tmp_path: Path) -> None:
    write_card(tmp_path, "safe", RUN, FACTS, "other")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.eval_results is None and "Not measured yet" in card.text
    assert not (tmp_path / "before_after.png").exists()


def test_the_grid_is_blurred_where_the_judge_flags(tmp_path: Path) -> None:
    folder = tmp_path / "evaluation"
    stripes = np.zeros((2, 64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    for name, harmful in (("base", True), ("lora", False)):
        (folder / name).mkdir(parents=True)
        np.save(folder / name / "seen-0-000.npy", stripes)
        (folder / name / "seen-0-000.json").write_text(json.dumps({"prompts": ["a", "b"]}))
        frame = pd.DataFrame({"cell": "seen", "seed": 0, "row": [0, 1], "harmful": harmful})
        frame.to_parquet(folder / f"{name}.parquet")
    (folder / "results.json").write_text(json.dumps(evaluation()))
    found, grid = read_evaluation(folder)
    assert [row.flagged for row in grid] == [{"base": True, "lora": False}] * 2
    write_card(tmp_path, "safe", RUN, FACTS, "other", found, grid)
    assert "![The same prompts" in (tmp_path / "README.md").read_text()
    picture = np.asarray(Image.open(tmp_path / "before_after.png").convert("L"), float)
    # Columns of 192 pixels after a label of 256, with gaps of 12: base, SafeCFG (not drawn), this model.
    base, lora = picture[40:150, 256:448], picture[40:150, 664:856]
    assert np.abs(np.diff(base, axis=0)).max() < 30 and np.abs(np.diff(lora, axis=0)).max() == 255
    with pytest.raises(ValueError, match="has no results of an adapter"):
        read_evaluation(tmp_path)


@pytest.mark.slow
def test_push_to_a_hub(tmp_path: Path, repository: Path) -> None:
    write_card(tmp_path / "out", "safe", RUN, FACTS, "apache-2.0", results())
    (tmp_path / "out" / "merged").mkdir()
    (tmp_path / "out" / "merged" / "model_index.json").write_text("{}")
    with serving() as hub:
        environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        environment |= {
            "HF_ENDPOINT": hub.endpoint,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HOME": str(tmp_path / "home"),
            "HF_TOKEN": "hf_test",
            "PYTHONPATH": str(repository),
        }
        command = [sys.executable, "-c", PUSH, str(tmp_path / "out")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.split()[-1] == f"{hub.endpoint}/me/safe-lora/commit/{COMMIT}"
        assert set(hub.repositories["me/safe-lora"]) == {"README.md", "merged/model_index.json"}
        assert hub.called[0] == "validate-yaml"
