"""Orders equal NumPy's, whatever the keys."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.preprocess.ordering import order_by, stable_order

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


def test_many_keys_keep_the_order_of_equal_ones() -> None:
    keys = np.random.default_rng(0).integers(-50, 50, 300_000)
    np.testing.assert_array_equal(stable_order(keys), np.argsort(keys, kind="stable"))
