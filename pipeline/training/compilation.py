"""Compilation of a training step by `torch.compile`, as one graph for each shape of a batch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import TrainingArguments

from pipeline.data.batch import SessionBatch

Loss = Callable[..., Tensor]
"""A SessionBatch, and maybe the share of each task, -> ()."""
Compiler = Callable[[Loss], Loss]
_MOST_GRAPHS = 64
"""More than there are shapes of the batches of a training."""


def take_compiler(arguments: TrainingArguments) -> Compiler | None:
    """Compiler by `torch_compile`, its backend and its mode, which are then unset; None without.

    Hugging Face's Trainer would compile with shapes that vary, and would run what it cannot compile
    without a word.
    """
    if not arguments.torch_compile:
        return None
    options: dict[str, Any] = {"backend": arguments.torch_compile_backend}
    mode = arguments.torch_compile_mode
    # gradients of several batches add up outside of the memory of a CUDA graph
    captures = arguments.device.type == "cuda" and arguments.gradient_accumulation_steps == 1
    if mode is None and captures and arguments.torch_compile_backend == "inductor":
        mode = "reduce-overhead"  # a CUDA graph
    arguments.torch_compile = False
    arguments.torch_compile_backend = arguments.torch_compile_mode = None
    return lambda loss: compiled(loss, **options, mode=mode)


def compiled(loss: Loss, **options: Any) -> Loss:
    """`loss`, which may differentiate too, as one graph for each shape; an exception if it is none.

    `options` are those of `torch.compile`.
    """
    graph = torch.compile(loss, fullgraph=True, dynamic=False, **options)

    def call(*arguments: SessionBatch | Tensor) -> Tensor:
        # recurrent networks and `torch.autograd.grad` are operators of a graph like others
        with torch._dynamo.config.patch(
            allow_rnn=True, trace_autograd_ops=True, recompile_limit=_MOST_GRAPHS
        ):
            return graph(*arguments)

    return call
