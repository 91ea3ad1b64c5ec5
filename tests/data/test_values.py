"""Raw columns become ids and times that do not depend on their block."""

from typing import Literal

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import values
from pipeline.data.times import NO_TIME, microseconds
from pipeline.recipe.timestamp import Timestamp

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


@given(st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=12))
@settings(deadline=None)
def test_numbers_as_text_are_exact_whatever_their_block_holds(floats: list[float]) -> None:
    texts = [repr(number) for number in floats]
    alone, _ = values.numbers([pa.array(texts)], positive=False)
    mixed, bad = values.numbers([pa.array([*texts, "soon", "true", ""])], positive=False)
    assert alone.tolist() == mixed[: len(texts)].tolist() == floats
    assert bad.tolist() == [*[False] * len(texts), True, False, False]


def test_numbers_of_text_are_those_of_python_without_underscores() -> None:
    texts = [" 5", "5\t", "+5", ".5", "5.", "1E2", "-0", "1_000", "0x10", "inf", "nan", "1e400", ""]
    for others in ([], ["soon"]):
        numbers, bad = values.numbers([pa.array([*texts, *others])], positive=False)
        assert numbers[:7].tolist() == [5, 5, 5, 0.5, 5, 100, 0]
        assert np.isnan(numbers[7:]).all()
        assert bad[7:].tolist() == [True, True, True, True, True, False, *(True for _ in others)]


def test_ids_of_text_are_integers_only_in_their_canonical_form() -> None:
    for text in ("7", "-7", "0"):
        assert values.category_chunk(pa.array([text, None, ""]), None)[1] == "int64"
    for text in ("07", "-0", "+7", "0x10", " 7", "7.0", "9223372036854775808"):
        for repetitions in (1, 100):  # as text, and as a dictionary
            column, kind = values.category_chunk(pa.array([text, "5"] * repetitions), None)
            assert kind == "string"
            assert values.decode_dictionary(column).to_pylist() == [text, "5"] * repetitions


@given(
    st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-(10**16), 10**16), min_size=1),
    st.sampled_from(["s", "ms", "us", "ns"]),
)
@settings(deadline=None)
def test_integer_times_are_those_of_a_column_with_missing_ones(
    times: list[int], unit: Literal["s", "ms", "us", "ns"]
) -> None:
    config = Timestamp(column="t", unit=unit)
    alone = microseconds([pa.array(times)], config)[0]
    mixed = microseconds([pa.array([*times, None])], config)[0]
    assert mixed.tolist() == [*alone.tolist(), NO_TIME]
