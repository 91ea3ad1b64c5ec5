"""What stock NVTabular has written is trained on, evaluated, exported and asked in raw ids."""

import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import pipeline
from pipeline.cli.main import app
from pipeline.core.errors import ConfigError, DataError
from pipeline.data.column_schema import ColumnSchema
from pipeline.data.schema import Schema, Tags
from pipeline.exporting.request_tables import encoder_spec, write_encoder
from pipeline.preprocessing.parquet_columns import choose_columns
from pipeline.preprocessing.parquet_sessions import parts_of
from pipeline.preprocessing.synthetic import synthesize
from pipeline.serve.runtime.request import RequestReader
from pipeline.serve.runtime.request_encoder import Encoder
from tests.conftest import ROOT

WORKFLOW = """
import sys
import pipeline.core.merlin
import nvtabular as nvt
import pandas as pd
from merlin.schema import Tags
from nvtabular import ops

log_file, folder, pad = sys.argv[1], sys.argv[2], sys.argv[3] == "pad"
log = pd.read_csv(log_file).rename(columns={"product": "item_id", "session": "session_id"})
log["time"] = pd.to_datetime(log["time"]).astype("int64") // 10**9
names = ["item_id", "category", "device"]
indices = names >> ops.Categorify(out_path=folder)
price = ["price"] >> ops.LogOp() >> ops.Normalize() >> ops.AddMetadata(tags=[Tags.CONTINUOUS])
sessions = (indices + price + ["session_id", "time"]) >> ops.Groupby(
    groupby_cols=["session_id"],
    sort_cols=["time"],
    aggs={
        "item_id": ["list", "count"], "category": ["list"], "price": ["list"],
        "device": ["first"], "time": ["first"],
    },
    name_sep="-",
)
lists = sessions["item_id-list", "category-list", "price-list"] >> ops.ListSlice(
    -12, pad=pad, pad_value=0
)
items = lists["item_id-list"] >> ops.AddMetadata(tags=[Tags.ITEM_ID, Tags.CATEGORICAL])
others = sessions["session_id", "item_id-count", "device-first"]
workflow = nvt.Workflow(items + lists["category-list", "price-list"] + others)
workflow.fit_transform(nvt.Dataset(log, cpu=True)).to_parquet(folder + "/sessions")

random = pd.read_json(folder + "/requests.json", dtype=False)
encoder = nvt.Workflow(indices)
encoder.fit(nvt.Dataset(log[names], cpu=True))
encoder.transform(nvt.Dataset(random[names], cpu=True)).to_ddf().compute().to_parquet(
    folder + "/encoded.parquet"
)
"""


class Stock(NamedTuple):
    """What stock NVTabular wrote, and its encoding of random raw values."""

    sessions: Path
    categories: Path
    requests: pd.DataFrame
    encoded: pd.DataFrame

    @property
    def schema(self) -> Path:
        return self.sessions / "schema.pbtxt"


@pytest.fixture(scope="module", params=["pad", "ragged"])
def stock(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Stock:
    folder = tmp_path_factory.mktemp("stock")
    synthesize(folder / "clicks.csv.gz", sessions=400, items=60, seed=3)
    random = np.random.default_rng(0)
    items = [*(f"sku-{i:05}" for i in range(60)), "sku-1", "", "unknown", None]
    values = {
        "item_id": random.choice(np.array(items, object), 10_000),
        "category": random.choice(["category-00", "category-03", "new"], 10_000),
        "device": random.choice(["phone", "desktop", "watch"], 10_000),
    }
    requests = pd.DataFrame(values)
    requests.to_json(folder / "requests.json")
    (folder / "workflow.py").write_text(WORKFLOW, encoding="utf-8")
    command = [sys.executable, "workflow.py", "clicks.csv.gz", str(folder), request.param]
    done = subprocess.run(
        command, cwd=folder, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    encoded = pd.read_parquet(folder / "encoded.parquet")
    return Stock(folder / "sessions", folder / "categories", requests, encoded)


def test_requests_are_encoded_as_by_the_workflow(stock: Stock, tmp_path: Path) -> None:
    data = pipeline.Data.from_parquet(stock.sessions, stock.schema)
    spec = encoder_spec(data.fitted, 10, 10) | {"packing": [], "width": 0, "targets": []}
    write_encoder(tmp_path, data.fitted, spec)
    encoder = Encoder(tmp_path)
    read = RequestReader(encoder)
    texts = {
        name: np.array([None if v is None else v.encode() for v in values], object)
        for name, values in stock.requests.items()
    }
    tensors = {
        "item_id": texts["item_id"].reshape(-1, 10),
        "category": texts["category"].reshape(-1, 10),
        "device": texts["device"][::10].reshape(-1, 1),
    }
    missing = {None: b""}
    tensors["item_id"] = np.vectorize(lambda v: missing.get(v, v), otypes=[object])(
        tensors["item_id"]
    )
    tensors["price"] = np.zeros((1_000, 10))
    encoded = encoder.encode(read.read(tensors).rows)
    raw = stock.requests["item_id"].to_numpy()
    expected = stock.encoded["item_id"].to_numpy().astype(np.int64)
    expected = np.where((raw == None) | (raw == ""), 1, expected)  # noqa: E711
    assert (encoded["item_id"][:, :10].reshape(-1) == expected).all()
    categories = stock.encoded["category"].to_numpy()
    assert (encoded["category"][:, :10].reshape(-1) == categories).all()
    assert (encoded["device"][:, 0] == stock.encoded["device"].to_numpy()[::10]).all()


def test_sessions_are_those_of_the_files(stock: Stock) -> None:
    data = pipeline.Data.from_parquet(stock.sessions, stock.schema)
    written = pq.read_table(data.path / "sessions" / "train").to_pandas()
    read = pq.read_table(stock.sessions / "part_0.parquet").to_pandas()
    read = read.set_index("session_id").loc[written["session_id"]]
    for ours, theirs in (("item_id", "item_id-list"), ("category", "category-list")):
        for row, expected in zip(written[ours], read[theirs], strict=True):
            length = int((expected != 0).sum()) if ours == "item_id" else len(row)
            assert row.tolist() == expected[:length].tolist()
    assert written["device"].tolist() == read["device-first"].tolist()
    assert set(data.schema.column_names) == {"item_id", "category", "price", "device"}
    assert data.facts["notes"][0].startswith("Left out item_id-count")


@pytest.mark.parametrize("with_categories", [True, False])
def test_the_command_line_goes_the_whole_way(
    stock: Stock, tmp_path: Path, with_categories: bool
) -> None:
    sessions, schema = stock.sessions, stock.schema
    if not with_categories:  # away from the folder of the workflow
        sessions = tmp_path / "moved"
        sessions.mkdir()
        (sessions / "part.parquet").write_bytes((stock.sessions / "part_0.parquet").read_bytes())
        schema = tmp_path / "moved" / "schema.pbtxt"
        schema.write_bytes(stock.schema.read_bytes())

    def run(*words: object) -> str:
        result = CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    out = tmp_path / "run"
    settings = "--set", "train.epochs=1", "--set", "model.d_model=16"
    held_out = sessions / ("part_0.parquet" if with_categories else "part.parquet")
    arguments = "--schema", schema, "--test", held_out, *settings
    printed = run("train", sessions, *arguments, "--out", out)
    assert ("are codes of the workflow" in printed) != with_categories
    evaluated = run("evaluate", out, "--data", tmp_path / "run-data", "--cutoffs", "10")
    assert "60 items ranked" in evaluated
    run("export", out, "--out", tmp_path / "repository")
    asked = "sku-00001,sku-00002" if with_categories else "4,5"
    lists = run("recommend", out, "--items", asked, "--k", "3")
    assert "no item id" not in lists
    assert lists.count("sku-") == (3 if with_categories else 0)


def changed(stock: Stock, tmp_path: Path, column: str, change: Any) -> Path:
    table = pq.read_table(stock.sessions / "part_0.parquet")
    at = table.column_names.index(column)
    table = table.set_column(at, column, change(table[column]))
    pq.write_table(table, tmp_path / "part.parquet")
    return tmp_path / "part.parquet"


def infinite(lists: pa.ChunkedArray) -> list[list[float]]:
    return [[np.inf for _ in values] for values in lists.to_pylist()]


def moved(lists: pa.ChunkedArray) -> list[list[int]]:
    first, second, *others = lists.to_pylist()
    return [[*first, second[-1]], second[:-1], *others]


@pytest.mark.parametrize(
    ("column", "change", "words"),
    [
        ("item_id-list", lambda c: pa.array([[999, 5]] * len(c)), "expected 0 to 62"),
        ("item_id-list", lambda c: pa.array([[0, 5]] * len(c)), "padding on the right"),
        ("category-list", lambda c: pa.array([[3]] * len(c)), "one value per interaction"),
        ("item_id-list", lambda c: pa.array([5] * len(c)), "in lists, one per session"),
        ("price-list", lambda c: pa.array([["a"]] * len(c)), "expected numbers, in lists"),
        ("price-list", lambda c: pa.array(infinite(c)), "infinite numbers"),
        # as many values as items in all, in other sessions
        ("category-list", lambda c: pa.array(moved(c)), "one value per interaction"),
    ],
)
def test_files_that_are_not_what_the_schema_says_are_refused(
    stock: Stock, tmp_path: Path, column: str, change: Any, words: str
) -> None:
    path = changed(stock, tmp_path, column, change)
    with pytest.raises(DataError, match=words):
        pipeline.Data.from_parquet(path, stock.schema, categories=stock.categories)


def test_every_file_has_the_columns(stock: Stock, tmp_path: Path) -> None:
    table = pq.read_table(stock.sessions / "part_0.parquet")
    pq.write_table(table, tmp_path / "a.parquet")
    pq.write_table(table.drop_columns("price-list"), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet has no column 'price-list'"):
        pipeline.Data.from_parquet(tmp_path, stock.schema, categories=stock.categories)
    (tmp_path / "b.parquet").write_text("text")
    with pytest.raises(DataError, match=r"b\.parquet is no Parquet file"):
        pipeline.Data.from_parquet(tmp_path, stock.schema, categories=stock.categories)


def test_missing_numbers_are_the_mean(stock: Stock, tmp_path: Path) -> None:
    def missing(lists: pa.ChunkedArray) -> pa.Array:
        return pa.array([[np.nan, *values[1:]] for values in lists.to_pylist()], from_pandas=False)

    path = changed(stock, tmp_path, "price-list", missing)
    data = pipeline.Data.from_parquet(path, stock.schema, categories=stock.categories)
    sessions = pq.read_table(data.path / "sessions" / "train")
    assert {values[0] for values in sessions["price"].to_pylist()} == {0.0}


def test_null_items_are_missing_ones_and_no_padding(stock: Stock, tmp_path: Path) -> None:
    def nulls(lists: pa.ChunkedArray) -> pa.Array:
        sessions = [[item for item in items if item] for items in lists.to_pylist()]
        ends = [len(items) for items in sessions]
        widths = [len(items) for items in lists.to_pylist()]
        sessions[0][-1] = sessions[1][0] = None  # type: ignore[call-overload]
        return pa.array(
            [[*s, *[0] * (w - e)] for s, e, w in zip(sessions, ends, widths, strict=True)]
        )

    before = pipeline.Data.from_parquet(stock.sessions, stock.schema, categories=stock.categories)
    path = changed(stock, tmp_path, "item_id-list", nulls)
    data = pipeline.Data.from_parquet(path, stock.schema, categories=stock.categories)
    expected = pq.read_table(before.path / "sessions" / "train")["item_id"].to_pylist()
    expected[0][-1] = expected[1][0] = 1
    assert pq.read_table(data.path / "sessions" / "train")["item_id"].to_pylist() == expected
    assert data.facts["notes"][-1] == "2 items are null; they are kept as missing ones."
    assert not any("null" in note for note in before.facts["notes"])


def test_a_value_has_one_index(stock: Stock, tmp_path: Path) -> None:
    for path in stock.categories.glob("unique.*.parquet"):
        table = pq.read_table(path).to_pandas()
        if path.name == "unique.item_id.parquet":
            table.loc[len(table) - 1, "item_id"] = table["item_id"].iloc[-2]
        table.to_parquet(tmp_path / path.name)
    with pytest.raises(DataError, match="has a value twice"):
        pipeline.Data.from_parquet(stock.sessions, stock.schema, categories=tmp_path)


def test_two_columns_of_one_name_are_named() -> None:
    categorical = frozenset({Tags.CATEGORICAL})
    schema = Schema(
        [
            ColumnSchema(
                name="sku_list", tags=categorical | {Tags.ITEM_ID}, num_rows=9, is_list=True
            ),
            ColumnSchema(name="brand_list", tags=categorical, num_rows=9, is_list=True),
            ColumnSchema(name="brand_first", tags=categorical, num_rows=9),
        ]
    )
    with pytest.raises(ConfigError, match=r"brand_list and brand_first .* the name 'brand'"):
        choose_columns(schema)


def test_parts_follow_names_and_options(tmp_path: Path) -> None:
    for name in ("train/a", "valid/b", "test/c", "categories/unique.x"):
        path = tmp_path / f"{name}.parquet"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "more.parquet").touch()
    parts = parts_of([tmp_path / "train", tmp_path / "valid"], [], [tmp_path / "more.parquet"])
    assert [path.name for path in parts["train"]] == ["a.parquet", "b.parquet"]
    parts = parts_of([tmp_path])
    names = {name: [path.name for path in paths] for name, paths in parts.items()}
    assert names == {
        "train": ["more.parquet", "a.parquet"],
        "valid": ["b.parquet"],
        "test": ["c.parquet"],
    }
    with pytest.raises(DataError, match="no Parquet file to train on"):
        parts_of([])


def test_options_of_parquet_go_with_a_schema(tmp_path: Path) -> None:
    words = ["train", str(tmp_path), "--valid", "x.parquet", "--out", str(tmp_path / "run")]
    with pytest.raises(ConfigError, match="go with --schema"):
        CliRunner().invoke(app, words, catch_exceptions=False)
