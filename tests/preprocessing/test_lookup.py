"""Positions are the same whichever side is hashed."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.preprocessing import lookup
from pipeline.preprocessing.lookup import positions


@pytest.mark.parametrize("kind", [pa.int64(), pa.string()])
@given(
    values=st.lists(st.integers(-9, 9) | st.none(), max_size=30),
    known=st.lists(st.integers(-9, 9), unique=True, max_size=19),
    large=st.sampled_from([0, 1, 100]),
)
def test_positions_of_values_among_known_ones(
    kind: pa.DataType, values: list[int | None], known: list[int], large: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lookup, "_LARGE", large)
        found = positions(
            pa.array(values, pa.int64()).cast(kind), pa.array(known, pa.int64()).cast(kind)
        )
    assert found.tolist() == [known.index(v) if v in known else -1 for v in values]
    found += 1  # it can be written to
