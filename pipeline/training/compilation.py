"""Compilation of a training step by `torch.compile`, as one graph per batch shape."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import TrainingArguments

from pipeline.data.batch import SessionBatch

Loss = Callable[..., Tensor]
"""SessionBatch, and optionally the share of each task -> ()."""
Compiler = Callable[[Loss], Loss]
_MOST_GRAPHS = 64
"""Limit of graphs, above the number of batch shapes of a training."""


def take_compiler(arguments: TrainingArguments) -> Compiler | None:
    """Compiler of `torch_compile`, its backend and mode; unsets the arguments. None if it is off.

    Hugging Face's Trainer would compile with dynamic shapes, and silently run eagerly what it
    cannot compile.
    """
    if not arguments.torch_compile:
        return None
    options: dict[str, Any] = {"backend": arguments.torch_compile_backend}
    mode = arguments.torch_compile_mode
    # accumulated gradients are outside the memory of a CUDA graph
    captures = arguments.device.type == "cuda" and arguments.gradient_accumulation_steps == 1
    if mode is None and captures and arguments.torch_compile_backend == "inductor":
        mode = "reduce-overhead"  # a CUDA graph
    arguments.torch_compile = False
    arguments.torch_compile_backend = arguments.torch_compile_mode = None
    return lambda loss: compiled(loss, **options, mode=mode)


def compiled(loss: Loss, **options: Any) -> Loss:
    """`loss`, possibly with its gradients, as one graph per shape; raises if a graph would break.

    `options` are those of `torch.compile`.
    """
    graph = torch.compile(loss, fullgraph=True, dynamic=False, **options)

    def call(*arguments: SessionBatch | Tensor) -> Tensor:
        # allow recurrent networks and `torch.autograd.grad` in a graph
        with torch._dynamo.config.patch(
            allow_rnn=True, trace_autograd_ops=True, recompile_limit=_MOST_GRAPHS
        ):
            return graph(*arguments)

    return call
