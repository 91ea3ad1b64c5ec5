"""A real Triton on a real export; where it cannot start, these tests fail."""

import json
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from pipeline.core.errors import ConfigError, ServingError
from pipeline.data.fitted import Fitted
from pipeline.data.loader import SessionLoader
from pipeline.evaluation.recommender import Recommender
from pipeline.exporting.options import ExportOptions
from pipeline.exporting.run import export
from pipeline.preprocessing import workflow
from pipeline.preprocessing.run import preprocess
from pipeline.preprocessing.synthetic import synthesize
from pipeline.recipe.recipe import Recipe
from pipeline.serve.client.client import Client
from pipeline.serve.client.logs import read_sessions
from pipeline.serve.client.tensors import request_tensors
from pipeline.serve.run import running_server
from pipeline.serve.triton.ports import free_ports
from pipeline.serve.triton.server import TritonServer
from pipeline.training.run import train
from tests.conftest import ROOT, SESSION, Shop
from tests.preprocessing.whole_log import read_interactions

PROTOCOLS = ["http", "grpc"]


@pytest.fixture(params=PROTOCOLS)
def client(request: pytest.FixtureRequest, server: TritonServer) -> Iterator[Client]:
    with Client(url_of(server, request.param)) as opened:
        yield opened


def url_of(server: TritonServer, protocol: str) -> str:
    return f"{protocol}://{server.http_url if protocol == 'http' else server.grpc_url}"


def offline_lists(run: Path, log: Path, directory: Path, k: int) -> dict[Any, tuple[list, list]]:
    """Top-K by session id: the NVTabular workflow, the Merlin loader and the model in torch."""
    fitted = Fitted.read(run)
    types = {"session_id": fitted.session_type}
    types |= {name: v.type for name, v in fitted.vocabularies.items()}
    interactions = read_interactions(fitted.recipe, [log], types)
    sessions = workflow.transform(workflow.rebuild(fitted, keep=None), interactions.frame)
    target = directory / "sessions" / "test"
    target.mkdir(parents=True)
    table = pa.Table.from_pandas(sessions, preserve_index=False).replace_schema_metadata(None)
    pq.write_table(table, target / "part-0.parquet")
    recommender = Recommender.open(run)
    inputs = recommender.model.inputs
    loader = SessionLoader(
        directory, "test", item=inputs.item, features=inputs.feature_names, batch_size=256
    )
    parts = list(recommender._recommend(loader, k, False, np.zeros(0, np.int64), None))
    items = np.concatenate([part.items for part in parts]).tolist()
    scores = np.concatenate([part.scores for part in parts]).tolist()
    rows = zip(items, scores, strict=True)
    return dict(zip(table["session_id"].to_pylist(), rows, strict=True))


def assert_equal_lists(
    offline: dict[Any, tuple[list, list]], records: list[dict[str, Any]], num_sessions: int
) -> None:
    """Same ids in the same order, scores to 1e-4."""
    assert len(records) == len(offline) == num_sessions
    for record in records:
        items, scores = offline[record["session_id"]]
        assert [entry["item_id"] for entry in record["recommendations"]] == items
        actual = [entry["score"] for entry in record["recommendations"]]
        assert actual == pytest.approx(scores, abs=1e-4)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_server_equals_offline_prediction_for_1000_sessions(
    shop: Shop, server: TritonServer, protocol: str, tmp_path: Path
) -> None:
    log = tmp_path / "new.parquet"
    # another catalogue than the one learned: some items and categories are unknown
    synthesize(log, sessions=1_000, items=240, seed=9)
    offline = offline_lists(shop.run, log, tmp_path, k=20)
    with Client(url_of(server, protocol)) as client:
        assert_equal_lists(offline, list(client.recommend_log([log], 20)), 1_000)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_server_equals_offline_prediction_for_10000_concurrent_requests(
    shop: Shop, server: TritonServer, protocol: str, tmp_path: Path
) -> None:
    log = tmp_path / "new.parquet"
    synthesize(log, sessions=10_000, items=240, seed=10)
    offline = offline_lists(shop.run, log, tmp_path, k=20)
    with Client(url_of(server, protocol)) as client:
        asked = list(read_sessions(client.served, [log]))
    own = threading.local()

    def ask(session: tuple[Any, dict[str, Any]]) -> dict[str, Any]:
        if not hasattr(own, "client"):
            own.client = Client(url_of(server, protocol))
        [record] = own.client.recommend([session[1]], 20).records([session[0]])
        return dict(record)

    with ThreadPoolExecutor(8) as pool:
        records = list(pool.map(ask, asked))
    assert_equal_lists(offline, records, 10_000)


@pytest.mark.parametrize(
    ("config", "file", "model"),
    [
        ("rsc15.yaml", "rsc15-100k/test.tsv.gz", ("model.d_model=32",)),
        pytest.param(
            "rees46.yaml",
            "rees46-sample/events.csv.gz",
            (
                *("model.d_model=32", "model.architecture=xlnet"),
                *("model.masking=mlm", "model.repeats=0"),
            ),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_server_equals_offline_prediction_for_real_sessions(
    real_data: Path, tmp_path: Path, config: str, file: str, model: tuple[str, ...]
) -> None:
    overrides = (*model, "train.epochs=1", "preprocess.split={}")
    recipe = Recipe.load(ROOT / "configs" / config, overrides)
    whole = pyarrow.csv.read_csv(
        pa.input_stream(str(real_data / file), compression="gzip"),
        parse_options=pyarrow.csv.ParseOptions(
            delimiter="\t" if ".tsv" in file else ",", invalid_row_handler=lambda _: "skip"
        ),
        convert_options=pyarrow.csv.ConvertOptions(column_types={"event_time": pa.string()}),
    ).to_pandas()
    ids = whole[recipe.preprocess.session]
    log = tmp_path / "sessions.parquet"
    chosen = whole[ids.isin(ids.drop_duplicates().iloc[:1_000])]
    pq.write_table(pa.Table.from_pandas(chosen, preserve_index=False), log)

    preprocess(recipe.preprocess, [real_data / file], [], tmp_path / "data")
    train(tmp_path / "data", recipe.model, recipe.train, tmp_path / "run")
    export(tmp_path / "run", tmp_path / "repository")
    offline = offline_lists(tmp_path / "run", log, tmp_path / "offline", k=20)
    with (
        running_server(tmp_path / "repository", ports=free_ports()) as server,
        Client(url_of(server, "grpc")) as client,
    ):
        assert_equal_lists(offline, list(client.recommend_log([log], 20)), 1_000)


def test_a_file_of_raw_interactions_may_come_unsorted(
    shop: Shop, client: Client, tmp_path: Path
) -> None:
    rows = pyarrow.csv.read_csv(shop.clicks).to_pandas()
    rows["time"] = rows["time"].astype(str)
    rows = rows[rows["session"].isin(rows["session"].drop_duplicates()[:50])]
    for name, frame in (("a", rows), ("b", rows.sample(frac=1, random_state=0))):
        pq.write_table(
            pa.Table.from_pandas(frame, preserve_index=False), tmp_path / f"{name}.parquet"
        )
    a, b = (
        {
            r["session_id"]: r["recommendations"]
            for r in client.recommend_log([tmp_path / f"{n}.parquet"], 5)
        }
        for n in ("a", "b")
    )
    assert a.keys() == b.keys()
    assert all([e["item_id"] for e in a[s]] == [e["item_id"] for e in b[s]] for s in a)


@pytest.mark.parametrize(
    "changes",
    [
        {"item_id": ["no-such-item", "sku-00002"]},
        {"item_id": ["no-such-item", "nor-this-one"]},
        {"item_id": [None, None]},
        {"category": ["no-such-category", None]},
        {"action": [None, None], "price": [None, float("inf")], "device": [None]},
        {"price": [-5.0, float("nan")]},
        {"timestamp": [None, ""]},
        {name: values[:1] for name, values in SESSION.items()},
        {name: values * 50 if name != "device" else values for name, values in SESSION.items()},
    ],
)
def test_unknown_and_missing_values_and_any_length_get_an_answer(
    client: Client, changes: dict[str, list[Any]]
) -> None:
    answer = client.recommend([{**SESSION, **changes}], 7)
    assert answer.items.shape == answer.scores.shape == (1, 7)
    assert len(set(answer.items[0])) == 7
    assert np.isfinite(answer.scores).all()
    assert (np.diff(answer.scores[0]) <= 0).all()
    assert all(str(item).startswith("sku-") for item in answer.items[0])


def test_a_time_that_cannot_be_read_is_refused_by_its_value(client: Client) -> None:
    with pytest.raises(ServingError, match="timestamp is 'not a time', expected a time such as"):
        client.recommend([{**SESSION, "timestamp": [None, "not a time"]}], 7)


def test_sessions_of_one_request_get_what_each_gets_alone(client: Client) -> None:
    short = {name: values[:1] for name, values in SESSION.items()}
    long = {n: v * 15 if n != "device" else v for n, v in SESSION.items()}
    together = client.recommend([SESSION, short, long], 5)
    for row, session in enumerate((SESSION, short, long)):
        alone = client.recommend([session], 5)
        assert alone.items[0].tolist() == together.items[row].tolist()
        assert alone.scores[0] == pytest.approx(together.scores[row], abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "k", "words"),
    [
        ({"item_id": None}, 5, "item_id is missing"),
        ({}, -1, "k is -1, expected 1 to 100"),
        ({}, 0, "k is 0, expected 1 to 100"),
        ({}, 101, "k is 101, expected 1 to 100"),
        ({"price": np.array([["a", "b"]], object)}, 5, "expects 'FP64'"),
        ({"item_id": np.array([[1, 2]])}, 5, "expects 'BYTES'"),
        ({"price": np.array([[1.0]])}, 5, "price has the shape [1, 1], expected [1, 2]"),
        ({"length": np.array([[3]], np.int32)}, 5, "length is 3, expected 1 to 2"),
        ({"length": np.array([[0]], np.int32)}, 5, "length is 0, expected 1 to 2"),
        ({"brand": np.array([["x"]], object)}, 5, "unexpected inference input 'brand'"),
    ],
)
def test_a_bad_request_gets_a_clear_error_and_the_server_lives_on(
    client: Client, changes: dict[str, Any], k: int, words: str
) -> None:
    tensors = request_tensors(client.served, [SESSION], k=k)
    for name, array in changes.items():
        if array is None:
            del tensors[name]
        else:
            tensors[name] = array
    with pytest.raises(ServingError) as error:
        client.infer(tensors)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert client.recommend([SESSION], 3).items.shape == (1, 3)


def test_client_refuses_wrong_sessions_before_sending(client: Client) -> None:
    with pytest.raises(ConfigError, match="no column 'colour'"):
        client.recommend([{**SESSION, "colour": ["red", "red"]}])
    with pytest.raises(ConfigError, match="price has 1 values, expected 2"):
        client.recommend([{**SESSION, "price": [1.0]}])
    with pytest.raises(ConfigError, match="expected numbers"):
        client.recommend([{**SESSION, "price": ["cheap", 2]}])


def test_curl_gets_an_answer_in_json(server: TritonServer) -> None:
    types = {"price": "FP64"}
    inputs = [
        {
            "name": name,
            "shape": [1, len(values)],
            "datatype": types.get(name, "BYTES"),
            "data": values,
        }
        for name, values in SESSION.items()
    ]
    request = urllib.request.Request(
        f"http://{server.http_url}/v2/models/recommender/infer",
        data=json.dumps({"inputs": inputs}).encode(),
    )
    with urllib.request.urlopen(request, timeout=20) as response:
        outputs = {o["name"]: o for o in json.load(response)["outputs"]}
    assert outputs["item_ids"]["shape"] == outputs["scores"]["shape"] == [1, 10]
    for broken in (b"{", b"[]", b'{"inputs": 3}'):
        request.data = broken
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(request, timeout=20)
        assert error.value.code in (400, 500)
        error.value.close()


def test_sessions_of_different_lengths_from_many_clients_share_a_batch(
    server: TritonServer,
) -> None:
    import tritonclient.http

    def executions() -> tuple[int, int]:
        with tritonclient.http.InferenceServerClient(server.http_url) as stats:
            entry = stats.get_inference_statistics("recommender_requests_v1")["model_stats"][0]
        return int(entry.get("inference_count", 0)), int(entry.get("execution_count", 0))

    def settled() -> tuple[int, int]:
        """Triton counts a request after it has answered it."""
        counts = executions()
        while True:
            time.sleep(0.3)
            again = executions()
            if again == counts:
                return counts
            counts = again

    sessions = [
        {n: v * (1 + i % 5) if n != "device" else v for n, v in SESSION.items()} for i in range(160)
    ]

    def ask(part: list[dict[str, list[Any]]]) -> list[list[Any]]:
        with Client(url_of(server, "grpc")) as client:
            return [client.recommend([session], 3).items[0].tolist() for session in part]

    expected = ask(sessions[:5])
    before = settled()
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, [sessions[i::16] for i in range(16)]))
    after = settled()
    for start, answer in enumerate(answers):
        assert answer == [expected[i % 5] for i in range(start, 160, 16)]
    assert after[0] - before[0] == 160
    assert after[1] - before[1] < 160


def test_a_repository_serves_when_copied_elsewhere_and_read_only(
    shop: Shop, tmp_path: Path
) -> None:
    copied = tmp_path / "a copy"
    shutil.copytree(shop.repository, copied)
    for path in sorted(copied.rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    copied.chmod(0o555)
    before = sorted(path.relative_to(copied) for path in copied.rglob("*"))
    with (
        running_server(copied, ports=free_ports()) as server,
        Client(url_of(server, "http")) as client,
    ):
        assert client.recommend([SESSION], 4).items.shape == (1, 4)
    assert sorted(path.relative_to(copied) for path in copied.rglob("*")) == before


def test_log_is_sent_in_batches_of_the_allowed_size(shop: Shop, tmp_path: Path) -> None:
    export(shop.run, tmp_path / "small", ExportOptions(max_batch=4))
    log = tmp_path / "new.parquet"
    synthesize(log, sessions=11, items=200, seed=9)
    with (
        running_server(tmp_path / "small", ports=free_ports()) as server,
        Client(url_of(server, "http")) as client,
    ):
        assert len(list(client.recommend_log([log], 2))) == 11
        with (
            pytest.raises(ServingError, match="does not speak Triton's http"),
            Client(f"http://{server.metrics_url}") as wrong,
        ):
            wrong.recommend([SESSION])


def test_unreachable_server_reports_one_line() -> None:
    port = free_ports().http
    for protocol in PROTOCOLS:
        with (
            pytest.raises(ServingError, match="No server answers at"),
            Client(f"{protocol}://127.0.0.1:{port}") as client,
        ):
            client.recommend([SESSION])
    with pytest.raises(ConfigError, match="is no address, expected http://HOST:PORT"):
        Client("127.0.0.1:8000")
