"""The server's NumPy encoder equals the NVTabular workflow, bit for bit."""

import functools
import re
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from pipeline.data import values
from pipeline.data.fitted import Fitted
from pipeline.data.times import NO_TIME
from pipeline.data.times import microseconds as log_microseconds
from pipeline.exporting.request_tables import encoder_spec, write_encoder
from pipeline.preprocessing import workflow
from pipeline.preprocessing.blocks import to_frame
from pipeline.preprocessing.expressions import add_expressions, merge_statistics, part_statistics
from pipeline.preprocessing.operators.sessions import session_order
from pipeline.recipe.preprocess import Preprocess
from pipeline.recipe.timestamp import Timestamp
from pipeline.serve.runtime import RequestError
from pipeline.serve.runtime.lookups import MISSING_INTEGER, read_array
from pipeline.serve.runtime.request import RequestReader
from pipeline.serve.runtime.request_encoder import Encoder
from pipeline.serve.runtime.times import microseconds, parse_time
from tests.preprocessing.whole_log import Interactions, read_interactions

KINDS = {
    "session_id": pa.int64(),
    "item_id": pa.string(),
    "number": pa.int64(),
    "colour": pa.string(),
    "price": pa.float64(),
    "dwell": pa.float64(),
    "flat": pa.float64(),
    "void": pa.float64(),
    "nothing": pa.string(),
    "device": pa.string(),
    "age": pa.float64(),
    "tags": pa.string(),
    "codes": pa.string(),
    "weight": pa.float64(),
    "hue": pa.string(),
}
FEATURES = [
    {"name": "number", "kind": "categorical", "of": "item"},
    {"name": "colour", "kind": "categorical", "min_count": 2},
    {"name": "price", "kind": "continuous", "of": "item", "log": True},
    {"name": "dwell", "kind": "continuous"},
    {"name": "flat", "kind": "continuous"},  # constant in training
    {"name": "void", "kind": "continuous", "log": True},  # missing throughout training
    {"name": "nothing", "kind": "categorical"},  # likewise
    {"name": "device", "kind": "categorical", "of": "session"},
    {"name": "age", "kind": "continuous", "of": "session", "log": True},
    {"name": "band", "column": "price", "kind": "categorical", "buckets": [-1, 0.0, 9.99, 1e3]},
    {"name": "stage", "column": "age", "kind": "categorical", "of": "session", "buckets": [30]},
    {"name": "tags", "kind": "categorical", "values_per_interaction": 3},
    {
        "name": "codes",
        "kind": "categorical",
        "of": "item",
        "values_per_interaction": 2,
        "separator": ",",
        "min_count": 2,
    },
    {
        "name": "topics",
        "column": "tags",
        "kind": "categorical",
        "of": "session",
        "values_per_interaction": 2,
        "hash_buckets": 4,
    },
    {"name": "rate", "column": "colour", "kind": "continuous", "mean_of": "age", "smoothing": 2},
    {
        "name": "worth",
        "column": "number",
        "kind": "continuous",
        "of": "item",
        "mean_of": "dwell",
        "folds": 2,
    },
    {"name": "bin", "column": "number", "kind": "categorical", "hash_buckets": 3, "min_count": 2},
    {"name": "shade", "column": "colour", "kind": "categorical", "hash_buckets": 5, "min_count": 2},
    *(
        {"name": f"number_{number}", "kind": "continuous", "expression": expression}
        for number, expression in enumerate(
            [
                "log(price / mean(price, colour))",
                "dwell - lag(dwell)",
                "log1p(fill(clip(dwell, -0.5, 1e3), 0)) + 2 * -sqrt(abs(lag(price, 2)))",
                "max(dwell, price, 1) / min(dwell, 0) - exp(mean(clip(dwell, 0, 9), number))",
                "weight * mean(weight + 1, item_id)",
            ]
        )
    ),
    {
        "name": "pair",
        "kind": "categorical",
        "expression": "cross(colour, bucket(price, -1, 9.99), hue, number)",
        "hash_buckets": 3,
    },
    {"name": "before", "kind": "categorical", "expression": "lag(item_id)", "min_count": 2},
    {"name": "bins", "kind": "categorical", "expression": "dwell * price", "buckets": [0, 9]},
    {"name": "years", "kind": "continuous", "expression": "log(age)", "of": "session"},
]
TIMED = [
    {"name": "new", "kind": "continuous", "expression": "timestamp - first_seen(item_id)"},
    {"name": "pause", "kind": "continuous", "expression": "timestamp - lag(timestamp)"},
]
"""Expressions of times."""
SOURCES = {feature["name"]: feature.get("column", feature["name"]) for feature in FEATURES}
SHOPS = tempfile.TemporaryDirectory()
"""Goes away with the process."""
JUNK = {"int64": 12345, "float64": 6.25, "string": b"junk"}
"""What stands in a request beyond the length of a session."""


class Shop(NamedTuple):
    """One fitted preprocessing and the encoder that was made from it."""

    fitted: Fitted
    directory: Path
    encoder: Encoder


EARLY = {"earliest": "1700-01-01"}
"""Times of any size are right."""


def recipe(length: int, timestamp: dict | None) -> Preprocess:
    features = [*FEATURES, *(TIMED if timestamp else [])]
    values = {"features": features, "max_sequence_length": length, "timestamp": timestamp}
    return Preprocess.from_dict(values, "recipe")


def interactions(
    recipe: Preprocess, rows: list[tuple], time_type: pa.DataType, types: dict | None = None
) -> Interactions:
    kinds = {**KINDS, "t": time_type}
    columns = zip(*rows, strict=True)
    arrays = [pa.array(c, kind) for c, kind in zip(columns, kinds.values(), strict=True)]
    with tempfile.TemporaryDirectory() as directory:
        pq.write_table(pa.table(arrays, list(kinds)), f"{directory}/log.parquet")
        return read_interactions(recipe, [Path(directory) / "log.parquet"], types)


def open_shop(recipe: Preprocess, training: list[tuple], time_type: pa.DataType) -> Shop:
    """Fit, write, read back; the encoder reads nothing but its own files."""
    directory = Path(tempfile.mkdtemp(dir=SHOPS.name))
    log = interactions(recipe, training, time_type)
    expressions = merge_statistics(recipe, [part_statistics(recipe, by_session(log))], {})
    frame = to_frame(add_expressions(recipe, by_session(log), expressions))
    parts = [workflow.statistics(recipe, frame)]
    fitted = workflow.fit(recipe, parts, log.types, log.timestamp_type, expressions=expressions)
    fitted.write(directory)
    fitted = Fitted.read(directory)
    (directory / "encoder").mkdir()
    write_encoder(directory / "encoder", fitted, encoder_spec(fitted, default_k=10, max_k=50))
    return Shop(fitted, directory, Encoder(directory / "encoder"))


def by_session(log: Interactions) -> pa.Table:
    order, _ = session_order(log.frame["session_id"], log.frame["timestamp"])
    return log.table.take(pa.array(order))


def by_workflow(shop: Shop, rows: list[tuple], time_type: pa.DataType) -> dict[str, np.ndarray]:
    """What NVTabular makes of the rows as a log, padded as the model reads it."""
    fitted = shop.fitted
    types = {name: v.type for name, v in fitted.of_columns.items()}
    types |= {name: e.type for name, e in fitted.target_encodings.items()}
    log = interactions(fitted.recipe, rows, time_type, types | {"session_id": "int64"})
    assert len(log.frame) == len(rows)
    length = fitted.recipe.max_sequence_length
    frame = to_frame(add_expressions(fitted.recipe, by_session(log), fitted.expressions))
    frame = workflow.transform(workflow.rebuild(fitted, length), frame)
    table = pa.Table.from_pandas(frame, preserve_index=False)
    padded = {}
    for name in set(table.column_names) - {"session_id", "timestamp"}:
        kind = table[name].type
        if not pa.types.is_list(kind):
            padded[name] = table[name].to_numpy()[:, np.newaxis]
            continue
        padded[name] = np.zeros((len(frame), length), kind.value_type.to_pandas_dtype())
        for row, session in enumerate(table[name].to_pylist()):
            padded[name][row, : len(session)] = session
    return padded


def request(shop: Shop, rows: list[tuple]) -> dict[str, np.ndarray]:
    """The same rows as the tensors of one request, with junk where a session is shorter."""
    spec = shop.encoder.spec
    names = [*KINDS, "t"]
    sessions: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        sessions.setdefault(row[0], []).append(dict(zip(names, row, strict=True)))
    groups = [sessions[number] for number in sorted(sessions)]
    width = max(map(len, groups)) + 1
    tensors = {"length": np.array([[len(group)] for group in groups], np.int32)}
    columns = [
        (c["name"], SOURCES.get(c["name"], c["name"]), c["type"], c["scope"])
        for c in spec["columns"]
    ]
    if spec["timestamp"] is not None:
        columns.append(("timestamp", "t", spec["timestamp"]["type"], "interaction"))
    for tensor, name, kind, scope in columns:
        shape = (len(groups), 1 if scope == "session" else width)
        array = np.full(shape, JUNK[kind], {"string": object}.get(kind, kind))
        for number, group in enumerate(groups):
            entries = [raw(row[name], kind) for row in group]
            if scope == "session":  # of its oldest interaction
                order = sorted(range(len(group)), key=lambda i: times(shop, group)[i])
                entries = [entries[order[0]]]
            array[number, : len(entries)] = entries
        tensors[tensor] = array
    return tensors


def times(shop: Shop, group: list[dict]) -> list[int]:
    config = shop.fitted.recipe.timestamp
    if config is None:
        return list(range(len(group)))
    return log_microseconds([pa.array([row["t"] for row in group])], config)[0].tolist()


def raw(value: Any, kind: str) -> Any:
    """A value as a request holds it."""
    if kind == "string":
        return b"" if value is None else str(value).encode()
    if kind == "int64":
        value = value.replace("\0", "") if isinstance(value, str) else value  # as a log is read
        if value in (None, ""):
            return MISSING_INTEGER
        is_integer = isinstance(value, int) or re.fullmatch("0|-?[1-9][0-9]{0,17}", value)
        return int(value) if is_integer else values.UNKNOWN_INTEGER
    return np.nan if value is None else value


def assert_same(encoded: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(encoded) == set(expected)
    for name, array in expected.items():
        assert encoded[name].dtype == array.dtype, name
        np.testing.assert_array_equal(encoded[name], array, err_msg=name, strict=True)


def encode(shop: Shop, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A request's tensors as the model reads them."""
    return shop.encoder.encode(RequestReader(shop.encoder).read(tensors).rows)


def check(shop: Shop, rows: list[tuple], time_type: pa.DataType) -> None:
    """Both ways give the same, and a session's tensors do not depend on the others."""
    tensors = request(shop, rows)
    encoded = encode(shop, tensors)
    assert_same(encoded, by_workflow(shop, rows, time_type))
    for number, length in enumerate(tensors["length"][:, 0]):
        alone = {
            name: array[number : number + 1, : None if array.shape[1] == 1 else length]
            for name, array in tensors.items()
            if name != "length"
        }
        single = encode(shop, alone)
        assert_same(single, {name: array[number : number + 1] for name, array in encoded.items()})


# --- raw values ---------------------------------------------------------------------------------

TEXTS = st.one_of(
    st.sampled_from(
        ["red", "blue", "red\0", "\0", "", "007", "7", "é", "e\N{COMBINING ACUTE ACCENT}"]
    ),
    st.none(),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=3),
)
INTEGERS = st.sampled_from([7, 8, 2053013555631882655, 2053013555631882656, -1, None]) | (
    st.integers(-(2**63) + 2, 2**63 - 1)
)
NUMBERS = st.one_of(
    st.sampled_from(
        [0.0, -0.0, 1.0, 9.99, -1.0, -1 + 1e-12, -0.999, -7.5, 3.4e38, 3.5e38, 1e300, 5e-324]
    ),
    st.none(),
    st.floats(),
    st.floats(0, 1000, width=32),
)  # fmt: skip
SEVERAL = st.none() | st.text("xy57| ,\té0-\0", max_size=9)
FINITE = st.sampled_from([None, 1.0, 2.5, 2.5, 40.0])


@st.composite
def iso_times(draw: st.DrawFn) -> str:
    """Every form of text that counts as a time, by itself and all mixed in one column."""
    moment = draw(st.datetimes(datetime(1700, 1, 1), datetime(2199, 12, 31)))
    text = moment.date().isoformat()
    if draw(st.integers(0, 9)) == 0:
        return text
    seconds = draw(st.sampled_from(["", ":%S"]))
    text += draw(st.sampled_from(["T", " "])) + moment.strftime(f"%H:%M{seconds}")
    if seconds and draw(st.booleans()):
        text += "." + draw(st.text("0123456789", min_size=1, max_size=9))
    sign, hours, minutes = draw(st.sampled_from("+-")), draw(st.integers(0, 23)), draw(MINUTES)
    zones = ["", "Z", "UTC", f"{sign}{hours:02}:{minutes:02}", f"{sign}{hours:02}{minutes:02}"]
    zone = draw(st.sampled_from(zones))
    return text + draw(st.sampled_from(["", " "] if zone else [""])) + zone


MINUTES = st.integers(0, 59)
SECONDS = st.integers(-8_520_336_000, 7_258_118_399)
"""1700 to 2199."""
TIMES: dict[str, tuple[dict | None, pa.DataType, st.SearchStrategy]] = {
    "none": (None, pa.int64(), st.just(0)),
    "s": ({"unit": "s"}, pa.int64(), st.integers(0, 3) | SECONDS),
    "ms": ({"unit": "ms"}, pa.int64(), st.integers(0, 3) | SECONDS.map(lambda s: s * 1000 + 7)),
    "us": ({"unit": "us"}, pa.int64(), st.integers(0, 3) | SECONDS.map(lambda s: s * 10**6 + 7)),
    "ns": ({"unit": "ns"}, pa.int64(), st.integers(0, 9999) | st.integers(-(2**62), 2**62)),
    "fractions of s": (
        {"unit": "s"}, pa.float64(), st.sampled_from([0.25, 0.5]) | st.floats(-8e9, 7e9),
    ),
    "fractions of ns": ({"unit": "ns"}, pa.float64(), st.floats(-8e18, 7e18)),
    "text": (
        {"unit": "iso"}, pa.string(),
        st.sampled_from(["2019-10-01 00:00:00 UTC", "2019-10-01T00:00:00.5Z"]) | iso_times(),
    ),
}  # fmt: skip


def logs(time: st.SearchStrategy, size: int, training: bool = False) -> st.SearchStrategy:
    """Rows of up to five sessions in the order of a log, unsorted and with ties in time."""
    row = st.tuples(
        st.integers(0, 4),
        TEXTS,
        INTEGERS,
        TEXTS,
        NUMBERS,
        NUMBERS,
        st.just(0.1) if training else NUMBERS,
        st.none() if training else NUMBERS,
        st.none() if training else TEXTS,
        st.sampled_from(["phone", "tablet", None]),
        FINITE,
        SEVERAL,
        SEVERAL,
        NUMBERS,
        TEXTS,
        time,
    )
    return st.lists(row, min_size=1, max_size=size)


TRAINING = [
    (1, "a", 7, "red", 9.99, 1.5, 0.1, None, None, "phone", 30.0, "x|y", "5,7", 1.0, "h"),
    (1, "b", 8, "blue", 0.0, -7.5, 0.1, None, None, "phone", 30.0, " y ||x|é", "57", -2.5, None),
    (2, "a", 7, "red", 9.99, None, 0.1, None, None, "tablet", 2.5, "x", "7, 5", 4.0, "é"),
    (
        2,
        "é",
        2053013555631882655,
        "é",
        120.0,
        3.25,
        0.1,
        None,
        None,
        "tablet",
        2.5,
        None,
        "57",
        None,
        "h",
    ),
    (2, "b", None, "blue", None, 1e6, 0.1, None, None, None, None, "|", "", 1.0, "h"),
]
FEW = settings(
    deadline=None,
    max_examples=6,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # to shrink would take minutes
)
ALL_FEATURES = ["elapsed", "hour", "weekday"]


@functools.cache
def shop_with(time: str, length: int, features: tuple[str, ...]) -> Shop:
    config, kind, _ = TIMES[time]
    timestamp = config and {"column": "t", "features": list(features), **EARLY, **config}
    moments: Any = {"string": "2019-10-0{} 12:30", "double": "{}.5", "int64": "{}"}[str(kind)]
    cast = {"string": str, "double": float, "int64": int}[str(kind)]
    rows = [(*row, cast(moments.format(n + 1))) for n, row in enumerate(TRAINING)]
    return open_shop(recipe(length, timestamp), rows, kind)


@pytest.mark.parametrize(
    ("time", "length", "features"),
    [
        ("none", 3, ()),
        ("s", 3, ("elapsed", "hour", "weekday")),
        ("ms", 1, ("weekday",)),
        ("us", 20, ("elapsed",)),
        ("ns", 3, ("elapsed", "hour")),
        ("fractions of s", 3, ("elapsed", "hour")),
        ("fractions of ns", 2, ("hour", "elapsed")),
        ("text", 3, ("elapsed", "hour", "weekday")),
        ("text", 4, ()),
    ],
)
def test_encoder_equals_the_workflow_for_any_request(
    time: str, length: int, features: tuple[str, ...]
) -> None:
    shop = shop_with(time, length, features)
    _, kind, moments = TIMES[time]

    @given(rows=logs(moments, size=25))
    @settings(FEW)
    def compare(rows: list[tuple]) -> None:
        check(shop, rows, kind)

    compare()


@given(data=st.data(), time=st.sampled_from(sorted(TIMES)), length=st.integers(1, 4))
@settings(FEW)
def test_encoder_equals_the_workflow_for_any_fitted_log(
    data: st.DataObject, time: str, length: int
) -> None:
    config, kind, moments = TIMES[time]
    timestamp = config and {"column": "t", "features": ALL_FEATURES, **EARLY, **config}
    training = data.draw(logs(moments, size=12, training=True))
    shop = open_shop(recipe(length, timestamp), training, kind)
    check(shop, data.draw(logs(moments, size=12)), kind)


def test_encoder_equals_the_workflow_on_a_large_batch() -> None:
    # long arrays take other paths through NumPy's vector instructions than short ones
    random = np.random.default_rng(0)
    texts, numbers = np.array(["a", "b", "é", "x", None]), [7, 8, 9, -1, None]
    rows = [
        (
            int(random.integers(400)),
            random.choice(texts),
            numbers[random.integers(5)],
            random.choice(texts),
            *np.exp(random.normal(2, 3, 4)).tolist(),
            None,
            random.choice(["phone", "tablet"]),
            float(random.integers(90)),
            "|".join(random.choice(["x", "y", "xy", "é"], random.integers(5))),
            ",".join(random.choice(["5", "7", "05", "a"], random.integers(4))),
            float(random.normal()),
            random.choice(["h", "é"]),
            int(random.integers(2_000_000_000)),
        )
        for _ in range(4_000)
    ]
    check(shop_with("s", 3, ("elapsed", "hour", "weekday")), rows, pa.int64())


# --- times --------------------------------------------------------------------------------------


def both_ways(texts: list[str], time_format: str | None = None) -> tuple[list[int], list[int]]:
    config = Timestamp(column="t", format=time_format)
    of_log, kind = log_microseconds([pa.array(texts, pa.string())], config)
    assert kind == "string"
    parsed = [parse_time(text, time_format) for text in texts]
    return of_log.tolist(), [MISSING_INTEGER if time is None else time for time in parsed]


DIGITS = [st.integers(0, top).map(lambda n: f"{n:02}") for top in (13, 32, 25, 61, 61, 25, 61)]


@st.composite
def nearly_times(draw: st.DrawFn) -> str:
    """Times in which anything may be a little wrong."""
    month, day, hour, minute, second, shift, minutes = (draw(part) for part in DIGITS)
    year = draw(st.sampled_from(["1699", "1700", "1900", "2019", "2020", "2199", "2200", "0000"]))
    parts = [
        f"{year}-{month}-{day}",
        draw(st.sampled_from([" ", "T", "t", "", "  "])),
        draw(st.sampled_from([f"{hour}:{minute}:{second}", f"{hour}:{minute}", hour, ""])),
        draw(st.just("") | st.from_regex(r"[.,][0-9]{0,11}", fullmatch=True)),
        draw(st.sampled_from(["", " "])),
        draw(st.sampled_from(["", "UTC", "Z", "z", "GMT", f"+{shift}:{minutes}", f"-{shift}",
                              f"+{shift}{minutes}", f"\N{MINUS SIGN}{shift}:00"])),
    ]  # fmt: skip
    return "".join(parts[: draw(st.integers(1, len(parts)))])


@given(st.lists(iso_times() | nearly_times() | st.text(max_size=12), min_size=1, max_size=8))
@settings(deadline=None, max_examples=200)
@example(["2019-02-30", "2019-02-28", "2020-02-29", "1900-02-29", "2000-02-29", "2019-00-10"])
@example(["2019-10-01 24:00", "2019-10-01 23:59:60", "2019-10-01T00:00:00.1234567 +0530"])
@example(["2019-10-01 10:00+05:30", "2019-10-01 10:00", "2019-10-01", "2019-10-01 10:00Z"])
@example(["2019-10-01 10:00+24:00", "2019-10-01 10:00-23:59", "2019-10-01 10:00+23:60"])
@example(["1969-12-31 23:59:59.999999999", "1700-01-01+05:00", "1700-01-01 00:00 +0500"])
@example(["2019-10-01 10:00 EST", "2019-10-01 10:00 Asia/Tokyo", "2019-10-01,5", "20191001 1000"])
@example(["2019-10-01\n", "\n2019-10-01", "2019-10-01\x00", "٢٠١٩-10-01", "", " 2019-10-01"])
def test_text_times_equal_those_of_preprocessing(texts: list[str]) -> None:
    of_log, of_request = both_ways(texts)
    assert of_request == of_log


@given(iso_times())
def test_iso_text_is_a_time(text: str) -> None:
    assert both_ways([text])[1] != [MISSING_INTEGER]


def spellings(moment: datetime) -> list[str]:
    """Forms of ISO 8601 with the whole seconds of a moment in UTC."""
    year, week, day = moment.isocalendar()
    days = [f"{moment:%Y-%m-%d}", f"{moment:%Y%m%d}", f"{year:04}-W{week:02}-{day}",
            f"{year:04}W{week:02}{day}"]  # fmt: skip
    clocks = [f"{moment:%H:%M:%S}", f"{moment:%H%M%S}"]
    zones = ["", "Z", "+00:00", "-0000", "+00"]
    return [f"{d}{s}{c}{z}" for d in days for s in "T _" for c in clocks for z in zones]


@given(st.datetimes(datetime(1701, 1, 1), datetime(2198, 12, 1)), st.data())
@settings(deadline=None)
def test_every_iso_form_of_python_is_read(moment: datetime, data: st.DataObject) -> None:
    moment = moment.replace(microsecond=0)
    text = data.draw(st.sampled_from(spellings(moment)))
    assert datetime.fromisoformat(text).replace(tzinfo=None) == moment
    expected = int(np.datetime64(moment, "us").astype(np.int64))
    assert both_ways([text]) == ([expected], [expected])


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2020/01/01 00:00:21", "2020-01-01T00:00:21"),
        ("2020/01/01", "2020-01-01"),
        ("2020-01-01 00:00:21,123", "2020-01-01T00:00:21.123"),
        ("2020-01-01 00:00:21.12+00", "2020-01-01T00:00:21.12"),
        ("20200101T000021Z", "2020-01-01T00:00:21"),
        ("20200101", "2020-01-01"),
        ("2020-01-01t00:00:21z", "2020-01-01T00:00:21"),
        ("2020-01-01T07", "2020-01-01T07"),
        ("2020-01-01T07+02", "2020-01-01T05"),
        ("2020-01-01T07-0230", "2020-01-01T09:30"),
        ("Tue, 03 Apr 2012 18:00:09 GMT", "2012-04-03T18:00:09"),
        ("3 Apr 2012 18:00 EDT", "2012-04-03T22:00"),
        ("Tue Apr 03 18:00:09 +0000 2012", "2012-04-03T18:00:09"),
        ("Tue Apr  3 18:00:09 2012", "2012-04-03T18:00:09"),
        ("03/Apr/2012:18:00:09 +0200", "2012-04-03T16:00:09"),
        ("2020-06-01 10:00 Europe/Berlin", "2020-06-01T08:00"),
        ("2020-06-01 10:00 CET", "2020-06-01T08:00"),
    ],
)
def test_times_of_common_logs_are_read(text: str, utc: str) -> None:
    expected = [int(np.datetime64(utc, "us").astype(np.int64))]
    assert both_ways([text]) == (expected, expected)


@pytest.mark.parametrize("text", ["03.04.2012", "1512", "soon", "2020-01-01 10:00 localtime",
                                  "2020-01-01 10:00 Nowhere/Here", "2020-01/01"])  # fmt: skip
def test_text_that_is_no_time_is_an_error_of_the_request(text: str) -> None:
    assert both_ways([text]) == ([NO_TIME], [MISSING_INTEGER])
    with pytest.raises(RequestError, match=re.escape(f"timestamp is {text!r}, expected a time")):
        microseconds(np.array([[text.encode()]], object), "iso")
    assert microseconds(np.array([[b"", ""]], object), "iso").tolist() == [[MISSING_INTEGER] * 2]


@pytest.mark.parametrize(
    ("time_format", "texts"),
    [
        ("%d.%m.%Y %H:%M", ["03.04.2012 18:00", "31.02.2012 18:00", "03.04.2012", "x", ""]),
        ("%m/%d/%y", ["04/03/12", "04/03/2012", "31/12/12"]),
        ("%Y%m%d%H%M%S", ["20120403180009", "2012"]),
        ("%d %B %Y, %H:%M:%S.%f", ["03 April 2012, 18:00:09.25", "03 Apr 2012, 18:00:09.25"]),
        ("%Y-%m-%dT%H:%M:%S%z", ["2012-04-03T18:00:09+0200", "2012-04-03T18:00:09"]),
        ("%d.%m.%Y", ["03.04.1699", "03.04.1700", "31.12.2199", "01.01.2200"]),
    ],
)
def test_a_format_reads_the_same_in_log_and_request(time_format: str, texts: list[str]) -> None:
    of_log, of_request = both_ways(texts, time_format)
    assert of_log == of_request
    assert set(of_log) != {NO_TIME}


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_numeric_times_equal_those_of_preprocessing(unit: str) -> None:
    config = Timestamp(column="t", unit=unit)
    edges = [2**62, 2**62 - 1, -(2**62), 2**63 - 1, -(2**63) + 1, -(2**63), 4_611_686_018_427, 0]

    @given(
        st.lists(st.sampled_from(edges) | st.integers(-(2**63), 2**63 - 1), min_size=1),
        st.lists(st.floats() | st.floats(-1e22, 1e22) | SECONDS.map(float), min_size=1),
    )
    @settings(deadline=None)
    def compare(integers: list[int], floats: list[float]) -> None:
        for spelled, dtype in ((integers, np.int64), (floats, np.float64)):
            array = np.array([spelled], dtype)
            expected = log_microseconds([pa.array(array[0])], config)[0]
            assert microseconds(array, unit)[0].tolist() == expected.tolist()

    compare()


def test_interaction_without_time_keeps_its_position() -> None:
    shop = shop_with("s", 3, ("elapsed", "hour", "weekday"))
    # only a log may lose rows: here the second one gets the time of the first
    rows = [(0, "a", *TRAINING[0][2:], t) for t in (50, None, 20)]
    rows += [(1, item, *TRAINING[0][2:], t) for item, t in (("a", None), ("b", 5))]
    rows += [(2, item, *TRAINING[0][2:], None) for item in ("b", "a")]
    filled = [50, 50, 20, 5, 5, 0, 0]
    rows_with_times = [(*row[:-1], time) for row, time in zip(rows, filled, strict=True)]
    tensors, expected = request(shop, rows_with_times), request(shop, rows_with_times)
    tensors["timestamp"] = np.array([[50, MISSING_INTEGER, 20, 9], [MISSING_INTEGER, 5, 1, 9],
                                     [MISSING_INTEGER, MISSING_INTEGER, 1, 9]])  # fmt: skip
    encoded = encode(shop, tensors)
    assert_same(encoded, encode(shop, expected))


def test_time_is_optional_without_time_features() -> None:
    shop = shop_with("text", 4, ())
    rows = [(0, item, *TRAINING[0][2:], "2019-10-01") for item in ("a", "b", "é")]
    tensors = request(shop, rows)
    del tensors["timestamp"]
    assert encode(shop, tensors)["item_id"].tolist() == [[3, 4, 5, 0]]


@pytest.mark.parametrize("length", [1 << 40, 1_000_000_000, -5])
def test_an_array_that_its_file_does_not_hold_is_refused(length: int, tmp_path: Path) -> None:
    np.save(tmp_path / "whole.npy", np.arange(3))
    assert read_array(tmp_path / "whole.npy").tolist() == [0, 1, 2]
    whole = (tmp_path / "whole.npy").read_bytes()
    shape = f"({length},), }}".encode()
    changed = whole.replace(b"(3,), }" + b" " * (len(shape) - 7), shape)
    (tmp_path / "array.npy").write_bytes(changed)
    with pytest.raises(ValueError, match=r"greater than file size|negative dimensions"):
        read_array(tmp_path / "array.npy")
