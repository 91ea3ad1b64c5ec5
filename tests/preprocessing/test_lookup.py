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
    vocabulary=st.lists(st.integers(-9, 9), unique=True, max_size=19),
    large=st.sampled_from([0, 1, 100]),
)
def test_positions_equal_list_index_on_both_hashing_paths(
    kind: pa.DataType, values: list[int | None], vocabulary: list[int], large: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lookup, "_LARGE", large)
        result = positions(
            pa.array(values, pa.int64()).cast(kind), pa.array(vocabulary, pa.int64()).cast(kind)
        )
    assert result.tolist() == [vocabulary.index(v) if v in vocabulary else -1 for v in values]
    result += 1  # it can be written to
