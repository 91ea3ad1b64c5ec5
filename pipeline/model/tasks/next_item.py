"""Next-item prediction over the whole catalogue."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.core.columns import FIRST_ITEM
from pipeline.core.errors import ConfigError
from pipeline.model.leakage_reference import task_block_size
from pipeline.model.losses import (
    LabelSmoothCrossEntropyLoss,
    OverCatalogue,
    Sampled,
    build_loss,
)
from pipeline.model.tasks.negatives import NegativeSampler, is_negative
from pipeline.model.tasks.targets import ColumnValues, Recency


class NextItemPredictionTask(nn.Module):
    """Scores of items from hidden states, and a loss over them.

    `loss` is a name of `pipeline.recipe.choices` or a module of (T, items) scores and (T,) targets.
    Losses over negatives draw `num_negatives` by `negatives`: uniform, log-uniform (a catalogue
    stands in falling frequency), popularity (by `item_counts`, (items,)) or in-batch (the other
    targets; corrected by `item_counts`); one set for the batch if `shared_negatives`.
    `weight_tying` scores with the item's input embeddings (Inan et al. 2017), otherwise with a
    table of its own. `normalize` takes the cosine in place of the inner product. `item_dropout`
    is that of the item vectors that score. `task_block` is a block between hidden states and
    scores. `recompute` saves memory, see LabelSmoothCrossEntropyLoss. `weights` weigh the targets:
    a column of the batch with numbers, ColumnValues, or Recency.
    """

    def __init__(
        self,
        *,
        loss: str | nn.Module = "cross-entropy",
        task_block: nn.Module | None = None,
        task_name: str = "next-item",
        weight_tying: bool = True,
        softmax_temperature: float = 1.0,
        normalize: bool = False,
        item_dropout: float = 0.0,
        label_smoothing: float = 0.0,
        negatives: Literal["uniform", "log-uniform", "popularity", "in-batch"] = "log-uniform",
        num_negatives: int = 100,
        shared_negatives: bool = True,
        item_counts: Tensor | None = None,
        gbce_t: float = 0.75,
        regularization: float = 0.0,
        recompute: bool | None = None,
        weights: "str | ColumnValues | Recency | None" = None,
    ) -> None:
        super().__init__()
        if softmax_temperature <= 0:
            raise ConfigError(f"softmax_temperature is {softmax_temperature}, expected above 0.")
        self.task_name = task_name
        self.task_block = task_block
        self.weight_tying = weight_tying
        self.softmax_temperature = softmax_temperature
        self.normalize = normalize
        self.item_dropout = nn.Dropout(item_dropout)
        self.weights = ColumnValues(weights) if isinstance(weights, str) else weights
        self.objective: nn.Module = (
            build_loss(
                loss,
                label_smoothing=label_smoothing,
                gbce_t=gbce_t,
                regularization=regularization,
                recompute=recompute,
            )
            if isinstance(loss, str)
            else loss
        )
        self.sampled = bool(getattr(self.objective, "sampled", False))
        self.sparse_gradients = False
        """Whether looking up single items gives a sparse gradient; see `sparse_gradients.py`."""
        self._negatives = (negatives, num_negatives, shared_negatives, item_counts)
        self.sampler: NegativeSampler | None = None
        self.projection: nn.Module = nn.Identity()
        self.output_table: nn.Parameter | None = None

    def build(self, d_hidden: int, num_rows: int, d_item: int) -> None:
        """Make what the widths ask for: a linear layer to the item's, or a table of its own."""
        if self.output_table is not None or not isinstance(self.projection, nn.Identity):
            raise ConfigError("A NextItemPredictionTask stands in two heads; make one for each.")
        if self.task_block is not None:
            d_hidden = task_block_size(self.task_block, d_hidden)
        if not self.weight_tying:
            self.output_table = nn.Parameter(torch.randn(num_rows, d_hidden) * d_hidden**-0.5)
        elif d_hidden != d_item:
            self.projection = nn.Linear(d_hidden, d_item, bias=False)
        if self.sampled:
            distribution, number, shared, counts = self._negatives
            self.sampler = NegativeSampler(
                num_rows - FIRST_ITEM,
                distribution=distribution,
                num_negatives=number,
                shared=shared,
                counts=counts,
            )

    @property
    def scores_all_rows(self) -> bool:
        """Whether training scores every row of the table that the input reads."""
        return self.weight_tying and isinstance(self.objective, OverCatalogue)

    @property
    def is_sharded(self) -> bool:
        """Whether this process holds a part of the items alone."""
        objective = self.objective
        return isinstance(objective, LabelSmoothCrossEntropyLoss) and objective.shards is not None

    def queries(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., E): what is multiplied with `items` to give scores."""
        if self.task_block is not None:
            hidden = self.task_block(hidden)
        hidden = self.projection(hidden)
        if self.normalize:
            hidden = functional.normalize(hidden, dim=-1)
        return hidden / self.softmax_temperature

    def items(self, item_table: Tensor, positions: Tensor | None = None) -> Tensor:
        """(V, item width) -> (V - 3, E); or of these `positions` in the catalogue alone."""
        if self.is_sharded:
            raise ConfigError(
                "The item table is spread over processes, none of which can score all items. Ask "
                "the model when training is over, or train with `item_table: whole`."
            )
        table = item_table if self.output_table is None else self.output_table
        if positions is None:
            rows = table[FIRST_ITEM:]
        else:
            rows = functional.embedding(positions + FIRST_ITEM, table, sparse=self.sparse_gradients)
        return self.as_items(rows)

    def as_items(self, rows: Tensor) -> Tensor:
        """(n, item width) rows of the table -> (n, E): what is multiplied with `queries`."""
        if self.normalize:
            rows = functional.normalize(rows, dim=-1)
        dropped: Tensor = self.item_dropout(rows)
        return dropped

    def logits(self, hidden: Tensor, item_table: Tensor) -> Tensor:
        """(T, D), (V, item width) -> (T, V - 3): items alone, the reserved rows left out."""
        return self.queries(hidden) @ self.items(item_table).T

    def loss(
        self,
        hidden: Tensor,
        targets: Tensor,
        item_table: Tensor,
        weights: Tensor | None = None,
    ) -> Tensor:
        """(B, L, D), (B, L), (V, item width) -> (): mean over positions that have a target.

        A target that is missing or unknown is none. Without any target the loss is 0. With
        `weights` (B, L) it is the weighted mean.
        """
        # (T, D) rather than (B * L, D): the logits are the largest tensor of a step
        has_target = targets >= FIRST_ITEM
        wanted = targets[has_target].to(torch.int64) - FIRST_ITEM
        chosen = hidden[has_target]
        # with a sharded table, those of other processes need what this one holds
        if not len(wanted) and not self.is_sharded:
            # keeps the graph, so that backward works
            return self.queries(chosen).sum() + item_table.sum() * 0 + hidden.sum() * 0
        losses = self._losses(chosen, wanted, item_table)
        if weights is None:
            return losses.mean() if len(wanted) else losses.sum()
        if losses.dim() == 0:
            raise ConfigError(
                f"{type(self.objective).__name__} gives one number for all targets, so they cannot "
                "be weighted. Give it reduction='none'."
            )
        # weights may all be tiny, as those of old interactions are; only their ratios count
        given = weights[has_target].double()
        given = (given / given.max().clamp(min=torch.finfo(given.dtype).tiny)).to(losses.dtype)
        return (losses * given).sum() / given.sum().clamp(min=torch.finfo(losses.dtype).tiny)

    def scores(self, hidden: Tensor, item_table: Tensor) -> Tensor:
        """(B, D), (V, item width) -> (B, V); reserved indices have minus infinity."""
        items = self.logits(hidden, item_table)
        return functional.pad(items, (FIRST_ITEM, 0), value=float("-inf"))

    def _losses(self, hidden: Tensor, targets: Tensor, item_table: Tensor) -> Tensor:
        """(T, D), (T,) -> (T,), or () from a loss that reduces itself."""
        if self.sampler is None:
            if isinstance(self.objective, OverCatalogue):
                drops = self.training and self.item_dropout.p > 0
                whole = item_table if self.output_table is None else self.output_table
                return self.objective.over_catalogue(
                    self.queries(hidden),
                    # what is dropped is dropped once for all chunks, so all items stand there
                    self.items(item_table) if drops else whole,
                    targets,
                    first=0 if drops else FIRST_ITEM,
                    normalize=self.normalize and not drops,
                )
            losses: Tensor = self.objective(self.logits(hidden, item_table), targets)
            return losses
        drawn = self.sampler.draw(targets)
        queries = self.queries(hidden)  # (T, E)
        positive = (queries * self.items(item_table, targets)).sum(-1)
        items = self.items(item_table, drawn.items)  # (N, E) or (T, N, E)
        if items.dim() == 2:
            negative = queries @ items.T
        else:
            negative = (items @ queries.unsqueeze(-1)).squeeze(-1)
        given = Sampled(
            positive=positive,
            negative=negative,
            log_expected=drawn.log_expected.to(negative.dtype),
            is_negative=is_negative(drawn.items, targets),
            num_items=item_table.size(0) - FIRST_ITEM,
        )
        of_each: Tensor = self.objective(given)
        return of_each
