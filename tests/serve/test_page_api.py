"""API of the page: right and wrong requests, other sites, newer exports."""

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import ServingError
from pipeline.exporting.options import ExportOptions
from pipeline.exporting.run import export
from pipeline.serve.client.client import Client
from pipeline.serve.page.api import Api
from pipeline.serve.page.server import MAX_BODY_BYTES, MAX_CONNECTIONS, Page
from pipeline.serve.run import running_server
from pipeline.serve.triton.ports import free_ports
from pipeline.serve.triton.server import TritonServer
from tests.conftest import Shop
from tests.serve.shown import Fake, ask, lists, say, shown, write_catalogue


@pytest.fixture(scope="module")
def page(shop: Shop, server: TritonServer) -> Iterator[Page]:
    with Page("127.0.0.1", 0) as opened:
        opened.open(shop.repository, server.grpc_url, follow=False)
        yield opened


def test_the_catalogue_is_searched_in_any_case_and_page_by_page(tmp_path: Path) -> None:
    ids = [f"Item {i}" for i in range(30)] + ["ITEM 1 b", "other"]
    with shown(tmp_path, ids) as (page, _):
        status, _, model = say(page, "GET", "/api/model")
        assert status == 200
        assert model == {
            "name": "recommender",
            "version": 1,
            "catalogue_items": 32,
            "default_k": 2,
            "max_k": 32,
            "filter_seen": False,
            "other_columns": [],
            "most_items": 1_000,
            "labels": {"titles": 0, "images": 0},
        }
        whole = say(page, "GET", "/api/items?limit=200")[2]
        assert whole == {"version": 1, "total": 32, "items": ids, "labels": {}}
        some = say(page, "GET", "/api/items?search=%20tem%201&offset=1&limit=3")[2]
        assert (some["total"], some["items"]) == (12, ["Item 10", "Item 11", "Item 12"])
        exact = say(page, "GET", "/api/items?search=ITEM%201%20b")[2]
        assert exact["items"] == ["ITEM 1 b"]
        assert say(page, "GET", "/api/items?search=Item%2011")[2]["items"][0] == "Item 11"
        assert say(page, "GET", "/api/items?offset=99")[2]["items"] == []


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("GET", "/nothing", None, 404, "The page is at /."),
        ("GET", "/../server.py", None, 404, "Unknown address"),
        ("GET", "/api/items?limit=0", None, 400, "`limit` is '0': expected 1 or more"),
        ("GET", "/api/items?limit=201", None, 400, "200 or less"),
        ("GET", "/api/items?offset=-1", None, 400, "`offset` is '-1'"),
        ("GET", "/api/items?offset=²", None, 400, "`offset` is"),
        ("GET", "/api/items?serch=a", None, 400, "unknown key `serch`"),
        ("GET", "/api/items?search=" + "a" * 201, None, 400, "`search`: "),
        ("GET", "/api/recommend", None, 405, "Method Not Allowed"),
        ("POST", "/api/items", "{}", 405, "Method Not Allowed"),
        ("PUT", "/api/recommend", "{}", 405, "Method Not Allowed"),
        ("DELETE", "/", None, 405, "Method Not Allowed"),
        ("POST", "/api/recommend", "{", 400, "no JSON"),
        ("POST", "/api/recommend", b"\xff", 400, "no JSON"),
        ("POST", "/api/recommend", "[" * 100_000, 400, "no JSON"),
        ("POST", "/api/recommend", "1" * 5_000, 400, "no JSON"),
        ("POST", "/api/recommend", "3", 400, "The request: "),
        ("POST", "/api/recommend", "{}", 400, "`items` is missing"),
        ("POST", "/api/recommend", '{"items": []}', 400, "`items` is []"),
        ("POST", "/api/recommend", '{"items": "a"}', 400, "`items` is 'a': expected a list"),
        ("POST", "/api/recommend", '{"items": [1]}', 400, "`items.0` is 1: expected text"),
        ("POST", "/api/recommend", '{"items": [""]}', 400, "`items.0` is ''"),
        ("POST", "/api/recommend", '{"items": ["\\ud800"]}', 400, "The request: `items.0`"),
        ("POST", "/api/recommend", '{"items": ["a"], "k": 0}', 400, "k is 0"),
        ("POST", "/api/recommend", '{"items": ["a"], "k": true}', 400, "`k` is True"),
        ("POST", "/api/recommend", '{"items": ["a"], "k": 1.5}', 400, "`k` is 1.5"),
        ("POST", "/api/recommend", '{"items": ["a"], "k": 101}', 400, "1 to 100"),
        ("POST", "/api/recommend", '{"items": ["a"], "filter_seen": 1}', 400, "true or false"),
        ("POST", "/api/recommend", '{"items": ["a"], "exclude": {}}', 400, "`exclude` is {}"),
        ("POST", "/api/recommend", '{"items": ["a"], "b": 1}', 400, "unknown key `b`"),
        ("POST", "/api/recommend", json.dumps({"items": ["a"] * 1_001}), 400, "`items`: "),
        ("POST", "/api/recommend", " " * (MAX_BODY_BYTES + 1), 413, "expected up to 262144"),
    ],
)
def test_a_wrong_request_gets_one_line_and_the_page_lives_on(
    page: Page, method: str, path: str, body: Any, status: int, words: str
) -> None:
    code, headers, said = say(page, method, path.replace("²", "%C2%B2"), body)
    assert code == status
    assert set(said) == {"error"}
    assert words in said["error"]
    assert "\n" not in said["error"]
    assert len(said["error"]) < 200
    assert headers["Content-Security-Policy"].startswith("default-src 'self';")
    assert ask(page, items=["sku-00001"], k=3)[0] == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "evil.example:8003"}, 421),
        ({"Host": "127.0.0.1.evil.example"}, 421),
        ({"Host": ""}, 421),
        ({"Host": "[::"}, 421),
        ({"Host": "localhost"}, 200),
        ({"Host": "LOCALHOST:9"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:9", "Origin": "http://localhost:9"}, 200),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "application/json; charset=utf-8"}, 200),
    ],
)
def test_requests_of_other_sites_are_refused(
    tmp_path: Path, headers: dict[str, str], status: int
) -> None:
    with shown(tmp_path, ["a", "b"]) as (page, fake):
        code, _, said = say(page, "POST", "/api/recommend", '{"items": ["a"]}', headers)
        assert code == status
        assert bool(fake.tensors) == (status == 200)
        assert ("error" in said) == (status != 200)


@pytest.mark.parametrize("length", ["-1", "many"])
def test_a_length_that_is_no_number_is_refused_before_the_body(page: Page, length: str) -> None:
    # without a body: its sender might be cut off before it reads the answer
    assert say(page, "POST", "/api/recommend", headers={"Content-Length": length})[0] == 400


def test_open_page_answers_under_any_name(tmp_path: Path) -> None:
    with Page("127.0.0.1", 0) as page:
        page.loopback = False  # as on 0.0.0.0, which tests do not open
        page.start(
            Api(write_catalogue(tmp_path, ["a"]), lambda n: Fake(["a"], n), follow=False)  # type: ignore[arg-type,return-value]
        )
        assert say(page, "GET", "/api/model", headers={"Host": "shop.example:8003"})[0] == 200


def test_page_is_answered_beside_connections_that_are_idle_or_drip(tmp_path: Path) -> None:
    with shown(tmp_path, ["a"]) as (page, _), ExitStack() as stack:
        port = int(page.url.rstrip("/").rsplit(":", 1)[1])
        for number in range(MAX_CONNECTIONS + 20):
            connection = socket.create_connection(("127.0.0.1", port), 5)
            stack.enter_context(closing(connection))
            if number % 2:
                connection.sendall(b"GET / HTTP/1.1\r\nX: a")
            if number == 0:
                first = connection
        assert say(page, "GET", "/api/model")[0] == 200
        assert first.recv(1) == b"", "the oldest is closed"


def test_idle_connections_take_no_thread_and_the_port_is_free_afterwards(tmp_path: Path) -> None:
    with shown(tmp_path, ["a"]) as (page, _):
        port = int(page.url.rstrip("/").rsplit(":", 1)[1])
        assert say(page, "GET", "/api/model")[0] == 200
        before = threading.active_count()
        idle = [http.client.HTTPConnection("127.0.0.1", port) for _ in range(100)]
        for connection in idle:
            connection.connect()
        assert say(page, "GET", "/api/model")[0] == 200
        assert threading.active_count() - before <= 1
        for connection in idle:
            connection.close()
        with pytest.raises(ServingError, match=r"for the page: .*Choose another --page-port"):
            Page("127.0.0.1", port)
    with Page("127.0.0.1", port):
        pass
    with pytest.raises(ServingError, match="Choose another --page-port"):
        Page("127.0.0.1", 70_000)


def test_catalogue_follows_the_export_that_the_server_loaded(
    tmp_path: Path,
) -> None:
    served = {"version": 1, "ids": ["a", "b"]}
    repository = write_catalogue(tmp_path, ["a", "b"])
    api = Api(
        repository,
        lambda name: Fake(served["ids"], name, served["version"]),  # type: ignore[arg-type,return-value]
        follow=True,
    )
    assert api.items({})["items"] == ["a", "b"]
    write_catalogue(tmp_path, [7, 8, 9], version=2)
    assert api.items({})["items"] == ["a", "b"]
    served |= {"version": 2, "ids": [7, 8, 9]}
    assert api.items({}) == {
        "version": 2, "total": 3, "items": ["7", "8", "9"], "labels": {},
    }  # fmt: skip
    assert api.recommend({"items": ["8"]})["version"] == 2
    # a repository that was made anew begins at the same number
    write_catalogue(tmp_path, [7, 8, 9, 10], version=2)
    assert api.model()["catalogue_items"] == 4
    (repository / "manifest.json").unlink()
    assert api.model()["catalogue_items"] == 4


@pytest.mark.slow
def test_server_and_page_load_the_next_export(shop: Shop, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    export(shop.run, repository, ExportOptions(max_k=20))
    with (
        Page("127.0.0.1", 0) as page,
        running_server(repository, ports=free_ports(), reload_seconds=1) as server,
    ):
        page.open(repository, server.grpc_url, follow=True)
        assert say(page, "GET", "/api/model")[2]["max_k"] == 20
        assert ask(page, items=["sku-00001"], k=30)[0] == 400
        export(shop.run, repository, ExportOptions(max_k=40))
        with Client(f"http://{server.http_url}") as client:
            for _ in range(600):
                status, answer = ask(page, items=["sku-00001"], k=20)
                assert status == 200, answer
                if answer["version"] == 2:
                    break
                threading.Event().wait(0.1)
            status, answer = ask(page, items=["sku-00001"], k=30)
            assert status == 200
            assert [e["item_id"] for e in answer["recommendations"]] == lists(
                client, ["sku-00001"], 30
            )
        facts = say(page, "GET", "/api/model")[2]
        assert (facts["version"], facts["max_k"]) == (2, 40)
