import torch

from safetune.backbone.predictions import add_flow_noise, flow_velocity, velocity

LATENTS, NOISE = torch.tensor([2.0, 2.0]).view(2, 1, 1, 1), torch.tensor([5.0, -1.0]).view(2, 1, 1, 1)


def test_velocity() -> None:
    alphas = torch.tensor([0.64, 0.36, 0.0])
    assert torch.allclose(
        velocity(LATENTS, NOISE, torch.tensor([0, 1]), alphas).flatten(),
        torch.tensor([0.8 * 5 - 0.6 * 2, 0.6 * -1 - 0.8 * 2]),
    )
    # With no signal left (zero terminal SNR) v is -x_0.
    assert velocity(LATENTS, NOISE, torch.tensor([2, 2]), alphas).flatten().tolist() == [-2, -2]


def test_flow() -> None:
    noisy = add_flow_noise(LATENTS, NOISE, torch.tensor([1, 0]), torch.tensor([0.25, 0.5, 1.0]))
    assert noisy.flatten().tolist() == [3.5, 1.25]
    assert flow_velocity(LATENTS, NOISE).flatten().tolist() == [3, -3]


def test_half_precision_stays_half() -> None:
    latents, noise, t = LATENTS.bfloat16(), NOISE.bfloat16(), torch.tensor([0, 1])
    assert velocity(latents, noise, t, torch.tensor([0.6, 0.3])).dtype == torch.bfloat16
    assert add_flow_noise(latents, noise, t, torch.tensor([0.6, 0.3])).dtype == torch.bfloat16
