"""The features of an interaction become one vector."""

from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.core.errors import ConfigError, closest
from pipeline.model.inputs.checks import check_positive

Aggregation = Literal["concat", "stack", "element-wise-sum", "element-wise-sum-item-multi"]
AGGREGATIONS = ["concat", "stack", "element-wise-sum", "element-wise-sum-item-multi"]


class ConcatFeatures(nn.Module):
    """One behind the other."""

    def forward(self, parts: dict[str, Tensor]) -> Tensor:
        """F of (B, L, d_f) -> (B, L, sum of d_f)."""
        return torch.cat(list(parts.values()), -1)


class StackFeatures(nn.Module):
    """Side by side along a last axis, (B, L, d, F), flattened since sequence blocks take vectors.

    The F values of one dimension stand together, where ConcatFeatures keeps those of a feature.
    """

    def forward(self, parts: dict[str, Tensor]) -> Tensor:
        """F of (B, L, d) -> (B, L, d * F)."""
        return torch.stack(list(parts.values()), -1).flatten(-2)


class ElementwiseSum(nn.Module):
    """Their sum."""

    def forward(self, parts: dict[str, Tensor]) -> Tensor:
        """F of (B, L, d) -> (B, L, d)."""
        return torch.stack(list(parts.values())).sum(0)


class ElementwiseSumItemMulti(nn.Module):
    """The item's embedding times the sum of the others, number by number."""

    def __init__(self, item: str) -> None:
        super().__init__()
        self.item = item

    def forward(self, parts: dict[str, Tensor]) -> Tensor:
        """F of (B, L, d) -> (B, L, d)."""
        others = [part for name, part in parts.items() if name != self.item]
        return parts[self.item] * torch.stack(others).sum(0)


def build_aggregation(aggregation: str | nn.Module, item: str, widths: dict[str, int]) -> nn.Module:
    """Aggregation by its name for parts of these widths; a module of one's own as it is.

    ConfigError for an unknown name and for widths that it cannot work with.
    """
    if isinstance(aggregation, nn.Module):
        return aggregation
    if aggregation not in AGGREGATIONS:
        hint = closest(str(aggregation), AGGREGATIONS)
        raise ConfigError(f"aggregation is {aggregation!r}; {hint}")
    if aggregation != "concat" and len(set(widths.values())) > 1:
        found = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise ConfigError(
            f"{aggregation} needs vectors of one width, found: {found}. Set equal embedding_dims "
            "and continuous_projection (or soft embeddings), or use concat."
        )
    match aggregation:
        case "concat":
            return ConcatFeatures()
        case "stack":
            return StackFeatures()
        case "element-wise-sum":
            return ElementwiseSum()
    if len(widths) < 2:
        raise ConfigError(
            f"{aggregation} multiplies the item by the other features, and there are none. Use "
            "concat."
        )
    return ElementwiseSumItemMulti(item)


def build_projection(projection: nn.Module | None, d_output: int | None, width: int) -> nn.Module:
    """The module as it is, made for `width` if it waits for that; or a linear layer."""
    if projection is not None and d_output is not None:
        raise ConfigError("Both projection and d_output are given. Leave out one.")
    if d_output is not None:
        check_positive("d_output", d_output)
        return nn.Linear(width, d_output)
    if projection is None:
        return nn.Identity()
    if not isinstance(projection, nn.Module):
        raise ConfigError(
            f"projection is {projection!r}, expected a module; d_output takes a width."
        )
    build = getattr(projection, "build", None)  # as MLPBlock has
    if callable(build):
        build(width)
    return projection
