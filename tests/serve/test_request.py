"""What a request may hold, and what is said of one that cannot be answered."""

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.data.fitted import Fitted
from pipeline.exporting.request_tables import encoder_spec, write_encoder
from pipeline.preprocessing.run import preprocess
from pipeline.recipe.preprocess import Preprocess
from pipeline.serve import runtime as front
from pipeline.serve.runtime import RequestError
from pipeline.serve.runtime.lookups import FIRST_ITEM, MISSING_INTEGER
from pipeline.serve.runtime.request import MAX_REQUEST_VALUES, Request, RequestReader
from pipeline.serve.runtime.request_encoder import Encoder
from tests.serve.test_encoder import assert_same, shop_with


@pytest.fixture(scope="module")
def served() -> Encoder:
    return shop_with("s", 3, ("elapsed", "hour", "weekday")).encoder


@pytest.fixture(scope="module")
def reader(served: Encoder) -> RequestReader:
    return RequestReader(served)


COLUMNS = ["number", "colour", "nothing", "price", "dwell", "flat", "void", "device", "age",
           "timestamp"]  # fmt: skip


def sessions(**changes: Any) -> dict[str, np.ndarray]:
    """Two sessions of two interactions; a change to None leaves a tensor out."""
    tensors = {
        "item_id": np.array([[b"a", b"b"], [b"b", b"a"]], object),
        "number": np.array([[7, 8], [8, 7]]),
        "colour": np.array([[b"red", b"blue"]] * 2, object),
        "nothing": np.array([[1, 2]] * 2),
        **{name: np.array([[1.0, 2.0]] * 2) for name in ("price", "dwell", "flat", "void")},
        "device": np.array([[b"phone"], [b""]], object),
        "age": np.array([[30.0], [np.nan]]),
        "timestamp": np.array([[1, 2]] * 2),
    }
    tensors |= changes
    return {name: array for name, array in tensors.items() if array is not None}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"item_id": None}, "item_id is missing. Send the item ids of each session, (B, n)."),
        ({"item_id": np.array([b"a"], object)}, "item_id has the shape [1], expected [B, n]"),
        ({"item_id": np.empty((0, 2), object)}, "at least one session and one interaction"),
        ({"item_id": np.empty((2, 0), object)}, "at least one session and one interaction"),
        ({"item_id": np.array([[1, 2], [3, 4]])}, "item_id holds int64, expected string."),
        ({"price": np.ones((2, 3))}, "price has the shape [2, 3], expected [2, 2] to go with "
         "item_id's [2, 2]."),
        ({"price": np.ones((1, 2))}, "price has the shape [1, 2], expected [2, 2]"),
        ({"price": np.ones(2)}, "price has the shape [2], expected [2, 2]"),
        ({"age": np.ones((2, 2))}, "age has the shape [2, 2], expected [2, 1]"),
        ({"timestamp": np.ones((2, 1))}, "timestamp has the shape [2, 1], expected [2, 2]"),
        ({"number": np.ones((2, 2))}, "number holds float64, expected int64."),
        ({"number": np.ones((2, 2), bool)}, "number holds bool, expected int64."),
        ({"price": np.array([[b"1", b"2"]] * 2, object)}, "price holds object, expected float64."),
        ({"timestamp": np.ones((2, 2))}, "timestamp holds float64, expected int64."),
        ({"length": np.array([[2], [0]])}, "length is 0, expected 1 to 2, the width of item_id."),
        ({"length": np.array([[3], [1]])}, "length is 3, expected 1 to 2"),
        ({"length": np.array([[-1], [1]])}, "length is -1, expected 1 to 2"),
        ({"length": np.array([[1]])}, "length has the shape [1, 1], expected [2, 1]"),
        ({"session_id": np.array([[1, 2]] * 2)}, "session_id has the shape [2, 2], expected [2,"),
        ({"session_id": np.array([["a"], ["b"]], object)}, "session_id holds object, expected int"),
        ({"exclude": np.array([["a"]] * 3, object)}, "exclude has the shape [3, 1], expected [2,"),
        ({"exclude": np.array(["a"] * 2, object)}, "exclude has the shape [2], expected [2, m]"),
        ({"exclude": np.array([[1], [2]])}, "exclude holds int64, expected string."),
        ({"candidates": np.array([[1.5]])}, "candidates holds float64, expected string."),
        ({"filter_seen": np.array([[1], [1]])}, "filter_seen holds int64, expected bool."),
        ({"filter_seen": np.array([[True], [False]])}, "filter_seen differs within a request"),
        ({"item_id": np.full((200, 1), "a", object), "candidates": np.full((1, 9_000), "a", object),
          **dict.fromkeys(COLUMNS)}, "9000 ids for each of 200 sessions"),
        ({"price": np.ones((2, MAX_REQUEST_VALUES))}, "price has 200000 values, expected at most"),
        ({"candidates": np.full((2, 10_001), "a", object)}, "10001 ids for each of 2 sessions"),
    ],
)  # fmt: skip
def test_a_request_that_cannot_be_answered_says_what_is_wrong(
    reader: RequestReader, changes: dict, expected: str
) -> None:
    with pytest.raises(RequestError) as caught:
        reader.read(sessions(**changes))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_timestamp_without_time_column_is_refused() -> None:
    reader = RequestReader(shop_with("none", 3, ()).encoder)
    with pytest.raises(RequestError, match="trained without"):
        reader.read(sessions())
    reader.read(sessions(timestamp=None))


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        ([[0]], "k is 0, expected 1 to 50. For longer lists export with a larger --max-k."),
        ([[-1]], "k is -1, expected 1 to 50."),
        ([[51], [51]], "k is 51, expected 1 to 50."),
        ([[5], [6]], "k differs within a request: [5, 6]. Send one for all."),
    ],
)
def test_a_list_length_out_of_bounds_is_refused(
    reader: RequestReader, k: list[list[int]], expected: str
) -> None:
    with pytest.raises(RequestError) as caught:
        reader.read(sessions(k=np.array(k, np.int32)))
    assert expected in str(caught.value)


def test_the_list_length_is_that_of_the_request_or_the_default(reader: RequestReader) -> None:
    assert reader.read(sessions()).k == 10
    assert reader.read(sessions(k=np.array([[1], [1]], np.int32))).k == 1
    assert reader.read(sessions(k=np.array([[50]], np.int32))).k == 50


@pytest.mark.parametrize("dtype", [object, "S", "U"])
def test_text_may_come_as_bytes_or_str(reader: RequestReader, dtype: Any) -> None:
    ids = np.array([["a", "é"], ["", "unknown"]])
    ids = np.char.encode(ids, "utf-8") if dtype == "S" else ids.astype(dtype)
    encoded = reader.encoder.encode(reader.read(sessions(item_id=ids)).rows)
    assert encoded["item_id"].tolist() == [[3, 5, 0], [1, 2, 0]]


def test_integers_of_any_width_are_taken(reader: RequestReader) -> None:
    for dtype in (np.int8, np.int32, np.int64):
        encoded = reader.encoder.encode(
            reader.read(sessions(number=np.array([[7, 8]] * 2, dtype))).rows
        )
        assert encoded["number"][0].tolist()[:2] == [3, 4]
    with pytest.raises(RequestError, match="holds uint64"):  # could be too large for int64
        reader.read(sessions(number=np.array([[7, 8]] * 2, np.uint64)))


def test_the_request_is_not_changed(reader: RequestReader) -> None:
    tensors = sessions(price=np.array([[np.inf, -5.0]] * 2))
    before = {name: array.copy() for name, array in tensors.items()}
    reader.encoder.encode(reader.read(tensors).rows)
    for name, array in before.items():
        np.testing.assert_array_equal(tensors[name], array)


@pytest.mark.parametrize("name", ["price", "colour", "number", "device", "age", "timestamp"])
def test_a_column_that_is_not_sent_counts_as_missing(reader: RequestReader, name: str) -> None:
    missing = {"price": np.nan, "colour": b"", "number": MISSING_INTEGER, "device": b"",
               "age": np.nan}  # fmt: skip
    encoded = reader.encoder.encode(reader.read(sessions(**{name: None})).rows)
    whole = sessions()
    if name == "timestamp":  # in the order of the request, and what is read of times is 0
        expected = reader.encoder.encode(reader.read(whole).rows)
        hours = ("hour_sin", "hour_cos", "weekday_sin", "weekday_cos")
        for feature in ("elapsed", *hours, "new", "pause"):
            expected[feature] = np.zeros_like(expected[feature])
    else:
        whole[name] = np.full_like(whole[name], missing[name])
        expected = reader.encoder.encode(reader.read(whole).rows)
    assert_same(encoded, expected)


def test_the_item_ids_alone_are_a_request(reader: RequestReader) -> None:
    request = reader.read({"item_id": np.array([["a", "b"]], object)})
    encoded = reader.encoder.encode(request.rows)
    assert encoded["item_id"].tolist() == [[3, 4, 0]]
    assert encoded["colour"].tolist() == [[1, 1, 0]]
    assert encoded["price"].tolist() == [[0, 0, 0]]


def test_excluded_items_and_candidates_become_indices(reader: RequestReader) -> None:
    rows = np.array([["a", "", "unknown"], ["é", "b", ""]], object)
    request = reader.read(sessions(exclude=rows, candidates=rows[:1]))
    assert request.excluded.tolist() == [[3, 0, 2], [5, 4, 0]]
    # one row is for all sessions; an unknown candidate stays one, so that a list may be empty
    assert request.candidates.tolist() == [[3, 0, 2]] * 2
    request = reader.read(sessions(exclude=np.empty((2, 0), object)))
    assert request.excluded.tolist() == request.candidates.tolist() == [[], []]
    for nothing in (np.empty((2, 0), object), np.array([[""], [""]], object)):
        # to choose from nothing is not to choose from everything
        assert reader.read(sessions(candidates=nothing)).candidates.tolist() == [[2], [2]]


def test_filter_seen_excludes_the_whole_session(reader: RequestReader) -> None:
    ids = np.array([["b", "é", "x", "a", "b"], ["a", "", "b", "b", "b"]], object)
    tensors = {"item_id": ids, "length": np.array([[5], [3]], np.int32)}
    assert reader.read(tensors).excluded.tolist() == [[], []]
    tensors["filter_seen"] = np.array([[True], [True]])
    seen = [set(row) - {0} for row in reader.read(tensors).excluded.tolist()]
    assert seen == [{4, 5, 3}, {3, 4}], "more than the model reads, and nothing beyond the length"


def flat(tensors: dict[str, np.ndarray], order: list[int]) -> dict[str, np.ndarray]:
    """Two sessions of two interactions, called 9 and 8, as one row of interactions."""
    made = {"session_id": np.array([[9, 9, 8, 8]])}
    for name, values in tensors.items():
        each = np.repeat(values, 2, axis=1) if values.shape[1] == 1 else values
        made[name] = each.reshape(1, -1)
    return {name: values[:, order] for name, values in made.items()}


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [2, 0, 3, 1], [1, 3, 0, 2]])
def test_flat_interactions_are_the_same_as_rows_of_sessions(
    reader: RequestReader, order: list[int]
) -> None:
    tensors = sessions(timestamp=np.array([[1, 2], [5, 9]]))
    rows = reader.encoder.encode(reader.read(tensors).rows)
    request = reader.read(flat(tensors, order))
    first = [9, 8] if order.index(0) < order.index(2) or order[0] == 1 else [8, 9]
    assert request.session_ids.tolist() == [first]
    assert request.flat
    encoded = reader.encoder.encode(request.rows)
    assert_same(encoded, {n: v if first == [9, 8] else v[::-1] for n, v in rows.items()})


def test_session_ids_are_read_without_nul_as_in_a_log(tmp_path: Path) -> None:
    """Such as `s` and `s` with a NUL, which are one session, and one of NULs alone, which is none.

    Items, too: a repeat is one whatever NULs stand in it, and a missing item is never one.
    """
    rows = ["session,item,t", "s,a,1", "s,b,2", "s,c,3", "r,a,1", "r,c,2"]
    (tmp_path / "log.csv").write_text("\n".join(rows) + "\n")
    recipe = Preprocess.from_dict(
        {"timestamp": {"column": "t", "unit": "s"}, "session": "session", "item": "item",
         "drop_repeats": True}, "test")  # fmt: skip
    preprocess(recipe, [tmp_path / "log.csv"], [], tmp_path / "data")
    fitted = Fitted.read(tmp_path / "data")
    (tmp_path / "encoder").mkdir()
    write_encoder(tmp_path / "encoder", fitted, encoder_spec(fitted, default_k=1, max_k=2))
    encoder = Encoder(tmp_path / "encoder")
    reader = RequestReader(encoder)

    def items(sent: list[bytes], ids: list[bytes] | None = None) -> list[list[int]]:
        tensors = {"item_id": np.array([sent], object)}
        tensors["timestamp"] = np.arange(len(sent))[np.newaxis]
        if ids is not None:
            tensors["session_id"] = np.array([ids], object)
        encoded = encoder.encode(reader.read(tensors).rows)["item_id"]
        return [[index for index in row if index] for row in encoded.tolist()]

    a, b, c = (fitted.item.values.to_pylist().index(name) + FIRST_ITEM for name in "abc")
    assert items([b"a", b"a\0", b"\0c"]) == [[a, c]]
    assert items([b"\0", b"\0\0", b"c"]) == [[1, 1, c]]
    assert items([b"a", b"b", b"c"], [b"s", b"s\0", b"\0s"]) == [[a, b, c]]
    with pytest.raises(RequestError, match="session_id is missing"):
        items([b"a", b"b"], [b"s", b"\0"])


def test_a_flat_request_has_a_bounded_number_of_sessions(reader: RequestReader) -> None:
    ids = np.arange(10_001)[np.newaxis]
    with pytest.raises(RequestError, match="names 10001 sessions, expected at most 10000"):
        reader.read({"item_id": np.full(ids.shape, "a", object), "session_id": ids})


def test_flat_interactions_all_have_a_session(reader: RequestReader) -> None:
    tensors = flat(sessions(), [0, 1, 2, 3])
    tensors["session_id"] = np.array([[9, MISSING_INTEGER, 8, 8]])
    with pytest.raises(RequestError, match="session_id is missing for an interaction"):
        reader.read(tensors)


def test_filters_of_many_flat_sessions_are_bounded(reader: RequestReader) -> None:
    ids = np.concatenate([np.zeros(20_000, np.int64), np.arange(1, 9_001)])[np.newaxis]
    tensors = {"item_id": np.full(ids.shape, "a", object), "session_id": ids}
    tensors["filter_seen"] = np.array([[True]])
    request = reader.read(tensors)
    assert request.excluded.size < 1_100_000
    assert request.excluded.max(1).tolist() == [3] * 9_001


def test_flat_interactions_have_no_lengths(reader: RequestReader) -> None:
    with pytest.raises(RequestError, match="length is for one session a row"):
        reader.read(flat(sessions(), [0, 1, 2, 3]) | {"length": np.array([[4]])})


def test_a_session_column_of_flat_interactions_is_that_of_the_oldest(reader: RequestReader) -> None:
    tensors = flat(sessions(timestamp=np.array([[2, 1], [5, 9]])), [0, 1, 2, 3])
    tensors["device"] = np.array([["tablet", "phone", "", "tablet"]], object)
    devices = reader.encoder.encode(reader.read(tensors).rows)["device"].tolist()
    per_row = sessions(device=np.array([["phone"], [""]], object))
    assert devices == reader.encoder.encode(reader.read(per_row).rows)["device"].tolist()


def test_a_single_interaction_with_a_session_id_is_a_session(reader: RequestReader) -> None:
    request = reader.read({"item_id": np.array([["a"]], object), "session_id": np.array([[7]])})
    assert isinstance(request, Request)
    assert not request.flat
    assert request.session_ids.tolist() == [[7]]


def test_the_package_runs_on_python_3_10_by_itself(reader: RequestReader) -> None:
    # that is what NVIDIA's image has
    for file in Path(front.__file__).parent.glob("*.py"):
        ast.parse(file.read_text(encoding="utf-8"), feature_version=(3, 10))
    shop = shop_with("s", 3, ("elapsed", "hour", "weekday"))
    files = {path.name for path in (shop.directory / "encoder").iterdir()}
    statistics = [f"expression.{number}" for number in range(4)]
    texts = ("item_id", "colour", "device", "tags", "topics", "shade", "rate", "pair", "before",
             *statistics)  # fmt: skip
    numbers = ("number", "nothing", "band", "stage", "codes", "bin", "worth", "bins")
    expected = {"encoder.json", "rate.means.npy", "worth.means.npy"}
    expected |= {f"{name}.numbers.npy" for name in statistics}
    expected |= {f"{name}.npy" for name in (*texts, *numbers)}
    assert files == expected | {f"{name}.offsets.npy" for name in texts}
    spec = json.loads((shop.directory / "encoder" / "encoder.json").read_text())
    assert spec["max_sequence_length"] == 3


def test_known_interactions_are_counted_by_session(reader: RequestReader) -> None:
    items = np.array([[b"a", b"b", b"x"], [b"x", b"x", b"a"]], object)
    request = reader.read({"item_id": items, "length": np.array([[3], [2]])})
    assert request.num_known.tolist() == [2, 0]
    assert request.num_known.dtype == np.int32
    flat = np.array([[b"x", b"a", b"b", b"x"]], object)
    request = reader.read({"item_id": flat, "session_id": np.array([[2, 1, 1, 2]])})
    assert request.num_known.tolist() == [0, 2]
