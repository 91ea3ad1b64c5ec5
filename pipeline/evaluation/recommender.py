"""Prediction without a server: a trained run on the sessions of a data directory."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.columns import FIRST_ITEM, ITEM, PADDING, SESSION
from pipeline.core.errors import ConfigError, InputWarning
from pipeline.data.batch import SessionBatch
from pipeline.data.directory import Data
from pipeline.data.loader import RaggedBatch, SessionLoader
from pipeline.data.values import categories
from pipeline.evaluation.targets import evaluation_loader
from pipeline.model.device import best_device, device_chunk_bytes
from pipeline.model.model import TopK
from pipeline.model.run import Run
from pipeline.model.similar_items import similar_items

_SCORES_PER_STEP = {"cpu": 16_000_000}
"""Maximum scores in memory, 64 MB in float32, so that memory does not grow with sessions times
items. A GPU needs larger chunks, see `device_chunk_bytes`."""


class Recommendations(NamedTuple):
    """Lists of B sessions, best first."""

    items: NDArray[Any]
    """(B, K) raw ids; 0 or None after the end of a list."""
    scores: NDArray[Any]
    """(B, K) float32; minus infinity after the end."""
    counts: NDArray[Any]
    """(B,) lengths of the lists: K, or fewer if filters leave fewer items."""
    targets: dict[str, NDArray[Any]]
    """(B, K) float32 predictions of the targets per item by name, arbitrary after the end."""

    def records(self, sessions: Iterable[Any]) -> Iterator[dict[str, Any]]:
        """Yield the id and the list of each session as JSON values, without padding.

        `sessions` are B ids, None for a session without an id.
        """
        columns = {ITEM: self.items, "score": self.scores, **self.targets}
        for row, (session, count) in enumerate(zip(sessions, self.counts, strict=True)):
            values = [column[row, :count].tolist() for column in columns.values()]
            yield {
                SESSION: session,
                "recommendations": [
                    dict(zip(columns, entry, strict=True)) for entry in zip(*values, strict=True)
                ],
            }


def to_raw_ids(best: TopK, catalogue: NDArray[Any]) -> Recommendations:
    """Item indices -> raw ids; `catalogue` (items,) are the raw ids from index FIRST_ITEM on."""
    indices, scores = best.items.cpu().numpy(), best.scores.cpu().numpy()
    filled = indices >= FIRST_ITEM
    items = catalogue[np.where(filled, indices - FIRST_ITEM, 0)]
    items[~filled] = None if items.dtype == object else 0
    targets = {name: values.cpu().numpy() for name, values in best.targets.items()}
    return Recommendations(items, scores, filled.sum(1), targets)


class Recommender:
    """A trained run that recommends in this process, without a server.

    `data` is the data directory that the run was trained on, or one that extends it
    (`Run.index_mapping`), and `part` is train, valid or test. Sessions are in the order of
    `sessions.session_ids`; those of train are cut to their newest L + 1 interactions.
    """

    def __init__(self, run: Run) -> None:
        """Move the model of the run to a GPU if there is one."""
        self.run = run
        self.model = run.model.to(best_device())
        self.fitted = run.fitted
        self.catalogue: NDArray[Any] = self.fitted.item.values.to_numpy(zero_copy_only=False)
        """(items,) raw ids by descending frequency, int64 or text."""
        self._longest = self.model.inputs.max_sequence_length
        self._device = self.model.device

    @classmethod
    def open(cls, run: Run | Path) -> Self:
        """Load the run, onto a GPU if there is one. ArtifactError for an incomplete or damaged
        run."""
        return cls(Run.open(run))

    def recommend(
        self,
        data: Data | Path,
        part: str,
        k: int = 20,
        *,
        filter_seen: bool = False,
        exclude: Sequence[Any] = (),
        candidates: Sequence[Any] | None = None,
        batch_size: int = 256,
    ) -> Iterator[Recommendations]:
        """Yield up to `k` items for each session, in batches of at most `batch_size` sessions.

        `filter_seen` excludes the items of the session; `exclude` are raw ids to exclude,
        `candidates` the only raw ids to recommend. Ids may be text or integers for any catalogue.
        Unknown ids are ignored in `exclude` and reported by a warning in `candidates`. ConfigError
        if `k` is not between 1 and the size of the catalogue, or if no item remains.
        """
        self._check_ranks_items()
        if not 1 <= k <= len(self.catalogue):
            raise ConfigError(f"k is {k}, expected 1 to {len(self.catalogue)}.")
        loader = self._loader(data, part, batch_size)
        candidate_items = None if candidates is None else self._candidates(candidates)
        excluded_items = np.unique(self._indices(exclude))
        excluded_items = excluded_items[excluded_items >= FIRST_ITEM]
        allowed = candidate_items
        if allowed is None:
            allowed = np.arange(len(self.catalogue)) + FIRST_ITEM
        if np.isin(allowed, excluded_items).all():
            raise ConfigError(
                f"All {len(allowed)} items that could be recommended are excluded, expected one "
                "that is not. Exclude fewer."
            )
        return self._recommend(loader, k, filter_seen, excluded_items, candidate_items)

    def session_embeddings(
        self, data: Data | Path, part: str, *, batch_size: int = 256
    ) -> Iterator[NDArray[Any]]:
        """Yield (B, E) float32; their inner products with `item_embeddings` rank the items."""
        self._check_ranks_items()
        return self._session_embeddings(self._loader(data, part, batch_size))

    @torch.inference_mode()
    def predict_targets(
        self, data: Data | Path, part: str, *, batch_size: int = 256
    ) -> dict[str, NDArray[Any]]:
        """Return (sessions,) float32 predictions of the target tasks, by name.

        They are probabilities, or numbers in the units of the log; a task with one target per
        interaction predicts the newest interaction.
        """
        parts: dict[str, list[NDArray[Any]]] = {
            task.task_name: [] for _, task in self.model.target_tasks
        }
        for batch in self._loader(data, part, batch_size) if parts else ():
            answer = self.model.answer(self.newest(batch, _all_rows(batch), batch.lengths))
            for name, values in answer.targets.items():
                parts[name].append(values.float().cpu().numpy())
        empty = np.empty(0, np.float32)
        return {name: np.concatenate([empty, *values]) for name, values in parts.items()}

    @torch.inference_mode()
    def item_embeddings(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """(items,) raw ids and (items, E) float32, for a vector index by inner product."""
        self._check_ranks_items()
        return self.catalogue, self.model.item_embeddings().cpu().numpy()

    @torch.inference_mode()
    def similar_items(self, ids: Sequence[Any], k: int | None = None) -> Recommendations:
        """Return, for each of `ids`, the `k` items with the highest cosine of their vectors.

        A counting model has no vectors and returns the best items after a session of that item
        alone. `k` defaults to 10, or to all others of a small catalogue. An item is not in its own
        list.
        ConfigError if `k` is not between 1 and the number of other items, or for an id that is not
        in the catalogue.
        """
        self._check_ranks_items()
        k = min(10, len(self.catalogue) - 1) if k is None else k
        if not 1 <= k < len(self.catalogue):
            raise ConfigError(f"k is {k}, expected 1 to {len(self.catalogue) - 1}.")
        indices = self._indices(ids)
        if unknown := [
            each for each, index in zip(ids, indices, strict=True) if index < FIRST_ITEM
        ]:
            raise ConfigError(
                f"{unknown[0]!r} is not in the catalogue of {self.run.path}, expected raw ids such "
                f"as {self.catalogue[0]!r}."
            )
        positions = torch.from_numpy(indices - FIRST_ITEM).to(self._device)
        scores, items = similar_items(self.model, positions, k)
        return to_raw_ids(TopK(scores, items + FIRST_ITEM, {}), self.catalogue)

    def _check_ranks_items(self) -> None:
        if not self.model.ranks_items:
            raise ConfigError(
                f"{self.run.path} does not predict the next item (`next_item: false`), so it has "
                "neither lists nor vectors."
            )

    def in_catalogue(self, ids: Sequence[Any]) -> NDArray[Any]:
        """(n,) bool: whether each raw id is in the catalogue."""
        return self._indices(ids) >= FIRST_ITEM

    def _loader(self, data: Data | Path, part: str, batch_size: int) -> SessionLoader:
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}, expected 1 or more.")
        data = Data.open(data)
        indices = self.run.index_mapping(data)
        return evaluation_loader(data.path, part, self.model, batch_size, indices=indices)

    def _indices(self, ids: Sequence[Any]) -> NDArray[Any]:
        """Raw ids -> (n,) item indices, PADDING for ids outside the catalogue."""
        texts = pa.array([None if i is None else str(i) for i in ids], pa.string())
        values, _ = categories([texts], self.fitted.item.type)
        catalogue = self.fitted.item.values
        rows = pc.index_in(pa.Array.from_pandas(values, type=catalogue.type), value_set=catalogue)
        rows = pc.fill_null(rows, PADDING - FIRST_ITEM).to_numpy(zero_copy_only=False)
        return rows.astype(np.int64) + FIRST_ITEM

    def _candidates(self, ids: Sequence[Any]) -> NDArray[Any]:
        """Raw ids -> (C,) distinct item indices."""
        indices = self._indices(ids)
        unknown = np.flatnonzero(indices < FIRST_ITEM)
        examples = ", ".join(repr(ids[at]) for at in unknown[:3])
        if len(unknown) == len(ids):
            others = ", ..." if len(ids) > 3 else ""
            none = (
                f"None of the {len(ids)} candidates ({examples}{others})" if len(ids) else "No id"
            )
            raise ConfigError(
                f"{none} is in the catalogue of {self.run.path}, expected some of its "
                f"{len(self.catalogue)} raw ids, such as {self.catalogue[0]!r}."
            )
        if len(unknown):
            warnings.warn(
                f"{len(unknown)} of {len(ids)} candidates are not in the catalogue: {examples}.",
                InputWarning,
                stacklevel=3,
            )
        items = np.unique(indices)
        return items[items >= FIRST_ITEM]

    @torch.inference_mode()
    def _recommend(
        self,
        loader: SessionLoader,
        k: int,
        filter_seen: bool,
        excluded_items: NDArray[Any],
        candidates: NDArray[Any] | None,
    ) -> Iterator[Recommendations]:
        always_excluded = torch.from_numpy(excluded_items).to(self._device)
        allowed = None if candidates is None else torch.from_numpy(candidates).to(self._device)
        scores = _SCORES_PER_STEP.get(self._device.type) or device_chunk_bytes(self._device) // 4
        step = max(1, scores // (len(self.catalogue) + FIRST_ITEM))
        for batch in loader:
            for rows in _all_rows(batch).split(step):
                excluded, stops = always_excluded, batch.lengths[rows]
                if filter_seen:
                    # items of the whole session, beyond the L that the model reads
                    seen = self.items(batch, rows, stops)  # (b, X)
                    excluded = torch.cat([seen, always_excluded.expand(len(rows), -1)], 1)
                best = self.model.top_k(
                    self.newest(batch, rows, stops),
                    k,
                    excluded=excluded if excluded.numel() else None,
                    candidates=allowed,
                )
                yield to_raw_ids(best, self.catalogue)

    @torch.inference_mode()
    def _session_embeddings(self, loader: SessionLoader) -> Iterator[NDArray[Any]]:
        for batch in loader:
            window = self.newest(batch, _all_rows(batch), batch.lengths)
            yield self.model.session_embeddings(window).cpu().numpy()

    def newest(self, batch: RaggedBatch, rows: Tensor, stops: Tensor) -> SessionBatch:
        """(b,) rows -> newest L interactions before `stops` (b,), the input of the model."""
        starts = (stops - (self._longest or 2**31)).clamp(min=0)
        return batch.window(rows, starts, stops).to(self._device)

    def items(self, batch: RaggedBatch, rows: Tensor, stops: Tensor) -> Tensor:
        """(b,) rows -> (b, X) item indices of the whole sessions before `stops` (b,), padded."""
        item = self.model.inputs.item
        sessions = RaggedBatch({item: batch.sequences[item]}, {}, batch.offsets)
        whole = sessions.window(rows, torch.zeros_like(stops), stops)
        return whole.features[item].to(self._device, torch.int64)


def _all_rows(batch: RaggedBatch) -> Tensor:
    return torch.arange(batch.lengths.numel(), device=batch.offsets.device)
