"""Several values of an interaction become one vector."""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from pipeline.core.columns import PADDING
from pipeline.core.errors import ConfigError
from pipeline.model.ops.shards import ShardedEmbedding

Combiner = Literal["mean", "sum", "sqrtn"]
COMBINERS = ("mean", "sum", "sqrtn")


def check_combiner(combiner: str) -> None:
    """ConfigError for what is no combiner."""
    if combiner not in COMBINERS:
        raise ConfigError(f"combiner is {combiner!r}. Expected {', '.join(COMBINERS)}.")


def look_up(
    table: nn.Embedding, indices: Tensor, combiner: Combiner, weight: Tensor | None = None
) -> Tensor:
    """(B, L) -> (B, L, d); (B, L, M) -> (B, L, d) over the values that are there, 0 over none.

    `sqrtn` divides the sum by the square root of their number. `weight` stands in for the
    table's; its gradient is sparse.
    """
    if weight is None:
        vectors = table(indices)
    elif isinstance(table, ShardedEmbedding):
        vectors = table.look_up(indices, weight, sparse=True)
    else:
        vectors = functional.embedding(indices, weight, table.padding_idx, sparse=True)
    if indices.dim() < 3:
        return vectors
    total = vectors.sum(-2)  # the row of padding is zero
    if combiner == "sum":
        return total
    number = (indices != PADDING).sum(-1, keepdim=True).clamp(min=1)  # (B, L, 1)
    return total / (number if combiner == "mean" else number.sqrt())
