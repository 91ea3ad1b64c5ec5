"""Modules of anyone's among the blocks: their widths, and whether they can stand there."""

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.core.errors import ConfigError
from pipeline.model.mlp import MLPBlock


def task_block_size(block: nn.Module, width: int) -> int:
    """Build a block between hidden states (T, width) and a task; its output width.

    ConfigError if it does not take one row at a time.
    """
    if isinstance(block, MLPBlock):
        block.build(width)
        return block.dimensions[-1]
    name = type(block).__name__
    given = torch.randn(3, width, requires_grad=True)
    output = _tried(block, given, f"(T, {width})")
    if not isinstance(output, Tensor) or output.dim() != 2 or output.size(0) != 3:
        raise ConfigError(f"{name} does not give one vector for each, as a task_block must.")
    if output.requires_grad:
        (by,) = torch.autograd.grad((output[0] * torch.randn_like(output[0])).sum(), given)
        if bool(by[1:].any()):
            raise ConfigError(f"{name} mixes rows, so it cannot be a task_block.")
    return int(output.size(-1))


def plain_output_size(block: nn.Module, width: int) -> int:
    """Width that any module of (B, L, width) gives. ConfigError if it cannot stand there."""
    name = type(block).__name__
    for module in block.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ConfigError(f"{name} mixes sessions with each other and with padding: LayerNorm.")
    first = next(block.parameters(), torch.empty(0))
    given = torch.randn(2, 3, width, device=first.device, dtype=first.dtype, requires_grad=True)
    output: Any = _tried(block, given, f"(B, L, {width})")
    output = output[0] if isinstance(output, tuple) else output
    if not isinstance(output, Tensor) or output.dim() != 3 or output.shape[:2] != (2, 3):
        raise ConfigError(f"{name} does not give one vector an interaction.")
    if output.requires_grad:
        weights = torch.randn_like(output)
        early = (output[:, :2] * weights[:, :2]).sum()
        (ahead,) = torch.autograd.grad(early, given, retain_graph=True)
        of_first, of_second = (output * weights).sum((1, 2))
        (by_first,) = torch.autograd.grad(of_first, given, retain_graph=True)
        (by_second,) = torch.autograd.grad(of_second, given)
        if bool(by_first[1].any()) or bool(by_second[0].any()):
            raise ConfigError(
                f"{name} lets sessions of a batch see each other. Recurrent modules of torch need "
                "batch_first=True."
            )
        if bool(ahead[:, 2].any()):
            raise ConfigError(
                f"{name} looks at later interactions, so that padding and targets would show. Use "
                "a TransformerBlock, whose attention follows the masking."
            )
    return int(output.size(-1))


def _tried(block: nn.Module, given: Tensor, shape: str) -> Any:
    """What a module of someone's gives. ConfigError if it does not take that."""
    training = block.training
    try:
        return block.eval()(given)
    except ConfigError:
        raise
    except Exception as error:
        line = " ".join(str(error).split())[:120]
        raise ConfigError(
            f"{type(block).__name__} does not take {shape}, what comes before it: {line}"
        ) from None
    finally:
        block.train(training)
