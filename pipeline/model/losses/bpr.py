"""Bayesian personalized ranking."""

from torch import Tensor, nn
from torch.nn import functional

from pipeline.model.losses import LossOptions, Sampled


class BPRLoss(nn.Module):
    """Mean of -log sigma(s_p - s_j) over the negatives j (Rendle et al., UAI 2009)."""

    sampled = True

    def forward(self, sampled: Sampled) -> Tensor:
        """Sampled of (T,) and (T, N) -> (T,)."""
        positive, negative = sampled.scores()
        return sampled.mean(-functional.logsigmoid(positive - negative))


def build(_options: LossOptions) -> BPRLoss:
    """It has no options."""
    return BPRLoss()
