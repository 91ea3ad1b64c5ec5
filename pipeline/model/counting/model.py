"""A counting model as a `Model`, so that it is evaluated, exported and served like others.

Shape letters: B sessions, L positions, C candidates, K list length, T targets, V rows of the item
table.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pipeline.core.columns import FIRST_ITEM
from pipeline.core.errors import ConfigError
from pipeline.data.batch import SessionBatch, newest
from pipeline.data.schema import Schema, Tags
from pipeline.model.counting.scorer import Scorer, first_of_highest
from pipeline.model.counting.tables import read_scorer
from pipeline.model.model import SessionAnswer
from pipeline.model.sealed import SealedInputs, SealedModel
from pipeline.recipe.counting import PopularityOptions
from pipeline.recipe.model import ModelConfig

_SMOOTHING = 0.01
"""Share of popularity in a session's distribution, so that each item has a probability above 0."""


class CountingModel(SealedModel):
    """Model of a scorer with tables counted in the training sessions.

    The session itself, indices (B, L) of the column that the scorer reads, takes the place of
    hidden states and queries. `item_scores` are the scores of all items, `probabilities` turns
    them into a distribution.
    """

    scores_whole_catalogue = True
    """One call computes the scores of all items of a session."""
    no_parts = "The run holds a counting model, which has no weights to train and no hidden states."
    """Message of `NoPartsError`."""

    def __init__(self, scorer: Scorer, inputs: SealedInputs, column: str) -> None:
        """`column` is the column of `inputs` that the scorer reads."""
        nn.Module.__init__(self)
        self.scorer = scorer
        self.column = column
        self._inputs = inputs

    @property
    def item_tasks(self) -> list[object]:  # type: ignore[override]
        """Empty: a counting model has no targets per item."""
        return []

    @property
    def ranks_items(self) -> bool:
        """True: a counting model predicts the next item."""
        return True

    @property
    def device(self) -> torch.device:
        """Device of the tables."""
        return self.scorer.popularity.device

    @property
    def width(self) -> int:
        """0: neither sessions nor items have vectors."""
        return 0

    @property
    def query_width(self) -> int:
        """L: a query is the session."""
        return self.inputs.max_sequence_length

    @property
    def num_values(self) -> int:
        """Number of values in the tables."""
        return sum(table.numel() for table in self.scorer.buffers())

    def session_values(self, batch: SessionBatch) -> Tensor:
        """Indices of the column that the scorer reads: (B, 1) for a session feature, else (B, <=
        L)."""
        values = batch.features[self.column].to(torch.int64)
        return values.unsqueeze(1) if values.dim() == 1 else values

    def session_queries(self, batch: SessionBatch) -> Tensor:
        """(B, L) indices of the column that the scorer reads, padded on the right."""
        values = self.session_values(newest(batch, self.inputs.max_sequence_length))
        return nn.functional.pad(values, (0, self.query_width - values.size(1)))

    def answer(self, batch: SessionBatch) -> SessionAnswer:
        """Queries and predictions for a server."""
        return SessionAnswer(self.session_queries(batch), {})

    def predict(self, batch: SessionBatch) -> dict[str, Tensor]:
        """Scores (B, V) of the next item, by task name."""
        return {"next-item": self(batch)}

    def predict_targets(self, batch: SessionBatch) -> dict[str, Tensor]:
        """Empty: the only task is the next item."""
        return {}

    def items(self, positions: Tensor | None = None) -> Tensor:
        """(V - 3, 1) catalogue positions, or (C, 1) `positions`, as input of `score`."""
        if positions is None:
            positions = torch.arange(self.num_rows - FIRST_ITEM, device=self.device)
        return positions.unsqueeze(1)

    def score(self, queries: Tensor, items: Tensor) -> Tensor:
        """(T, L) queries, (1, C) transposed `items` -> (T, C) scores."""
        return self.item_scores(queries).index_select(1, items[0])

    def item_scores(self, queries: Tensor) -> Tensor:
        """(T, L) queries -> (T, V - 3) float32 scores of all items, in catalogue order."""
        scores: Tensor = self.scorer(queries)
        return scores

    def probabilities(self, scores: Tensor) -> Tensor:
        """(T, V - 3) `item_scores` -> positive probabilities that sum to 1 per row.

        The probability is the item's share of the positive scores, mixed with 1 % of popularity
        (counts plus one); a session without a positive score follows popularity alone.
        """
        positive = scores.clamp(min=0).double()
        popularity = self.scorer.popularity.double() + 1
        popularity = (popularity / popularity.sum()).expand_as(positive)
        total = positive.sum(1, keepdim=True)
        shares = torch.where(total > 0, positive / total.clamp(min=1e-300), popularity)
        return ((1 - _SMOOTHING) * shares + _SMOOTHING * popularity).float()

    def highest(self, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """(B, C) -> (B, k) highest scores and their columns; ties in column order."""
        return first_of_highest(scores, k)

    def item_embeddings(self) -> Tensor:
        """ConfigError: a counting model has no vectors."""
        raise ConfigError("A counting model has no vectors of sessions or items.")

    def session_embeddings(self, batch: SessionBatch) -> Tensor:
        """ConfigError: a counting model has no vectors."""
        raise ConfigError("A counting model has no vectors of sessions or items.")


def read_columns(schema: Schema, config: ModelConfig) -> Schema:
    """The item and, if `by` is set, the column that the model reads.

    ConfigError for a column that is not a categorical feature with one value.
    """
    item = schema.item_id.name
    by = config.counting.by if isinstance(config.counting, PopularityOptions) else None
    if by is None:
        return schema.select_by_name(item)
    categorical = schema.select_by_tag(Tags.CATEGORICAL)
    multi_valued = {column.value_of for column in schema}
    usable = [
        column.name
        for column in categorical
        if column.name != item
        and not column.values_per_interaction
        and column.name not in multi_valued
    ]
    if by not in usable:
        raise ConfigError(
            f"`model.options.by` is {by!r}, expected a categorical feature with one value: "
            f"{', '.join(usable) or 'these data have none'}."
        )
    return schema.select_by_name(item, by)


def counting_model(
    schema: Schema, config: ModelConfig, longest: int, scorer: Scorer
) -> CountingModel:
    """Wrap a fitted scorer as a model that reads the newest `longest` interactions."""
    item = schema.item_id.name
    columns = read_columns(schema, config)
    rows = {column.name: column.num_rows for column in columns}
    inputs = SealedInputs(item, [item, *(n for n in rows if n != item)], longest, rows)
    return CountingModel(scorer, inputs, inputs.feature_names[-1]).eval()


def load_counting_model(
    schema: Schema, config: ModelConfig, longest: int, tables: Mapping[str, Tensor]
) -> CountingModel:
    """Build a model from the tables of a file. ValueError or KeyError for damaged tables."""
    options = config.counting
    assert options is not None  # noqa: S101
    buffers = {name.removeprefix("scorer."): table for name, table in tables.items()}
    num_items = schema.item_id.num_rows - FIRST_ITEM
    return counting_model(schema, config, longest, read_scorer(options, buffers, num_items))
