"""From sessions to scores of the next item and to other predictions."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.core.columns import FIRST_ITEM, OUT_OF_VOCABULARY, PADDING
from pipeline.core.errors import ConfigError
from pipeline.data.batch import SessionBatch, newest
from pipeline.model.blocks import Encoded, SequentialBlock
from pipeline.model.head import Head, Task, check_reduction, check_weights, reduce_losses
from pipeline.model.inputs.features import TabularSequenceFeatures
from pipeline.model.masking import ReplacementMasking, Stage
from pipeline.model.ops.shared_gradient_embedding import share_gradient
from pipeline.model.tasks.next_item import NextItemPredictionTask
from pipeline.model.tasks.targets import BinaryClassificationTask, RegressionTask


class TargetHidden(NamedTuple):
    """Hidden states at positions that have a target, row by row."""

    hidden: Tensor
    """(T, D)"""
    targets: Tensor
    """(T,) item indices, among them those that are unknown."""
    rows: Tensor
    """(T,) row of the batch that each came from."""
    is_last: Tensor
    """(T,) bool: whether it is the last interaction of its row."""


class TopK(NamedTuple):
    """Recommendations for B sessions, best first."""

    scores: Tensor
    """(B, K), minus infinity where fewer than K are left."""
    items: Tensor
    """(B, K) item indices, PADDING there."""


class Model(nn.Module):
    """What is trained, evaluated, exported: callers choose the method, no mode is kept inside.

    The first head with a next-item task scores the items; `head_weights` weigh the losses of all.
    """

    def __init__(
        self,
        *heads: Head,
        head_weights: list[float] | None = None,
        head_reduction: Literal["mean", "sum"] = "mean",
    ) -> None:
        super().__init__()
        if not heads or not all(isinstance(head, Head) for head in heads):
            found = ", ".join(type(head).__name__ for head in heads) or "nothing"
            raise ConfigError(
                f"A Model needs a Head, as in Model(Head(body, task)); found {found}."
            )
        names = [name for head in heads for name in head.task_names]
        if len(set(names)) < len(names):
            raise ConfigError(f"Two tasks have one name among {', '.join(names)}. Set task_name.")
        self.heads = nn.ModuleList(heads)
        self.head_weights = check_weights(head_weights, len(heads), "head_weights")
        self.head_reduction = check_reduction(head_reduction)

    @property
    def head(self) -> Head:
        """The head that scores items; without one, the first."""
        heads = self._heads()
        for head in heads:
            if any(isinstance(task, NextItemPredictionTask) for task in head.all_tasks):
                return head
        return heads[0]

    @property
    def tasks_with_heads(self) -> list[tuple[Head, Task]]:
        """Every task with the head it stands in."""
        return [(head, task) for head in self._heads() for task in head.all_tasks]

    @property
    def inputs(self) -> TabularSequenceFeatures:
        """The input block."""
        return self.head.body.inputs

    @property
    def causal(self) -> bool:
        """Whether hidden states depend on the past alone."""
        return self.head.body.masking.causal

    @property
    def training_columns(self) -> list[str]:
        """All that a training batch must hold: features, targets of other tasks, weights."""
        names = list(self.inputs.feature_names)
        for head, task in self.tasks_with_heads:
            names += head.body.inputs.feature_names
            if isinstance(task, BinaryClassificationTask | RegressionTask):
                names.append(task.target.column)
            elif task.weights is not None:
                names += task.weights.columns
        return list(dict.fromkeys(names))

    def forward(self, batch: SessionBatch) -> Tensor:
        """Scores of the next item, (B, V), from the newest L interactions."""
        return self.scores(self.session_embedding(self.encode(batch, Stage.PREDICT)))

    def predict(self, batch: SessionBatch) -> dict[str, Tensor]:
        """What each task says, by its name: (B, V) scores; (B,) or (B, L) chances or numbers."""
        encoded: dict[int, Encoded] = {}
        found = {}
        for head, task in self.tasks_with_heads:
            if id(head.body) not in encoded:
                encoded[id(head.body)] = self._encode(head.body, batch, Stage.PREDICT)
            known = encoded[id(head.body)]
            if isinstance(task, NextItemPredictionTask):
                found[task.task_name] = task.scores(self.session_embedding(known), head.item_table)
            else:
                cropped = self._crop(head.body, batch, Stage.PREDICT)
                numbers = task.predict(known.hidden, known.query, cropped)
                width = cropped.features[head.body.inputs.item].size(1)
                found[task.task_name] = numbers[:, :width] if numbers.dim() == 2 else numbers
        return found

    def loss(self, batch: SessionBatch) -> Tensor:
        """Training loss, ()."""
        heads = []
        for head in self._heads():
            losses = [self._task_loss(head, task, batch) for task in head.all_tasks]
            heads.append(reduce_losses(losses, head.task_weights, head.loss_reduction))
        return reduce_losses(heads, self.head_weights, self.head_reduction)

    def at_targets(self, batch: SessionBatch) -> TargetHidden:
        """Hidden states and targets for evaluation, in the order of rows and positions."""
        encoded = self.encode(batch, Stage.EVALUATE)
        # an unknown item is a target that no model can hit; a missing id is none
        rows, positions = (encoded.targets >= OUT_OF_VOCABULARY).nonzero(as_tuple=True)
        return TargetHidden(
            hidden=encoded.hidden[rows, positions],
            targets=encoded.targets[rows, positions],
            rows=rows,
            is_last=positions == encoded.query[rows],
        )

    def scores(self, hidden: Tensor) -> Tensor:
        """(T, D) -> (T, V) scores of the next item; reserved indices have minus infinity."""
        items = self.queries(hidden) @ self.items().T
        return nn.functional.pad(items, (FIRST_ITEM, 0), value=float("-inf"))

    def queries(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., E): what is multiplied with `items` to give scores."""
        return self.head.task.queries(hidden)

    def items(self, positions: Tensor | None = None) -> Tensor:
        """(V - 3, E) in the order of the catalogue; or of these (C,) `positions` there alone."""
        return self.head.task.items(self.head.item_table, positions)

    def top_k(
        self,
        batch: SessionBatch,
        k: int,
        *,
        filter_seen: bool = False,
        excluded: Tensor | None = None,
        candidates: Tensor | None = None,
    ) -> TopK:
        """The K best items of each session.

        Without those of the session, all of it, if `filter_seen`; without `excluded`, (E,) item
        indices or (B, E) of each session, 0 for none; among `candidates`, (C,) item indices, alone.
        """
        if not isinstance(k, int) or k < 1:
            raise ConfigError(f"k is {k!r}, expected 1 or more.")
        for name, indices in (("excluded", excluded), ("candidates", candidates)):
            check_indices(name, indices, self.head.item_table.size(0))
        queries = self.session_embeddings(batch)
        table = self.head.item_table
        if candidates is None:
            candidates = torch.arange(FIRST_ITEM, table.size(0), device=table.device)
        candidates = candidates[candidates >= FIRST_ITEM].unique()
        scores = queries @ self.items(candidates - FIRST_ITEM).T  # (B, C)
        column = torch.full((table.size(0),), len(candidates), device=table.device)
        column[candidates] = torch.arange(len(candidates), device=table.device)
        hidden = [] if excluded is None else [excluded.expand(scores.size(0), -1)]
        if filter_seen:
            hidden.append(batch.features[self.inputs.item])
        if hidden:
            # one column more takes what is no candidate
            wide = nn.functional.pad(scores, (0, 1))
            columns = column[torch.cat([h.to(torch.int64) for h in hidden], 1)]
            scores = wide.scatter(1, columns, float("-inf"))[:, :-1]
        best, places = scores.topk(min(k, scores.size(1)))
        items = torch.where(best.isneginf(), PADDING, candidates[places])
        short = k - best.size(1)
        if short > 0:
            best = nn.functional.pad(best, (0, short), value=float("-inf"))
            items = nn.functional.pad(items, (0, short), value=PADDING)
        return TopK(best, items)

    def session_embeddings(self, batch: SessionBatch) -> Tensor:
        """(B, E): a session's inner products with `item_embeddings` are its scores."""
        return self.queries(self.session_embedding(self.encode(batch, Stage.PREDICT)))

    def item_embeddings(self) -> Tensor:
        """(V - 3, E) in the order of the catalogue, for a vector index."""
        return self.items()

    def attention_weights(self, batch: SessionBatch) -> list[Tensor]:
        """(B, H, L, L) of each layer when predicting: who looks, by who is looked at."""
        body = self.head.body
        return body.attentions(self._crop(body, batch, Stage.PREDICT))

    def encode(self, batch: SessionBatch, stage: Stage) -> Encoded:
        """Hidden states of a stage."""
        return self._encode(self.head.body, batch, stage)

    @staticmethod
    def session_embedding(encoded: Encoded) -> Tensor:
        """(B, L, D) -> (B, D): the hidden state that predicts the next item."""
        rows = torch.arange(encoded.query.size(0), device=encoded.query.device)
        return encoded.hidden[rows, encoded.query]

    def _heads(self) -> list[Head]:
        """All heads in order."""
        return [head for head in self.heads if isinstance(head, Head)]

    def _encode(self, body: SequentialBlock, batch: SessionBatch, stage: Stage) -> Encoded:
        encoded: Encoded = body(self._crop(body, batch, stage), stage)
        return encoded

    @staticmethod
    def _crop(body: SequentialBlock, batch: SessionBatch, stage: Stage) -> SessionBatch:
        if not isinstance(batch, SessionBatch):
            raise ConfigError(
                f"A model reads a SessionBatch, found a {type(batch).__name__}. Make one by "
                f"SessionBatch.from_features(features, {body.inputs.item!r})."
            )
        longest = body.inputs.max_sequence_length
        if longest is None:
            return batch
        # training and evaluation rows hold their target as well
        return newest(batch, longest + (stage != Stage.PREDICT), body.inputs.vectors)

    def _task_loss(self, head: Head, task: Task, batch: SessionBatch) -> Tensor:
        body = head.body
        if isinstance(task, BinaryClassificationTask | RegressionTask):
            # the whole session is known to such a task, in training as in prediction
            cropped = self._crop(body, batch, Stage.PREDICT)
            encoded: Encoded = body(cropped, Stage.PREDICT)
            return task.loss(encoded.hidden, encoded.query, cropped)
        cropped = self._crop(body, batch, Stage.TRAIN)
        masking = body.masking
        weights = None
        if task.weights is not None:
            items = cropped.features[body.inputs.item]
            given = task.weights(cropped)
            weights = masking.at_targets(
                given.unsqueeze(1).expand_as(items) if given.dim() == 1 else given
            )
        looked_up, scored = None, head.item_table
        if task.scores_all_rows and not isinstance(masking, ReplacementMasking):
            looked_up, scored = share_gradient(scored)
        masked = body.masked(cropped, Stage.TRAIN, looked_up)
        # a replaced item is looked for everywhere, in a pass of its own
        encoded = body.through(masked, targets_only=True)
        loss = task.loss(encoded.hidden, encoded.targets, scored, weights)
        if not isinstance(masking, ReplacementMasking):
            return loss
        drawing = encoded
        if body.generator is not None:
            drawing = body.through(masked, generator=True)
            loss = loss + task.loss(drawing.hidden, drawing.targets, head.item_table, weights)
        with torch.no_grad():
            at_targets = drawing.hidden[drawing.targets >= FIRST_ITEM]
            logits = task.logits(at_targets, head.item_table)
        replaced = masking.replace(
            cropped, body.inputs.item, encoded.targets, logits, body.inputs.vectors
        )
        seen = body.through(body.unmasked(replaced.batch))
        detection = masking.detection_loss(seen.hidden, replaced.is_replaced, cropped.lengths)
        return masking.generator_loss_weight * loss + masking.discriminator_loss_weight * detection


def check_indices(name: str, indices: Tensor | None, num_rows: int) -> None:
    """ConfigError unless they are item indices, among them 0 for none."""
    if indices is None:
        return
    if not isinstance(indices, Tensor) or indices.is_floating_point():
        raise ConfigError(f"{name} is a {type(indices).__name__}, expected a tensor of indices.")
    if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < num_rows:
        raise ConfigError(
            f"{name} holds indices from {int(indices.min())} to {int(indices.max())}, expected 0 "
            f"to {num_rows - 1}."
        )
