"""LoRAs on the denoiser: SafeCFG guides what they make of it, and they do not count as another base model."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from safetune.guidance import disable_safecfg, enable_safecfg
from safetune.guidance.redirection import own_fingerprint
from tests.guidance.families import Family, as_arguments, draw, redirected


def add_lora(family: Family, name: str, seed: int = 0, **options: object) -> None:
    """A LoRA that changes what the denoiser says."""
    torch.manual_seed(seed)
    config = LoraConfig(r=2, target_modules=["to_q", "to_v", "to_out.0"], init_lora_weights=False, **options)
    family.backbone.denoiser.add_adapter(config, adapter_name=name)
    family.backbone.denoiser.double()


@pytest.mark.parametrize("enable_first", [True, False])
def test_with_loras(family: Family, enable_first: bool) -> None:
    plain = draw(family.pipeline)
    if enable_first:
        enable_safecfg(family.pipeline, family.hgr)
    add_lora(family, "style")
    add_lora(family, "detail", seed=1, use_dora=True)
    family.backbone.denoiser.set_adapters(["style", "detail"])
    if not enable_first:
        enable_safecfg(family.pipeline, family.hgr)
    guided = draw(family.pipeline)
    disable_safecfg(family.pipeline)
    expected = draw(family.pipeline, **as_arguments(redirected(family)))
    torch.testing.assert_close(guided, expected, rtol=1e-5, atol=1e-5)
    family.backbone.denoiser.disable_adapters()
    assert torch.equal(draw(family.pipeline), plain)
    base = draw(family.pipeline, **as_arguments(redirected(family)))
    assert (guided - base).abs().max() > 1e-2


def test_a_lora_file(sd1: Family, load: Callable[..., Family], tmp_path: Path) -> None:
    add_lora(sd1, "default")
    weights = get_peft_model_state_dict(sd1.backbone.denoiser)
    sd1.pipeline.save_lora_weights(tmp_path, unet_lora_layers=weights)
    fresh = load("sd1")
    enable_safecfg(fresh.pipeline, fresh.hgr)
    without = draw(fresh.pipeline)
    fresh.pipeline.load_lora_weights(tmp_path)
    with_lora = draw(fresh.pipeline)
    assert (with_lora - without).abs().max() > 1e-2
    enable_safecfg(fresh.pipeline, fresh.hgr)
    assert torch.equal(draw(fresh.pipeline), with_lora)
    fresh.pipeline.unload_lora_weights()
    assert torch.equal(draw(fresh.pipeline), without)


def test_a_fused_lora_is_another_model(sd1: Family) -> None:
    add_lora(sd1, "default")
    sd1.backbone.denoiser.fuse_lora()
    with pytest.raises(ValueError, match="has a LoRA fused into it counts as another one"):
        enable_safecfg(sd1.pipeline, sd1.hgr)
    enable_safecfg(sd1.pipeline, sd1.hgr, fingerprint=sd1.hgr.base_fingerprint)


def test_weights_below_an_adapter_count(family: Family) -> None:
    add_lora(family, "default")
    denoiser = family.backbone.denoiser
    assert own_fingerprint(denoiser) == family.backbone.fingerprint
    name, weight = next(
        (name, weight) for name, weight in denoiser.named_parameters() if "to_q.base_layer.weight" in name
    )
    weight.data[0, 0] *= -1
    assert own_fingerprint(denoiser) != family.backbone.fingerprint, name
