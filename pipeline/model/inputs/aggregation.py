"""Aggregation of the features of an interaction into one vector.

Shape letters: B sessions, L positions, F features, d width of a feature, D of the result.
"""

from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from pipeline.core.errors import ConfigError, closest
from pipeline.model.inputs.columns import check_positive

T = TypeVar("T")

Aggregation = Literal["concat", "stack", "element-wise-sum", "element-wise-sum-item-multi"]
AGGREGATIONS = ["concat", "stack", "element-wise-sum", "element-wise-sum-item-multi"]


class ConcatFeatures(nn.Module):
    """Concatenate the features."""

    def forward(self, parts: dict[str, Tensor]) -> Tensor:
        """F of (B, L, d_f) -> (B, L, sum of d_f)."""
        return torch.cat(list(parts.values()), -1)


class StackFeatures(nn.Module):
    """Stack along a last axis (B, L, d, F), then flatten it, as sequence blocks read vectors.

    The F values of one dimension are adjacent; ConcatFeatures keeps the d values of a feature
    adjacent.
    """

    def forward(self, parts: dict[str, Tensor]) -> Tensor:
        """F of (B, L, d) -> (B, L, d * F)."""
        return torch.stack(list(parts.values()), -1).flatten(-2)


class ElementwiseSum(nn.Module):
    """Sum the features."""

    def forward(self, parts: dict[str, Tensor]) -> Tensor:
        """F of (B, L, d) -> (B, L, d)."""
        return torch.stack(list(parts.values())).sum(0)


class ElementwiseSumItemMulti(nn.Module):
    """Item embedding times the sum of the other features, element by element."""

    def __init__(self, item: str) -> None:
        super().__init__()
        self.item = item

    def forward(self, parts: dict[str, Tensor]) -> Tensor:
        """F of (B, L, d) -> (B, L, d)."""
        others = [part for name, part in parts.items() if name != self.item]
        return parts[self.item] * torch.stack(others).sum(0)


def build_aggregation(aggregation: str | nn.Module, item: str, widths: dict[str, int]) -> nn.Module:
    """Build an aggregation by its name for features of these widths; a module is returned
    unchanged.

    ConfigError for an unknown name and for widths that do not fit.
    """
    if isinstance(aggregation, nn.Module):
        return aggregation
    if aggregation not in AGGREGATIONS:
        hint = closest(str(aggregation), AGGREGATIONS)
        raise ConfigError(f"aggregation is {aggregation!r}; {hint}")
    if aggregation != "concat" and len(set(widths.values())) > 1:
        listed = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise ConfigError(
            f"{aggregation} needs vectors of one width, found: {listed}. Set equal embedding_dims "
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
    """The module, built for `width` if it has `build`, or a linear layer to `d_output`."""
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
    build = getattr(projection, "build", None)  # MLPBlock has it
    if callable(build):
        build(width)
    return projection


@torch.no_grad()
def run_example(module: nn.Module, example: Any, kind: type[T]) -> T:
    """Output of a module for an `example` of two interactions, in evaluation mode.

    ConfigError if the module rejects it or does not return a `kind`: a tensor (1, 2, D) or parts
    {name: (1, 2, d)}.
    """
    name = type(module).__name__
    modes = [(part, part.training) for part in module.modules()]
    try:
        output = module.eval()(example)
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        line = " ".join(str(error).split())[:120]
        raise ConfigError(f"{name} does not take {_shape(example)}: {line}") from None
    finally:
        for part, mode in modes:
            part.training = mode
    tensors = list(output.values()) if isinstance(output, dict) else [output]
    fitting = [t for t in tensors if isinstance(t, Tensor) and t.dim() == 3 and t.size(1) == 2]
    if not isinstance(output, kind) or not tensors or len(fitting) < len(tensors):
        expected = "{name: (B, L, d)}" if kind is dict else "(B, L, D)"
        raise ConfigError(f"{name} gives {_shape(output)}, expected {expected}.")
    return output


def _shape(value: object) -> str:
    if isinstance(value, Tensor):
        axes = ["B", "L", *map(str, value.shape[2:])] if value.dim() == 3 else value.shape
        return f"({', '.join(map(str, axes))})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_shape(part)}" for name, part in value.items()) + "}"
    return type(value).__name__
