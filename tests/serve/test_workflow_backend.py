"""`export --workflow-backend`: requests are encoded by the user's NVTabular workflow itself."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

import pipeline
from pipeline.core.errors import ConfigError
from pipeline.data.fitted import Fitted
from pipeline.exporting.options import ExportOptions
from pipeline.exporting.repository import request_spec
from pipeline.exporting.request_tables import encoder_spec, workflow_spec, write_encoder
from pipeline.exporting.run import load_served
from pipeline.serve.run import running_server
from pipeline.serve.runtime.batching import BatchRunner, response_tensors
from pipeline.serve.runtime.request import RequestReader
from pipeline.serve.runtime.workflows.encoder import WorkflowEncoder
from pipeline.serve.triton.ports import free_ports
from tests.preprocessing.test_table_form import LENGTH, NUM_SESSIONS, preprocess, shop_log

WORKFLOW = """
import pandas as pd
from merlin.schema import Tags
from nvtabular import ops

PLACES = pd.DataFrame(
    [(f"sku-{n}", shelf, n % 5 + shelf % 3) for n in range(25) for shelf in range(100, 120)],
    columns=["sku", "shelf", "place"],
)


def workflow():
    continuous = ops.AddMetadata(tags=[Tags.CONTINUOUS])
    categorical = ops.AddMetadata(tags=[Tags.CATEGORICAL])
    items = ["sku"] >> ops.Categorify() >> ops.AddMetadata(tags=[Tags.ITEM_ID])
    place = ["sku", "shelf"] >> ops.JoinExternal(PLACES, on=["sku", "shelf"])
    columns = [
        items,
        ["brand"] >> ops.Categorify(max_size=9, num_buckets=3) >> ops.Rename(f=str.upper),
        [["brand", "shelf"]] >> ops.Categorify(encode_type="combo"),
        ["price"] >> ops.FillMedian() >> ops.Clip(max_value=80) >> ops.LogOp() >> ops.Normalize()
        >> ops.Rename(postfix="_log"),
        ["price"] >> ops.FillMissing(1) >> ops.NormalizeMinMax() >> ops.Rename(name="scaled"),
        ["clicks"] >> ops.Bucketize({"clicks": [3, 20]}) >> ops.Rename(name="busy"),
        ["shelf"] >> ops.HashBucket(7) >> ops.Rename(name="hashed"),
        [["sku", "shelf"]] >> ops.TargetEncoding("bought", kfold=4, p_smooth=2),
        ["shelf"] >> ops.FillMissing(0) >> ops.JoinGroupby(["bought"], ["count", "mean"])
        >> continuous,
        ["time"] >> ops.DifferenceLag(partition_cols=["visit"]) >> ops.FillMissing(0),
        place["place"] >> ops.FillMissing(-1) >> categorical,
    ]
    rows = columns[0]
    for column in columns[1:]:
        rows = rows + column
    names = [
        "sku", "BRAND", "brand_shelf", "price_log", "scaled", "busy", "hashed",
        "TE_sku_shelf_bought", "shelf_count", "shelf_bought_mean", "time_difference_lag_1", "place",
    ]
    device = ["device"] >> ops.Categorify()
    sessions = (rows + device + ["visit", "time"]) >> ops.Groupby(
        groupby_cols=["visit"], sort_cols=["time"],
        aggs={**dict.fromkeys(names, "list"), "device": "first", "sku": ["list", "count"]},
    )
    lists = sessions[[f"{name}_list" for name in names]] >> ops.ListSlice(8)
    every = lists + sessions["visit", "device_first", "sku_count"]
    return every >> ops.Filter(lambda rows: rows["sku_count"] > 1)
"""
NUMBERS = {"price_log", "scaled", "TE_sku_shelf_bought", "shelf_bought_mean", "shelf_count"}
NUMBERS |= {"time_difference_lag_1"}


def tensors_of(spec: dict[str, Any], requests: pd.DataFrame, sessions: int) -> dict[str, Any]:
    """Raw columns of the log as a server gets them."""
    tensors = {}
    for column in spec["columns"]:
        values = requests["sku" if column["name"] == "item_id" else column["name"]]
        if column["type"] == "string":
            array = np.array([b"" if v is None else v.encode() for v in values], object)
        else:
            array = values.to_numpy(column["type"])
        tensors[column["name"]] = array.reshape(sessions, -1)
        if column["scope"] == "session":
            tensors[column["name"]] = tensors[column["name"]][:, :1]
    return tensors


def encoder_of(fitted: Fitted, folder: Path) -> WorkflowEncoder:
    spec = encoder_spec(fitted, 10, 10) | workflow_spec(fitted)
    folder.mkdir()
    write_encoder(folder, fitted, spec | {"packing": [], "width": 0, "targets": []})
    return WorkflowEncoder(folder)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an export of the workflow writes for requests."""
    folder = tmp_path_factory.mktemp("workflow")
    with pytest.MonkeyPatch.context() as monkeypatch:
        fitted, _ = preprocess(folder, WORKFLOW, monkeypatch)
    encoder_of(fitted, folder / "tables")
    return folder / "tables"


@pytest.mark.slow
def test_requests_are_encoded_as_by_the_workflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = shop_log(NUM_SESSIONS * LENGTH, unseen=True)
    fitted, sessions = preprocess(tmp_path, WORKFLOW, monkeypatch, requests)
    encoder = encoder_of(fitted, tmp_path / "tables")
    assert sum(path.suffix == ".parquet" for path in (tmp_path / "tables" / "workflow").iterdir())
    tensors = tensors_of(encoder.spec, requests, NUM_SESSIONS)
    assert set(tensors) == {
        "item_id", "brand", "shelf", "price", "clicks", "bought", "time", "device",
    }  # fmt: skip
    encoded = encoder.encode(RequestReader(encoder).read(tensors).rows)
    sources = {"item_id": "sku_list", "device": "device_first"}
    assert len(encoded) == 13
    for name, array in encoded.items():
        expected = sessions[sources.get(name, f"{name}_list")]
        values = np.concatenate(expected) if name != "device" else expected.to_numpy()
        if name in NUMBERS:
            numbers = np.nan_to_num(values.astype(np.float32), nan=0.0)  # of an unseen shelf
            assert array.reshape(-1).tobytes() == numbers.tobytes(), name
            continue
        if name in ("item_id", "device"):
            assert (array.reshape(-1) == values).all(), name
            continue
        codes = fitted.vocabularies[name].values.to_pylist()  # of BRAND from 1, of others from 0
        index = {code: 3 + number for number, code in enumerate(codes)}
        assert array.reshape(-1).tolist() == [index.get(value, 2) for value in values], name


def test_a_batch_and_its_requests_alone_are_the_same(tables: Path) -> None:
    encoder = WorkflowEncoder(tables)
    requests = shop_log(100, unseen=True)
    requests["brand"] = None  # Categorify alone fails on a column without a value
    tensors = tensors_of(encoder.spec, requests, 10)
    reader = RequestReader(encoder)
    together = encoder.encode(reader.read(tensors).rows)
    for number in range(10):
        one = {name: array[number : number + 1] for name, array in tensors.items()}
        alone = encoder.encode(reader.read(one).rows)
        for name, array in alone.items():
            assert array.tobytes() == together[name][number : number + 1].tobytes()
    # NUL is removed, as in reading a log
    marked = np.array([[b"\0" + item for item in row] for row in tensors["item_id"]], object)
    encoded = encoder.encode(reader.read({**tensors, "item_id": marked}).rows)
    assert encoded["item_id"].tolist() == together["item_id"].tolist()
    # without times the interactions are in the order of the request, and a target is not needed
    short = {name: tensors[name] for name in ("item_id", "shelf", "price", "device")}
    encoded = encoder.encode(reader.read(short).rows)
    assert encoded["item_id"].tolist() == together["item_id"].tolist()
    assert encoded["TE_sku_shelf_bought"].tobytes() == together["TE_sku_shelf_bought"].tobytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda graph: graph["nodes"][-1].update(operator="LambdaOp"), "operator 'LambdaOp'"),
        (lambda graph: graph["nodes"][0].update(operator="os.system"), "operator 'os.system'"),
        (
            lambda graph: next(n for n in graph["nodes"] if n.get("tables"))["tables"].update(
                {"categories": {"sku": "../../secret.parquet"}}
            ),
            "no name of a file",
        ),
        (
            lambda graph: next(n for n in graph["nodes"] if n["operator"] == "Groupby")["state"][
                "conv_aggs"
            ].update({"sku": ["pipe"]}),
            "aggregate 'pipe'",
        ),
    ],
)
def test_a_graph_that_names_something_else_is_refused(
    tables: Path, tmp_path: Path, change: Any, words: str
) -> None:
    shutil.copytree(tables, tmp_path / "tables")
    path = tmp_path / "tables" / "workflow" / "workflow.json"
    graph = json.loads(path.read_text())
    change(graph)
    path.write_text(json.dumps(graph))
    with pytest.raises(ValueError, match=words):
        WorkflowEncoder(tmp_path / "tables")


def test_a_table_whose_types_may_be_pickled_is_refused(tables: Path, tmp_path: Path) -> None:
    shutil.copytree(tables, tmp_path / "tables")
    path = next((tmp_path / "tables" / "workflow").glob("*.categories.0.parquet"))
    pq.write_table(pq.read_table(path), path)  # with the schema of Arrow
    with pytest.raises(ValueError, match="Arrow schema"):
        WorkflowEncoder(tmp_path / "tables")


def trained(folder: Path) -> pipeline.Run:
    recipe = pipeline.Recipe.from_dict(
        {"model": {"d_model": 16}, "train": {"epochs": 1}}, "the test"
    )
    return pipeline.train(recipe, folder / "data", out=folder / "run")


def test_user_code_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = WORKFLOW.replace("ops.Clip(max_value=80)", "ops.LambdaOp(lambda price: price + 1)")
    preprocess(tmp_path, source, monkeypatch)
    run = trained(tmp_path)
    with pytest.raises(ConfigError, match="LambdaOp cannot be written as JSON"):
        pipeline.export(run, out=tmp_path / "repository", workflow_backend=True)


def test_triton_answers_by_the_workflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preprocess(tmp_path, WORKFLOW, monkeypatch)
    run = trained(tmp_path)
    repository = tmp_path / "repository"
    with pytest.raises(ConfigError, match="export with --workflow-backend"):
        pipeline.export(run, out=repository)
    pipeline.export(run, out=repository, workflow_backend=True, default_k=5)

    fitted, model = load_served(run, workflow_backend=True)
    model.eval()
    options = ExportOptions(default_k=5, max_k=25, workflow_backend=True)
    write_encoder_folder = tmp_path / "tables"
    write_encoder_folder.mkdir()
    write_encoder(write_encoder_folder, fitted, request_spec(fitted, model, options))
    encoder = WorkflowEncoder(write_encoder_folder)

    @torch.inference_mode()
    def ask(packed: Any) -> Any:
        return model(torch.from_numpy(packed)).numpy()

    log = shop_log(200, unseen=False)
    request = RequestReader(encoder).read(tensors_of(encoder.spec, log, 20))
    lists = response_tensors(request, BatchRunner(encoder, ask)([request]), encoder, ["item_ids"])
    with (
        running_server(repository, ports=free_ports()) as server,
        pipeline.Client(f"http://{server.http_url}") as client,
    ):
        answers = client.recommend_frame(log.drop(columns="bought"), 5)
    expected = [item.decode() for item in lists["item_ids"].reshape(-1)]
    assert answers["item_id"].tolist() == expected
