"""Batches of sessions from Parquet files.

The Merlin dataloader reads and shuffles training epochs, on a GPU where there is one. An epoch in
file order is read with pyarrow: importing Merlin, and dask with it, takes longer than reading a
million sessions. Both return ragged columns (values, offsets). A row of a batch is a window of a
session: the whole session in training, a part of it in evaluation.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.errors import ArtifactError
from pipeline.data.batch import SessionBatch
from pipeline.data.sessions import session_files

if TYPE_CHECKING:
    from merlin.dataloader.torch import Loader

_PUT_WAIT_SECONDS = 0.1
"""Interval at which Merlin's reading thread checks for a stop; a free slot wakes it."""


class RaggedBatch(NamedTuple):
    """Batch of B whole sessions."""

    sequences: dict[str, Tensor]
    """(interactions,) by interaction feature: sessions concatenated."""
    sessions: dict[str, Tensor]
    """(B,) by session feature."""
    offsets: Tensor
    """(B + 1,) position of the first interaction of each session, then the number of
    interactions."""

    @property
    def lengths(self) -> Tensor:
        """(B,) number of interactions of each session."""
        return self.offsets.diff()

    def tensors(self) -> list[Tensor]:
        """Tensors of the batch."""
        return [*self.sequences.values(), *self.sessions.values(), self.offsets]

    def to(self, device: torch.device) -> "RaggedBatch":
        """Copy of the batch on another device; the host does not wait for it."""
        return RaggedBatch(
            {name: to_device(values, device) for name, values in self.sequences.items()},
            {name: to_device(values, device) for name, values in self.sessions.items()},
            to_device(self.offsets, device),
        )

    def window(
        self, rows: Tensor, starts: Tensor, stops: Tensor, width: int | None = None
    ) -> SessionBatch:
        """Interactions starts..stops-1 of the sessions `rows`, all (W,).

        Padded to `width` positions, by default to the longest.
        """
        lengths = stops - starts
        if width is None:
            width = max(int(lengths.max()), 1) if lengths.numel() else 1
        columns = torch.arange(width, device=lengths.device)
        inside = columns < lengths.unsqueeze(1)  # (W, width)
        first = (self.offsets[rows] + starts).unsqueeze(1)
        positions = torch.where(inside, first + columns, 0)
        features = {}
        for name, values in self.sequences.items():
            # an empty batch has no value at position 0
            taken = values[positions] if values.numel() else values.new_zeros(positions.shape)
            features[name] = taken * inside.to(taken.dtype)
        for name, values in self.sessions.items():
            features[name] = values[rows]
        return SessionBatch(features, lengths)


class SessionLoader:
    """Batches of a part of a data directory.

    The order of a shuffled epoch depends on the seed and the epoch number alone, so that
    interrupted training can resume within an epoch. With `processes` above 1 the loader reads every
    `processes`-th row group from number `rank` on, possibly none.
    """

    def __init__(
        self,
        data: Path | Sequence[Path],
        part: str,
        *,
        item: str,
        features: list[str],
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        processes: int = 1,
        indices: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        """`data` is a data directory, or Parquet files with one row per session.

        `features` are the columns to read; `indices` maps their indices, see `Run.index_mapping`.

        ArtifactError if there is no such part.
        """
        files = session_files(data, part) if isinstance(data, Path) else data
        self._files = [file for file in files if pq.read_metadata(file).num_rows]
        self.item = item
        self._features = features
        self.batch_size = batch_size
        self._shuffle = shuffle
        self._seed = seed
        self._epoch = 0
        self._rows = {name: torch.from_numpy(rows) for name, rows in (indices or {}).items()}
        self._generator = np.random.default_rng(seed)
        self._loader: Loader | None = None
        self._in_order = not shuffle and processes == 1
        rows = _rows_of_groups(self._files)[rank::processes]
        self.num_sessions = sum(rows)
        self.num_interactions = sum(_interactions_of_groups(self._files, item)[rank::processes])
        if self.num_sessions and not self._in_order:
            self._loader = self._merlin_loader(split_groups=processes > 1)
            self._loader.indices = self._loader.indices[rank::processes]

    def __len__(self) -> int:
        """Number of batches of an epoch."""
        if self._in_order:
            return -(-self.num_sessions // self.batch_size)
        return 0 if self._loader is None else len(self._loader)

    @property
    def num_bytes(self) -> int:
        """Memory of all sessions, at eight bytes per value."""
        return 8 * self.num_interactions * len(self._features)

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the next epoch, from 0; by default epochs are numbered in turn."""
        self._epoch = epoch

    def any_session(self) -> RaggedBatch:
        """Batch of one session of the part, on any process. ArtifactError if the part is empty."""
        if not self._files:
            raise ArtifactError("The part holds no session. Preprocess a log that has some.")
        return self._ragged(next(_read_in_order(self._files, self._features, 1)))

    def __iter__(self) -> Iterator[RaggedBatch]:
        self._generator = np.random.default_rng([self._seed, self._epoch])
        self._epoch += 1
        if self._in_order:
            for columns in _read_in_order(self._files, self._features, self.batch_size):
                yield self._ragged(columns)
            return
        if self._shuffle:
            # Merlin shuffles within a chunk by NumPy's global state
            np.random.seed(self._draw_seed())  # noqa: NPY002
        for columns, _ in self._loader or ():
            yield self._ragged(columns)

    def _merlin_loader(self, *, split_groups: bool) -> "Loader":
        # imported first: it sets options that dask reads at import
        from pipeline.core.merlin import has_cudf  # isort: skip
        from merlin.dataloader.torch import Loader
        from merlin.io import Dataset

        split = {"row_groups_per_part": 1} if split_groups else {}
        files = [str(file) for file in self._files]
        dataset = Dataset(files, engine="parquet", cpu=not has_cudf(), **split)
        dataset.schema = dataset.schema.select_by_name(self._features)
        loader = Loader(
            dataset, batch_size=self.batch_size, shuffle=self._shuffle, seed_fn=self._draw_seed
        )
        # by default its thread polls a full queue every microsecond, which occupies a core
        loader._buff.put_wait = _PUT_WAIT_SECONDS
        return loader

    def _draw_seed(self) -> int:
        return int(self._generator.integers(2**31))

    def _ragged(self, features: dict[str, Tensor]) -> RaggedBatch:
        sequences = {}
        sessions = {}
        for name, values in features.items():
            if name.endswith("__values"):
                column = name.removesuffix("__values")
                sequences[column] = self._map_indices(column, values)
            elif not name.endswith("__offsets"):
                sessions[name] = self._map_indices(name, values.reshape(-1))
        offsets = features[f"{self.item}__offsets"].to(torch.int64)
        return RaggedBatch(sequences, sessions, offsets)

    def _map_indices(self, column: str, values: Tensor) -> Tensor:
        if column not in self._rows:
            return values
        rows = self._rows[column].to(values.device)
        return rows[values.to(torch.int64)].to(values.dtype)


def _read_in_order(
    files: list[Path], features: list[str], batch_size: int
) -> Iterator[dict[str, Tensor]]:
    """Columns of consecutive sessions, named as the Merlin dataloader names them."""
    pending: list[pa.RecordBatch] = []
    num_pending = 0
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(batch_size, columns=features):
            pending.append(batch)
            num_pending += len(batch)
            while num_pending >= batch_size:
                table = pa.Table.from_batches(pending)
                yield _columns(table.slice(0, batch_size))
                pending = table.slice(batch_size).to_batches()
                num_pending -= batch_size
    if num_pending:
        yield _columns(pa.Table.from_batches(pending))


def _columns(table: pa.Table) -> dict[str, Tensor]:
    columns = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        if pa.types.is_list(column.type):
            offsets = column.offsets.to_numpy()
            columns[f"{name}__values"] = _tensor(column.flatten())
            columns[f"{name}__offsets"] = torch.from_numpy(offsets - offsets[0])
        else:
            columns[name] = _tensor(column)
    return columns


def _tensor(values: pa.Array) -> Tensor:
    # a copy, as memory of Arrow is read-only
    return torch.from_numpy(values.to_numpy(zero_copy_only=False).copy())


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy to a device from pinned memory, without waiting for the copy."""
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def _interactions_of_groups(files: list[Path], item: str) -> list[int]:
    counts = []
    for metadata in map(pq.read_metadata, files):
        paths = [metadata.schema.column(n).path for n in range(metadata.num_columns)]
        column = [path.split(".")[0] for path in paths].index(item)
        groups = range(metadata.num_row_groups)
        counts += [metadata.row_group(group).column(column).num_values for group in groups]
    return counts


def _rows_of_groups(files: list[Path]) -> list[int]:
    metadata = [pq.read_metadata(file) for file in files]
    return [m.row_group(group).num_rows for m in metadata for group in range(m.num_row_groups)]
