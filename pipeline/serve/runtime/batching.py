"""Requests through the model: encoded together, in batches of a bounded size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .encoder import Encoder
from .request import Request
from .response import Recommendations
from .rows import merge

RunModel = Callable[[np.ndarray], np.ndarray]
"""Model: a tensor of `BatchRunner.pack` -> (S, 2 * K + E) int32: item indices, then the bits of
scores and embeddings."""


class BatchRunner:
    """Runs the model on all sessions of several requests."""

    def __init__(self, encoder: Encoder, run_model: RunModel) -> None:
        self.encoder = encoder
        self.run_model = run_model
        self.packing: list[str] = encoder.spec["packing"]
        """Names of the encoded columns in the order of the packed tensor."""
        self.max_batch: int = encoder.spec["max_batch"]
        self.width: int = encoder.spec["width"]

    def __call__(self, requests: list[Request]) -> Recommendations:
        """Return the lists of all sessions, as long as the longest requested list."""
        num_sessions = sum(len(request.rows.lengths) for request in requests)
        encoded = self._encode(requests, num_sessions)
        k = max(request.k for request in requests)
        parts = []
        for first in range(0, num_sessions, self.max_batch):
            rows = slice(first, min(first + self.max_batch, num_sessions))
            excluded = _slice_rows([request.excluded for request in requests], rows)
            candidates = _slice_rows([request.candidates for request in requests], rows)
            parts.append(self.run_model(self.pack(encoded, rows, excluded, candidates, k)))
        output = parts[0] if len(parts) == 1 else np.concatenate(parts)
        k = (output.shape[1] - self.width) // 2
        numbers = output.view(np.float32)
        return Recommendations(numbers[:, k : 2 * k], output[:, :k], numbers[:, 2 * k :])

    def pack(
        self,
        encoded: dict[str, np.ndarray],
        rows: slice,
        excluded: np.ndarray,
        candidates: np.ndarray,
        k: int,
    ) -> np.ndarray:
        """Return (S, n) int32, one session a row, which `unpack` of the model takes apart.

        Floats are the bits of integers.
        """
        columns = [encoded[name][rows] for name in self.packing]
        integers = [values for values in columns if values.dtype.kind == "i"]
        bits = [values.view(np.int32) for values in columns if values.dtype.kind == "f"]
        sizes = (encoded["item_id"].shape[1], excluded.shape[1], candidates.shape[1], k)
        header = np.array([sizes] * len(excluded), np.int32)
        return np.concatenate(
            [header, *integers, excluded, candidates, *bits], axis=1, dtype=np.int32
        )

    def _encode(self, requests: list[Request], num_sessions: int) -> dict[str, np.ndarray]:
        """Encode all sessions, in the order of the requests.

        Requests with the same optional columns are encoded at once: what a request leaves out is
        filled in, whatever the others have.
        """
        longest = max(int(request.rows.lengths.max()) for request in requests)
        groups: dict[tuple[bool, ...], list[int]] = {}
        for position, request in enumerate(requests):
            names = request.rows.columns
            form = (
                request.rows.times is None,
                *(name in names for name in self.encoder.item_features),
            )
            groups.setdefault(form, []).append(position)
        if len(groups) == 1:
            return self.encoder.encode(
                merge([request.rows for request in requests], self.encoder.columns), longest
            )
        ends = np.cumsum([len(request.rows.lengths) for request in requests])
        encoded: dict[str, np.ndarray] = {}
        for positions in groups.values():
            rows = merge([requests[p].rows for p in positions], self.encoder.columns)
            sessions = np.concatenate(
                [np.arange(ends[p] - len(requests[p].rows.lengths), ends[p]) for p in positions]
            )
            for name, values in self.encoder.encode(rows, longest).items():
                shape = (num_sessions, values.shape[1])
                encoded.setdefault(name, np.zeros(shape, values.dtype))[sessions] = values
        return encoded


def _slice_rows(parts: list[np.ndarray], rows: slice) -> np.ndarray:
    """Return some rows of arrays of different widths below each other, padded with 0.

    The result is as wide as the widest of these rows: a wide request costs those beside it in a
    batch, and a batch is bounded.
    """
    blocks = []
    first = 0
    for part in parts:
        block = part[max(rows.start - first, 0) : max(rows.stop - first, 0)]
        if len(block):
            blocks.append(block)
        first += len(part)
    width = max(block.shape[1] for block in blocks)
    if all(block.shape[1] == width for block in blocks):
        return np.concatenate(blocks) if len(blocks) > 1 else blocks[0]
    padded = np.zeros((rows.stop - rows.start, width), np.int64)
    first = 0
    for block in blocks:
        padded[first : first + len(block), : block.shape[1]] = block
        first += len(block)
    return padded
