"""The model: from sessions to scores of the next item and to other predictions.

Shape letters: B sessions, L positions, D width, V rows of the item table, T positions with a
target, K list length, E width of queries and items, N targets per item, C candidates.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.core.columns import FIRST_ITEM, OUT_OF_VOCABULARY, PADDING
from pipeline.core.errors import ConfigError
from pipeline.core.expressions import Expression
from pipeline.data.batch import SessionBatch
from pipeline.model.blocks import SequentialBlock
from pipeline.model.head import (
    Head,
    Task,
    check_reduction,
    check_unique,
    check_weights,
    reduce_losses,
)
from pipeline.model.inputs.features import TabularSequenceFeatures
from pipeline.model.item_scores import item_values, rank_values
from pipeline.model.masking import Encoded, Stage
from pipeline.model.repeats import Repeats
from pipeline.model.task_losses import task_losses
from pipeline.model.tasks.item_output import ItemOutput
from pipeline.model.tasks.next_item import NextItemPredictionTask
from pipeline.model.tasks.targets import TargetTask
from pipeline.recipe.choices import NEXT_ITEM, ranking_expression


class TargetHidden(NamedTuple):
    """Hidden states at positions with a target, row by row."""

    hidden: Tensor
    """(T, D)"""
    targets: Tensor
    """(T,) item indices; OUT_OF_VOCABULARY is a target too."""
    rows: Tensor
    """(T,) row of the batch."""
    is_last: Tensor
    """(T,) bool: whether the target is the last interaction of its row."""


class TopK(NamedTuple):
    """Recommendations for B sessions, best first."""

    scores: Tensor
    """(B, K), minus infinity where fewer than K items remain."""
    items: Tensor
    """(B, K) item indices, PADDING where fewer than K items remain."""
    targets: dict[str, Tensor]
    """(B, K) predictions of the targets per item by name."""


class SessionAnswer(NamedTuple):
    """Predictions for B sessions."""

    queries: Tensor | None
    """(B, Q) `queries` of the newest position, None without a next-item task."""
    targets: dict[str, Tensor]
    """(B,) predictions of all other tasks by name; a task with one target per interaction predicts
    the newest interaction."""


class Model(nn.Module):
    """Heads with their bodies: training loss, evaluation at targets, and prediction.

    The first head with a next-item task scores the items. `head_weights` are the weights of the
    losses of the heads; `head_reduction` is their weighted mean or sum. `rank_by` is the ranking
    score: an expression of `next_item`, the score, and of targets per item.
    """

    rank_by: Expression | None = None
    scores_whole_catalogue = False
    """Whether one call of `score` computes the scores of all items of a session, so that callers do
    not split the catalogue."""
    repeats: Repeats | None = None
    """Share of the session's own items in the distribution of the next item; scores are then log
    probabilities. Losses ignore it."""

    def __init__(
        self,
        *heads: Head,
        head_weights: list[float] | None = None,
        head_reduction: Literal["mean", "sum"] = "mean",
        rank_by: str | None = None,
    ) -> None:
        super().__init__()
        if not heads or not all(isinstance(head, Head) for head in heads):
            types = ", ".join(type(head).__name__ for head in heads) or "nothing"
            raise ConfigError(
                f"A Model needs a Head, as in Model(Head(body, task)); found {types}."
            )
        check_unique([name for head in heads for name in head.task_names])
        self.heads = nn.ModuleList(heads)
        self.head_weights = check_weights(head_weights, len(heads), "head_weights")
        self.head_reduction = check_reduction(head_reduction)
        if any(head.item_tasks for head in heads if head is not self.head):
            raise ConfigError("Targets per item belong to the head that scores items, the first.")
        if rank_by is not None:
            try:
                self.rank_by = ranking_expression(rank_by, self.item_target_names)
            except ValueError as error:
                raise ConfigError(f"rank_by: {error}.") from None

    @property
    def head(self) -> Head:
        """The head that scores items, or the first head if none does."""
        heads = self.all_heads
        for head in heads:
            if any(isinstance(task, NextItemPredictionTask) for task in head.all_tasks):
                return head
        return heads[0]

    @property
    def tasks_with_heads(self) -> list[tuple[Head, Task]]:
        """All tasks with their heads."""
        return [(head, task) for head in self.all_heads for task in head.all_tasks]

    @property
    def target_tasks(self) -> list[tuple[Head, TargetTask]]:
        """All target tasks with their heads, except targets per item."""
        return [
            (head, task)
            for head, task in self.tasks_with_heads
            if isinstance(task, TargetTask) and not task.per_item
        ]

    @property
    def item_tasks(self) -> list[TargetTask]:
        """The tasks with a target for each candidate item."""
        return self.head.item_tasks

    @property
    def all_targets(self) -> list[TargetTask]:
        """All target tasks: one per session or interaction, then those per item."""
        return [*(task for _, task in self.target_tasks), *self.item_tasks]

    @property
    def item_target_names(self) -> list[str]:
        """Names of the targets per item."""
        return [task.task_name for task in self.item_tasks]

    @property
    def ranks_items(self) -> bool:
        """Whether a task predicts the next item."""
        return any(isinstance(t, NextItemPredictionTask) for _, t in self.tasks_with_heads)

    @property
    def inputs(self) -> TabularSequenceFeatures:
        """Input block of the head that scores items."""
        return self.head.body.inputs

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    @property
    def num_rows(self) -> int:
        """V: rows of the item table, with the reserved ones."""
        return self.inputs.item_table.num_embeddings

    @property
    def width(self) -> int:
        """E, 0 without a next-item task."""
        return self.head.next_item_task().width if self.ranks_items else 0

    @property
    def query_width(self) -> int:
        """D of the hidden states that `queries` takes, with `repeats` D + 2 N."""
        return self.network_width + (0 if self.repeats is None else self.repeats.width)

    @property
    def network_width(self) -> int:
        """D of the hidden states that `network_queries` takes."""
        return self.head.body.output_size

    @property
    def by_inner_product(self) -> bool:
        """Whether scores are plain inner products of `queries` and `items`."""
        return self.rank_by is None and self.repeats is None

    @property
    def causal(self) -> bool:
        """Whether hidden states depend on the past only."""
        return self.head.body.masking.causal

    @property
    def columns(self) -> list[str]:
        """Columns of an evaluation batch: features, and columns of target tasks."""
        features = [name for head in self.all_heads for name in head.body.inputs.feature_names]
        columns = [name for task in self.all_targets for name in task.columns]
        return list(dict.fromkeys([*self.inputs.feature_names, *features, *columns]))

    @property
    def training_columns(self) -> list[str]:
        """Columns of a training batch: those of evaluation, and weights."""
        others = [name for _, task in self.tasks_with_heads for name in task.columns]
        return list(dict.fromkeys([*self.columns, *others]))

    def forward(self, batch: SessionBatch) -> Tensor:
        """Scores of the next item (B, V), from the newest L interactions."""
        return self.scores(self.session_embedding(self.encode(batch, Stage.PREDICT)))

    def predict(self, batch: SessionBatch) -> dict[str, Tensor]:
        """Predictions by task name: scores (B, V), probabilities or numbers (B,) or (B, L).

        Targets per item are (B, V), NaN for reserved indices.
        """
        encoded = self._encode_all(batch)
        predictions = {}
        for head, task in self.tasks_with_heads:
            if isinstance(task, NextItemPredictionTask):
                hidden = self.session_embedding(encoded[id(head.body)])
                predictions[task.task_name] = task.scores(hidden, head.item_table)
        if self.repeats is not None:
            predictions[self.head.next_item_task().task_name] = self(batch)
        if names := self.item_target_names:
            queries = self._session_queries(encoded, batch)
            values = item_values(self.item_tasks, queries, self.items().T, self.width, names)
            predictions |= {name: _with_reserved(v, float("nan")) for name, v in values.items()}
        return predictions | self._predict_targets(batch, encoded)

    def predict_targets(self, batch: SessionBatch) -> dict[str, Tensor]:
        """Predictions of `target_tasks` by name, (B,) or (B, L)."""
        return self._predict_targets(batch, self._encode_all(batch))

    def answer(self, batch: SessionBatch) -> SessionAnswer:
        """Queries and predictions for a server, with one pass of each encoder."""
        encoded = self._encode_all(batch)
        values = self._predict_targets(batch, encoded)
        for head, task in self.target_tasks:
            if not task.of_session:
                newest = (head.body.crop(batch, Stage.PREDICT).lengths - 1).clamp(min=0)
                values[task.task_name] = values[task.task_name].gather(1, newest[:, None])[:, 0]
        queries = self._session_queries(encoded, batch) if self.ranks_items else None
        return SessionAnswer(queries, values)

    def loss(self, batch: SessionBatch, shares: Tensor | None = None) -> Tensor:
        """Training loss, (). `shares` are further factors of the losses, in the order of the
        tasks."""
        by_task: dict[int, Tensor] = {}
        for body, tasks in self._tasks_by_body():
            losses = task_losses(body, tasks, batch)
            by_task |= {id(task): loss for task, loss in zip(tasks, losses, strict=True)}
        if shares is not None:
            for share, (_, task) in zip(shares, self.tasks_with_heads, strict=True):
                by_task[id(task)] = by_task[id(task)] * share
        heads = [
            reduce_losses(
                [by_task[id(task)] for task in head.all_tasks],
                head.task_weights,
                head.loss_reduction,
            )
            for head in self.all_heads
        ]
        return reduce_losses(heads, self.head_weights, self.head_reduction)

    def at_targets(self, batch: SessionBatch) -> TargetHidden:
        """Hidden states and targets in evaluation, in the order of rows and positions."""
        encoded = self.encode(batch, Stage.EVALUATE)
        # an item out of vocabulary is a target that no model can hit; a missing id is not a target
        rows, positions = (encoded.targets >= OUT_OF_VOCABULARY).nonzero(as_tuple=True)
        return TargetHidden(
            hidden=encoded.hidden[rows, positions],
            targets=encoded.targets[rows, positions],
            rows=rows,
            is_last=positions == encoded.query[rows],
        )

    def scores(self, hidden: Tensor) -> Tensor:
        """(T, D) -> (T, V) scores that rank the items, minus infinity for reserved indices."""
        return _with_reserved(self.score(self.queries(hidden), self.items().T), float("-inf"))

    def score(self, queries: Tensor, items: Tensor) -> Tensor:
        """(T, Q) `queries`, (W, C) transposed `items` -> (T, C) scores that rank the items.

        The score is the value of `rank_by`, by default the score of the next item.
        """
        if self.repeats is not None:
            return self.repeats.score(queries, items)
        if not self.item_tasks:
            return queries @ items
        names = (NEXT_ITEM,) if self.rank_by is None else self.rank_by.names
        values = item_values(self.item_tasks, queries, items, self.width, names)
        return values[NEXT_ITEM] if self.rank_by is None else rank_values(self.rank_by, values)

    def targets_of_items(self, queries: Tensor, items: Tensor) -> dict[str, Tensor]:
        """(T, Q), (T, K) item indices -> (T, K) predictions of the targets per item by name.

        Reserved indices get the predictions of the first item.
        """
        if not self.item_tasks:
            return {}
        vectors = self.items((items - FIRST_ITEM).clamp(min=0).flatten())
        vectors = vectors.unflatten(0, items.shape).transpose(1, 2)  # (T, W, K)
        return item_values(self.item_tasks, queries, vectors, self.width, self.item_target_names)

    def queries(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., Q): queries, the input of `score` together with `items`.

        With `repeats`, `hidden` is the output of `encode`, D + 2 N wide.
        """
        if self.repeats is None:
            return self.network_queries(hidden)
        states, own = hidden.split([self.network_width, self.repeats.width], -1)
        return self.repeats.queries(self.network_queries(states), self.network_items(), own)

    def items(self, positions: Tensor | None = None) -> Tensor:
        """(V - 3, W) in catalogue order, or (C, W) for (C,) catalogue `positions`.

        W is E + N: the item vector, then a bias per target per item. With `repeats`, W is E + 1.
        """
        vectors = self.network_items(positions)
        return vectors if self.repeats is None else self.repeats.items(vectors, positions)

    def network_queries(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., Q): `queries` without repeats.

        The query of the next item (E), whose inner product with an item vector is the score, then E
        + 1 numbers per target per item.
        """
        parts = [self.head.next_item_task().queries(hidden)]
        for task in self.item_tasks:
            assert isinstance(task.output, ItemOutput)  # noqa: S101
            parts.append(task.output.queries(task.through_block(hidden)))
        return torch.cat(parts, -1) if len(parts) > 1 else parts[0]

    def network_items(self, positions: Tensor | None = None) -> Tensor:
        """(V - 3, W) or (C, W): `items` without repeats.

        W is E + N: the item vector, then the bias of each target per item.
        """
        vectors = self.head.next_item_task().items(self.head.item_table, positions)
        biases = [t.output.item_bias for t in self.item_tasks if isinstance(t.output, ItemOutput)]
        rows = slice(FIRST_ITEM, None) if positions is None else positions + FIRST_ITEM
        return torch.cat([vectors, *(b[rows] for b in biases)], -1) if biases else vectors

    def top_k(
        self,
        batch: SessionBatch,
        k: int,
        *,
        filter_seen: bool = False,
        excluded: Tensor | None = None,
        candidates: Tensor | None = None,
    ) -> TopK:
        """The `k` best items of each session.

        `filter_seen` excludes all items of the session, `excluded` item indices (N,) for all
        sessions or (B, N) per session, 0 for none. `candidates` (C,) are the item indices to choose
        from, None for the catalogue. ConfigError for `k` below 1 and for invalid indices.
        """
        if not isinstance(k, int) or k < 1:
            raise ConfigError(f"k is {k!r}, expected 1 or more.")
        for name, indices in (("excluded", excluded), ("candidates", candidates)):
            check_indices(name, indices, self.num_rows)
        queries = self.session_queries(batch)
        if candidates is None:
            candidates = torch.arange(FIRST_ITEM, self.num_rows, device=queries.device)
        candidates = candidates[candidates >= FIRST_ITEM].unique()
        scores = self.score(queries, self.items(candidates - FIRST_ITEM).T)  # (B, C)
        removed = [] if excluded is None else [excluded.expand(scores.size(0), -1)]
        if filter_seen:
            removed.append(batch.features[self.inputs.item])
        if removed:
            indices = torch.cat([items.to(torch.int64) for items in removed], 1)
            scores = mask_items(scores, candidates, indices, self.num_rows)
        best, columns = self.highest(scores, min(k, scores.size(1)))
        items = torch.where(best.isneginf(), PADDING, candidates[columns])
        missing = max(0, k - best.size(1))
        items = nn.functional.pad(items, (0, missing), value=PADDING)
        return TopK(
            nn.functional.pad(best, (0, missing), value=float("-inf")),
            items,
            self.targets_of_items(queries, items),
        )

    def highest(self, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """(B, C) -> (B, k) highest scores of each row and their columns."""
        values, columns = scores.topk(k)
        return values, columns

    def session_queries(self, batch: SessionBatch) -> Tensor:
        """(B, Q) `queries` of the newest position, from the newest L interactions."""
        return self.queries(self.session_embedding(self.encode(batch, Stage.PREDICT)))

    def session_embeddings(self, batch: SessionBatch) -> Tensor:
        """(B, E): inner products with `item_embeddings` are the scores of the next item."""
        return self.session_queries(batch)[:, : self.width]

    def item_embeddings(self) -> Tensor:
        """(V - 3, E) in the order of the catalogue, for a vector index."""
        return self.items()[:, : self.width]

    def attention_weights(self, batch: SessionBatch) -> list[Tensor]:
        """(B, H, L, L) weights of each layer at prediction, query position by key position."""
        body = self.head.body
        return body.attentions(body.crop(batch, Stage.PREDICT))

    def encode(self, batch: SessionBatch, stage: Stage) -> Encoded:
        """Hidden states of the head that scores items, followed by the values of `repeats`."""
        return self.with_repeats(self._encode(self.head.body, batch, stage), batch, stage)

    def with_repeats(self, encoded: Encoded, batch: SessionBatch, stage: Stage) -> Encoded:
        """Append the values of `repeats`, if the model has it, at each position."""
        if self.repeats is None:
            return encoded
        items = self.head.body.crop(batch, stage).features[self.inputs.item]
        ends = torch.arange(1, encoded.hidden.size(1) + 1, device=items.device)
        own = self.repeats.of_positions(items, ends.expand(items.size(0), -1))
        return encoded._replace(hidden=torch.cat([encoded.hidden, own], -1))

    @staticmethod
    def session_embedding(encoded: Encoded) -> Tensor:
        """(B, L, D) -> (B, D): the hidden state that predicts the next item."""
        rows = torch.arange(encoded.query.size(0), device=encoded.query.device)
        return encoded.hidden[rows, encoded.query]

    @property
    def all_heads(self) -> list[Head]:
        """The heads in order."""
        return [head for head in self.heads if isinstance(head, Head)]

    @staticmethod
    def _encode(body: SequentialBlock, batch: SessionBatch, stage: Stage) -> Encoded:
        return body(body.crop(batch, stage), stage)

    def _encode_all(self, batch: SessionBatch) -> dict[int, Encoded]:
        """Hidden states at prediction by `id` of the body, each encoded once."""
        bodies = {id(head.body): head.body for head in self.all_heads}
        return {key: self._encode(body, batch, Stage.PREDICT) for key, body in bodies.items()}

    def _session_queries(self, encoded: dict[int, Encoded], batch: SessionBatch) -> Tensor:
        """(B, Q) `session_queries` from the result of `_encode_all`."""
        states = self.with_repeats(encoded[id(self.head.body)], batch, Stage.PREDICT)
        return self.queries(self.session_embedding(states))

    def _predict_targets(
        self, batch: SessionBatch, encoded: dict[int, Encoded]
    ) -> dict[str, Tensor]:
        predictions = {}
        for head, task in self.target_tasks:
            cropped, states = head.body.crop(batch, Stage.PREDICT), encoded[id(head.body)]
            values = task.predict(states.hidden, states.query, cropped)
            if not task.of_session:
                values = values[:, : cropped.features[head.body.inputs.item].size(1)]
            predictions[task.task_name] = values
        return predictions

    def _tasks_by_body(self) -> list[tuple[SequentialBlock, list[Task]]]:
        by_body: dict[int, tuple[SequentialBlock, list[Task]]] = {}
        for head, task in self.tasks_with_heads:
            by_body.setdefault(id(head.body), (head.body, []))[1].append(task)
        return [*by_body.values()]


def _with_reserved(values: Tensor, value: float) -> Tensor:
    """(T, V - 3) -> (T, V) with `value` for the reserved indices."""
    return nn.functional.pad(values, (FIRST_ITEM, 0), value=value)


def mask_items(scores: Tensor, candidates: Tensor, items: Tensor, num_rows: int) -> Tensor:
    """(B, C) scores of (C,) candidates -> (B, C), minus infinity for the `items` (B, N)."""
    column = torch.full((num_rows,), len(candidates), device=scores.device)
    column[candidates] = torch.arange(len(candidates), device=scores.device)
    # an extra column collects the items that are not candidates
    wide = nn.functional.pad(scores, (0, 1))
    return wide.scatter(1, column[items], float("-inf"))[:, :-1]


def check_indices(name: str, indices: Tensor | None, num_rows: int) -> None:
    """ConfigError unless `indices` are item indices or 0 (or None)."""
    if indices is None:
        return
    if not isinstance(indices, Tensor) or indices.is_floating_point():
        raise ConfigError(f"{name} is a {type(indices).__name__}, expected a tensor of indices.")
    if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < num_rows:
        raise ConfigError(
            f"{name} holds indices from {int(indices.min())} to {int(indices.max())}, expected 0 "
            f"to {num_rows - 1}."
        )
