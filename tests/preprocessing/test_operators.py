"""Session operators against NVTabular's own and against plain loops."""

import math
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.columns import FIRST_ITEM
from pipeline.data.fitted import Standardization
from pipeline.preprocessing.operators.encode import Encode
from pipeline.preprocessing.operators.sessions import (
    Cyclic,
    Elapsed,
    GroupSessions,
    Standardize,
    session_order,
)
from pipeline.preprocessing.statistics import (
    merge_value_counts,
    moments_of,
    value_counts,
    vocabulary_of,
)

# isort: split
from merlin.dag import ColumnSelector
from merlin.io import Dataset
from nvtabular import Workflow
from nvtabular.ops import Categorify, Groupby, ListSlice, Normalize

LISTED = ("item_id", "price", "timestamp")
MICROSECONDS = st.integers(-(2**53), 2**53)
"""1684 to 2255."""


def logs(ids: st.SearchStrategy) -> st.SearchStrategy:
    """Frames in the order of a log; many rows share a session, some a time."""
    row = st.tuples(
        ids,
        st.integers(3, 9),
        st.sampled_from([0.0, -1.5, 2.0]),
        st.integers(0, 5) | MICROSECONDS,
        st.integers(0, 3),
    )
    names = ["session_id", *LISTED, "device"]
    return st.lists(row, min_size=1, max_size=30).map(
        lambda rows: pd.DataFrame(rows, columns=names)
    )


LOGS = logs(st.integers(-2, 2)) | logs(st.sampled_from(["a", "b", "B", "", "é"]))


def as_rows(frame: pd.DataFrame) -> list[dict]:
    """Rows with lists as Python lists."""
    return pa.Table.from_pandas(frame, preserve_index=False).to_pylist()


def grouped(frame: pd.DataFrame, keep: int | None, features: tuple[str, ...] = ()) -> list[dict]:
    operator = GroupSessions("session_id", "timestamp", features, keep)
    names = ColumnSelector(["session_id", *LISTED, *features])
    return as_rows(operator.transform(names, frame))


@given(LOGS, st.integers(1, 6))
@settings(deadline=None)
def test_grouping_equals_nvtabulars_own_group_by_and_slice(log: pd.DataFrame, keep: int) -> None:
    order = ["session_id", "timestamp"]  # with two keys pandas' sort keeps ties in order
    aggregations = {name: ["list"] for name in LISTED}
    theirs = Groupby(["session_id"], order, aggregations)
    frame = theirs.transform(ColumnSelector(["session_id", *LISTED]), log)
    lists = ColumnSelector([f"{name}_list" for name in LISTED])
    frame = frame[["session_id"]].join(ListSlice(-keep).transform(lists, frame[lists.names]))
    expected = as_rows(frame.rename(columns=lambda name: name.removesuffix("_list")))
    assert grouped(log, keep) == expected


@given(LOGS, st.none() | st.integers(1, 6))
@settings(deadline=None)
def test_grouping_equals_a_loop(log: pd.DataFrame, keep: int | None) -> None:
    sessions: dict = {}
    for row in log.to_dict("records"):
        sessions.setdefault(row["session_id"], []).append(row)
    expected = []
    for session, rows in sorted(sessions.items()):
        rows = sorted(rows, key=lambda row: row["timestamp"])  # stable: ties keep the log's order
        newest = rows if keep is None else rows[-keep:]
        lists = {name: [row[name] for row in newest] for name in LISTED}
        expected.append({"session_id": session, "device": rows[0]["device"], **lists})
    assert grouped(log, keep, ("device",)) == expected


@given(LOGS)
@settings(deadline=None)
def test_elapsed_equals_a_loop(log: pd.DataFrame) -> None:
    expected = []
    for position, row in enumerate(log.to_dict("records")):
        before = [
            (other["timestamp"], index)
            for index, other in enumerate(log.to_dict("records"))
            if other["session_id"] == row["session_id"]
            and (other["timestamp"], index) < (row["timestamp"], position)
        ]
        expected.append((row["timestamp"] - max(before)[0]) / 1e6 if before else 0.0)
    log.index = range(100, 100 + len(log))
    operator = Elapsed("session_id", "timestamp")
    actual = operator.transform(ColumnSelector(["session_id", "timestamp"]), log)
    assert actual["elapsed"].tolist() == expected
    assert actual.index.equals(log.index)


@given(st.lists(MICROSECONDS, min_size=1, max_size=9))
@settings(deadline=None)
def test_hour_and_weekday_equal_pythons_calendar(times: list[int]) -> None:
    frame = pd.DataFrame({"timestamp": times})
    for feature in ("hour", "weekday"):
        actual = Cyclic(feature).transform(ColumnSelector(["timestamp"]), frame)
        for row, time in enumerate(times):
            moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time)
            day = (moment.hour * 3600 + moment.minute * 60 + moment.second) / 86_400
            turn = day if feature == "hour" else (moment.weekday() + day) / 7
            assert actual[f"{feature}_sin"][row] == pytest.approx(
                math.sin(2 * math.pi * turn), abs=1e-6
            )
            assert actual[f"{feature}_cos"][row] == pytest.approx(
                math.cos(2 * math.pi * turn), abs=1e-6
            )


def test_monday_begins_the_week_and_midnight_the_day() -> None:
    monday = int(datetime(2026, 1, 5, tzinfo=UTC).timestamp()) * 1_000_000
    frame = pd.DataFrame({"timestamp": [monday, monday + 6 * 3_600_000_000]})
    hour = Cyclic("hour").transform(ColumnSelector(["timestamp"]), frame)
    assert hour["hour_sin"].tolist() == pytest.approx([0, 1], abs=1e-7)
    assert hour["hour_cos"].tolist() == pytest.approx([1, 0], abs=1e-7)
    weekday = Cyclic("weekday").transform(ColumnSelector(["timestamp"]), frame)
    assert weekday["weekday_sin"][0] == 0
    assert weekday["weekday_cos"][0] == 1


def test_operators_declare_their_output_schema() -> None:
    frame = pd.DataFrame(
        {"session_id": [1, 1, 2], "timestamp": [0, 5, 7], "item_id": [3, 4, 5], "device": [1, 1, 2]}
    )
    columns = ColumnSelector(["item_id", "device", "session_id", "timestamp"])
    columns = columns + (ColumnSelector(["timestamp"]) >> Cyclic("hour"))
    columns = columns + (
        ColumnSelector(["session_id", "timestamp"]) >> Elapsed("session_id", "timestamp")
    )
    workflow = Workflow(columns >> GroupSessions("session_id", "timestamp", ("device",), 20))
    result = workflow.transform(Dataset(frame, cpu=True)).to_ddf().compute()
    schema = workflow.output_schema
    assert set(schema.column_names) == set(result.columns)
    for name in ("item_id", "timestamp", "hour_sin", "hour_cos", "elapsed"):
        assert schema[name].is_list
        assert schema[name].is_ragged
        assert schema[name].properties["value_count"] == {"min": 1, "max": 20}
    assert not schema["device"].is_list
    assert not schema["session_id"].is_list
    stored = pa.Table.from_pandas(result, preserve_index=False).schema
    for name in schema.column_names:
        kind = stored.field(name).type
        kind = kind.value_type if pa.types.is_list(kind) else kind
        assert kind.to_pandas_dtype() == schema[name].dtype.to_numpy, name


def test_session_order_of_no_rows_is_empty() -> None:
    order, starts = session_order(pd.Series([], dtype=object), pd.Series([], dtype=np.int64))
    assert len(order) == len(starts) == 0


# --- categories ---------------------------------------------------------------------------------


def encoded(values: list, kind: pa.DataType, column: pd.Series) -> list[int]:
    operator = Encode(vocabularies={"brand": pa.array(values, kind)})
    frame = pd.DataFrame({"brand": column})
    before = frame.copy()
    result = operator.transform(ColumnSelector(["brand"]), frame)["brand"]
    pd.testing.assert_frame_equal(frame, before)
    assert result.dtype == np.int64
    return result.tolist()


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pd.Series([20, 10, 30]), [4, 3, 2]),
        (pd.Series([20, None, 30], dtype="Int64"), [4, 1, 2]),
        (pd.Series([None, None], dtype="Int64"), [1, 1]),
        (pd.Series([None, 10], dtype="Int64", index=[7, 3]), [1, 3]),
        (pd.Series([], dtype=np.int64), []),
    ],
)
def test_integers_become_indices(column: pd.Series, expected: list[int]) -> None:
    if len(column):
        assert encoded([10, 20], pa.int64(), column) == expected


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pd.Series(["b", "a", "c"]), [4, 3, 2]),
        (pd.Series(["b", None, "c"]), [4, 1, 2]),
        (pd.Series([None, None], dtype=object), [1, 1]),
        (pd.Series(["c", None, "b", "b"], dtype="category"), [2, 1, 4, 4]),
        (pd.Series([None], dtype="category"), [1]),
    ],
)
def test_texts_become_indices(column: pd.Series, expected: list[int]) -> None:
    assert encoded(["a", "b"], pa.string(), column) == expected


def test_empty_vocabulary_makes_values_unknown_or_missing() -> None:
    for kind, column in (
        (pa.int64(), pd.Series([5, None], dtype="Int64")),
        (pa.string(), pd.Series(["x", None])),
    ):
        assert encoded([], kind, column) == [2, 1]


@given(
    column=st.lists(st.sampled_from(["a", "b", "c", "d", "ß", "", None]), min_size=1, max_size=40),
    limit=st.integers(1, 4),
    parts=st.integers(1, 3),
    integers=st.booleans(),
)
@settings(deadline=None, max_examples=25)
def test_encode_equals_categorify_but_for_the_order_of_equal_counts(
    tmp_path_factory: pytest.TempPathFactory,
    column: list[str | None],
    limit: int,
    parts: int,
    integers: bool,
) -> None:
    if integers:
        frame = pd.DataFrame(
            {"x": pd.array([v and ord(v) for v in map(_or_none, column)], "Int64")}
        )
    else:
        frame = pd.DataFrame({"x": pd.Series(list(map(_or_none, column)), dtype=object)})
    if frame["x"].isna().all():
        return  # which the original does not take
    # statistics are computed by part; Categorify does not accept a part without a value
    counts_of_parts = [
        value_counts(frame[begin::parts], ["x"])["x"] for begin in range(min(parts, len(frame)))
    ]
    counts_of_parts = [c for c in counts_of_parts if c.num_rows] or counts_of_parts
    vocabulary = vocabulary_of(merge_value_counts(counts_of_parts), limit)
    ours = Encode({"x": vocabulary})
    theirs = Categorify(freq_threshold=limit, out_path=str(tmp_path_factory.mktemp("categories")))
    results, facts = {}, {}
    for operator in (ours, theirs):
        graph = Workflow(ColumnSelector(["x"]) >> operator)
        data = Dataset(frame, cpu=True)
        results[operator] = graph.fit_transform(data).to_ddf().compute()["x"].to_numpy()
        properties = graph.output_schema["x"].properties
        facts[operator] = (properties["domain"], properties["embedding_sizes"])
    assert facts[ours] == facts[theirs]
    counts = frame["x"].value_counts()
    in_vocabulary = results[theirs] >= FIRST_ITEM
    np.testing.assert_array_equal(results[ours][~in_vocabulary], results[theirs][~in_vocabulary])
    np.testing.assert_array_equal(results[ours] >= FIRST_ITEM, in_vocabulary)
    # the n-th index stands for a value as frequent as Categorify's n-th
    values = frame["x"].to_numpy()
    for index in np.unique(results[theirs][in_vocabulary]):
        mine, other = values[results[ours] == index], values[results[theirs] == index]
        assert counts[mine[0]] == counts[other[0]]
    ordered = vocabulary.to_pylist()
    assert ordered == sorted(ordered, key=lambda value: (-counts[value], value))


def _or_none(text: str | None) -> str | None:
    return text or None


# --- numbers ------------------------------------------------------------------------------------


def moments(column: list[float], dtype: type = np.float64) -> tuple[float, float]:
    """Mean and deviation of a column that is read in two parts."""
    numbers = np.array(column, dtype)
    half = len(numbers) // 2
    merged = moments_of(numbers[:half]).merge(moments_of(numbers[half:]))
    return merged.mean, merged.deviation


def standardize(column: list[float], mean: float, deviation: float) -> pd.Series:
    operator = Standardize({"price": Standardization(mean=mean, deviation=deviation)})
    frame = pd.DataFrame({"price": column})
    return operator.transform(ColumnSelector(["price"]), frame)["price"]


def test_mean_and_deviation_are_those_of_a_sample() -> None:
    assert moments([1, 2, 3, 4, float("nan")]) == (2.5, pytest.approx(math.sqrt(5 / 3)))


def test_a_large_mean_does_not_drown_the_deviation() -> None:
    billion = 1e9 + np.arange(4)
    assert moments(billion.tolist()) == (1e9 + 1.5, pytest.approx(math.sqrt(5 / 3)))
    theirs = Normalize()
    Workflow(ColumnSelector(["price"]) >> theirs).fit(Dataset(pd.DataFrame({"price": billion})))
    assert not theirs.stds["price"] > 0  # the reason for an operator of our own


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [0.1, 19.99, 1e9, -3.7, 0.0])
def test_a_constant_has_no_deviation(value: float, dtype: type) -> None:
    assert moments([value] * 1_000, dtype) == (dtype(value), 0.0)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=20, unique=True))
@settings(deadline=None, max_examples=25)
def test_standardized_numbers_have_mean_0_and_deviation_1(column: list[float]) -> None:
    scaled = standardize(column, *moments(column))
    assert scaled.dtype == np.float32
    assert scaled.mean() == pytest.approx(0, abs=1e-3)
    assert scaled.std() == pytest.approx(1, abs=1e-3)


def test_numbers_that_overflow_float32_become_missing() -> None:
    scaled = standardize([1e30, -1e30, 1e-30, float("nan")], 0.0, 1e-30)
    assert scaled.isna().tolist() == [True, True, False, True]
    assert scaled[2] == 1


def test_a_constant_is_centred() -> None:
    assert standardize([5.0, 5.0], 5.0, 0.0).tolist() == [0, 0]
