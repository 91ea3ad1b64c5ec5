"""Sharding of the item table over the processes that train a model.

During training each process holds its own rows, their gradient and their optimizer state. The whole
table exists only before and after: in each process when the model is built, for the initial rows of
an unsharded table, and after training in the main memory of the first process, which writes it.
"""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from transformers import TrainingArguments

from pipeline.core.columns import FIRST_ITEM
from pipeline.core.errors import ConfigError
from pipeline.model.losses import LabelSmoothCrossEntropyLoss
from pipeline.model.model import Model
from pipeline.model.model_files import read_tensors, write_tensors
from pipeline.model.ops.shards import ShardedEmbedding, Shards
from pipeline.model.tasks.next_item import NextItemPredictionTask
from pipeline.training.distributed.processes import Processes

_WEIGHTS = "weights"
_BEST = "best"
_PIECE_BYTES = 2**26
"""Bytes of a message between processes."""


class Sharding:
    """Sharded item table of a model. All methods but `parts` are collective."""

    def __init__(self, model: Model, processes: Processes, timeout_seconds: float) -> None:
        """Shard the table of `model` in place. ConfigError if the model does not allow it."""
        check_shardable(model, processes)
        self.is_over = False
        self.model = model
        whole = model.inputs.item_table
        group = distributed.new_group(timeout=timedelta(seconds=timeout_seconds))
        self.shards = Shards(
            rank=processes.rank,
            count=processes.count,
            num_rows=whole.num_embeddings,
            group=group,
        )
        self.table = ShardedEmbedding(whole, self.shards)
        _put(model, whole, self.table)
        for _, task in model.tasks_with_heads:
            if isinstance(task, NextItemPredictionTask):
                assert isinstance(task.objective, LabelSmoothCrossEntropyLoss)  # noqa: S101
                task.objective.shards = self.shards

    def check_not_over(self) -> None:
        """ConfigError after training, when only the first process has the whole table."""
        if self.is_over:
            raise ConfigError(
                "This training is over, and the first process has the whole item table: evaluate "
                "there with `pipeline.training.validation`, or make a new Trainer in each process."
            )

    @property
    def names(self) -> list[str]:
        """Names of the table in the model's `state_dict`."""
        return names_of(self.model, self.table.weight)

    def parts(
        self, optimizer: torch.optim.Optimizer, best: dict[str, Tensor] | None
    ) -> dict[str, Tensor]:
        """Tensors of the table (rows of this process, ...) for a checkpoint, by name."""
        parts = {_WEIGHTS: self.table.weight.detach()}
        if best is not None:
            parts[_BEST] = best[self.names[0]]
        state = optimizer.state.get(self.table.weight, {})
        return parts | {name: value for name, value in state.items() if _has_rows(value)}

    def write(self, directory: Path | None, parts: dict[str, Tensor]) -> None:
        """Write the parts of all other processes to the directory of the first one.

        The first process holds one tensor of one other process at a time.
        """
        shards, buffer = self.shards, None
        for rank in range(1, shards.count):
            rows = shards.bounds[rank + 1] - shards.bounds[rank]
            for name in sorted(parts):
                if directory is not None:
                    if buffer is None:  # the last process has the most rows
                        most = shards.num_rows - shards.bounds[-2]
                        buffer = torch.empty(most, parts[name].size(1), dtype=parts[name].dtype)
                    into = buffer[:rows]
                    self._receive(into, rank)
                    write_tensors({name: into}, directory / _file(name, rank))
                elif rank == shards.rank:
                    self._send(parts[name])

    def read(
        self, directory: Path, weights: dict[str, Tensor], name: str = _WEIGHTS
    ) -> dict[str, Tensor]:
        """Weights from the file of the first process, with the table's rows of this process."""
        own = self._read(directory, name)
        return weights if own is None else weights | dict.fromkeys(self.names, own)

    def read_best(self, directory: Path, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Best weights, read like `read`; without a separate file they are those of the
        checkpoint."""
        exists = (directory / _file(_BEST, self.shards.rank)).exists()
        return self.read(directory, weights, _BEST if exists else _WEIGHTS)

    def read_optimizer(
        self, directory: Path, optimizer: torch.optim.Optimizer, state: dict[str, Any]
    ) -> dict[str, Any]:
        """Optimizer `state_dict` of the first process, with the state of the rows of this
        process."""
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        kept = dict(state["state"])
        for place, weight in enumerate(weights):
            if weight is self.table.weight and place in kept:
                kept[place] = dict(kept[place])
                for name in filter(lambda n: _has_rows(kept[place][n]), [*kept[place]]):
                    own = self._read(directory, name)
                    kept[place][name] = kept[place][name] if own is None else own
        return {**state, "state": kept}

    def collect(self) -> None:
        """Restore the whole table in the first process, in main memory; others keep their rows."""
        self.is_over = True
        shards, table = self.shards, self.table
        own = table.weight.detach()
        if shards.rank:
            self._send(own)
        else:
            rows = torch.empty(shards.num_rows, own.size(1), dtype=own.dtype)
            rows[: len(own)] = own
            for rank in range(1, shards.count):
                self._receive(rows[shards.bounds[rank] : shards.bounds[rank + 1]], rank)
            whole = nn.Embedding(
                len(rows), rows.size(1), padding_idx=table.padding_idx, _weight=rows
            )
            whole.weight.requires_grad_(table.weight.requires_grad)
            _put(self.model, table, whole)
            for _, task in self.model.tasks_with_heads:
                if isinstance(task, NextItemPredictionTask):
                    task.objective.shards = None  # type: ignore[assignment]
            self.model.cpu()
        distributed.destroy_process_group(shards.group)

    def _read(self, directory: Path, name: str) -> Tensor | None:
        """Rows of this process; None in the first process, whose rows are in the common file."""
        if not self.shards.rank:
            return None
        return read_tensors(directory / _file(name, self.shards.rank))[name]

    def _send(self, values: Tensor) -> None:
        for piece in _pieces(values):
            distributed.send(piece.cpu().contiguous(), 0, group=self.shards.group)

    def _receive(self, into: Tensor, rank: int) -> None:
        for piece in _pieces(into):
            distributed.recv(piece, rank, group=self.shards.group)


def check_shardable(model: Model, processes: Processes) -> None:
    """ConfigError for a model whose item table cannot be sharded."""
    reason = None
    inputs = model.inputs
    tasks = [
        (head, task)
        for head, task in model.tasks_with_heads
        if isinstance(task, NextItemPredictionTask)
    ]
    if not tasks:
        reason = "the model predicts no next item"
    elif any(head.body.inputs is not inputs for head, _ in model.tasks_with_heads):
        reason = "the model has several input blocks"
    elif not all(head.body.masking.can_shard for head, _ in tasks):
        reason = "rtd scores all items in each process; choose clm, mlm or plm"
    elif any(task.output_table is not None for _, task in tasks):
        reason = "the model has another table for its scores; set `weight_tying: true`"
    elif model.item_tasks:
        reason = "targets per item read the vectors of all items; leave `per_item` out"
    elif any(task.item_dropout.p for _, task in tasks):
        reason = "`item_dropout` is drawn for all items at once; set it to 0"
    elif any(type(task.objective) is not LabelSmoothCrossEntropyLoss for _, task in tasks):
        reason = "its loss is not cross-entropy over the whole catalogue"
    elif inputs.item_table.num_embeddings // processes.count <= FIRST_ITEM:
        reason = f"{inputs.item_table.num_embeddings} rows are too few for {processes.count}"
    if reason is not None:
        raise ConfigError(f"`item_table: sharded` is not possible: {reason}, or use `whole`.")


def check_arguments(
    arguments: TrainingArguments, optimizers: tuple[torch.optim.Optimizer | None, Any]
) -> None:
    """ConfigError for arguments of the Trainer that do not work with a sharded table."""
    for name, is_set in (
        ("an optimizer of your own", optimizers[0] is not None),
        (f"optim {arguments.optim}", arguments.optim != "adamw_torch_fused"),
        ("fp16", arguments.fp16),  # processes may skip different steps
        ("torch_compile", arguments.torch_compile),
    ):
        if is_set:
            raise ConfigError(
                f"`item_table: sharded` does not work with {name}; leave that out, or the table "
                "whole."
            )


def names_of(model: nn.Module, weight: Tensor) -> list[str]:
    """All names of a weight in the model."""
    named = model.named_parameters(remove_duplicate=False)
    return [name for name, other in named if other is weight]


def _put(model: Model, old: nn.Module, new: nn.Module) -> None:
    """Replace a module in all of its parents."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child is old:
                setattr(parent, name, new)


def _has_rows(value: Any) -> bool:
    """Whether an optimizer state has values per row, unlike the step counter."""
    return isinstance(value, Tensor) and value.dim() > 0


def _pieces(values: Tensor) -> Iterator[Tensor]:
    """Consecutive pieces of (rows, ...), each of the size of a message."""
    row_bytes = values[:1].numel() * values.element_size()
    yield from values.split(max(1, _PIECE_BYTES // max(1, row_bytes)))


def _file(name: str, rank: int) -> str:
    return f"{name}.{rank}.safetensors"
