"""TOP1 in which the negatives with the highest scores count most."""

from torch import Tensor, nn

from pipeline.model.losses import LossOptions, Sampled


class TOP1MaxLoss(nn.Module):
    """Sum of w_j (sigma(s_j - s_p) + sigma(s_j^2)) over the negatives j.

    w is the softmax over the row's negatives (Hidasi and Karatzoglou, CIKM 2018).
    """

    sampled = True

    def forward(self, sampled: Sampled) -> Tensor:
        """Sampled of (T,) and (T, N) -> (T,)."""
        positive, negative = sampled.scores()
        weights = sampled.lowered(negative).softmax(1)  # (T, N)
        lost = (negative - positive).sigmoid() + negative.square().sigmoid()
        return sampled.total(weights * lost)


def build(_options: LossOptions) -> TOP1MaxLoss:
    """It has no options."""
    return TOP1MaxLoss()
