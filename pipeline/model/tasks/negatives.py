"""Negatives of the sampled losses: the drawn items and their expected number of draws."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.core.errors import ConfigError, closest
from pipeline.recipe.choices import NEGATIVES

NEED_COUNTS = ("popularity", "in-batch")
MOST_WEIGHT = 2**53
"""Largest integer sum that is exact in float64."""


class Negatives(NamedTuple):
    """Draws with replacement; a draw may equal the row's target, see `is_negative`."""

    items: Tensor
    """(N,) for all targets or (T, N): positions in the catalogue, 0 to items - 1."""
    log_expected: Tensor
    """Same shape, float32: log(N q_j), the log of the expected number of draws among N."""


def is_negative(items: Tensor, targets: Tensor) -> Tensor:
    """(N,) or (T, N), (T,) -> (T, N) bool: False where a draw equals the row's target."""
    return items != targets.unsqueeze(1)


class NegativeSampler(nn.Module):
    """Independent draws from the catalogue by a distribution q.

    | distribution | q of the item at position r of `num_items`                              |
    | ------------ | ----------------------------------------------------------------------- |
    | uniform      | 1 / items                                                               |
    | log-uniform  | log((r + 2) / (r + 1)) / log(items + 1): Zipf's law, for a catalogue    |
    |              | that is sorted by falling frequency                                     |
    | popularity   | proportional to `counts`; an item with count 0 is never drawn, so for   |
    |              | sampled-softmax it does not exist                                       |
    | in-batch     | no draw: the negatives are the targets of the batch, q is proportional  |
    |              | to `counts`; a count of 0 is replaced by the smallest one above 0       |

    `shared` draws one set for all targets, otherwise each target has its own. In-batch ignores
    `shared` and `num_negatives`: its set is all T targets; a row's own target is not a negative, so
    N in log(N q_j) is T - 1. ConfigError for sizes below 1 and invalid counts.
    """

    cumulative: Tensor | None
    weights: Tensor | None

    def __init__(
        self,
        num_items: int,
        *,
        distribution: str,
        num_negatives: int = 100,
        shared: bool = True,
        counts: Tensor | None = None,
    ) -> None:
        super().__init__()
        if distribution not in NEGATIVES:
            hint = closest(str(distribution), list(NEGATIVES))
            raise ConfigError(f"distribution of negatives is {distribution!r}; {hint}")
        for name, number in (("num_items", num_items), ("num_negatives", num_negatives)):
            if not isinstance(number, int) or number < 1:
                raise ConfigError(f"{name} is {number!r}, expected a whole number from 1.")
        self.num_items = num_items
        self.distribution = distribution
        self.num_negatives = num_negatives
        self.shared = shared
        self.total_weight = 0
        # whole numbers: their sums are exact, and a model in half precision keeps them
        self.register_buffer("weights", None, persistent=False)
        self.register_buffer("cumulative", None, persistent=False)
        if distribution in NEED_COUNTS:
            weights = _whole_weights(counts, num_items, distribution)
            self.total_weight = int(weights.sum())
            self.cumulative = weights.cumsum(0)
            if distribution == "in-batch":
                weights = weights.where(weights > 0, weights[weights > 0].min())
            self.weights = weights

    @torch.no_grad()
    def draw(self, targets: Tensor, num_targets: Tensor | None = None) -> Negatives:
        """(T,) positions in the catalogue -> Negatives, on the device of the targets.

        `num_targets` () is the number of targets of in-batch, by default T.
        """
        if self.distribution == "in-batch":
            draws = max(targets.numel() - 1, 1) if num_targets is None else num_targets - 1
            return Negatives(targets, self._log_expected(targets, draws))
        size = (self.num_negatives,) if self.shared else (targets.numel(), self.num_negatives)
        # float64 rather than torch.randint, whose draws are uneven over a large range
        chance = torch.rand(size, dtype=torch.float64, device=targets.device)
        items = self._item_at(chance)
        return Negatives(items, self._log_expected(items, self.num_negatives))

    def _item_at(self, chance: Tensor) -> Tensor:
        """Inverse of the distribution function: any shape in [0, 1) -> the same shape."""
        match self.distribution:
            case "uniform":
                items = (chance * self.num_items).long()
            case "log-uniform":
                items = (chance * math.log1p(self.num_items)).expm1().long()
            case _:
                assert self.cumulative is not None  # noqa: S101
                weight = (chance * self.total_weight).long()
                # right=True skips items of weight 0
                items = torch.searchsorted(self.cumulative, weight, right=True)
        # expm1 rounds differently on each device
        return items.clamp(max=self.num_items - 1)

    def _log_expected(self, items: Tensor, draws: int | Tensor) -> Tensor:
        """Any shape -> the same shape: log(draws q_j)."""
        match self.distribution:
            case "uniform":
                share = torch.full_like(items, 1 / self.num_items, dtype=torch.float64)
            case "log-uniform":
                share = (1 / (items.double() + 1)).log1p() / math.log1p(self.num_items)
            case _:
                assert self.weights is not None  # noqa: S101
                share = self.weights[items].double() / self.total_weight
        return (share * draws).log().float()


def _whole_weights(counts: Tensor | None, num_items: int, distribution: str) -> Tensor:
    """(items,) of any dtype -> (items,) proportional int64. ConfigError for invalid counts."""
    if counts is None:
        raise ConfigError(
            f"Negatives by {distribution} need to know how often each item occurs. Pass "
            "`item_counts`, or choose uniform or log-uniform."
        )
    if counts.shape != (num_items,):
        raise ConfigError(
            f"item_counts has shape {tuple(counts.shape)}, expected one count for each of the "
            f"{num_items} items of the catalogue."
        )
    counts = counts.detach().double()
    if not bool(counts.isfinite().all()) or bool((counts < 0).any()) or not bool(counts.any()):
        raise ConfigError(
            "item_counts has a negative or infinite count, or none above 0. Expected how often "
            "each item occurs in training."
        )
    if bool((counts != counts.round()).any()) or float(counts.sum()) > MOST_WEIGHT:
        # finer than the resolution of a draw; ceil keeps counts above 0
        counts = (counts * (2.0**40 / counts.sum())).ceil()
    return counts.long()
