"""Saved with a card, pushed by the real client to a hub on this machine, loaded from safetensors only."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from safetune.backbone import load_backbone
from safetune.hgr import HGR
from tests.hgr.hub_stub import COMMIT, Hub, serving

CLIENT = """
import json, sys
import torch
from huggingface_hub import ModelCard, constants
from safetune.hgr import HGR

folder, endpoint = sys.argv[1:]
assert constants.ENDPOINT == endpoint
hgr = HGR.from_pretrained(folder)
ModelCard.load(f"{folder}/README.md").validate()
url = hgr.push_to_hub("me/redirector", token="hf_test", model_card_kwargs={"license": "apache-2.0"})
loaded = HGR.from_pretrained("me/redirector", token="hf_test", cache_dir=f"{folder}/cache")
same = all(torch.equal(value, loaded.state_dict()[name]) for name, value in hgr.state_dict().items())
try:
    HGR.from_pretrained("me/pickled", token="hf_test", cache_dir=f"{folder}/cache")
    refused = ""
except Exception as error:
    refused = f"{type(error).__name__}: {error}"
print(json.dumps({"url": url, "same": same, "concepts": loaded.concepts, "refused": refused}))
"""


def build(**options: object) -> HGR:
    torch.manual_seed(0)
    hgr = HGR(
        8,
        6,
        width=16,
        heads=2,
        base_fingerprint="0123456789abcdef",
        concepts=["knife", "gun", "bomb"],
        categories=["weapons", "weapons", "explosives"],
        **options,
    )
    torch.nn.init.normal_(hgr.project_out.weight)
    return hgr.eval()


def test_save_pretrained_writes_a_card(tmp_path: Path) -> None:
    build(pooled_width=5).save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "safetune"
    assert set(card.data.tags) >= {"safetune", "safecfg", "text-to-image"}
    assert card.data.license is None and card.data.base_model is None
    assert re.findall("^## (.*)", card.text, flags=re.MULTILINE) == [
        "What it is",
        "How to use it",
        "Base model",
        "Concepts and categories",
        "Limits",
        "Licence",
    ]
    assert "| weapons | knife, gun |\n| explosives | bomb |" in card.text
    assert "| fingerprint of the denoiser | `0123456789abcdef` |" in card.text
    assert "| prompt embeddings | 6 tokens, width 8, pooled 5 |" in card.text
    assert "Not stated." in card.text


def test_the_card_names_base_and_licence_where_they_are_given(tmp_path: Path) -> None:
    given = {"base_model": "owner/model", "license": "apache-2.0"}
    build().save_pretrained(tmp_path, model_card_kwargs=given)
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.base_model, card.data.license) == ("owner/model", "apache-2.0")
    assert 'DiffusionPipeline.from_pretrained("owner/model")' in card.text
    assert card.text.rstrip().endswith("apache-2.0")


def test_an_hgr_without_concepts(tmp_path: Path) -> None:
    HGR(8, 6, width=16, heads=2).save_pretrained(tmp_path)
    text = ModelCard.load(tmp_path / "README.md").text
    assert "It names none." in text and "`not named`" in text


def test_the_snippet_of_the_card_runs(tiny_pipeline: Path, tmp_path: Path) -> None:
    backbone = load_backbone(tiny_pipeline)
    hgr = HGR(128, 24, width=16, heads=2, base_fingerprint=backbone.fingerprint)
    card = {"base_model": str(tiny_pipeline), "repo_id": str(tmp_path)}
    hgr.save_pretrained(tmp_path, model_card_kwargs=card)
    snippet = re.search(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(), flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(snippet.group(1), names)
    assert names["image"].size == (64, 64)


@pytest.fixture
def hub() -> Hub:
    with serving() as hub:
        hub.repositories["me/pickled"] = {
            "config.json": json.dumps({"text_width": 8, "max_tokens": 6, "width": 16, "heads": 2}).encode(),
            "pytorch_model.bin": b"a pickle",
        }
        yield hub


def test_push_and_load_through_the_hub(hub: Hub, tmp_path: Path, repository: Path) -> None:
    build().save_pretrained(tmp_path / "hgr")
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment |= {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(repository),
    }
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, str(tmp_path / "hgr"), hub.endpoint],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["url"] == f"{hub.endpoint}/me/redirector/commit/{COMMIT}"
    assert found["same"] and found["concepts"] == ["knife", "gun", "bomb"]
    assert re.match(r"(Remote)?EntryNotFoundError: .*model\.safetensors", found["refused"], flags=re.DOTALL)
    assert "download pytorch_model.bin" not in hub.called
    steps = [call for call in hub.called if call in ("create", "preupload", "commit")]
    assert steps == ["create", "preupload", "commit"]
    assert hub.called[0] == "validate-yaml"
    pushed = hub.repositories["me/redirector"]
    assert set(pushed) == {"README.md", "config.json", "model.safetensors"}
    card = pushed["README.md"].decode()
    assert "license: apache-2.0" in card and 'HGR.from_pretrained("me/redirector")' in card


def test_a_folder_with_a_pickle_only(tmp_path: Path) -> None:
    hgr = build()
    hgr.save_pretrained(tmp_path)
    torch.save(hgr.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        HGR.from_pretrained(tmp_path)


def test_a_missing_weight_is_an_error(tmp_path: Path) -> None:
    build().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["project_out.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError, match=r"project_out\.weight"):
        HGR.from_pretrained(tmp_path)
