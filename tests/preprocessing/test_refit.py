"""New days go on with what was learned: known ids keep their indices, new ones get the next."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pipeline.cli.main import app
from pipeline.core.artifact import read_manifest
from pipeline.core.errors import ArtifactError, ConfigError
from pipeline.data.fitted import Fitted
from pipeline.preprocessing.run import preprocess
from pipeline.recipe.preprocess import Preprocess

FEATURES = [
    {"name": "brand", "kind": "categorical", "of": "item"},
    {"name": "price", "kind": "continuous"},
]
Row = tuple[int, object, str | None, float]


def recipe(**more: object) -> Preprocess:
    return Preprocess.from_dict({"features": FEATURES} | more, "recipe")


def written(
    folder: Path, name: str, rows: list[Row], base: str | None = None, **more: object
) -> Fitted:
    columns = dict(
        zip(("session_id", "item_id", "brand", "price"), zip(*rows, strict=True), strict=True)
    )
    pq.write_table(pa.table({k: pa.array(v) for k, v in columns.items()}), folder / "log.parquet")
    start = None if base is None else folder / base
    preprocess(recipe(**more), [folder / "log.parquet"], [], folder / name, base=start)
    return Fitted.read(folder / name)


WEEK: list[Row] = [(1, 7, "x", 1.0), (1, 7, "y", 3.0), (1, 9, "y", 5.0), (2, 7, "y", 7.0),
                   (2, 9, "y", 9.0)]  # fmt: skip
DAY: list[Row] = [(5, 8, "z", 100.0), (5, 5, "x", 200.0), (5, 8, None, 300.0), (5, 9, "z", 0.0)]


def test_known_ids_keep_their_indices_and_numbers_their_scale(tmp_path: Path) -> None:
    week = written(tmp_path, "week", WEEK)
    assert week.item.values.to_pylist() == [7, 9]
    day = written(tmp_path, "day", DAY, "week")
    assert day.item.values.to_pylist() == [7, 9, 8, 5]  # new ones by how often they occur
    assert day.vocabularies["brand"].values.to_pylist() == ["y", "x", "z"]
    assert day.standardizations == week.standardizations
    (session,) = pq.read_table(tmp_path / "day" / "sessions" / "train").to_pylist()
    assert session["item_id"] == [5, 6, 5, 4]
    assert session["brand"] == [5, 4, 1, 5]


@given(
    st.lists(
        st.lists(
            st.tuples(
                st.integers(0, 3),
                st.integers(0, 12),
                st.sampled_from(["x", "y", "z", None]),
                st.floats(0, 9),
            ),
            min_size=6,
            max_size=20,
        ),
        min_size=2,
        max_size=3,
    )
)
@settings(deadline=None, max_examples=10)
def test_day_after_day_the_vocabulary_only_grows(
    tmp_path_factory: pytest.TempPathFactory, days: list[list[Row]]
) -> None:
    folder = tmp_path_factory.mktemp("days")
    before: Fitted | None = None
    for number, rows in enumerate(days):
        whole = [(1, 0, "x", 1.0), (1, 0, "x", 2.0), *rows]  # a session to train on
        now = written(folder, str(number), whole, None if before is None else str(number - 1))
        for name, vocabulary in now.vocabularies.items():
            values = vocabulary.values.to_pylist()
            assert len(set(values)) == len(values)
            if before is not None:
                vocabulary = before.vocabularies[name].values.to_pylist()
                assert values[: len(vocabulary)] == vocabulary
        before = now


def test_text_among_integers_and_rare_values_stay_out_of_vocabulary(tmp_path: Path) -> None:
    written(tmp_path, "week", WEEK)
    texts = [(row[0], str(row[1]), *row[2:]) for row in DAY] + [(5, "none", "x", 1.0)]
    day = written(tmp_path, "day", texts, "week", min_item_count=2)
    assert day.item.type == "int64"
    assert day.item.values.to_pylist() == [7, 9, 8]
    facts = read_manifest(tmp_path / "day", "data")
    assert facts["rows"]["input"]["counted"] == {
        "values of item_id that are no integer, as all that are known": 1
    }


def test_a_directory_may_be_the_base_of_its_successor(tmp_path: Path) -> None:
    written(tmp_path, "data", WEEK)
    assert written(tmp_path, "data", DAY, "data").item.values.to_pylist() == [7, 9, 8, 5]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"features": FEATURES[:1]}, "The recipe's features are not those of"),
        ({"features": [FEATURES[0], {**FEATURES[1], "log": True}]}, "features are not those of"),
        ({"timestamp": {"column": "price", "unit": "s", "features": ["hour"]}}, "time features"),
    ],
)
def test_other_features_are_refused(tmp_path: Path, more: dict, expected: str) -> None:
    written(tmp_path, "week", WEEK)
    with pytest.raises(ConfigError, match=expected) as caught:
        written(tmp_path, "day", DAY, "week", **more)
    assert "\n" not in str(caught.value)


def test_the_command_says_how_many_items_are_new_and_does_it_once(tmp_path: Path) -> None:
    written(tmp_path, "week", WEEK)
    written(tmp_path, "other", DAY)  # writes the log of the day
    (tmp_path / "recipe.yaml").write_text(
        "preprocess:\n  features:\n  - {name: brand, kind: categorical, of: item}\n"
        "  - {name: price, kind: continuous}\n"
    )
    arguments = ["preprocess", f"{tmp_path}/log.parquet", "--recipe", f"{tmp_path}/recipe.yaml"]
    arguments += ["--out", f"{tmp_path}/day", "--if-needed"]
    for base, expected in (("week", "4 items, 2 of them new"), ("week", "is up to date"),
                           ("other", "3 items, 0 of them new")):  # fmt: skip
        result = CliRunner().invoke(app, [*arguments, "--from", f"{tmp_path}/{base}"])
        assert result.exit_code == 0, result.output
        assert expected in result.output
    nowhere = CliRunner().invoke(app, [*arguments, "--from", f"{tmp_path}/none"])
    assert isinstance(nowhere.exception, ArtifactError)
