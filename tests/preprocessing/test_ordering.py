"""Orders equal NumPy's, whatever the keys."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.preprocessing.sorting.ordering import order_by, stable_order

KEYS = st.one_of(
    st.integers(-3, 3),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([-(2**63), 2**63 - 1, 2**61, 2**62, 0]),
)


@given(st.lists(st.tuples(KEYS, KEYS), max_size=60))
def test_orders_are_those_of_numpy(rows: list[tuple[int, int]]) -> None:
    first, second = (np.array([row[i] for row in rows], np.int64) for i in (0, 1))
    assert stable_order(first).tolist() == np.argsort(first, kind="stable").tolist()
    assert order_by(first, second).tolist() == np.lexsort((second, first)).tolist()


NUMBERS = st.sampled_from([0.9, 0.1, 0.5, 1.5, np.nan, -np.inf, np.inf, 1.6e9, 1.6e9 + 0.25])


@given(st.lists(st.tuples(st.integers(0, 2), NUMBERS), max_size=40))
def test_floats_and_times_are_sorted_like_numpy(rows: list[tuple[int, float]]) -> None:
    first = np.array([row[0] for row in rows], np.int64)
    second = np.array([row[1] for row in rows], np.float64)
    with np.errstate(invalid="ignore"):
        times = (second * 1e9).astype("datetime64[ns]")
    for keys in (second, times, first.astype(np.uint64) + 2**63):
        assert stable_order(keys).tolist() == np.argsort(keys, kind="stable").tolist()
        expected = sorted(range(len(rows)), key=lambda row: first[row])
        order = np.argsort(keys, kind="stable")
        expected = order[np.argsort(first[order], kind="stable")].tolist()
        assert order_by(first, keys).tolist() == expected


@pytest.mark.parametrize("spread", [50, 2**15, 2**31, 2**40, 2**62])
@pytest.mark.parametrize("runs", [1, 10, 100_000])
def test_many_keys_keep_the_order_of_equal_ones(spread: int, runs: int) -> None:
    random = np.random.default_rng(0)
    each = [np.sort(random.integers(-spread, spread, 300_000 // runs)) for _ in range(runs)]
    keys = np.concatenate(each)
    np.testing.assert_array_equal(stable_order(keys), np.argsort(keys, kind="stable"))
    times = random.integers(0, 1_000, len(keys))
    for second in (times, np.arange(len(keys))):
        np.testing.assert_array_equal(order_by(keys, second), np.lexsort((second, keys)))
