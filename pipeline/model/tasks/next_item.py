"""Next-item prediction over the whole catalogue.

Shape letters: B sessions, L positions, D width of hidden states, V rows of the item table, E width
of queries and items, T targets, N negatives.
"""

import functools
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.core.columns import FIRST_ITEM
from pipeline.core.errors import ConfigError
from pipeline.data.batch import SessionBatch
from pipeline.model.leakage import task_block_output_size
from pipeline.model.losses import LabelSmoothCrossEntropyLoss, OverCatalogue, Sampled, build_loss
from pipeline.model.ops.slots import Slots
from pipeline.model.tasks.negatives import NegativeSampler, is_negative
from pipeline.model.tasks.targets import ColumnValues, Recency


class NextItemPredictionTask(nn.Module):
    """Scores of items from hidden states, and a loss over them.

    - `loss`: a name of `pipeline.model.losses`, or a module of (T, items) logits and (T,) targets;
      its options are `label_smoothing`, `gbce_t`, `regularization` and `recompute`, see
      LossOptions.
    - `negatives`: distribution of the `num_negatives` draws of a sampled loss: uniform, log-uniform
      (for a catalogue in falling frequency), popularity (by `item_counts`, (items,)) or in-batch
      (the other targets, corrected by `item_counts`); `shared_negatives` draws one set per batch.
    - `weight_tying`: score with the item's input embeddings (Inan et al. 2017), else with an output
      table.
    - `softmax_temperature` divides the scores; `normalize` scores by the cosine.
    - `item_dropout`: dropout probability of the item vectors that score.
    - `task_block`: block between hidden states and scores.
    - `weights` of the targets in the loss: a numeric column, ColumnValues or Recency.
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
        """Whether the lookup of single items has a sparse gradient."""
        self._make_sampler = functools.partial(
            NegativeSampler,
            distribution=negatives,
            num_negatives=num_negatives,
            shared=shared_negatives,
            counts=item_counts,
        )
        self.sampler: NegativeSampler | None = None
        self.projection: nn.Module = nn.Identity()
        self.output_table: nn.Parameter | None = None
        self.width = 0
        """E, set by `build`."""

    def build(self, d_hidden: int, num_rows: int, d_item: int) -> None:
        """Build the layers: a projection to the item's width or an output table, and the sampler.

        ConfigError if they exist already.
        """
        if self.output_table is not None or not isinstance(self.projection, nn.Identity):
            raise ConfigError("A NextItemPredictionTask is used in two heads; create one for each.")
        if self.task_block is not None:
            d_hidden = task_block_output_size(self.task_block, d_hidden)
        if not self.weight_tying:
            self.output_table = nn.Parameter(torch.randn(num_rows, d_hidden) * d_hidden**-0.5)
        elif d_hidden != d_item:
            self.projection = nn.Linear(d_hidden, d_item, bias=False)
        self.width = d_item if self.weight_tying else d_hidden
        if self.sampled:
            self.sampler = self._make_sampler(num_rows - FIRST_ITEM)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that the loss reads beside the features."""
        return () if self.weights is None else self.weights.columns

    def target_weights(self, batch: SessionBatch, item: str) -> Tensor | None:
        """(B, L) weight of each interaction as a target, None for equal weights.

        `item` names the item feature.
        """
        if self.weights is None:
            return None
        weights: Tensor = self.weights(batch)
        if weights.dim() == 1:  # a session feature
            weights = weights.unsqueeze(1).expand_as(batch.features[item])
        return weights

    @property
    def scores_all_rows(self) -> bool:
        """Whether the loss scores every row of the input's item table."""
        return self.weight_tying and isinstance(self.objective, OverCatalogue)

    @property
    def is_sharded(self) -> bool:
        """Whether this process holds only a shard of the item table."""
        objective = self.objective
        return isinstance(objective, LabelSmoothCrossEntropyLoss) and objective.shards is not None

    def queries(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., E): queries, whose inner products with `items` are the scores."""
        if self.task_block is not None:
            hidden = self.task_block(hidden)
        hidden = self.projection(hidden)
        if self.normalize:
            hidden = functional.normalize(hidden, dim=-1)
        return hidden / self.softmax_temperature

    def items(self, item_table: Tensor, positions: Tensor | None = None) -> Tensor:
        """(V, item width) -> (V - 3, E), or those at `positions` in the catalogue.

        ConfigError while the table is sharded over processes.
        """
        if self.is_sharded:
            raise ConfigError(
                "The item table is sharded over processes, none of which can score all items. Use "
                "the model when training is over, or train with `item_table: whole`."
            )
        table = item_table if self.output_table is None else self.output_table
        if positions is None:
            rows = table[FIRST_ITEM:]
        else:
            rows = functional.embedding(positions + FIRST_ITEM, table, sparse=self.sparse_gradients)
        return self.as_items(rows)

    def as_items(self, rows: Tensor) -> Tensor:
        """(N, item width) rows of the table -> (N, E) item vectors that score."""
        if self.normalize:
            rows = functional.normalize(rows, dim=-1)
        return self.item_dropout(rows)

    def logits(self, hidden: Tensor, item_table: Tensor) -> Tensor:
        """(T, D), (V, item width) -> (T, V - 3), without the reserved rows."""
        return self.queries(hidden) @ self.items(item_table).T

    def loss(
        self,
        hidden: Tensor,
        targets: Tensor,
        item_table: Tensor,
        weights: Tensor | None = None,
        most_targets: int | None = None,
    ) -> Tensor:
        """(B, L, D), (B, L), (V, item width) -> (): mean over positions with a target.

        A missing or unknown item is not a target. Without a target the loss is 0. With `weights`
        (B, L) it is the weighted mean. `most_targets` is T in the static form, None for the packed
        form. ConfigError for weights or the static form with a loss that returns one number.
        """
        # (T, D) rather than (B * L, D): the logits are the largest tensor of a step
        slots = Slots.of(targets >= FIRST_ITEM, most_targets)
        # positions in the catalogue, (T,)
        positions = (slots.take(targets).to(torch.int64) - FIRST_ITEM).clamp(min=0)
        states = slots.take(hidden)
        # with a sharded table, other processes need the rows of this one
        if not len(positions) and not self.is_sharded:
            # keeps the graph, so that backward works
            return self.queries(states).sum() + item_table.sum() * 0 + hidden.sum() * 0
        losses = self._losses(states, positions, item_table, slots)
        if losses.dim() == 0:
            if weights is None and slots.filled is None:
                return losses
            raise ConfigError(
                f"{type(self.objective).__name__} gives one number for all targets, so they cannot "
                "be weighted, nor trained on a GPU. Give it reduction='none'."
            )
        if weights is None:
            return slots.mean(losses)
        # only ratios matter; all weights may be tiny, as those of old interactions
        scale = slots.only_filled(slots.take(weights).double(), 0.0)
        scale = (scale / scale.max().clamp(min=torch.finfo(scale.dtype).tiny)).to(losses.dtype)
        return (losses * scale).sum() / scale.sum().clamp(min=torch.finfo(losses.dtype).tiny)

    def scores(self, hidden: Tensor, item_table: Tensor) -> Tensor:
        """(B, D), (V, item width) -> (B, V), minus infinity for reserved indices."""
        items = self.logits(hidden, item_table)
        return functional.pad(items, (FIRST_ITEM, 0), value=float("-inf"))

    def _losses(self, hidden: Tensor, targets: Tensor, item_table: Tensor, slots: Slots) -> Tensor:
        """(T, D), (T,) -> (T,), or () from a loss that returns one number."""
        if self.sampler is not None:
            return self._sampled_losses(self.sampler, hidden, targets, item_table, slots)
        if not isinstance(self.objective, OverCatalogue):
            return self.objective(self.logits(hidden, item_table), targets)
        drops = self.training and self.item_dropout.p > 0
        table = item_table if self.output_table is None else self.output_table
        return self.objective.over_catalogue(
            self.queries(hidden),
            # one dropout mask for all chunks needs all item vectors first
            self.items(item_table) if drops else table,
            targets,
            first=0 if drops else FIRST_ITEM,
            normalize=self.normalize and not drops,
        )

    def _sampled_losses(
        self,
        sampler: NegativeSampler,
        hidden: Tensor,
        targets: Tensor,
        item_table: Tensor,
        slots: Slots,
    ) -> Tensor:
        """(T, D), (T,) -> (T,) of a loss over negatives."""
        num_draws = None
        if sampler.distribution == "in-batch" and slots.filled is not None:
            num_draws = slots.num_filled()
        drawn = sampler.draw(targets, num_draws)
        kept = is_negative(drawn.items, targets)
        if num_draws is not None:
            kept = slots.only_filled(kept, False)
        queries = self.queries(hidden)  # (T, E)
        positive = (queries * self.items(item_table, targets)).sum(-1)
        items = self.items(item_table, drawn.items)  # (N, E) or (T, N, E)
        if items.dim() == 2:
            negative = queries @ items.T
        else:
            negative = (items @ queries.unsqueeze(-1)).squeeze(-1)
        sampled = Sampled(
            positive=positive,
            negative=negative,
            log_expected=drawn.log_expected.to(negative.dtype),
            is_negative=kept,
            num_items=item_table.size(0) - FIRST_ITEM,
            num_draws=num_draws,
        )
        return self.objective(sampled)
