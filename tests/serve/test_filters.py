"""What lists may hold, and other forms of requests, asked of a real Triton."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.csv
import pytest
import torch

from pipeline.core.errors import ConfigError, DataError, ServingError
from pipeline.data.batch import SessionBatch
from pipeline.data.fitted import Fitted
from pipeline.model.model import Model
from pipeline.model.model_files import load_model
from pipeline.serve.client.async_client import AsyncClient
from pipeline.serve.client.client import Client
from pipeline.serve.client.tensors import request_tensors
from pipeline.serve.runtime.request import RequestReader
from pipeline.serve.runtime.request_encoder import Encoder
from pipeline.serve.triton.ports import free_ports
from pipeline.serve.triton.server import TritonServer
from tests.conftest import SESSION, Shop


@pytest.fixture
def client(server: TritonServer) -> Iterator[Client]:
    with Client(f"grpc://{server.grpc_url}") as opened:
        yield opened


@pytest.fixture(scope="module")
def model(shop: Shop) -> Model:
    return load_model(shop.run)


@pytest.fixture(scope="module")
def catalogue(shop: Shop) -> list[str]:
    return Fitted.read(shop.run).item.values.to_pylist()


def sessions(random: np.random.Generator, count: int, catalogue: list[str]) -> list[dict[str, Any]]:
    """With items that are unknown, and columns that are missing now and then."""
    made = []
    for _ in range(count):
        length = int(random.integers(1, 9))
        items = random.choice([*catalogue, "unknown"], length).tolist()
        session = {"item_id": items, "price": random.uniform(1, 90, length).tolist()}
        session["action"] = random.choice(["view", "cart", None], length).tolist()
        session["device"] = [random.choice(["phone", "desktop"])]
        session["timestamp"] = [f"2026-01-05 00:00:{s:02} UTC" for s in range(length)]
        made.append({n: v for n, v in session.items() if n == "item_id" or random.random() < 0.9})
    return made


def offline(
    shop: Shop, model: Model, tensors: dict[str, np.ndarray], k: int, **filters: Any
) -> Any:
    """The model itself, from the tensors that the encoder makes."""
    encoder = Encoder(shop.repository / "recommender_requests_v1" / "1")
    encoded = encoder.encode(RequestReader(encoder).read(tensors).rows)
    features = {
        name: torch.from_numpy(values[:, 0] if values.shape[1] == 1 else values)
        for name, values in encoded.items()
        if name in model.inputs.feature_names
    }
    lengths = torch.from_numpy((encoded["item_id"] != 0).sum(1))
    with torch.no_grad():
        return model.top_k(SessionBatch(features, lengths), k, **filters)


def test_filtered_lists_equal_those_of_the_model(
    shop: Shop, model: Model, catalogue: list[str], client: Client
) -> None:
    random = np.random.default_rng(4)
    index = {item: 3 + i for i, item in enumerate(catalogue)}
    for turn in range(30):
        asked = sessions(random, int(random.integers(1, 9)), catalogue)
        k = int(random.choice([1, 5, 40]))
        exclude = random.choice(catalogue, 6).tolist() if turn % 2 else None
        candidates = random.choice(catalogue, 25).tolist() if turn % 3 == 0 else None
        seen = bool(turn % 4 == 1)
        filters = {"exclude": exclude, "candidates": candidates, "filter_seen": seen}
        answer = client.recommend(asked, k, embeddings=True, **filters)
        offline_lists = offline(
            shop,
            model,
            request_tensors(client.served, asked),
            k,
            filter_seen=seen,
            excluded=None if exclude is None else torch.tensor([index[i] for i in exclude]),
            candidates=None if candidates is None else torch.tensor([index[i] for i in candidates]),
        )
        assert answer.scores == pytest.approx(offline_lists.scores.numpy(), abs=1e-4)
        for row, record in enumerate(answer.records([None] * len(asked))):
            ids = [entry["item_id"] for entry in record["recommendations"]]
            expected = [catalogue[i - 3] for i in offline_lists.items[row].tolist() if i]
            assert ids == expected
            assert not {*ids} & {*(exclude or [])}
            assert candidates is None or {*ids} <= {*candidates}
            assert not (seen and {*ids} & {*asked[row]["item_id"]})
        # scores are inner products of the vectors
        vectors = model.item_embeddings().detach().numpy()
        assert answer.embeddings is not None
        best = (answer.embeddings @ vectors.T).max(1)
        if not exclude and not candidates and not seen:
            assert best == pytest.approx(answer.scores[:, 0], abs=1e-4)


def test_exclude_may_differ_per_session(client: Client, catalogue: list[str]) -> None:
    first, second = catalogue[:3], catalogue[5:6]
    answer = client.recommend([SESSION, SESSION], 100, exclude=[first, second])
    lists = [set(row.tolist()) for row in answer.items]
    assert not lists[0] & {*first}
    assert not lists[1] & {*second}
    answer = client.recommend([SESSION, SESSION], 10, candidates=[first, second])
    assert [len(r["recommendations"]) for r in answer.records([1, 2])] == [3, 1]


def test_ids_may_come_as_arrays(client: Client, catalogue: list[str]) -> None:
    ids = np.array(catalogue[:2])
    answer = client.recommend([SESSION, SESSION], 100, exclude=[ids, ids[:0]])
    assert not {*ids} & {*answer.items[0]}
    assert {*ids} & {*answer.items[1]} or len(catalogue) > 100
    with pytest.raises(ConfigError, match="not text in UTF-8"):
        client.recommend([{"item_id": ["\ud800"]}])


def test_unknown_candidates_give_an_empty_list(client: Client) -> None:
    answer = client.recommend([SESSION], 5, candidates=["no such item"])
    [record] = answer.records(["s"])
    assert record == {"session_id": "s", "num_known": 2, "recommendations": []}
    assert np.isneginf(answer.scores).all()


@pytest.mark.parametrize(
    ("filters", "words"),
    [
        ({"candidates": []}, "candidates is empty"),
        ({"exclude": [["a"], ["b"]]}, "exclude has lists for 2 sessions, expected 1"),
        ({"exclude": "sku-00001"}, "exclude is 'sku-00001', expected a list of item ids"),
        ({"exclude": [["a"], "b"]}, "exclude mixes item ids and lists of them"),
    ],
)
def test_invalid_filters_are_refused(client: Client, filters: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        client.recommend([SESSION], 5, **filters)


def test_item_ids_are_enough(client: Client) -> None:
    [record] = client.recommend([{"item_id": ["sku-00001"]}], 4).records([None])
    assert len(record["recommendations"]) == 4


def test_flat_request_returns_a_list_per_session(
    client: Client, server: TritonServer, shop: Shop
) -> None:
    import tritonclient.http

    is_text = Fitted.read(shop.run).session_type == "string"
    ids = np.array([["b", "a", "b", "a"]], object) if is_text else np.array([[2, 1, 2, 1]])
    items = np.array([["sku-00003", "sku-00001", "sku-00004", "sku-00002"]], object)
    inputs = []
    for name, array in (("session_id", ids), ("item_id", items)):
        kind = "INT64" if array.dtype == np.int64 else "BYTES"
        inputs.append(tritonclient.http.InferInput(name, array.shape, kind))
        inputs[-1].set_data_from_numpy(array)
    with tritonclient.http.InferenceServerClient(server.http_url) as raw:
        names = ("session_ids", "item_ids", "scores", "num_known")
        requested = [tritonclient.http.InferRequestedOutput(name) for name in names]
        result = raw.infer("recommender", inputs, outputs=requested)
    assert result.as_numpy("num_known").tolist() == [[2, 2]]
    assert result.as_numpy("session_ids").tolist() == [[b"b", b"a"] if is_text else [2, 1]]
    lists = result.as_numpy("item_ids").reshape(2, 10)
    alone = client.recommend(
        [{"item_id": ["sku-00003", "sku-00004"]}, {"item_id": ["sku-00001", "sku-00002"]}]
    )
    assert [[v.decode() for v in row] for row in lists] == alone.items.tolist()
    assert result.as_numpy("scores").reshape(2, 10) == pytest.approx(alone.scores, abs=1e-5)


@pytest.fixture(scope="module")
def frame(shop: Shop) -> pd.DataFrame:
    rows = pyarrow.csv.read_csv(shop.clicks).to_pandas()
    return rows[rows["session"].isin(rows["session"].drop_duplicates()[:150])]


def test_frame_and_file_get_equal_lists(
    client: Client, frame: pd.DataFrame, tmp_path: Path
) -> None:
    frame.astype({"time": str}).to_parquet(tmp_path / "log.parquet")
    records = {
        r["session_id"]: [e["item_id"] for e in r["recommendations"]]
        for r in client.recommend_log([tmp_path / "log.parquet"], 3)
    }
    table = client.recommend_frame(frame, 3)
    assert list(table.columns) == ["session_id", "rank", "item_id", "score"]
    assert len(table) == 450
    assert table.groupby("session_id")["item_id"].apply(list).to_dict() == records
    shown = table["item_id"].unique()
    other = client.recommend_frame(frame, 3, exclude=shown)
    assert len(other) == 450
    assert not set(other["item_id"]) & set(shown)
    with pytest.raises(ConfigError, match="exclude has a list for each session"):
        client.recommend_frame(frame, 3, exclude=[["sku-00001"]] * 150)
    few = client.recommend_frame(frame[["session", "product"]], 3)
    assert len(few) == 450
    with pytest.raises(DataError, match="The frame has no column 'product'"):
        client.recommend_frame(frame[["session"]])


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_async_client_equals_the_client(
    client: Client, server: TritonServer, frame: pd.DataFrame, protocol: str
) -> None:
    url = f"{protocol}://{server.http_url if protocol == 'http' else server.grpc_url}"

    async def ask() -> tuple[Any, pd.DataFrame]:
        async with AsyncClient(url) as waiting:
            together = await asyncio.gather(
                *(waiting.recommend([SESSION], k, filter_seen=True) for k in (1, 5, 9))
            )
            with pytest.raises(ServingError, match="k is 0"):
                await waiting.recommend([SESSION], 0)
            return together, await waiting.recommend_frame(frame, 3)

    answers, table = asyncio.run(ask())
    for answer, k in zip(answers, (1, 5, 9), strict=True):
        expected = client.recommend([SESSION], k, filter_seen=True)
        assert answer.items.tolist() == expected.items.tolist()
    pd.testing.assert_frame_equal(table, client.recommend_frame(frame, 3), atol=1e-5)

    async def ask_missing_server() -> None:
        async with AsyncClient(f"{protocol}://127.0.0.1:{free_ports().http}") as waiting:
            await waiting.recommend([SESSION])

    with pytest.raises(ServingError, match="No server answers at"):
        asyncio.run(ask_missing_server())
