"""Session Parquet through the Merlin dataloader to what models read.

The loader gives ragged columns (values, offsets), on the device where it reads. Here they become
windows: which interactions of which session make a row. A training row is a whole session, an
evaluation row may be a part of one.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from dask.utils import natural_sort_key
from merlin.dataloader.torch import Loader
from merlin.io import Dataset
from torch import Tensor

from pipeline.core.columns import SESSION, SESSIONS_DIRECTORY
from pipeline.core.errors import ArtifactError
from pipeline.core.merlin import has_cudf
from pipeline.data.batch import SessionBatch

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
    return sorted(files, key=lambda file: natural_sort_key(str(file)))


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
    """Batches of one part of a data directory, from Merlin's loader.

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
        `data_indices.Rows`.

        ArtifactError if the part is not there.
        """
        # Merlin takes a row of each file to see what is in it
        files = [f for f in session_files(data, part) if pq.read_metadata(f).num_rows]
        self.item = item
        self.num_sessions = 0
        self._shuffle = shuffle
        self._seed = seed
        self._epoch = 0
        self._rows = {name: torch.from_numpy(found) for name, found in (indices or {}).items()}
        self._generator = np.random.default_rng(seed)
        self._loader: Loader | None = None
        self._dataset: Dataset | None = None
        if files:
            split = {"row_groups_per_part": 1} if processes > 1 else {}
            dataset = Dataset(
                [str(f) for f in files], engine="parquet", cpu=not has_cudf(), **split
            )
            dataset.schema = dataset.schema.select_by_name(features)
            self._dataset = dataset
            rows = _rows_of_groups(files) if processes > 1 else [int(dataset.num_rows)]
            self.num_sessions = sum(rows[rank::processes])
            if self.num_sessions:
                self._loader = Loader(
                    dataset, batch_size=batch_size, shuffle=shuffle, seed_fn=self._draw_seed
                )
                self._loader.indices = self._loader.indices[rank::processes]
                # its thread asks a full queue every microsecond for room, which takes a whole core
                self._loader._buff.put_wait = _PUT_WAIT_SECONDS

    def __len__(self) -> int:
        """Batches of a pass."""
        return 0 if self._loader is None else len(self._loader)

    def set_epoch(self, epoch: int) -> None:
        """Number of the next pass, from 0; otherwise passes are counted."""
        self._epoch = epoch

    def any_session(self) -> RaggedBatch:
        """Some session of the part, also where this process reads none. ArtifactError if empty."""
        if self._dataset is None:
            raise ArtifactError("The part holds no session. Preprocess a log that has some.")
        loader = Loader(self._dataset, batch_size=1, shuffle=False)
        features, _ = next(iter(loader))
        loader.stop()
        return self._ragged(features)

    def __iter__(self) -> Iterator[RaggedBatch]:
        self._generator = np.random.default_rng([self._seed, self._epoch])
        self._epoch += 1
        if self._shuffle:
            # Merlin shuffles within a chunk by NumPy's global state
            np.random.seed(self._draw_seed())  # noqa: NPY002
        for features, _ in self._loader or ():
            yield self._ragged(features)

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


def _rows_of_groups(files: list[Path]) -> list[int]:
    metadata = [pq.read_metadata(file) for file in files]
    return [m.row_group(group).num_rows for m in metadata for group in range(m.num_row_groups)]
