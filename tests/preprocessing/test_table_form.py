"""A server encodes requests by tables and formulas as the user's workflow encodes them."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pandas.util import hash_array

import pipeline
from pipeline.core.errors import ConfigError
from pipeline.data.fitted import Fitted
from pipeline.exporting.request_tables import encoder_spec, write_encoder
from pipeline.preprocessing.workflows import run as workflow_run
from pipeline.recipe.preprocess import Preprocess
from pipeline.serve.runtime.operator_steps import OperatorSteps
from pipeline.serve.runtime.request import RequestReader
from pipeline.serve.runtime.request_encoder import Encoder
from pipeline.serve.runtime.workflows.executor import execute

WORKFLOW = """
import pandas as pd
from merlin.schema import Tags
from nvtabular import ops

SHOPS = pd.DataFrame(
    {"sku": [f"sku-{n}" for n in range(30)], "maker": [f"m{n % 7}" for n in range(30)],
     "stock": [n * 1.5 for n in range(30)], "code": range(30)}
)


def workflow():
    continuous = ops.AddMetadata(tags=[Tags.CONTINUOUS])
    categorical = ops.AddMetadata(tags=[Tags.CATEGORICAL])
    items = ["sku"] >> ops.Categorify(freq_threshold=2) >> ops.AddMetadata(tags=[Tags.ITEM_ID])
    columns = [
        items,
        ["shelf"] >> ops.Categorify(),
        ["brand"] >> ops.FillMissing("none") >> ops.Categorify(max_size=9)
        >> ops.Rename(name="brand_code"),
        ["price"] >> ops.Clip(min_value=0) >> ops.LogOp() >> ops.Normalize()
        >> ops.Rename(name="price_log"),
        ["price"] >> ops.FillMedian() >> ops.NormalizeMinMax() >> ops.Rename(name="price_scaled")
        >> continuous,
        ["price"] >> ops.Bucketize([5, 20, 60]) >> ops.Rename(name="price_band"),
        ["clicks"] >> ops.FillMissing(0) >> ops.Normalize(out_dtype="float32")
        >> ops.Rename(name="clicks_scaled"),
        ["brand"] >> ops.HashBucket(11) >> ops.Rename(name="brand_hash"),
        ["shelf"] >> ops.HashBucket(5) >> ops.Rename(name="shelf_hash"),
        ["price"] >> ops.HashBucket(5) >> ops.Rename(name="price_hash"),
        ["sku"] >> ops.TargetEncoding("bought", kfold=5, p_smooth=3),
        ["shelf"] >> ops.TargetEncoding("bought", kfold=1, out_dtype="float64"),
        ["brand"] >> ops.FillMissing("none")
        >> ops.JoinGroupby(cont_cols=["clicks"], stats=["count", "mean", "std"])
        >> continuous,
    ]
    joined = ["sku"] >> ops.JoinExternal(SHOPS, on="sku")
    columns += [
        joined["maker"] >> ops.Categorify(),
        joined["stock"] >> ops.FillMissing(-1) >> ops.LogOp(),
        joined["code"] >> ops.FillMissing(-2) >> ops.Categorify(),
        ["shelf"] >> ops.Categorify() >> ops.TargetEncoding("bought", kfold=1)
        >> ops.Rename(name="shelf_rate"),
    ]
    rows = columns[0]
    for column in columns[1:]:
        rows = rows + column
    names = [
        "sku", "shelf", "brand_code", "price_log", "price_scaled", "price_band", "clicks_scaled",
        "brand_hash", "shelf_hash", "price_hash", "TE_sku_bought", "TE_shelf_bought",
        "brand_count", "brand_clicks_mean", "brand_clicks_std", "maker", "stock", "code",
        "shelf_rate",
    ]
    device = ["device"] >> ops.Categorify()
    sessions = (rows + device + ["visit", "time"]) >> ops.Groupby(
        groupby_cols=["visit"], sort_cols=["time"],
        aggs={**dict.fromkeys(names, "list"), "device": "first"},
    )
    lists = sessions[[f"{name}_list" for name in names]] >> ops.ListSlice(-10)
    return lists + sessions["visit", "device_first"]
"""
SETTINGS = {"timestamp": {"column": "time", "unit": "s"}}
NUM_SESSIONS, LENGTH = 10_000, 10


def shop_log(rows: int, *, unseen: bool) -> pd.DataFrame:
    """Interactions of ten a session; with `unseen` values outside of the training log."""
    random = np.random.default_rng(rows + unseen)
    extra = 10 if unseen else 0
    prices = np.round(random.lognormal(3, 1.5, rows), 2)
    prices[random.random(rows) < 0.1] = np.nan
    counts = random.integers(0, 50 + extra, rows).astype(float)
    counts[random.random(rows) < 0.1] = np.nan
    brands = random.choice([*(f"brand-{n}ö" for n in range(12 + extra)), None], rows)
    return pd.DataFrame(
        {
            "visit": [f"v{n // LENGTH:05}" for n in range(rows)],
            "time": 1_700_000_000 + np.arange(rows),
            "sku": [f"sku-{n}" for n in random.integers(25 + extra, size=rows)],
            "shelf": random.integers(100, 120 + extra, rows),
            "brand": brands,
            "price": prices,
            "clicks": counts,
            "bought": random.integers(0, 2, rows),
            "device": np.repeat(random.choice(["phone", "desktop"], rows // LENGTH), LENGTH),
        }
    )


def preprocess(
    folder: Path, source: str, monkeypatch: pytest.MonkeyPatch, requests: pd.DataFrame | None = None
) -> tuple[Fitted, pd.DataFrame]:
    """Fitted state of a data directory, and the workflow's own sessions of the requests."""
    (folder / "shop.py").write_text(source, encoding="utf-8")
    shop_log(2_000, unseen=False).to_parquet(folder / "log.parquet")
    sessions: list[pd.DataFrame] = []
    write = workflow_run._write

    def encode_and_write(directory: Path, recipe: Any, user: Any, *others: Any) -> Any:
        if requests is not None:
            sessions.append(execute(user.workflow, requests[user.columns]))
        return write(directory, recipe, user, *others)

    monkeypatch.setattr(workflow_run, "_write", encode_and_write)
    workflow_run.preprocess_workflow(
        Preprocess.from_dict(SETTINGS, "test"), folder / "shop.py", [folder / "log.parquet"], [],
        folder / "data",
    )  # fmt: skip
    fitted = pipeline.Data.open(folder / "data").fitted
    return fitted, sessions[0] if sessions else pd.DataFrame()


def tensors_of(spec: dict[str, Any], fitted: Fitted, requests: pd.DataFrame) -> dict[str, Any]:
    """Raw values of the requests as a server gets them."""
    sources = {f.name: f.source for f in fitted.recipe.features} | {"item_id": fitted.recipe.item}
    tensors = {}
    for column in spec["columns"]:
        values = requests[sources[column["name"]]]
        if column["type"] == "string":
            texts = [b"" if v is None else v.encode() for v in values]
            array = np.array(texts, object)
        else:
            array = values.to_numpy(column["type"])
        shape = (NUM_SESSIONS, LENGTH)
        tensors[column["name"]] = array.reshape(shape)
        if column["scope"] == "session":
            tensors[column["name"]] = array.reshape(shape)[:, :1]
    return tensors


@pytest.mark.parametrize("sends_all", [pytest.param(True, marks=pytest.mark.slow), False])
def test_requests_are_encoded_as_by_the_workflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sends_all: bool
) -> None:
    requests = shop_log(NUM_SESSIONS * LENGTH, unseen=True)
    fitted, sessions = preprocess(tmp_path, WORKFLOW, monkeypatch, requests)
    assert {n: o.obstacle for n, o in fitted.operator_steps.items() if o.obstacle} == {}
    spec = encoder_spec(fitted, 10, 10) | {"packing": [], "width": 0, "targets": []}
    (tmp_path / "tables").mkdir()
    write_encoder(tmp_path / "tables", fitted, spec)
    encoder = Encoder(tmp_path / "tables")
    tensors = tensors_of(spec, fitted, requests)
    if not sends_all:  # what is made of the item follows from it
        of_item = {c["name"] for c in spec["columns"] if "reads" in c}
        assert of_item == {"TE_sku_bought", "maker", "stock", "code"}
        tensors = {name: values for name, values in tensors.items() if name not in of_item}
    encoded = encoder.encode(RequestReader(encoder).read(tensors).rows)
    sources = {"item_id": "sku_list", "device": "device_first"}
    assert len(encoded) == 20
    for name, array in encoded.items():
        vocabulary = fitted.vocabularies.get(name)
        expected = sessions[sources.get(name, f"{name}_list")]
        values = np.concatenate(expected) if name != "device" else expected.to_numpy()
        if name in ("price_band", "brand_hash", "shelf_hash", "price_hash"):
            assert vocabulary is not None
            values = values + 3  # of codes, which begin at 0
        if vocabulary is None:
            values = values.astype(np.float32)
            values = np.where(np.isfinite(values), values, np.float32(0))
        same = array.reshape(-1) == values.astype(array.dtype)
        assert same.all(), (name, np.flatnonzero(~same)[:5])
    assert len(np.unique(encoded["brand_hash"])) > 5


SMALL = """
from merlin.schema import Tags
from nvtabular import ops


def workflow():
    items = ["sku"] >> ops.Categorify() >> ops.AddMetadata(tags=[Tags.ITEM_ID])
    number = ["price"] >> ops.LogOp() >> ops.AddMetadata(tags=[Tags.CONTINUOUS])
    rows = items + number + ["visit", "time"]
    sessions = rows >> ops.Groupby(groupby_cols=["visit"], sort_cols=["time"], aggs="list")
    lists = sessions["sku_list", "price_list"] >> ops.ListSlice(-10)
    return lists + sessions["visit"]
"""


@pytest.mark.parametrize(
    ("operators", "name", "obstacle"),
    [
        ('["price"] >> ops.LambdaOp(lambda c: c * 2)', "price", "LambdaOp"),
        (
            '["time"] >> ops.DifferenceLag(partition_cols=["visit"])',
            "time_difference_lag_1",
            "DifferenceLag",
        ),
        (
            '[["sku", "shelf"]] >> ops.TargetEncoding("bought", kfold=1)',
            "TE_sku_shelf_bought",
            "TargetEncoding on several columns",
        ),
        (
            '["price"] >> ops.FillMissing(0) >> ops.JoinGroupby(["clicks"], ["mean"])',
            "price_clicks_mean",
            "JoinGroupby, whose keys are numbers",
        ),
    ],
)
def test_an_operator_without_a_table_form_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operators: str, name: str, obstacle: str
) -> None:
    source = SMALL.replace('["price"] >> ops.LogOp()', operators).replace(
        "price_list", f"{name}_list"
    )
    fitted, _ = preprocess(tmp_path, source, monkeypatch)
    assert fitted.operator_steps[name].obstacle == obstacle
    assert fitted.operator_steps["item_id"].obstacle is None


@pytest.mark.parametrize(
    ("old", "new", "obstacle"),
    [
        ("ListSlice(-10)", "ListSlice(10)", "ListSlice, unless it keeps the newest"),
        ("rows >> ops.Gr", "rows >> ops.Dropna() >> ops.Gr", "Dropna before Groupby"),
        (
            '["sku"] >> ops.Cat',
            '["sku"] >> ops.FillMissing("") >> ops.Cat',
            "FillMissing of the it",
        ),
    ],
)
def test_the_item_names_what_stands_in_the_way_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, obstacle: str
) -> None:
    assert old in SMALL
    fitted, _ = preprocess(tmp_path, SMALL.replace(old, new), monkeypatch)
    assert obstacle in str(fitted.operator_steps["item_id"].obstacle)


def test_hashes_of_a_gpu_are_not_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("table_form", "saving"):
        monkeypatch.setattr(f"pipeline.preprocessing.workflows.{module}.has_cudf", lambda: True)
    source = SMALL.replace("ops.LogOp()", "ops.HashBucket(5)")
    fitted, _ = preprocess(tmp_path, source, monkeypatch)
    assert fitted.workflow is not None
    for obstacle in (fitted.operator_steps["price"].obstacle, fitted.workflow.obstacle):
        assert obstacle == "HashBucket on a GPU, whose hashes are others than a CPU's,"


@pytest.mark.parametrize("values", [["", "a", "abcdefgh", "ö" * 9, "x" * 100], [1, -5, 2**60]])
def test_hashes_are_those_of_pandas(tmp_path: Path, values: list[Any]) -> None:
    if isinstance(values[0], str):
        array = np.array(values, object)
        raw: Any = np.array([value.encode() for value in values], object)
    else:
        raw = array = np.array(values)
    buckets = 1_000_003
    steps = OperatorSteps(tmp_path, "x", [{"op": "hash", "buckets": buckets}])
    expected = (hash_array(array) % buckets).tolist()
    if values[0] == "":  # missing in a request, as in a log
        expected[0] = (2**64 - 1) % buckets
    assert steps(raw).tolist() == expected


def test_export_names_the_operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = SMALL.replace("ops.LogOp()", "ops.LambdaOp(lambda column: column.abs())")
    preprocess(tmp_path, source, monkeypatch)
    recipe = pipeline.Recipe.from_dict(
        {"model": {"d_model": 16}, "train": {"epochs": 1}}, "the test"
    )
    run = pipeline.train(recipe, tmp_path / "data", out=tmp_path / "run")
    with pytest.raises(ConfigError, match="reads 'price', which LambdaOp computes: that operator"):
        pipeline.export(run, out=tmp_path / "repository")


def test_a_run_answers_in_raw_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preprocess(tmp_path, WORKFLOW, monkeypatch)
    recipe = pipeline.Recipe.from_dict(
        {"model": {"d_model": 16}, "train": {"epochs": 1}}, "the test"
    )
    run = pipeline.train(recipe, tmp_path / "data", out=tmp_path / "run")
    pipeline.export(run, out=tmp_path / "repository")
    log = shop_log(40, unseen=False)
    lists = run.recommend(log[log["visit"] == "v00001"].drop(columns=["bought"]), k=3)
    assert len(lists) == 3
    assert lists["item_id"].str.startswith("sku-").all()
