"""Losses over the score of the target and the scores of sampled negatives.

Shape letters: T positions with a target, N negatives of each.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.core.errors import ConfigError


class Sampled(NamedTuple):
    """Scores of T targets and of N negatives per target, with the expected number of draws.

    A draw that equals the row's target is not a negative: no loss reads it, and a row without
    negatives has loss 0 and gradient 0. The methods below apply this mask.
    """

    positive: Tensor
    """(T,) scores of the targets."""
    negative: Tensor
    """(T, N) scores of the negatives."""
    log_expected: Tensor
    """(T, N), (1, N) or (N,) log(N q_j): expected number of draws of each negative."""
    is_negative: Tensor
    """(T, N) bool, False where the draw equals the target."""
    num_items: int
    """Number of items in the catalogue."""
    num_draws: Tensor | None = None
    """Number of draws of each target, (), None for N."""

    def scores(self) -> tuple[Tensor, Tensor]:
        """(T, 1) and (T, N) scores in float32 or finer, 0 for a draw that is not a negative.

        0 rather than minus infinity keeps the gradient of the mask finite.
        """
        dtype = torch.promote_types(self.negative.dtype, torch.float32)
        negative = self.negative.to(dtype).masked_fill(~self.is_negative, 0.0)
        return self.positive.to(dtype).unsqueeze(1), negative

    def lowered(self, values: Tensor) -> Tensor:
        """(T, N) -> (T, N), with the lowest finite number for a draw that is not a negative."""
        return values.masked_fill(~self.is_negative, torch.finfo(values.dtype).min)

    def total(self, values: Tensor) -> Tensor:
        """(T, N) -> (T,) sum over the row's negatives."""
        return values.masked_fill(~self.is_negative, 0.0).sum(1)

    def mean(self, values: Tensor) -> Tensor:
        """(T, N) -> (T,) mean over the row's negatives, 0 for a row without negatives."""
        return self.total(values) / self.num_negatives().clamp(min=1)

    def num_negatives(self) -> Tensor:
        """(T,) number of negatives in each row."""
        return self.is_negative.sum(1)

    def or_zero(self, losses: Tensor) -> Tensor:
        """(T,) -> (T,) with 0 for a row without negatives."""
        return losses.masked_fill(~self.is_negative.any(1), 0.0)


class SampledSoftmaxLoss(nn.Module):
    """-s_p + log(e^s_p + sum of e^s_j / (N q_j) over draws j that are not the target p).

    Importance sampling makes the partition sum unbiased (Bengio and Senécal, 2008). The target
    is always part of it and is never drawn, so its score is not corrected (Khrylchenko et al.,
    RecSys 2025).
    """

    sampled = True

    def forward(self, sampled: Sampled) -> Tensor:
        """Sampled of (T,) and (T, N) -> (T,)."""
        positive, negative = sampled.scores()
        weighted = sampled.lowered(negative - sampled.log_expected)
        # -log of e^s_p / (e^s_p + e^r) is -log sigma(s_p - r), without a difference of large
        # numbers
        rest = weighted.logsumexp(1)  # (T,)
        return -functional.logsigmoid(positive.squeeze(1) - rest)


class GBCELoss(nn.Module):
    """-(beta log sigma(s_p + b) + sum of log(1 - sigma(s_j + b))) / (negatives + 1).

    gSASRec (Petrov and Macdonald, RecSys 2023): beta = alpha (t (1 - 1 / alpha) + 1 / alpha)
    with the sampling rate alpha = N / (items - 1), at most 1. t = 0 is plain binary
    cross-entropy; t = 1 gives the probabilities of training with all negatives.

    b = log(beta / N) balances the loss for equal scores of all items (a prior as the bias of the
    output, Lin et al. 2017, "Focal loss"). It shifts all scores equally and changes no ranking.
    Without it a model first has to learn that nearly every item is a negative: on a catalogue of
    3,000 items the accuracy after four epochs was that of popularity.
    """

    sampled = True

    def __init__(self, t: float = 0.75) -> None:
        super().__init__()
        if not 0 <= t <= 1:
            raise ConfigError(f"gbce_t is {t}, expected from 0 to 1.")
        self.t = t

    def forward(self, sampled: Sampled) -> Tensor:
        """Sampled of (T,) and (T, N) -> (T,)."""
        positive, negative = sampled.scores()
        draws = sampled.num_draws
        if draws is None:
            draws = torch.full((), negative.size(1), device=negative.device)
        draws = draws.double()
        alpha = (draws / max(sampled.num_items - 1, 1)).clamp(max=1.0)
        beta = 1 - self.t * (1 - alpha)  # the formula above without its division by alpha
        offset = (beta.clamp(min=1e-3) / draws.clamp(min=1)).log().to(positive.dtype)
        beta = beta.to(positive.dtype)
        liked = beta * functional.logsigmoid(positive + offset).squeeze(1)  # (T,)
        others = sampled.total(functional.logsigmoid(-negative - offset))  # (T,)
        return sampled.or_zero(-(liked + others) / (sampled.num_negatives() + 1))


class BPRLoss(nn.Module):
    """Mean of -log sigma(s_p - s_j) over the negatives j (Rendle et al., UAI 2009)."""

    sampled = True

    def forward(self, sampled: Sampled) -> Tensor:
        """Sampled of (T,) and (T, N) -> (T,)."""
        positive, negative = sampled.scores()
        return sampled.mean(-functional.logsigmoid(positive - negative))


class BPRMaxLoss(nn.Module):
    """-log sum of w_j sigma(s_p - s_j), plus regularization times the sum of w_j s_j^2.

    w is the softmax over the row's negatives (Hidasi and Karatzoglou, CIKM 2018): the negatives
    with the highest scores count most.
    """

    sampled = True

    def __init__(self, regularization: float = 0.0) -> None:
        super().__init__()
        if not 0 <= regularization < float("inf"):
            raise ConfigError(f"regularization is {regularization}, expected 0 or more.")
        self.regularization = regularization

    def forward(self, sampled: Sampled) -> Tensor:
        """Sampled of (T,) and (T, N) -> (T,)."""
        positive, negative = sampled.scores()
        log_weights = sampled.lowered(negative).log_softmax(1)  # (T, N)
        # in logarithms, as sigma(s_p - s_j) can underflow to 0 for all negatives
        log_won = log_weights + functional.logsigmoid(positive - negative)
        penalty = sampled.total(log_weights.exp() * negative.square())
        return sampled.or_zero(-log_won.logsumexp(1)) + self.regularization * penalty


class TOP1Loss(nn.Module):
    """Mean of sigma(s_j - s_p) + sigma(s_j^2) over the negatives j (Hidasi et al., ICLR 2016)."""

    sampled = True

    def forward(self, sampled: Sampled) -> Tensor:
        """Sampled of (T,) and (T, N) -> (T,)."""
        positive, negative = sampled.scores()
        return sampled.mean((negative - positive).sigmoid() + negative.square().sigmoid())


class TOP1MaxLoss(nn.Module):
    """Sum of w_j (sigma(s_j - s_p) + sigma(s_j^2)) over the negatives j.

    w is the softmax over the row's negatives (Hidasi and Karatzoglou, CIKM 2018): the negatives
    with the highest scores count most.
    """

    sampled = True

    def forward(self, sampled: Sampled) -> Tensor:
        """Sampled of (T,) and (T, N) -> (T,)."""
        positive, negative = sampled.scores()
        weights = sampled.lowered(negative).softmax(1)  # (T, N)
        lost = (negative - positive).sigmoid() + negative.square().sigmoid()
        return sampled.total(weights * lost)
