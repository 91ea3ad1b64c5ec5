"""What a module gives, found by running it on zeros."""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pipeline.core.errors import ConfigError

T = TypeVar("T")


@torch.no_grad()
def probe(module: nn.Module, example: Any, kind: type[T]) -> T:
    """Its output for `example`, in evaluation mode. ConfigError if it does not take that or does
    not give a `kind`: a tensor (1, 2, D) or parts {name: (1, 2, d)}."""
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
        wanted = "{name: (B, L, d)}" if kind is dict else "(B, L, D)"
        raise ConfigError(f"{name} gives {_shape(output)}, expected {wanted}.")
    return output


def _shape(value: object) -> str:
    if isinstance(value, Tensor):
        axes = ["B", "L", *map(str, value.shape[2:])] if value.dim() == 3 else value.shape
        return f"({', '.join(map(str, axes))})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_shape(part)}" for name, part in value.items()) + "}"
    return type(value).__name__
