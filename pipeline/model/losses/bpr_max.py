"""BPR in which the negatives with the highest scores count most."""

from torch import Tensor, nn
from torch.nn import functional

from pipeline.core.arguments import checked_arguments
from pipeline.core.errors import ConfigError
from pipeline.model.losses import LossOptions, Sampled


class BPRMaxLoss(nn.Module):
    """-log sum of w_j sigma(s_p - s_j), plus regularization times the sum of w_j s_j^2.

    w is the softmax over the row's negatives (Hidasi and Karatzoglou, CIKM 2018).
    """

    sampled = True

    @checked_arguments()
    def __init__(self, regularization: float = 0.0) -> None:
        super().__init__()
        if not 0 <= regularization < float("inf"):
            raise ConfigError(f"regularization is {regularization}, expected 0 or more.")
        self.regularization = regularization

    def forward(self, sampled: Sampled) -> Tensor:
        """Sampled of (T,) and (T, N) -> (T,)."""
        positive, negative = sampled.scores()
        log_weights = sampled.lowered(negative).log_softmax(1)  # (T, N)
        # in logarithms: sigma(s_p - s_j) of all negatives can be 0 in floating point
        log_won = log_weights + functional.logsigmoid(positive - negative)
        penalty = sampled.total(log_weights.exp() * negative.square())
        return sampled.or_zero(-log_won.logsumexp(1)) + self.regularization * penalty


def build(options: LossOptions) -> BPRMaxLoss:
    """With the recipe's regularization."""
    return BPRMaxLoss(options.regularization)
