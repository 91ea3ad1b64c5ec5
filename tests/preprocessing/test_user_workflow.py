"""`preprocess --workflow`: a user's NVTabular graph makes the sessions of a data directory."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import pipeline
from pipeline.cli.main import app
from pipeline.core.errors import ConfigError, DataError
from pipeline.preprocessing.sorting import spill
from pipeline.preprocessing.workflows.run import preprocess_workflow
from pipeline.recipe.preprocess import Preprocess

WORKFLOW = """
import pandas as pd
from merlin.schema import Tags
from nvtabular import ops

MAKERS = pd.DataFrame({"product": [f"p{n}" for n in range(8)], "maker": list("xxyyzzzx")})


def workflow():
    continuous = ops.AddMetadata(tags=[Tags.CONTINUOUS])
    categorical = ops.AddMetadata(tags=[Tags.CATEGORICAL])
    items = ["product"] >> ops.Categorify() >> ops.AddMetadata(tags=[Tags.ITEM_ID])
    shelf = ["shelf"] >> ops.HashBucket(4) >> categorical
    log = ["price"] >> ops.LogOp() >> ops.Normalize() >> ops.Rename(postfix="_log")
    price = ["price"] >> ops.FillMissing(0)
    band = price >> ops.Bucketize([10, 50]) >> ops.Rename(name="band")
    rate = ["product"] >> ops.TargetEncoding(price, kfold=1)
    counts = ["product"] >> ops.JoinGroupby(cont_cols=["price"], stats=["count", "mean"])
    maker = ["product"] >> ops.JoinExternal(MAKERS, on="product")
    maker = maker["maker"] >> ops.Categorify()
    wait = ["time"] >> ops.DifferenceLag(partition_cols=["user"]) >> ops.FillMissing(0)
    hour = ["time"] >> ops.LambdaOp(lambda time: time // 3600 % 24) >> categorical
    hour = hour >> ops.Rename(name="hour")
    rows = items + shelf + log + band + rate + (counts >> continuous) + maker + wait + hour
    kept = (rows + ["user", "time", "price"]) >> ops.Filter(lambda rows: ~(rows["price"] >= 90))
    sessions = kept >> ops.Groupby(
        groupby_cols=["user"],
        sort_cols=["time"],
        aggs={
            "product": ["list", "count"],
            "hour": "first",
            **dict.fromkeys(
                ["shelf", "price_log", "band", "TE_product_price", "product_price_mean",
                 "product_count", "maker", "time_difference_lag_1"], "list"),
        },
    )
    lists = [name for name in (
        "product_list", "shelf_list", "price_log_list", "band_list", "TE_product_price_list",
        "product_price_mean_list", "product_count_list", "maker_list",
        "time_difference_lag_1_list")]
    cut = sessions[lists] >> ops.ListSlice(-4)
    return cut + sessions["user", "hour_first"]
"""
SETTINGS: dict[str, Any] = {"timestamp": {"column": "time", "unit": "s"}}


@pytest.fixture
def log() -> pd.DataFrame:
    """Sessions of one to eight rows in no order, with missing prices and prices that go."""
    random = np.random.default_rng(5)
    users = np.repeat(np.arange(40), random.integers(1, 9, 40))
    prices = np.round(random.uniform(1, 100, len(users)), 2)
    prices[random.random(len(users)) < 0.1] = np.nan
    frame = pd.DataFrame(
        {
            "user": users,
            "product": [f"p{n}" for n in random.integers(8, size=len(users))],
            "shelf": random.integers(100, 130, len(users)),
            "price": prices,
            "time": 1_700_000_000 + users * 100_000 + random.permutation(len(users)) * 60,
        }
    )
    return frame.sample(frac=1, random_state=1).reset_index(drop=True)


def run(
    folder: Path, log: pd.DataFrame, source: str = WORKFLOW, settings: dict[str, Any] = SETTINGS,
    name: str = "log.parquet",
) -> dict[str, Any]:  # fmt: skip
    (folder / "shop.py").write_text(source, encoding="utf-8")
    if name.endswith(".parquet"):
        log.to_parquet(folder / name)
    else:
        log.to_csv(folder / name, index=False)
    recipe = Preprocess.from_dict(settings, "test")
    return preprocess_workflow(recipe, folder / "shop.py", [folder / name], [], folder / "data")


def sessions_of(folder: Path, part: str = "train") -> dict[int, dict[str, Any]]:
    table = pq.read_table(folder / "data" / "sessions" / part)
    return {row["session_id"]: row for row in table.to_pylist()}


def by_hand(log: pd.DataFrame) -> pd.DataFrame:
    """The columns of the workflow by pandas, one row an interaction in the order of time."""
    rows = log.sort_values(["user", "time"], ignore_index=True)
    logs = np.log(rows["price"].astype("float32") + 1)
    filled = rows["price"].fillna(0)
    sums, counts = filled.groupby(rows["product"]).sum(), rows["product"].value_counts()
    mean = filled.mean()
    rates = (sums + 20 * mean) / (counts + 20)
    means = rows["price"].groupby(rows["product"]).sum() / counts  # of the missing ones, too
    makers = dict(zip([f"p{n}" for n in range(8)], "xxyyzzzx", strict=True))
    waits = rows["time"].diff().where(rows["user"].diff() == 0, 0)
    columns = pd.DataFrame(
        {
            "user": rows["user"],
            "product": rows["product"],
            "price_log": ((logs - logs.mean()) / logs.std()).fillna(0),
            "band": (filled >= 10).astype(int) + (filled >= 50),
            "TE_product_price": rows["product"].map(rates),
            "product_price_mean": rows["product"].map(means),
            "product_count": rows["product"].map(counts),
            "maker": rows["product"].map(makers),
            "time_difference_lag_1": waits,
            "hour": rows["time"] // 3600 % 24,
            "shelf": rows["shelf"],
        }
    )
    return columns[~(rows["price"] >= 90)]


@pytest.mark.parametrize("shard_rows", [500_000, 20])
@pytest.mark.parametrize("name", ["log.parquet", "log.csv"])
def test_every_operator_makes_what_pandas_makes(
    tmp_path: Path, log: pd.DataFrame, name: str, shard_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.logs.files.BLOCK_ROWS", shard_rows)
    monkeypatch.setattr(spill, "SHARD_ROWS", shard_rows)
    facts = run(tmp_path, log, name=name)
    data = pipeline.Data.open(tmp_path / "data")
    sessions = sessions_of(tmp_path)
    expected = by_hand(log[log.groupby("user")["user"].transform("size") > 1])
    values = {name: v.values.to_pylist() for name, v in data.fitted.vocabularies.items()}
    columns = {"product": "item_id", "maker": "maker", "band": "band"}
    compared = 0
    for user, rows in expected.groupby("user"):
        if len(rows) < 2:
            assert user not in sessions
            continue
        rows = rows.tail(4)
        for source, column in columns.items():
            read = [values[column][index - 3] for index in sessions[user][column]]
            assert read == rows[source].tolist()
        for number in data.fitted.standardizations:
            assert sessions[user][number] == pytest.approx(rows[number].tolist(), abs=1e-4)
        compared += 1
    assert compared == facts["sessions"]["train"]["sessions"] > 20
    assert set(data.fitted.standardizations) == {
        "price_log", "TE_product_price", "product_price_mean", "product_count",
        "time_difference_lag_1",
    }  # fmt: skip
    assert facts["max_sequence_length"] == 4


def test_buckets_of_a_hash_are_those_of_the_value_alone(tmp_path: Path, log: pd.DataFrame) -> None:
    run(tmp_path, log)
    expected = by_hand(log[log.groupby("user")["user"].transform("size") > 1])
    buckets: dict[int, set[int]] = {}
    for user, row in sessions_of(tmp_path).items():
        shelves = expected[expected["user"] == user].tail(4)["shelf"]
        for shelf, bucket in zip(shelves, row["shelf"], strict=True):
            buckets.setdefault(shelf, set()).add(bucket)
    assert all(len(values) == 1 for values in buckets.values())
    assert set.union(*buckets.values()) == {3, 4, 5, 6}


def test_a_session_has_the_first_hour(tmp_path: Path, log: pd.DataFrame) -> None:
    run(tmp_path, log)
    fitted = pipeline.Data.open(tmp_path / "data").fitted
    expected = by_hand(log).groupby("user")["hour"].first()
    hours = fitted.vocabularies["hour"].values.to_pylist()
    assert {
        user: hours[row["hour"] - 3] for user, row in sessions_of(tmp_path).items()
    } == expected.loc[list(sessions_of(tmp_path))].to_dict()
    (feature,) = [f for f in fitted.recipe.features if f.name == "hour"]
    assert (feature.of, feature.source) == ("session", "time")


def test_statistics_come_from_training_alone(tmp_path: Path, log: pd.DataFrame) -> None:
    log.loc[log["user"] >= 36, "price"] = 80.0
    run(tmp_path, log, settings={**SETTINGS, "split": {"test": 0.1}})
    is_training = log["user"] < 36
    assert set(sessions_of(tmp_path, "test")) <= {36, 37, 38, 39}
    lengths = log.groupby("user")["user"].transform("size")
    expected = by_hand(log[is_training & (lengths > 1)])
    session = sessions_of(tmp_path)[expected["user"].iloc[0]]
    rows = expected[expected["user"] == expected["user"].iloc[0]].tail(4)
    assert session["price_log"] == pytest.approx(rows["price_log"].tolist(), abs=1e-4)


FOLDS = """
from merlin.schema import Tags
from nvtabular import ops


def workflow():
    items = ["product"] >> ops.Categorify() >> ops.TagAsItemID()
    rate = ["product"] >> ops.TargetEncoding("price", kfold=3, p_smooth=0)
    sessions = (items + rate + ["user"]) >> ops.Groupby(groupby_cols="user")
    return sessions["product_list", "TE_product_price_list", "user"]
"""


def test_training_reads_the_means_of_other_folds(tmp_path: Path, log: pd.DataFrame) -> None:
    log["price"] = log["price"].fillna(1.0)
    run(tmp_path, log, FOLDS, {**SETTINGS, "split": {"test": 0.2}})
    means: dict[str, set[int]] = {}
    for part in ("train", "test"):
        pairs = {
            (item, mean)
            for row in sessions_of(tmp_path, part).values()
            for item, mean in zip(row["item_id"], row["TE_product_price"], strict=True)
        }
        means[part] = {len([1 for item, _ in pairs if item == each]) for each, _ in pairs}
    assert means == {"train": {3}, "test": {1}}


def test_a_log_of_test_sessions_has_unseen_and_missing_values(
    tmp_path: Path, log: pd.DataFrame
) -> None:
    later = log.copy()
    later["user"] += 1_000
    later["product"] = later["product"].where(later.index % 3 > 0, "new")
    later["shelf"] = later["shelf"].astype(float).where(later.index % 5 > 0)  # none in training
    prices = later["price"].astype(object)
    later.assign(price=prices.where(later.index != 3, "free")).to_csv(tmp_path / "later.csv")
    source = changed("ops.HashBucket(4)", "ops.Categorify()")
    (tmp_path / "shop.py").write_text(source, encoding="utf-8")
    log.to_csv(tmp_path / "log.csv", index=False)
    recipe = Preprocess.from_dict(SETTINGS, "test")
    paths = [tmp_path / "log.csv"], [tmp_path / "later.csv"]
    facts = preprocess_workflow(recipe, tmp_path / "shop.py", *paths, tmp_path / "data")
    assert facts["rows"]["test"]["read"] == len(later)
    assert facts["rows"]["test"]["repaired"] == {"values of price that are no usable number": 1}
    later.loc[3, "price"] = np.nan
    sessions = sessions_of(tmp_path, "test")
    expected = later[~(later["price"] >= 90)].sort_values(["user", "time"])
    for user, rows in expected.groupby("user"):
        rows = rows.tail(4)
        unknown = [index == 2 for index in sessions[user]["item_id"]]
        missing = [index == 1 for index in sessions[user]["shelf"]]
        assert unknown == (rows["product"] == "new").tolist()
        assert missing == rows["shelf"].isna().tolist()
    assert len(sessions) == expected["user"].nunique()


def changed(old: str, new: str) -> str:
    assert old in WORKFLOW
    return WORKFLOW.replace(old, new)


@pytest.mark.parametrize(
    "operator",
    [
        "LambdaOp(lambda column: column - column.min())",
        "LambdaOp(lambda column: column.fillna(column.mean()))",
        "LambdaOp(lambda column: column.cumsum())",
        "LambdaOp(lambda column: column.rank())",
    ],
)
def test_an_operator_that_restarts_in_each_block_is_named(
    tmp_path: Path, log: pd.DataFrame, operator: str
) -> None:
    source = changed('["price"] >> ops.LogOp()', f'["price"] >> ops.{operator}')
    with pytest.raises(ConfigError, match="LambdaOp makes other values of 'price' in another bl"):
        run(tmp_path, log, source)
    assert not (tmp_path / "data").exists()


def test_a_filter_that_compares_within_the_block_is_named(
    tmp_path: Path, log: pd.DataFrame
) -> None:
    source = changed('~(rows["price"] >= 90)', 'rows["price"] < rows["price"].quantile(0.9)')
    with pytest.raises(ConfigError, match="Filter makes other values of 'product' in another bl"):
        run(tmp_path, log, source)


def test_lag_without_sessions_is_named(tmp_path: Path, log: pd.DataFrame) -> None:
    log["shop"] = 1
    source = changed('partition_cols=["user"]', 'partition_cols=["shop"]')
    with pytest.raises(ConfigError, match="DifferenceLag makes other values of 'time_difference"):
        run(tmp_path, log, source)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("def workflow", "def graph", r"no function workflow\(\)"),
        ("return cut", "return 7 or cut", "returns int, expected the end"),
        ("    kept =", "    undefined\n    kept =", "failed in line 25: NameError"),
        ("time // 3600", "time.no_such_thing", "failed in line 22: AttributeError"),
        ('groupby_cols=["user"]', 'groupby_cols=["user", "time"]', "Set it to one of these"),
        ("ops.Categorify() >> ops.AddMetadata", "ops.HashBucket(9) >> ops.AddMetadata", "no ind"),
        ("tags=[Tags.ITEM_ID]", "tags=[]", "none as list tagged item_id"),
        ('["user", "time", "price"]', '["user", "times", "price"]', "no column"),
        ('["price"] >> ops.FillMissing(0)', '["price"] >> ops.Dropna()', "Let Filter come last"),
    ],
)
def test_a_file_that_is_no_workflow_is_one_line(
    tmp_path: Path, log: pd.DataFrame, old: str, new: str, words: str
) -> None:
    with pytest.raises((ConfigError, DataError), match=words) as raised:
        run(tmp_path, log, changed(old, new))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"min_item_count": 2}, "`min_item_count`, which a workflow makes itself"),
        ({"session_gap": "30m"}, "`session_gap`, which a workflow"),
        ({"split": "leave-one-out"}, "split by time or by a fraction"),
        ({"item": "shelf"}, "makes the items of the column 'product'"),
    ],
)
def test_settings_that_a_workflow_makes_itself_are_refused(
    tmp_path: Path, log: pd.DataFrame, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        run(tmp_path, log, settings={**SETTINGS, **settings})


SECONDS = """
    seconds = ["time"] >> ops.LambdaOp(lambda time: time.astype("int64") // 10**9)
    seconds = seconds >> ops.Rename(name="seconds")
"""
CODE = """
    code = ["code"] >> ops.Categorify()
"""


def test_values_have_the_types_of_the_log(tmp_path: Path, log: pd.DataFrame) -> None:
    log["time"] = pd.to_datetime(log["time"], unit="s")
    log.loc[::7, "shelf"] = None  # now floats for pandas
    log["code"] = log["shelf"].map(lambda value: f"{value:.0f}-x", na_action="ignore")
    source = changed('["time"] >> ops.DifferenceLag', "seconds >> ops.DifferenceLag")
    for old, new in (
        ("time // 3600 % 24", "time.dt.hour"),
        ("HashBucket(4)", "Categorify()"),
        ("time_difference", "seconds_difference"),
        ("    continuous =", SECONDS + "    continuous ="),
        ("    rows = items", CODE + "    rows = code + items"),
        ('"maker", "', '"maker", "code", "'),
        ('"maker_list",', '"maker_list", "code_list",'),
    ):
        assert old in source
        source = source.replace(old, new)
    facts = run(tmp_path, log, source, {})  # the time is that of Groupby
    fitted = pipeline.Data.open(tmp_path / "data").fitted
    assert {name: v.type for name, v in fitted.vocabularies.items()} == {
        "item_id": "string", "shelf": "int64", "band": "int64", "maker": "string",
        "code": "string", "hour": "int64",
    }  # fmt: skip
    assert facts["sessions"]["train"]["first"].startswith("2023-")
    shelves = log.dropna(subset=["shelf"]).query("~(price >= 90)")["shelf"].astype(int)
    assert set(fitted.vocabularies["shelf"].values.to_pylist()) <= set(shelves)


def test_the_command_line_trains_on_the_sessions(tmp_path: Path, log: pd.DataFrame) -> None:
    (tmp_path / "shop.py").write_text(WORKFLOW, encoding="utf-8")
    log.to_csv(tmp_path / "log.csv.gz", index=False)

    def command(*words: object) -> str:
        result = CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    data, out = tmp_path / "data", tmp_path / "run"
    settings = ["preprocess.timestamp.column=time", "preprocess.timestamp.unit=s"]
    settings += ["preprocess.split.test=0.2"]
    options = [word for setting in settings for word in ("--set", setting)]
    command_line = ["preprocess", tmp_path / "log.csv.gz", "--workflow", tmp_path / "shop.py"]
    printed = command(*command_line, *options, "--out", data)
    assert "on pandas" in printed
    assert "report.html" not in printed
    again = command(*command_line, *options, "--out", data, "--if-needed")
    assert "is what this command would write" in again or "up to date" in again
    command("train", data, "--out", out, "--set", "train.epochs=1", "--set", "model.d_model=16")
    assert "8 items ranked" in command("evaluate", out, "--data", data, "--cutoffs", "5")


def test_options_that_do_not_go_with_a_workflow(tmp_path: Path) -> None:
    for words, message in (
        (["--cluster", "local", "--workflow", "x.py"], "do not go with --workflow"),
        ([], "Give a recipe, or --workflow"),
        (["--workflow", "x.py"], "x.py does not exist"),
    ):
        command = ["preprocess", "log.csv", "--out", str(tmp_path / "out"), *words]
        with pytest.raises(ConfigError, match=message):
            CliRunner().invoke(app, command, catch_exceptions=False)
