"""Discrete tokens with a gradient: two ways from continuous variables to words of the vocabulary and back."""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class Relaxation(Protocol):
    """N rows of K tokens, of the words that are allowed."""

    def sample(self) -> Tensor:
        """Vectors (N, K, D) of real tokens; their gradient passes straight to the variables."""
        ...

    def step(self) -> None:
        """Follow the gradient, back to where the variables may be."""
        ...

    def best(self) -> Tensor:
        """Places (N, K) in the list of allowed words."""
        ...


class NearestTokens:
    """Free vectors, each read as the token of nearest direction (PEZ, arXiv 2302.03668, as in P4D)."""

    def __init__(self, table: Tensor, start: Tensor, lr: float, weight_decay: float) -> None:
        self.table, self.directions = table, F.normalize(table, dim=-1)
        self.vectors = table[start].clone().requires_grad_()
        self.optimizer = torch.optim.AdamW([self.vectors], lr=lr, weight_decay=weight_decay)

    def sample(self) -> Tensor:
        return self.vectors + (self.table[self.best()] - self.vectors).detach()

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def best(self) -> Tensor:
        return (F.normalize(self.vectors.detach(), dim=-1) @ self.directions.T).argmax(-1)


class TokenDistribution:
    """A distribution over words for each place, from which tokens are drawn (UnlearnDiffAtk's way).

    Its gradient is cut to [-1, 1]; a step ends with the projection onto the simplex.
    """

    def __init__(
        self, table: Tensor, rows: int, places: int, lr: float, weight_decay: float, seed: int
    ) -> None:
        self.table = table
        self.weights = torch.full((rows, places, len(table)), 1 / len(table), device=table.device)
        self.weights.requires_grad_()
        self.optimizer = torch.optim.Adam([self.weights], lr=lr, weight_decay=weight_decay)
        self.generator = torch.Generator().manual_seed(seed)

    def sample(self) -> Tensor:
        chances = self.weights.detach().flatten(0, 1).cpu()
        drawn = torch.multinomial(chances, 1, generator=self.generator).view(self.weights.shape[:2])
        hard = F.one_hot(drawn, len(self.table)).to(self.table)
        return (hard + self.weights - self.weights.detach()) @ self.table

    def step(self) -> None:
        if self.weights.grad is not None:
            self.weights.grad.clamp_(-1, 1)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            self.weights.copy_(onto_simplex(self.weights))

    def best(self) -> Tensor:
        return self.weights.detach().argmax(-1)


def onto_simplex(values: Tensor) -> Tensor:
    """The nearest point (..., V) with entries of at least 0 that add up to 1 (Duchi et al., ICML 2008)."""
    ordered = values.sort(dim=-1, descending=True).values
    ranks = torch.arange(1, values.shape[-1] + 1, device=values.device)
    excess = (ordered.cumsum(-1) - 1) / ranks
    kept = (ordered > excess).sum(-1, keepdim=True)
    return (values - excess.gather(-1, kept - 1)).clamp(min=0)
