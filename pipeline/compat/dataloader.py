"""Loader of Parquet files with the arguments and batches of Transformers4Rec's loader."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipeline.compat.arguments import expect
from pipeline.compat.features import ROW, as_schema
from pipeline.core.columns import FIRST_ITEM
from pipeline.core.errors import DataError
from pipeline.data.batch import newest
from pipeline.data.loader import RaggedBatch, SessionLoader
from pipeline.data.schema import Schema, Tags
from pipeline.model.model import Model

Paths = str | Path | Sequence[str | Path] | Any
"""Parquet files, folders or globs of them, a `merlin.io.Dataset` or a DataFrame."""


class Files(list[Path]):
    """Parquet files; data in memory are written to a temporary folder, removed with the list."""

    folder: TemporaryDirectory[str] | None = None

    @classmethod
    def of_frame(cls, frame: Any) -> Self:
        """One file of a DataFrame."""
        folder = TemporaryDirectory(prefix="pipeline-data-")
        files = cls([Path(folder.name) / "data.parquet"])
        files.folder = folder
        frame.to_parquet(files[0], index=False)
        return files


def parquet_files(paths: Paths) -> Files:
    """Files of paths, folders and globs, in order. DataError without a file."""
    if isinstance(paths, MerlinDataLoader):
        return paths.files
    engine = getattr(paths, "engine", None)  # of a merlin.io.Dataset
    if engine is not None:
        dataset: Any = paths
        paths = getattr(engine, "paths", None) or dataset.to_ddf().compute()
    if hasattr(paths, "to_parquet"):
        return Files.of_frame(paths)
    texts = [paths] if isinstance(paths, str | Path) else list(paths or [])
    files = Files()
    for text in map(str, texts):
        path = Path(text)
        if path.is_dir():
            files += sorted(path.glob("*.parquet"))
        elif path.exists():
            files.append(path)
        else:
            files += sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    if not files:
        raise DataError(f"There is no Parquet file at {', '.join(map(str, texts)) or 'no path'}.")
    return files


def session_loader(
    model: Model, paths: Paths, batch_size: int, *, shuffle: bool = False, seed: int = 0
) -> SessionLoader:
    """Loader of the training columns of a model. DataError if the files lack a column."""
    files = parquet_files(paths)
    columns = [name for name in model.training_columns if name != ROW]
    for file in files:
        missing = sorted(set(columns) - set(pq.read_schema(file).names))
        if missing:
            raise DataError(f"{file} has no column {', '.join(missing)}, which the model reads.")
    is_tower = model.inputs.item == ROW
    kind = RowLoader if is_tower else SessionLoader
    loader = kind(
        files,
        "train",
        item=columns[0] if is_tower else model.inputs.item,
        features=columns,
        batch_size=batch_size,
        shuffle=shuffle,
        seed=seed,
    )
    loader.source = files  # type: ignore[attr-defined]  # keeps a temporary folder
    return loader


class RowLoader(SessionLoader):
    """Rows as sessions of one interaction, for a tower without an item."""

    def _ragged(self, features: dict[str, Tensor]) -> RaggedBatch:
        values = {name: column.reshape(-1) for name, column in features.items()}
        lists = [name for name in values if name.endswith("__offsets")]
        if lists:
            raise DataError(f"{lists[0].removesuffix('__offsets')} has lists; use `model.fit`.")
        first = next(iter(values.values()))
        rows = torch.full((len(first),), FIRST_ITEM, device=first.device)
        offsets = torch.arange(len(first) + 1, device=first.device)
        return RaggedBatch({ROW: rows}, values, offsets)


class MerlinDataLoader:
    """Batches (features, targets) of Parquet files: dictionaries of padded tensors, or None.

    Lists are (B, L) with the newest `max_sequence_length` interactions, or as long as the longest
    of the batch. Shuffled epochs are read by the Merlin dataloader, epochs in order by pyarrow.
    """

    def __init__(
        self,
        paths_or_dataset: Paths,
        batch_size: int,
        schema: Schema | Iterable[Any],
        *,
        max_sequence_length: int | None = None,
        targets: Sequence[str] | None = None,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
    ) -> None:
        columns = as_schema(schema)
        self.files = parquet_files(paths_or_dataset)
        self.batch_size = batch_size
        self.max_sequence_length = max_sequence_length
        self.drop_last = drop_last
        chosen = columns.select_by_tag(Tags.TARGET).column_names if targets is None else targets
        self.targets = list(chosen)
        lists = [column.name for column in columns if column.is_list]
        is_tower = not lists
        loader = RowLoader if is_tower else SessionLoader
        items = columns.select_by_tag(Tags.ITEM_ID).column_names
        self.loader = loader(
            self.files,
            "train",
            item=(items + lists + columns.column_names)[0],
            features=columns.column_names,
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
        )

    @classmethod
    def from_schema(
        cls,
        schema: Schema | Iterable[Any],
        paths_or_dataset: Paths,
        batch_size: int,
        max_sequence_length: int | None = None,
        continuous_features: Sequence[str] | None = None,
        categorical_features: Sequence[str] | None = None,
        list_features: Sequence[str] | None = None,
        targets: Sequence[str] | None = None,
        collate_fn: Any = None,
        shuffle: bool = True,
        **others: Any,
    ) -> Self:
        """Make a loader of the columns of a schema that are features or targets.

        `others` may hold `drop_last`; `buffer_size`, `parts_per_chunk`, `global_size`,
        `global_rank`, `device`, `row_groups_per_part` and `reader_kwargs` have no effect.
        """
        expect("collate_fn", collate_fn, None, because="batches are dictionaries of tensors")
        expect("transforms", others.pop("transforms", None), None, [], because=_NO_TRANSFORMS)
        for name in _IGNORED & others.keys():
            others.pop(name)
        columns = as_schema(schema)
        names = [*(continuous_features or []), *(categorical_features or [])]
        if names or list_features:
            chosen = [*names, *(list_features or []), *(targets or [])]
            columns = columns.select_by_name(list(dict.fromkeys(chosen)))
        else:
            columns = columns.select_by_tag(Tags.CATEGORICAL, Tags.CONTINUOUS, Tags.TARGET)
        return cls(
            paths_or_dataset,
            batch_size,
            columns,
            max_sequence_length=max_sequence_length,
            targets=targets,
            shuffle=shuffle,
            **others,
        )

    def __len__(self) -> int:
        """Number of batches of an epoch."""
        if self.drop_last:
            return self.loader.num_sessions // self.batch_size
        return -(-self.loader.num_sessions // self.batch_size)

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor] | None]]:
        for ragged in self.loader:
            lengths = ragged.lengths
            if self.drop_last and len(lengths) < self.batch_size:
                continue
            rows = torch.arange(len(lengths), device=lengths.device)
            width, longest = None, self.max_sequence_length
            if longest is not None:
                width = max(longest, int(lengths.max()))
            batch = ragged.window(rows, torch.zeros_like(lengths), lengths, width)
            if longest is not None:
                batch = newest(batch, longest)
            features = {name: v for name, v in batch.features.items() if name != ROW}
            labels = {name: features.pop(name) for name in self.targets if name in features}
            yield features, labels or None


_IGNORED = {
    "buffer_size", "parts_per_chunk", "global_size", "global_rank", "device",
    "row_groups_per_part", "reader_kwargs", "seed_fn", "sparse_names", "sparse_max",
}  # fmt: skip
_NO_TRANSFORMS = (
    "vectors are looked up by the input block, `pretrained_embeddings={FEATURE: matrix}`"
)


class T4RecDataLoader:
    """Loaders by the names of `data_loader_engine`."""

    @staticmethod
    def parse(engine: str) -> type[MerlinDataLoader]:
        """Return MerlinDataLoader for any engine name of the original."""
        names = ("merlin", "merlin_dataloader", "nvtabular", "nvtabular_dataloader", "pyarrow")
        expect("data_loader_engine", engine, *names, because="the loader is merlin")
        return MerlinDataLoader
