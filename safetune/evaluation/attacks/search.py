"""White-box search for tokens before a prompt that make the target draw harm."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from safetune.conditioning import Conditioning
from safetune.diffusion import mse_per_sample
from safetune.evaluation.attacks.relaxation import NearestTokens, Relaxation, TokenDistribution
from safetune.evaluation.attacks.report import Attacked, AttackReport, Judge, Stopwatch, rate
from safetune.evaluation.attacks.target import Target
from safetune.evaluation.attacks.tokens import TokenSpace

LEARNING_RATES = {"unlearndiffatk": 0.01, "p4d": 0.1, "random": 0.0}
"""Methods and the learning rates of their authors."""


def search_prompts(
    target: Target,
    prompts: Sequence[str],
    latents: Tensor,
    seeds: Sequence[int],
    is_harmful: Judge,
    method: str = "unlearndiffatk",
    reference: Target | None = None,
    wanted: Sequence[str] | None = None,
    tokens: int = 5,
    steps: int = 400,
    checks: int = 10,
    noises: int = 2,
    lr: float | None = None,
    weight_decay: float = 0.1,
    batch_size: int = 16,
    seed: int = 0,
) -> Attacked:
    """Search `tokens` words before each prompt; latents (N, C, h, w) are of harmful pictures to be drawn.

    unlearndiffatk (arXiv 2310.11868): the target shall denoise the picture, |eps - eps(x_t, c')|^2, over a
    distribution of words. p4d (arXiv 2309.06135): it shall answer as the undefended `reference` answers to
    the `wanted` prompts (default: the same prompts), over vectors read as their nearest words. random: words
    by chance, what the other two must beat. All prompts are searched at once, each step on `noises` noised
    copies of each picture; after every steps/checks steps those not yet broken are drawn, with their seed,
    and judged. The words are ids of the vocabulary: as text a tokenizer may read them otherwise.

    The papers take 5 words, Adam 0.01 with weight decay 0.1, 40 steps at each of 50 timesteps and a picture
    after each; P4D AdamW 0.1, up to 3000 steps. Here timesteps are drawn at random. ValueError for a method
    that is not known, for p4d without a reference, and where counts do not fit.
    """
    check_search(prompts, latents, seeds, method, reference, steps, checks)
    watch, space = Stopwatch(), TokenSpace(target.backbone)
    pictures = target.draw(target.backbone.encode_prompts(prompts), seeds)
    harmful = is_harmful(pictures)
    before = harmful.copy()
    ids, mask = space.prefixed(prompts, tokens)
    words, found = space.words(), torch.full((len(ids), tokens), -1)
    relaxed = relaxation(method, space, words, len(ids), tokens, lr, weight_decay, seed)
    answers = None
    if method == "p4d" and reference is not None:
        answers = reference, reference.backbone.encode_prompts(wanted or prompts)
    descent = Descent(target, space, ids, mask, latents, answers, batch_size)
    generator = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    for check in range(checks):
        active = torch.from_numpy(~harmful).nonzero().flatten()
        if not len(active):
            break
        if relaxed is None:
            places = torch.randint(0, len(words), (len(ids), tokens), generator=generator)
        else:
            for _ in range(check * steps // checks, (check + 1) * steps // checks):
                timesteps = torch.randint(0, 1000, (len(ids), noises), generator=generator)
                noise = torch.randn((len(ids), noises, *latents.shape[1:]), generator=generator)
                losses.append(descent.step(relaxed, active, timesteps, noise))
            places = relaxed.best().cpu()
        found[active] = words[places[active]]
        drawn = target.draw(written(space, ids, found, active), [seeds[row] for row in active.tolist()])
        pictures[active] = drawn
        harmful[active.numpy()] = is_harmful(drawn)
    report = AttackReport(
        attack=f"search-{method}",
        count=len(prompts),
        pre_attack_rate=rate(before),
        attack_rate=rate(harmful),
        steps=0 if relaxed is None else steps,
        tries=1 + checks,
        seconds=watch.seconds(),
        seed=seed,
        details={} if not losses else {"first_loss": losses[0], "last_loss": losses[-1]},
    )
    return Attacked(report, harmful, pictures, found)


def relaxation(
    method: str, space: TokenSpace, words: Tensor, rows: int, places: int,
    lr: float | None, weight_decay: float, seed: int,
) -> Relaxation | None:  # fmt: skip
    """The method's variables, for `rows` prompts; None for random, which has none."""
    table = space.table[words.to(space.table.device)].float()
    speed = LEARNING_RATES[method] if lr is None else lr
    if method == "unlearndiffatk":
        return TokenDistribution(table, rows, places, speed, weight_decay, seed)
    if method == "p4d":
        start = torch.randint(0, len(table), (rows, places), generator=torch.Generator().manual_seed(seed))
        return NearestTokens(table, start.to(table.device), speed, weight_decay)
    return None


def written(space: TokenSpace, ids: Tensor, found: Tensor, rows: Tensor) -> Conditioning:
    """Conditioning of the selected rows with the words that were found in their room."""
    filled = ids[rows].clone()
    filled[:, 1 : found.shape[1] + 1] = found[rows]
    with torch.no_grad():
        return space.encode(filled)


def check_search(
    prompts: Sequence[str], latents: Tensor, seeds: Sequence[int], method: str, reference: Target | None,
    steps: int, checks: int,
) -> None:  # fmt: skip
    """Every mistake that can be seen before anything is drawn."""
    if method not in LEARNING_RATES:
        raise ValueError(f"method {method!r}; allowed: {', '.join(LEARNING_RATES)}")
    if method == "p4d" and reference is None:
        raise ValueError("p4d copies the undefended model's answers: give `reference`, the base's target")
    if not len(prompts) == len(latents) == len(seeds):
        raise ValueError(
            f"{len(prompts)} prompts, {len(latents)} pictures, {len(seeds)} seeds: give as many of each"
        )
    if not 1 <= checks <= steps:
        raise ValueError(f"{checks} checks in {steps} steps: give 1 to {steps} checks")


@dataclass(frozen=True)
class Descent:
    """A search's steps: the diffusion loss of N prompts with words before them."""

    target: Target
    space: TokenSpace
    ids: Tensor
    """(N, L), with room for words at `mask` (N, L)."""
    mask: Tensor
    latents: Tensor
    answers: tuple[Target, Conditioning] | None
    """Whose answers to which N prompts are to be copied; None: the noise is to be predicted."""
    batch_size: int

    def step(self, relaxed: Relaxation, active: Tensor, timesteps: Tensor, noise: Tensor) -> float:
        """One step of the active rows (M,), `batch_size` at a time; returns their mean loss.

        timesteps (N, k) and noise (N, k, C, h, w) are k for each prompt. Losses are summed over prompts, so
        that no search depends on those beside it.
        """
        sampled = relaxed.sample()
        vectors = sampled.detach().requires_grad_()
        total = 0.0
        for rows in active.split(self.batch_size):
            loss = self.losses(vectors[rows.to(vectors.device)], rows, timesteps[rows], noise[rows])
            loss.sum().backward()
            total += float(loss.detach().sum())
        sampled.backward(vectors.grad)
        relaxed.step()
        return total / len(active)

    def losses(self, vectors: Tensor, rows: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        """Loss (M,) of rows (M,) with vectors (M, K, D) before their prompts, mean over their noises."""
        backbone, copies = self.target.backbone, timesteps.shape[1]
        prompts = self.space.encode(self.ids[rows], self.mask[rows], vectors.flatten(0, 1))
        clean = self.latents[rows].repeat_interleave(copies, 0).to(backbone.device)
        t, eps = timesteps.flatten().to(backbone.device), noise.flatten(0, 1).to(backbone.device)
        noisy = backbone.add_noise(clean, eps, t)
        each = torch.arange(len(rows)).repeat_interleave(copies)
        if self.answers is None:
            goal = backbone.true_output(clean, eps, t)
        else:
            reference, asked = self.answers
            with torch.no_grad():
                goal = reference.predict(noisy, t, asked.select(rows[each]))
        losses = mse_per_sample(self.target.predict(noisy, t, prompts.select(each)), goal)
        return losses.view(-1, copies).mean(1)


def other_seeds_rate(
    target: Target, prompts: Sequence[str], attacked: Attacked, seeds: Sequence[int], is_harmful: Judge
) -> float | None:
    """Share that stays harmful with other seeds, of the prompts that words broke; None when there is none."""
    if attacked.learned is None:
        raise ValueError("this attack found no words")
    rows = torch.from_numpy(attacked.harmful & (attacked.learned[:, 0] >= 0).numpy()).nonzero().flatten()
    if not len(rows):
        return None
    space = TokenSpace(target.backbone)
    ids, _ = space.prefixed(prompts, attacked.learned.shape[1])
    drawn = target.draw(written(space, ids, attacked.learned, rows), [seeds[row] for row in rows.tolist()])
    return float(np.mean(is_harmful(drawn)))
