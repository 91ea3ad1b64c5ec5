"""Target encoding: categories as the mean of another column, without leaks in training."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.columns import SESSION
from pipeline.core.errors import ConfigError
from pipeline.data import fitted
from pipeline.data.directory import Data
from pipeline.data.fitted import Fitted
from pipeline.in_process import open_run
from pipeline.preprocessing.operators.target_encoding import (
    TargetEncode,
    fit_target_encoding,
    folds_of,
    merge_target_sums,
    standardization_of,
    target_sums,
)
from pipeline.preprocessing.run import preprocess
from pipeline.preprocessing.sorting import spill
from pipeline.recipe.features import TargetEncodedFeature
from pipeline.recipe.preprocess import Preprocess
from pipeline.recipe.recipe import Recipe
from pipeline.training.incremental.incremental_trainer import IncrementalTrainer
from pipeline.training.run import train

# isort: split
from merlin.dag import ColumnSelector
from merlin.io import Dataset
from nvtabular import Workflow
from nvtabular.ops import TargetEncoding

RATE = {"name": "rate", "column": "brand", "kind": "continuous", "mean_of": "bought"}


def recipe(*features: dict[str, Any], **more: Any) -> Preprocess:
    return Preprocess.from_dict({"session": "s", "item": "i", "features": features, **more}, "test")


def frame(rows: list[tuple[int, str | None, float | None]]) -> pd.DataFrame:
    log = pd.DataFrame(rows, columns=[SESSION, "rate", "rate.target"])
    return log.astype({"rate.target": np.float64})


def encoded(feature: TargetEncodedFeature, log: pd.DataFrame, *, training: bool) -> list[float]:
    sums = merge_target_sums([target_sums(feature, log)], "string")
    encoding = fit_target_encoding(feature, sums, "string")
    operator = TargetEncode({"rate": encoding}, training=training)
    return operator.transform(ColumnSelector([SESSION, "rate"]), log)["rate"].tolist()


def test_a_mean_is_that_of_its_category_and_some_of_all() -> None:
    feature = TargetEncodedFeature(**{**RATE, "smoothing": 2})
    log = frame([(1, "a", 1), (2, "a", 0), (3, "a", 1), (4, "b", 0), (5, None, 1), (6, "b", None)])
    # the mean of all with a category and a number is 2 of 4
    a, b, other = (2 + 2 * 0.5) / (3 + 2), (0 + 2 * 0.5) / (1 + 2), 0.5
    assert encoded(feature, log, training=False) == pytest.approx([a, a, a, b, other, b])


def test_training_reads_the_means_of_other_folds() -> None:
    feature = TargetEncodedFeature(**{**RATE, "smoothing": 0, "folds": 2})
    names = [f"session {n}" for n in range(8)]
    fold = folds_of(pd.Series(names), 2)
    assert set(fold) == {0, 1}
    numbers = np.arange(8.0)
    log = frame([(name, "a", number) for name, number in zip(names, numbers, strict=True)])
    means = [numbers[fold != own].mean() for own in fold]
    assert encoded(feature, log, training=True) == pytest.approx(means)


@given(
    rows=st.lists(
        st.tuples(
            st.integers(0, 9),
            st.sampled_from(["a", "b", "c", None]),
            st.integers(-5, 5) | st.none(),
        ),
        min_size=1,
        max_size=40,
    ),
    cut=st.integers(0, 40),
)
@settings(deadline=None)
def test_training_encoding_does_not_depend_on_own_numbers(rows: list[tuple], cut: int) -> None:
    feature = TargetEncodedFeature(**RATE)
    session = rows[cut % len(rows)][0]
    other = [(s, c, None if s == session else n) for s, c, n in rows]
    own = [place for place, row in enumerate(rows) if row[0] == session]
    means, without = (encoded(feature, frame(log), training=True) for log in (rows, other))
    assert [means[p] for p in own] == pytest.approx([without[p] for p in own])


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 9), st.sampled_from("abcd"), st.integers(-5, 5)),
        min_size=2,
        max_size=40,
    )
)
@settings(deadline=None, max_examples=20)
def test_target_encoding_without_folds_equals_nvtabular(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple]
) -> None:
    log = frame(rows)
    operator = TargetEncoding(
        "rate.target",
        kfold=1,
        p_smooth=20,
        out_dtype="float64",
        out_path=str(tmp_path_factory.mktemp("nvtabular")),
    )
    dataset = Dataset(log[["rate", "rate.target"]], cpu=True)
    theirs = Workflow(["rate"] >> operator).fit_transform(dataset).to_ddf().compute()
    ours = encoded(TargetEncodedFeature(**RATE), log, training=False)
    assert ours == pytest.approx(theirs[theirs.columns[0]].tolist(), abs=1e-6)


def test_target_encoding_is_independent_of_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = []
    for rows in (500_000, 7):
        monkeypatch.setattr(spill, "SHARD_ROWS", rows)
        paths.append(tmp_path / str(rows))
        preprocess(recipe(RATE, max_sequence_length=3), [log_of(tmp_path)], [], paths[-1])
    one, other = (Fitted.read(path).target_encodings["rate"] for path in paths)
    assert one.values.to_pylist() == other.values.to_pylist()
    assert one.counts.tolist() == other.counts.tolist()
    assert one.sums == pytest.approx(other.sums)
    tables = [pq.read_table(path / "sessions" / "train").to_pydict() for path in paths]
    assert tables[0]["session_id"] == tables[1]["session_id"]
    for mean, expected in zip(tables[0]["rate"], tables[1]["rate"], strict=True):
        assert mean == pytest.approx(expected)


def test_a_part_without_any_category_adds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    brands = [None] * 20 + [f"b{n % 3}" for n in range(20)]
    columns = {
        "s": [n // 4 for n in range(40)],
        "i": [n % 5 for n in range(40)],
        "brand": pa.array(brands, pa.string()),
        "bought": [n % 2 for n in range(40)],
    }
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    preprocess(recipe(RATE), [tmp_path / "log.parquet"], [], tmp_path / "one")
    monkeypatch.setattr(spill, "SHARD_ROWS", 4)
    monkeypatch.setattr(spill, "_STEP", 2)
    monkeypatch.setattr("pipeline.preprocessing.statistics._BUFFER_ROWS", 1)
    preprocess(recipe(RATE), [tmp_path / "log.parquet"], [], tmp_path / "many")
    one, many = (Fitted.read(tmp_path / n).target_encodings["rate"] for n in ("one", "many"))
    assert one.values.to_pylist() == many.values.to_pylist() == ["b0", "b1", "b2"]
    assert one.counts.tolist() == many.counts.tolist()
    assert one.sums.tolist() == many.sums.tolist()


@pytest.mark.parametrize("count", [3, 400])
def test_sums_of_few_and_of_many_rows_are_the_same(count: int) -> None:
    random = np.random.default_rng(0)
    encoding = fitted.TargetEncoding(
        type="int64",
        values=pa.array(range(100)),
        counts=random.integers(0, 5, (100, 7)),
        sums=random.random((100, 7)),
        smoothing=2.0,
    )
    place, fold = random.integers(-1, 100, count), random.integers(0, 7, count)
    means = encoding.means_without(place, fold)
    for n, (row, of) in enumerate(zip(place, fold, strict=True)):
        counts, sums = (np.delete(x, of, axis=1) for x in (encoding.counts, encoding.sums))
        mean = sums.sum() / counts.sum()
        has_numbers = row >= 0 and counts[row].sum() > 0
        expected = (sums[row].sum() + 2 * mean) / (counts[row].sum() + 2) if has_numbers else mean
        assert means[n] == pytest.approx(expected)


def log_of(folder: Path, rows: int = 400, name: str = "log.parquet") -> Path:
    random = np.random.default_rng(3)
    items = random.integers(30, size=rows)
    columns = {
        "s": np.repeat(np.arange(rows // 4), 4),
        "i": items,
        "brand": [f"b{n % 7}" if n % 5 else None for n in items],
        "bought": (random.random(rows) < (items % 7) / 10).astype(np.int64),
    }
    pq.write_table(pa.table(columns), folder / name)
    return folder / name


def test_booleans_are_1_and_0_in_every_format(tmp_path: Path) -> None:
    whole = pq.read_table(log_of(tmp_path)).to_pandas()
    whole.to_parquet(tmp_path / "numbers.parquet")
    truths = whole.assign(bought=whole["bought"] > 0)
    truths.to_parquet(tmp_path / "truths.parquet")
    truths.to_csv(tmp_path / "truths.csv", index=False)
    encodings = []
    for name in ("numbers.parquet", "truths.parquet", "truths.csv"):
        facts = preprocess(recipe(RATE), [tmp_path / name], [], tmp_path / f"data {name}")
        assert "repaired" not in facts["rows"]["input"]
        encodings.append(Fitted.read(tmp_path / f"data {name}").target_encodings["rate"])
    assert encodings[0].sums.sum() > 0
    assert encodings[0].sums.tolist() == encodings[1].sums.tolist() == encodings[2].sums.tolist()


def test_windowed_training_refuses_target_encoding(tmp_path: Path) -> None:
    timed = {"timestamp": {"column": "i", "unit": "s"}}
    preprocess(recipe(RATE, **timed), [log_of(tmp_path)], [], tmp_path / "data")
    settings = Recipe()
    with pytest.raises(ConfigError, match="means of all of training"):
        IncrementalTrainer(Data.open(tmp_path / "data"), settings.model, settings.train)


def test_numbers_are_of_mean_0_and_deviation_1(tmp_path: Path) -> None:
    preprocess(recipe(RATE), [log_of(tmp_path, 4000)], [], tmp_path / "data")
    fitted = Fitted.read(tmp_path / "data")
    assert fitted.standardizations["rate"] == standardization_of(fitted.target_encodings["rate"])
    rates = pq.read_table(tmp_path / "data" / "sessions" / "train")["rate"]
    numbers = np.concatenate(rates.to_numpy())
    assert abs(numbers.mean()) < 0.1
    assert 0.8 < numbers.std() < 1.2  # about: of the folds, and of rows without a category


def test_later_logs_read_the_means_of_the_first(tmp_path: Path) -> None:
    chosen = recipe(RATE)
    preprocess(chosen, [log_of(tmp_path)], [], tmp_path / "base")
    pq.write_table(
        pa.table({"s": [1, 1], "i": [1, 2], "brand": ["b1", "new"], "bought": [1, 1]}),
        tmp_path / "new.parquet",
    )
    preprocess(chosen, [tmp_path / "new.parquet"], [], tmp_path / "next", base=tmp_path / "base")
    one, other = (Fitted.read(tmp_path / n).target_encodings["rate"] for n in ("base", "next"))
    assert one.sums.tolist() == other.sums.tolist()
    with pytest.raises(ConfigError, match="features"):
        preprocess(
            recipe({**RATE, "smoothing": 1}),
            [tmp_path / "new.parquet"],
            [],
            tmp_path / "another",
            base=tmp_path / "base",
        )


def test_request_needs_only_the_category_of_a_target_encoding(tmp_path: Path) -> None:
    preprocess(recipe({**RATE, "of": "item"}), [log_of(tmp_path)], [], tmp_path / "data")
    settings = Recipe.from_dict(
        {"model": {"d_model": 8, "n_head": 1, "n_layer": 1}, "train": {"epochs": 1}}, "test"
    )
    train(tmp_path / "data", settings.model, settings.train, tmp_path / "run")
    with open_run(tmp_path / "run") as client:
        unsent = client.recommend([{"item_id": [8, 6]}], 3)
        sent = client.recommend([{"item_id": [8, 6], "rate": ["b1", "b6"]}], 3)
        other = client.recommend([{"item_id": [8, 6], "rate": ["b6", "b0"]}], 3)
        assert unsent.scores == pytest.approx(sent.scores, abs=1e-5)
        assert unsent.scores != pytest.approx(other.scores, abs=1e-5)
        part = pq.read_table(log_of(tmp_path)).slice(0, 8).drop_columns(["bought"])
        pq.write_table(part, tmp_path / "asked.parquet")
        assert len(list(client.recommend_log([tmp_path / "asked.parquet"], 3))) == 2


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"kind": "categorical"}, "continuous"),
        ({"log": True}, "without `mean_of`"),
        ({"mean_of": None, "folds": 3}, "with `mean_of`"),
        ({"folds": 1}, "folds"),
    ],
)
def test_what_makes_no_sense_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        recipe({**RATE, **values})
