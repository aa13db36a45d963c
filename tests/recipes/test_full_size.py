"""train_hgr on a Stable Diffusion of SD 1.5's size, random weights: it fits into 8 GB of memory."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

BUILD = """
import sys
from pathlib import Path
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel
from safetune.tinysd import architecture

folder = Path(sys.argv[1])
tokenizer = architecture.build_tokenizer(folder / "tokenizer-source")
tokenizer.model_max_length = 77
text = CLIPTextConfig(
    vocab_size=49408, hidden_size=768, intermediate_size=3072, projection_dim=768, num_hidden_layers=12,
    num_attention_heads=12, max_position_embeddings=77, bos_token_id=49406, eos_token_id=49407,
)
vae = AutoencoderKL(
    block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, latent_channels=4, sample_size=512,
)
StableDiffusionPipeline(
    vae=vae,
    text_encoder=CLIPTextModel(text),
    tokenizer=tokenizer,
    unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
    scheduler=DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
    safety_checker=None,
    feature_extractor=None,
    requires_safety_checker=False,
).save_pretrained(folder / "pipeline")
"""
TRAIN = """
import json, resource, time
from recipes import train_hgr

spent = []
log = train_hgr.Metrics.log

def timed(self, step, scalars):
    spent.append(time.time())
    return log(self, step, scalars)

train_hgr.Metrics.log = timed
started = time.time()
train_hgr.main()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"peak": peak, "seconds": time.time() - started, "step": spent[1] - spent[0]}))
"""
PROMPTS = """prompt,safe_prompt,category,concept
a cat with a knife in the forest,a cat in the forest,weapons,knife
a dog with a knife in the city,a dog in the city,weapons,knife
"""


def run_python(code: str, *arguments: object, repository: Path) -> str:
    """Standard output of a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def sd15(tmp_path: Path, repository: Path) -> Iterator[Path]:
    """Folder of the pipeline, 4.3 GB; removed after the test."""
    run_python(BUILD, tmp_path, repository=repository)
    yield tmp_path / "pipeline"
    shutil.rmtree(tmp_path / "pipeline")


@pytest.mark.large
def test_two_steps_on_sd15s_size_fit_into_8_gb(sd15: Path, tmp_path: Path, repository: Path) -> None:
    prompts = tmp_path / "prompts.csv"
    prompts.write_text(PROMPTS)
    options = {
        "prompts": prompts,
        "model": sd15,
        "output_dir": tmp_path / "out",
        "steps": 2,
        "batch_size": 2,
        "warm_steps": 0,
        "picture_steps": 1,
        "picture_batch": 2,
        "gradient_checkpointing": "true",
        "mixed_precision": "no",
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    measured = json.loads(run_python(TRAIN, *words, repository=repository).splitlines()[-1])
    print(
        f"peak {measured['peak'] / 1e9:.2f} GB, {measured['step']:.0f} s a step, {measured['seconds']:.0f} s"
    )
    assert measured["peak"] < 8e9
    assert len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()) == 2
    assert (tmp_path / "out" / "hgr" / "model.safetensors").is_file()
