"""Raw columns become ids and times that do not depend on their block."""

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import values
from pipeline.data.times import microseconds
from pipeline.recipe.preprocess import Timestamp

NUMBERS = st.sampled_from([3.0, 1e16, -0.0, 2.5, 1e19, -1e300, float("inf"), float("nan"), None])


@given(st.lists(NUMBERS, min_size=1, max_size=12), st.integers(1, 12))
@settings(deadline=None)
def test_ids_do_not_depend_on_the_blocks_they_are_read_in(
    ids: list[float | None], cut: int
) -> None:
    column = pa.array(ids, pa.float64())
    whole, kind = values.categories([column], None)
    parts, same = values.categories([column[:cut], column[cut:]], None)
    assert same == kind
    assert whole.astype(object).where(whole.notna(), None).tolist() == (
        parts.astype(object).where(parts.notna(), None).tolist()
    )


def test_times_do_not_depend_on_their_block() -> None:
    exact = ["1569888000000000999", "1569888000000000001"]
    config = Timestamp(column="t", unit="ns")
    alone = microseconds([pa.array(exact)], config)[0]
    mixed = microseconds([pa.array([*exact, "soon"])], config)[0]
    assert mixed[:2].tolist() == alone.tolist()
