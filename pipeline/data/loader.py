"""Session Parquet as batches of sessions, and windows of them as what models read.

A training pass is shuffled by the Merlin dataloader, on the device where it reads. A pass in the
order of the files reads them with pyarrow: importing Merlin, and dask with it, takes longer than
reading a million sessions. Both give ragged columns (values, offsets). A row of a model's batch is
a window of a session: all of it for training, maybe a part of it for evaluation.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipeline.core.columns import SESSION, SESSIONS_DIRECTORY
from pipeline.core.errors import ArtifactError
from pipeline.data.batch import SessionBatch

if TYPE_CHECKING:
    from merlin.dataloader.torch import Loader

_PUT_WAIT_SECONDS = 0.1
"""How often the reading thread looks whether it should stop; room in the queue wakes it at once."""


class RaggedBatch(NamedTuple):
    """B whole sessions of any length."""

    sequences: dict[str, Tensor]
    """Per feature (interactions,): the sessions one after the other."""
    sessions: dict[str, Tensor]
    """Per feature of a session (B,)."""
    offsets: Tensor
    """(B + 1,) where each session begins in the sequences."""

    @property
    def lengths(self) -> Tensor:
        """(B,) interactions of each session."""
        return self.offsets.diff()

    def window(self, rows: Tensor, starts: Tensor, stops: Tensor) -> SessionBatch:
        """Interactions starts..stops-1 of the sessions `rows`, all (W,), padded to the longest."""
        lengths = stops - starts
        width = max(int(lengths.max()), 1) if lengths.numel() else 1
        columns = torch.arange(width, device=lengths.device)
        inside = columns < lengths.unsqueeze(1)  # (W, width)
        first = (self.offsets[rows] + starts).unsqueeze(1)
        positions = torch.where(inside, first + columns, 0)
        features = {}
        for name, values in self.sequences.items():
            # an empty batch has no value to point at
            taken = values[positions] if values.numel() else values.new_zeros(positions.shape)
            features[name] = taken * inside.to(taken.dtype)
        for name, values in self.sessions.items():
            features[name] = values[rows]
        return SessionBatch(features, lengths)


def session_files(data: Path, part: str) -> list[Path]:
    """Files of a part in the order in which they are read; ArtifactError if it is not there."""
    files = list((data / SESSIONS_DIRECTORY / part).glob("*.parquet"))
    if not files:
        found = sorted(p.name for p in (data / SESSIONS_DIRECTORY).glob("*") if p.is_dir())
        others = f"Use --part {' or '.join(found)}, or set" if found else "Set"
        raise ArtifactError(
            f"{data} has no {part} sessions, it has: {', '.join(found) or 'none'}. {others} "
            f"`split.{part}` in the recipe, or give --test files, and preprocess again."
        )
    # Merlin puts part-2 before part-10, whatever order it is given
    return sorted(files, key=lambda file: _natural_sort_key(str(file)))


def _natural_sort_key(text: str) -> list[int | str]:
    """Digits compare as numbers, as `dask.utils.natural_sort_key` does."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]


def read_sessions(data: Path, part: str, columns: list[str]) -> pa.Table:
    """Columns of a part, (sessions) rows in the order of an unshuffled loader.

    A column that the files do not hold is left out. ArtifactError if the part is not there.
    """
    tables = []
    for file in session_files(data, part):
        names = pq.read_schema(file).names
        tables.append(pq.read_table(file, columns=[name for name in columns if name in names]))
    return pa.concat_tables(tables)


def session_ids(data: Path, part: str) -> np.ndarray | None:
    """(sessions,) raw ids in the order of an unshuffled loader; None where the files hold none."""
    table = read_sessions(data, part, [SESSION])
    return table[SESSION].to_numpy() if SESSION in table.column_names else None


def count_sessions(data: Path, part: str) -> int:
    """Sessions of a part. ArtifactError if it is not there."""
    return sum(pq.read_metadata(file).num_rows for file in session_files(data, part))


class SessionLoader:
    """Batches of one part of a data directory.

    The order of a shuffled pass follows from the seed and the number of the pass alone, so that
    a training that was interrupted can read on where it was. With `processes` above 1 it reads the
    row groups of one process, every `processes`-th from number `rank`; there may be none.
    """

    def __init__(
        self,
        data: Path,
        part: str,
        *,
        item: str,
        features: list[str],
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        processes: int = 1,
        indices: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """`features` are the columns to read; `indices` has others by column, see
        `Run.index_mapping`.

        ArtifactError if the part is not there.
        """
        self._files = [f for f in session_files(data, part) if pq.read_metadata(f).num_rows]
        self.item = item
        self._features = features
        self._batch_size = batch_size
        self._shuffle = shuffle
        self._seed = seed
        self._epoch = 0
        self._rows = {name: torch.from_numpy(rows) for name, rows in (indices or {}).items()}
        self._generator = np.random.default_rng(seed)
        self._loader: Loader | None = None
        self._in_order = not shuffle and processes == 1
        rows = _rows_of_groups(self._files)[rank::processes]
        self.num_sessions = sum(rows)
        if self.num_sessions and not self._in_order:
            self._loader = self._merlin_loader(
                batch_size, split_groups=processes > 1, shuffle=shuffle
            )
            self._loader.indices = self._loader.indices[rank::processes]

    def __len__(self) -> int:
        """Batches of a pass."""
        if self._in_order:
            return -(-self.num_sessions // self._batch_size)
        return 0 if self._loader is None else len(self._loader)

    def set_epoch(self, epoch: int) -> None:
        """Number of the next pass, from 0; otherwise passes are counted."""
        self._epoch = epoch

    def any_session(self) -> RaggedBatch:
        """Some session of the part, also where this process reads none. ArtifactError if empty."""
        if not self._files:
            raise ArtifactError("The part holds no session. Preprocess a log that has some.")
        return self._ragged(next(_read_in_order(self._files, self._features, 1)))

    def __iter__(self) -> Iterator[RaggedBatch]:
        self._generator = np.random.default_rng([self._seed, self._epoch])
        self._epoch += 1
        if self._in_order:
            for columns in _read_in_order(self._files, self._features, self._batch_size):
                yield self._ragged(columns)
            return
        if self._shuffle:
            # Merlin shuffles within a chunk by NumPy's global state
            np.random.seed(self._draw_seed())  # noqa: NPY002
        for columns, _ in self._loader or ():
            yield self._ragged(columns)

    def _merlin_loader(self, batch_size: int, *, split_groups: bool, shuffle: bool) -> "Loader":
        # first, since its settings must stand before dask is imported
        from pipeline.core.merlin import has_cudf  # isort: skip
        from merlin.dataloader.torch import Loader
        from merlin.io import Dataset

        split = {"row_groups_per_part": 1} if split_groups else {}
        files = [str(file) for file in self._files]
        dataset = Dataset(files, engine="parquet", cpu=not has_cudf(), **split)
        dataset.schema = dataset.schema.select_by_name(self._features)
        loader = Loader(dataset, batch_size=batch_size, shuffle=shuffle, seed_fn=self._draw_seed)
        # its thread asks a full queue every microsecond for room, which takes a whole core
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
                sequences[column] = self._translated(column, values)
            elif not name.endswith("__offsets"):
                sessions[name] = self._translated(name, values.reshape(-1))
        offsets = features[f"{self.item}__offsets"].to(torch.int64)
        return RaggedBatch(sequences, sessions, offsets)

    def _translated(self, column: str, values: Tensor) -> Tensor:
        if column not in self._rows:
            return values
        rows = self._rows[column].to(values.device)
        return rows[values.to(torch.int64)].to(values.dtype)


def _read_in_order(
    files: list[Path], features: list[str], batch_size: int
) -> Iterator[dict[str, Tensor]]:
    """Columns of consecutive sessions, named as the Merlin dataloader names them."""
    waiting: list[pa.RecordBatch] = []
    num_waiting = 0
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(batch_size, columns=features):
            waiting.append(batch)
            num_waiting += len(batch)
            while num_waiting >= batch_size:
                table = pa.Table.from_batches(waiting)
                yield _columns(table.slice(0, batch_size))
                waiting = table.slice(batch_size).to_batches()
                num_waiting -= batch_size
    if num_waiting:
        yield _columns(pa.Table.from_batches(waiting))


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


def _rows_of_groups(files: list[Path]) -> list[int]:
    metadata = [pq.read_metadata(file) for file in files]
    return [m.row_group(group).num_rows for m in metadata for group in range(m.num_row_groups)]
