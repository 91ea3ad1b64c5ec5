"""Requests of a batch get what each gets alone; batches have a bounded size."""

from copy import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.serve.runtime.batching import BatchRunner
from pipeline.serve.runtime.request import RequestReader
from tests.serve.test_encoder import shop_with

WIDTH = 2


def ask(packed: np.ndarray) -> np.ndarray:
    """Model whose scores are a checksum of all values of a row, whatever its width."""
    width, excluded, candidates, k = packed[0, :4].tolist()
    assert (packed[:, :4] == packed[0, :4]).all()
    # item, number, colour, nothing of an interaction, device of the session; then floats
    count = 4 * width + 1 + excluded + candidates
    rows, columns = packed[:, 4 : 4 + count], packed[:, 4 + count :].copy().view(np.float32)
    integers = rows[:, : 4 * width].reshape(len(rows), 4, width)
    floats = columns[:, :-1].reshape(len(rows), -1, width)
    assert floats.shape[1] == 9
    places = np.arange(1, width + 1)
    checksum = (integers * places).sum((1, 2)) + 10 * (floats * places).sum((1, 2))
    checksum = checksum + 100 * rows[:, 4 * width] + 1_000 * columns[:, -1]
    filters = rows[:, 4 * width + 1 :]
    checksum = checksum + 7 * filters[:, :excluded].sum(1) + 11 * filters[:, excluded:].sum(1)
    scores = checksum[:, np.newaxis] - np.arange(k)
    vectors = np.repeat(checksum[:, np.newaxis], WIDTH, axis=1)
    bits = np.concatenate([scores, vectors], 1).astype(np.float32).view(np.int32)
    items = np.tile(np.arange(3, 3 + k, dtype=np.int32), (len(rows), 1))
    return np.concatenate([items, bits], 1)


@pytest.fixture(scope="module")
def program() -> BatchRunner:
    encoder = copy(shop_with("s", 3, ("elapsed", "hour", "weekday")).encoder)  # others have it
    floats = ["price", "dwell", "flat", "void", "elapsed"]
    floats += [f"{name}_{wave}" for name in ("hour", "weekday") for wave in ("sin", "cos")]
    packing = ["item_id", "number", "colour", "nothing", *floats, "device", "age"]
    # what is filled in where a request has no price
    encoder.item_features = {"price": np.arange(3 + len(encoder.items), dtype=np.float32) / 8}
    encoder.spec = encoder.spec | {
        "packing": packing,
        "max_batch": 4,
        "width": WIDTH,
        "targets": [],
        "item_targets": [],
    }
    return BatchRunner(encoder, ask)


IDS = st.sampled_from([b"a", b"b", "é".encode(), b"unknown", b""])


@st.composite
def requests(draw: st.DrawFn) -> dict[str, np.ndarray]:
    """Sessions a row, or flat; with times or not; with filters or not."""
    flat = draw(st.booleans())
    rows, width = (1, draw(st.integers(2, 9))) if flat else (draw(st.integers(1, 6)), draw(
        st.integers(1, 5)))  # fmt: skip

    def array(values: st.SearchStrategy, shape: tuple[int, int], kind: Any) -> np.ndarray:
        count = shape[0] * shape[1]
        made = draw(st.lists(values, min_size=count, max_size=count))
        return np.array(made, kind).reshape(shape)

    tensors = {"item_id": array(IDS, (rows, width), object)}
    if flat:
        tensors["session_id"] = array(st.integers(1, 6), (1, width), np.int64)
    elif draw(st.booleans()):
        tensors["length"] = array(st.integers(1, width), (rows, 1), np.int32)
    if draw(st.booleans()):
        tensors["timestamp"] = array(st.integers(0, 99), (rows, width), np.int64)
    if draw(st.booleans()):
        tensors["price"] = array(st.floats(0, 9), (rows, width), np.float64)
    for name in ("exclude", "candidates"):
        if draw(st.booleans()):
            tensors[name] = array(IDS, (rows, draw(st.integers(1, 4))), object)
    tensors["k"] = np.full((rows, 1), draw(st.integers(1, 9)), np.int32)
    tensors["filter_seen"] = np.full((rows, 1), draw(st.booleans()))
    return tensors


@given(asked=st.lists(requests(), min_size=1, max_size=6))
@settings(deadline=None, max_examples=60)
def test_requests_of_a_batch_are_independent(
    program: BatchRunner, asked: list[dict[str, np.ndarray]]
) -> None:
    reader = RequestReader(program.encoder)
    read = [reader.read(tensors) for tensors in asked]
    together = program(read)
    first = 0
    for request in read:
        alone = program([request])
        last = first + len(request.rows.lengths)
        for whole, part in zip(together, alone, strict=True):
            width = min(request.k, part.shape[1])
            np.testing.assert_allclose(whole[first:last, :width], part[:, :width], rtol=1e-5)
        first = last
    assert first == len(together.scores)
