"""Small synthetic data sets under the names of Transformers4Rec's testing data.

With probability 0.9 the next item of a session is the successor of the current one, so that a
trained model is far better than chance. `pipeline synthesize` makes logs of any size.
"""

import functools
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pipeline.compat.features import as_schema
from pipeline.core.columns import FIRST_ITEM
from pipeline.data.schema import ColumnSchema, Schema, Tags

SESSIONS = 200
"""Sessions in the file of a data set."""
SHORTEST, LONGEST = 5, 20
FOLLOWS = 0.9
"""Share of interactions with the successor of the previous item."""


class Dataset:
    """A schema with synthetic data."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema

    @property
    def merlin_schema(self) -> Any:
        """The schema as a Merlin schema."""
        import pipeline.core.merlin  # noqa: F401, I001  (settings of Merlin)
        from merlin.schema.io.tensorflow_metadata import TensorflowMetadata

        metadata = TensorflowMetadata.from_proto_text(self.schema.to_proto_text())
        return metadata.to_merlin_schema()

    @functools.cached_property
    def path(self) -> str:
        """A Parquet file of 200 sessions or rows, in a temporary folder that is removed at exit."""
        self._folder = tempfile.TemporaryDirectory(prefix="pipeline-data-")
        path = Path(self._folder.name) / "data.parquet"
        session_frame(self.schema, SESSIONS).to_parquet(path, index=False)
        return str(path)

    def torch_synthetic_data(
        self,
        num_rows: int = 100,
        min_session_length: int = SHORTEST,
        max_session_length: int = LONGEST,
        device: Any = None,
        ragged: bool = False,
    ) -> dict[str, Tensor]:
        """Tensors of random sessions or rows by column, see `random_data_from_schema`."""
        return random_data_from_schema(
            self.schema,
            num_rows,
            max_session_length,
            min_session_length,
            device=device,
            ragged=ragged,
        )


def random_data_from_schema(
    schema: Schema | Iterable[Any],
    num_rows: int,
    max_session_length: int | None = None,
    min_session_length: int = SHORTEST,
    device: Any = None,
    ragged: bool = False,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Random values of a schema: lists (B, L) padded with 0, or ragged; others (B,)."""
    longest = LONGEST if max_session_length is None else max_session_length
    frame = session_frame(
        as_schema(schema), num_rows, min(min_session_length, longest), longest, seed
    )
    tensors = {}
    for name, column in frame.items():
        if not isinstance(column.iloc[0], np.ndarray):
            tensors[str(name)] = torch.from_numpy(column.to_numpy().copy())
            continue
        rows = [torch.from_numpy(values) for values in column]
        if ragged:
            lengths = torch.tensor([len(values) for values in rows])
            tensors[f"{name}__values"] = torch.cat(rows)
            tensors[f"{name}__offsets"] = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
        else:
            padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
            tensors[str(name)] = torch.nn.functional.pad(padded, (0, longest - padded.size(1)))
    return {name: values.to(device) for name, values in tensors.items()}


def session_frame(
    schema: Schema, rows: int, shortest: int = SHORTEST, longest: int = LONGEST, seed: int = 0
) -> pd.DataFrame:
    """Random sessions of a schema, one per row; the lists of a session have equal lengths."""
    random = np.random.default_rng(seed)
    lengths = random.integers(shortest, longest + 1, rows)
    columns: dict[str, Any] = {}
    for column in schema:
        if not column.is_list:
            columns[column.name] = _values(column, rows, random)
            continue
        values = _values(column, int(lengths.sum()), random)
        if Tags.ITEM_ID in column.tags:
            values = _walk(column, lengths, random)
        columns[column.name] = np.split(values, np.cumsum(lengths)[:-1])
    return pd.DataFrame(columns)


def _values(column: ColumnSchema, count: int, random: np.random.Generator) -> Any:
    if Tags.BINARY_CLASSIFICATION in column.tags:
        return random.integers(0, 2, count)
    if column.num_rows:
        return random.integers(min(FIRST_ITEM, column.num_rows - 1), column.num_rows, count)
    return random.random(count).astype(np.float32)


def _walk(column: ColumnSchema, lengths: Any, random: np.random.Generator) -> Any:
    """(interactions,) items, most of them successors of the previous item."""
    items = column.num_rows - FIRST_ITEM
    walks = []
    for length in lengths:
        steps = np.where(random.random(length) < FOLLOWS, 1, random.integers(0, items, length))
        walks.append(FIRST_ITEM + np.cumsum(steps) % items)
    return np.concatenate(walks) if walks else np.zeros(0, dtype=np.int64)


def _sessions() -> list[ColumnSchema]:
    categorical, continuous = ColumnSchema.create_categorical, ColumnSchema.create_continuous
    lists: Any = {"max_length": LONGEST}
    return [
        categorical("item_id", 50, tags=[Tags.ITEM_ID], **lists),
        categorical("category", 10, tags=[Tags.ITEM], **lists),
        continuous("item_recency", **lists),
        continuous("event_hour_sin", tags=[Tags.TIME], **lists),
        categorical("user_country", 20, is_list=False),
        continuous("user_age", is_list=False),
    ]


def _targets() -> list[ColumnSchema]:
    binary, regression = {"target", "binary_classification"}, {"target", "regression"}
    return [
        ColumnSchema(name="click", tags=frozenset(binary)),
        ColumnSchema(name="play_percentage", tags=frozenset(regression), is_float=True),
    ]


def _rows() -> list[ColumnSchema]:
    return [
        ColumnSchema.create_categorical("user_country", 20, is_list=False),
        ColumnSchema.create_categorical("genre", 8, is_list=False),
        ColumnSchema.create_continuous("user_age", is_list=False),
        *_targets(),
    ]


tabular_sequence_testing_data = Dataset(Schema(tuple(_sessions())))
"""Sessions of items with further features, without targets."""
tabular_testing_data = Dataset(Schema(tuple(_rows())))
"""Rows without an item, with a binary target and a number."""
music_streaming_testing_data = Dataset(Schema((*_sessions(), *_targets())))
"""Sessions with a binary target and a number each."""
