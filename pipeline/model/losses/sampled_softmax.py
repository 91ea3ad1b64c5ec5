"""Softmax cross-entropy with an estimate of the partition sum."""

from torch import Tensor, nn
from torch.nn import functional

from pipeline.model.losses import LossOptions, Sampled


class SampledSoftmaxLoss(nn.Module):
    """-s_p + log(e^s_p + sum of e^s_j / (N q_j) over draws j that are not the target p).

    Importance sampling makes the partition sum unbiased (Bengio and Senécal, 2008). The target
    is always in it, by no draw, so its score is not corrected (Khrylchenko et al., RecSys 2025).
    """

    sampled = True

    def forward(self, sampled: Sampled) -> Tensor:
        """Sampled of (T,) and (T, N) -> (T,)."""
        positive, negative = sampled.scores()
        weighted = sampled.lowered(negative - sampled.log_expected)
        # -log of e^s_p / (e^s_p + e^r) is -log sigma(s_p - r): no difference of large numbers
        rest = weighted.logsumexp(1)  # (T,)
        return -functional.logsigmoid(positive.squeeze(1) - rest)


def build(_options: LossOptions) -> SampledSoftmaxLoss:
    """It has no options."""
    return SampledSoftmaxLoss()
