"""GRU4Rec's own pairwise loss."""

from torch import Tensor, nn

from pipeline.model.losses import LossOptions, Sampled


class TOP1Loss(nn.Module):
    """Mean of sigma(s_j - s_p) + sigma(s_j^2) over the negatives j (Hidasi et al., ICLR 2016)."""

    sampled = True

    def forward(self, sampled: Sampled) -> Tensor:
        """Sampled of (T,) and (T, N) -> (T,)."""
        positive, negative = sampled.scores()
        return sampled.mean((negative - positive).sigmoid() + negative.square().sigmoid())


def build(_options: LossOptions) -> TOP1Loss:
    """It has no options."""
    return TOP1Loss()
