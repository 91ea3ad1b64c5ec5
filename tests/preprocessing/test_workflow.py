"""The NVTabular graph: fitted, written, rebuilt."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.errors import ArtifactError
from pipeline.data.fitted import Fitted, Standardization, Vocabulary
from pipeline.preprocessing import workflow
from pipeline.preprocessing.operators.encode import Encode
from pipeline.preprocessing.operators.sessions import Standardize, session_order
from pipeline.recipe.preprocess import Preprocess
from tests.preprocessing.whole_log import Interactions, read_interactions

# isort: split
from nvtabular import Workflow

RECIPE = Preprocess.from_dict(
    {
        "timestamp": {"column": "t", "unit": "s", "features": ["hour", "weekday", "elapsed"]},
        "features": [
            {"name": "brand", "kind": "categorical", "of": "item", "min_count": 2},
            {"name": "price", "kind": "continuous", "of": "item", "log": True},
            {"name": "dwell", "kind": "continuous"},
            {"name": "device", "kind": "categorical", "of": "session"},
            {"name": "age", "kind": "continuous", "of": "session"},
        ],
        "max_sequence_length": 3,
    },
    "recipe",
)
ROWS = st.lists(
    st.tuples(
        st.integers(1, 3),
        st.sampled_from(["a", "b", "c", None]),
        st.integers(0, 10**9),
        st.sampled_from(["x", "y", "z", "", None]),
        st.sampled_from([None, -1.0, 0.0, 1.0, 99.9, float("inf")]),
        st.sampled_from([None, 5.0, -7.0]),
        st.sampled_from([1, 2, None]),
        st.sampled_from([None, 30.0, 40.0]),
    ),
    min_size=1,
    max_size=12,
)
KINDS = {
    "session_id": pa.int64(), "item_id": pa.string(), "t": pa.int64(), "brand": pa.string(),
    "price": pa.float64(), "dwell": pa.float64(), "device": pa.int64(), "age": pa.float64(),
}  # fmt: skip


def interactions(rows: list[tuple], types: dict | None = None) -> Interactions:
    columns = zip(*rows, strict=True)
    arrays = [pa.array(c, kind) for c, kind in zip(columns, KINDS.values(), strict=True)]
    with tempfile.TemporaryDirectory() as directory:
        pq.write_table(pa.table(arrays, list(KINDS)), f"{directory}/log.parquet")
        return read_interactions(RECIPE, [Path(directory) / "log.parquet"], types)


def fitted_to(log: Interactions, directory: Path, recipe: Preprocess = RECIPE) -> Fitted:
    """Fit, write and read back."""
    parts = [workflow.statistics(recipe, log.frame)]
    fitted = workflow.fit(recipe, parts, log.types, log.timestamp_type)
    fitted.write(directory)
    return Fitted.read(directory)


def sessions_of(fitted: Fitted, frame: pd.DataFrame, keep: int | None) -> list:
    graph = workflow.rebuild(fitted, keep)
    table = pa.Table.from_pandas(workflow.transform(graph, frame), preserve_index=False)
    return table.to_pylist()


@given(rows=ROWS)
@settings(deadline=None, max_examples=4)
def test_sessions_hold_what_each_operator_gives_for_the_interactions(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple]
) -> None:
    log = interactions(rows)
    fitted = fitted_to(log, tmp_path_factory.mktemp("data"))
    rebuilt = sessions_of(fitted, log.frame, None)

    encode = Encode({name: v.values for name, v in fitted.vocabularies.items()})
    standardize = Standardize(fitted.standardizations)
    graph = Workflow(workflow._interaction_graph(RECIPE, encode, standardize))
    flat = workflow.transform(graph, log.frame)
    order, _ = session_order(log.frame["session_id"], log.frame["timestamp"])
    for name in ("item_id", "brand", "price", "dwell", "elapsed", "hour_sin", "weekday_cos"):
        values = [value for session in rebuilt for value in session[name]]
        assert values == flat[name].to_numpy()[order].tolist(), name
    for name in ("device", "age"):
        oldest = [flat[name].to_numpy()[rows][0] for rows in rows_by_session(log.frame)]
        assert [session[name] for session in rebuilt] == oldest


def rows_by_session(frame: pd.DataFrame) -> list[np.ndarray]:
    order, starts = session_order(frame["session_id"], frame["timestamp"])
    return np.split(order, starts[1:])


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    directory = tmp_path_factory.mktemp("shop")
    rows = [(1, "a", 0, "x", 1, 5, 1, 30), (1, "a", 9, "x", 2, -7, 1, 30)]
    return fitted_to(interactions([*rows, (2, "b", 7, "y", 0, 5, 2, 40)]), directory)


@given(served=ROWS, keep=st.none() | st.integers(1, 4))
@settings(deadline=None, max_examples=8)
def test_transforming_never_drops_a_session_or_a_row(
    shop: Fitted, served: list[tuple], keep: int | None
) -> None:
    types = {name: v.type for name, v in shop.vocabularies.items()} | {"session_id": "int64"}
    frame = interactions(served, types).frame
    sessions = sessions_of(shop, frame, keep)
    sizes = frame.groupby("session_id").size()
    assert [s["session_id"] for s in sessions] == sizes.index.tolist()
    expected = sizes.clip(upper=keep).tolist()
    for name, value in sessions[0].items():
        if isinstance(value, list):
            assert [len(s[name]) for s in sessions] == expected
    for session in sessions:
        assert set(session["item_id"]) <= {1, 2, 3, 4}
        assert set(session["brand"]) <= {1, 2, 3}
        assert all(np.isfinite([*session["price"], *session["elapsed"], session["age"]]))


def test_unknown_values_become_2_and_missing_ones_1(tmp_path: Path) -> None:
    training = [(1, "a", 0, "x", 1, 1, 1, 1), (1, "a", 1, "x", 1, 1, 1, 1)]
    fitted = fitted_to(interactions([*training, (1, "b", 2, "y", 2, 2, 2, 2)]), tmp_path)
    served = [
        (1, "a", 0, "x", 1, 1, 1, 1),
        (1, "b", 1, "y", 1, 1, 1, 1),  # brand y was seen once, min_count is 2
        (1, "c", 2, "z", 1, 1, 1, 1),
        (1, None, 3, None, None, None, None, None),
        (2, "a", 4, "", 1, 1, 9, 1),
        (3, "a", 5, "x", 1, 1, None, None),
    ]
    first, second, third = sessions_of(fitted, interactions(served).frame, None)
    assert first["item_id"] == [3, 4, 2, 1]
    assert first["brand"] == [3, 2, 2, 1]
    assert first["price"][-1] == 0
    assert first["dwell"][-1] == 0
    assert first["device"] == 3  # a feature of the session is that of its oldest interaction
    assert third["age"] == 0
    assert third["device"] == 1
    assert second["brand"] == [1]
    assert second["device"] == 2


def test_the_most_frequent_item_has_the_first_index(tmp_path: Path) -> None:
    items = ["b", "c", "c", "c", "a", "b"]
    rows = [(1, item, n, "x", 1, 1, 1, 1) for n, item in enumerate(items)]
    fitted = fitted_to(interactions(rows), tmp_path)
    assert fitted.item.values.to_pylist() == ["c", "b", "a"]
    assert fitted.item.num_rows == 6


def test_columns_without_any_value_in_training_are_served_all_the_same(tmp_path: Path) -> None:
    empty = [(1, "a", n, None, None, None, None, None) for n in range(3)]
    fitted = fitted_to(interactions(empty), tmp_path)
    assert len(fitted.vocabularies["brand"].values) == 0
    rows = [(1, "a", 0, "x", 5.0, 5.0, 1, 5.0), (1, "a", 1, None, None, None, None, None)]
    types = {name: v.type for name, v in fitted.vocabularies.items()} | {"session_id": "int64"}
    (session,) = sessions_of(fitted, interactions(rows, types).frame, None)
    assert session["brand"] == [2, 1]
    assert session["dwell"] == [5.0, 0.0]
    assert session["device"] == 2
    assert session["age"] == 5


def test_ids_of_19_digits_stay_apart_where_some_are_missing(tmp_path: Path) -> None:
    ids = [2053013555631882655, 2053013555631882656, None]  # equal as float64
    recipe = Preprocess()
    table = pa.table({"session_id": [1] * 3, "item_id": ids, "timestamp": [0] * 3})
    log = Interactions(table, {"session_id": "int64", "item_id": "int64"}, None, None)
    fitted = fitted_to(log, tmp_path, recipe)
    assert fitted.item.values.to_pylist() == ids[:2]
    assert sessions_of(fitted, log.frame, None)[0]["item_id"] == [3, 4, 1]


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
VOCABULARIES = st.one_of(
    st.lists(st.integers(-(2**63), 2**63 - 1), unique=True).map(
        lambda ids: Vocabulary(type="int64", values=pa.array(ids, pa.int64()))
    ),
    st.lists(TEXTS, unique=True).map(
        lambda ids: Vocabulary(type="string", values=pa.array(ids, pa.string()))
    ),
)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
STANDARDIZATIONS = st.builds(
    Standardization, mean=FLOATS, deviation=st.floats(0, allow_nan=False, allow_infinity=False)
)


@given(
    fitted=st.builds(
        Fitted,
        recipe=st.just(RECIPE),
        session_type=st.sampled_from(["int64", "string"]),
        timestamp_type=st.sampled_from(["int64", "float64", "string", None]),
        vocabularies=st.fixed_dictionaries(
            {"item_id": VOCABULARIES}, optional={"brand": VOCABULARIES}
        ),
        standardizations=st.dictionaries(st.sampled_from(["price", "elapsed"]), STANDARDIZATIONS),
    )
)
@settings(deadline=None, max_examples=30)
def test_fitted_state_survives_the_disk(
    tmp_path_factory: pytest.TempPathFactory, fitted: Fitted
) -> None:
    directory = tmp_path_factory.mktemp("data")
    fitted.write(directory)
    assert Fitted.read(directory) == fitted


@pytest.mark.parametrize(
    "damage",
    [
        lambda fitted: (fitted / "fitted.json").unlink(),
        lambda fitted: (fitted / "fitted.json").write_text("{"),
        lambda fitted: (fitted / "fitted.json").write_text("{}"),
        lambda fitted: (fitted / "fitted.json").write_text("[]"),
        lambda fitted: change(fitted, "recipe", {"sesion": "x"}),
        lambda fitted: change(fitted, "continuous", {"price": {"mean": 0}}),
        lambda fitted: (fitted / "categories" / "brand.parquet").unlink(),
        lambda fitted: (fitted / "categories" / "brand.parquet").write_bytes(b"PAR1"),
    ],
)
def test_inconsistent_fitted_state_is_refused(tmp_path: Path, damage: object) -> None:
    fitted_to(interactions([(1, "a", 0, "x", 1, 1, 1, 1)]), tmp_path)
    damage(tmp_path / "fitted")
    with pytest.raises(ArtifactError) as caught:
        Fitted.read(tmp_path)
    assert "\n" not in str(caught.value)


def change(directory: Path, key: str, value: object) -> None:
    state = json.loads((directory / "fitted.json").read_text())
    (directory / "fitted.json").write_text(json.dumps({**state, key: value}))
