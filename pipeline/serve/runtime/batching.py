"""Batches of encoded requests for the model, and responses from its output."""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .lookups import FIRST_ITEM, MISSING_INTEGER
from .request import Request
from .request_encoder import Encoder
from .rows import Rows, merge

RunModel = Callable[[NDArray[Any]], NDArray[Any]]
"""Model: a tensor of `BatchRunner.pack` -> (S, (2 + M) * K + E + N) int32: item indices, then the
bits of scores, M targets of each item, embeddings and N targets."""


class Recommendations(NamedTuple):
    """Output of the model for S sessions."""

    scores: NDArray[Any]
    """(S, K) best first, minus infinity after the end of a short list."""
    items: NDArray[Any]
    """(S, K) item indices."""
    embeddings: NDArray[Any]
    """(S, E) session vectors, whose inner products with item vectors are the scores of the next
    item."""
    targets: NDArray[Any]
    """(S, N) predictions of the targets besides the next item."""
    item_targets: NDArray[Any]
    """(S, K, M) predictions of the targets per item."""


class BatchRunner:
    """Runs the model on all sessions of several requests."""

    def __init__(self, encoder: Encoder, run_model: RunModel) -> None:
        self.encoder = encoder
        self.run_model = run_model
        self.packing: list[str] = encoder.spec["packing"]
        """Names of the encoded columns in the order of the packed tensor."""
        self.max_batch: int = encoder.spec["max_batch"]
        self.width: int = encoder.spec["width"]
        self.targets: list[str] = encoder.spec["targets"]
        self.item_targets: list[str] = encoder.spec["item_targets"]

    def __call__(self, requests: list[Request]) -> Recommendations:
        """Return the lists of all sessions, as long as the longest requested list."""
        num_sessions = sum(len(request.rows.lengths) for request in requests)
        encoded = self._encode(requests)
        k = max(request.k for request in requests)
        parts = []
        for first in range(0, num_sessions, self.max_batch):
            rows = slice(first, min(first + self.max_batch, num_sessions))
            excluded = _slice_rows([request.excluded for request in requests], rows)
            candidates = _slice_rows([request.candidates for request in requests], rows)
            parts.append(self.run_model(self.pack(encoded, rows, excluded, candidates, k)))
        output = _concatenate(parts)
        end = output.shape[1] - len(self.targets)
        count = len(self.item_targets)
        k = (end - self.width) // (2 + count)
        numbers = output.view(np.float32)
        return Recommendations(
            numbers[:, k : 2 * k],
            output[:, :k],
            numbers[:, end - self.width : end],
            numbers[:, end:],
            numbers[:, 2 * k : end - self.width].reshape(num_sessions, count, k).swapaxes(1, 2),
        )

    def pack(
        self,
        encoded: dict[str, NDArray[Any]],
        rows: slice,
        excluded: NDArray[Any],
        candidates: NDArray[Any],
        k: int,
    ) -> NDArray[Any]:
        """Return (S, n) int32, one row per session, the input of `unpack_request` in the model.

        Floats are stored as the bits of integers.
        """
        columns = [encoded[name][rows] for name in self.packing]
        integers = [values for values in columns if values.dtype.kind == "i"]
        bits = [values.view(np.int32) for values in columns if values.dtype.kind == "f"]
        sizes = (encoded["item_id"].shape[1], excluded.shape[1], candidates.shape[1], k)
        header = np.array([sizes] * len(excluded), np.int32)
        return np.concatenate(
            [header, *integers, excluded, candidates, *bits], axis=1, dtype=np.int32
        )

    def _encode(self, requests: list[Request]) -> dict[str, NDArray[Any]]:
        """Encode all sessions, in the order of the requests.

        Neighbours with the same optional columns are encoded together, so that the columns that a
        request leaves out are filled in independently of other requests.
        """
        longest = max(int(request.rows.lengths.max()) for request in requests)
        columns = self.encoder.columns
        groups = groupby((request.rows for request in requests), self._optional_columns)
        parts = [self.encoder.encode(merge(list(rows), columns), longest) for _, rows in groups]
        return {name: _concatenate([part[name] for part in parts]) for name in parts[0]}

    def _optional_columns(self, rows: Rows) -> tuple[bool, ...]:
        return rows.times is None, *(name in rows.columns for name in self.encoder.optional)


def _slice_rows(parts: list[NDArray[Any]], rows: slice) -> NDArray[Any]:
    """Return a range of rows of stacked arrays of different widths, padded with 0.

    The result is as wide as the widest of these rows, so a wide request costs others only within
    its bounded batch.
    """
    blocks = []
    first = 0
    for part in parts:
        block = part[max(rows.start - first, 0) : max(rows.stop - first, 0)]
        if len(block):
            blocks.append(block)
        first += len(part)
    width = max(block.shape[1] for block in blocks)
    return _concatenate([_pad(block, width) for block in blocks])


def _pad(rows: NDArray[Any], width: int) -> NDArray[Any]:
    missing = width - rows.shape[1]  # nearly always 0, and `np.pad` takes 50 microseconds
    return np.pad(rows, ((0, 0), (0, missing))) if missing else rows


def _concatenate(parts: list[NDArray[Any]]) -> NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def response_tensors(
    request: Request,
    recommendations: Recommendations,
    encoder: Encoder,
    outputs: Collection[str],
) -> dict[str, NDArray[Any]]:
    """Return the tensors that `outputs` names.

    Available are (B, k) `item_ids` and `scores`, (B, E) `embedding`, (B, 1) `num_known`,
    `session_ids` and each target, and (B, k) each target per item. A flat request has them in one
    row: (1, S * k), (1, S * E), (1, S). A short list ends in missing ids with scores of minus
    infinity.
    """
    scores = recommendations.scores[:, : request.k]
    rows = 1 if request.flat else len(scores)
    tensors: dict[str, NDArray[Any]] = {}
    if "item_ids" in outputs:
        ids = encoder.items[np.maximum(recommendations.items[:, : request.k] - FIRST_ITEM, 0)]
        missing = scores == -np.inf
        if missing.any():
            ids[missing] = MISSING_INTEGER if ids.dtype.kind == "i" else b""
        tensors["item_ids"] = ids.reshape(rows, -1)
    if "scores" in outputs:
        tensors["scores"] = np.ascontiguousarray(scores).reshape(rows, -1)
    if "embedding" in outputs:
        tensors["embedding"] = np.ascontiguousarray(recommendations.embeddings).reshape(rows, -1)
    if "num_known" in outputs:
        tensors["num_known"] = request.num_known.reshape(rows, -1)
    of_items = recommendations.item_targets[:, : request.k].transpose(2, 0, 1)  # (M, S, k)
    names = (*encoder.spec["targets"], *encoder.spec["item_targets"])
    for name, values in zip(names, (*recommendations.targets.T, *of_items), strict=True):
        if name in outputs:
            tensors[name] = np.ascontiguousarray(values).reshape(rows, -1)
    if "session_ids" in outputs:
        tensors["session_ids"] = np.ascontiguousarray(request.session_ids)
    return tensors
