"""A page with a fake client, and requests to it."""

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.core.artifact import new_artifact
from pipeline.data.fitted import Vocabulary
from pipeline.exporting.request_tables import write_values
from pipeline.recipe.recipe import Recipe
from pipeline.serve.client.answers import Answer
from pipeline.serve.client.client import Client
from pipeline.serve.client.served_model import ServedModel
from pipeline.serve.client.tensors import request_tensors
from pipeline.serve.page.api import Api
from pipeline.serve.page.item_table import ItemColumns
from pipeline.serve.page.server import Page


class Fake:
    """Client that recommends the catalogue from its beginning and keeps the last tensors."""

    def __init__(self, ids: list[Any], name: str, version: int = 1) -> None:
        self.name = name
        kind = "string" if isinstance(ids[0], str) else "int64"
        recipe = Recipe.from_dict(
            {"preprocess": {"session": "s", "item": "i", "max_sequence_length": 5}, "model": {}},
            "test",
        ).preprocess
        self.served = ServedModel(
            recipe=recipe,
            types={"item_id": kind},
            scopes={"item_id": "interaction"},
            timestamp_type=None,
            default_k=2,
            max_k=len(ids),
            max_batch=8,
            ranks_items=True,
            targets=[],
            item_targets=[],
            version=version,
        )
        self.ids = ids
        self.tensors: dict[str, np.ndarray] = {}
        self.error: Exception | None = None

    def recommend(self, sessions: list[Any], k: int | None = None, **filters: Any) -> Answer:
        if self.error is not None:
            raise self.error
        self.tensors = request_tensors(self.served, sessions, k=k, **filters)
        items = self.ids[: k or 2]
        scores = np.linspace(1, 0.5, len(items), dtype=np.float32)[np.newaxis]
        return Answer(np.array([items]), scores, np.array([[1]], np.int32))


def write_catalogue(directory: Path, ids: list[Any], version: int = 1) -> Path:
    kind = "string" if isinstance(ids[0], str) else "int64"
    repository = directory / "repository"
    facts = {"name": "recommender", "version": version, "catalogue_items": len(ids)}
    with new_artifact(repository, "repository", facts) as made:
        folder = made / f"recommender_requests_v{version}" / "1"
        folder.mkdir(parents=True)
        write_values(folder, "item_id", Vocabulary(type=kind, values=pa.array(ids)))  # type: ignore[arg-type]
    return repository


class Shown(NamedTuple):
    page: Page
    fake: Fake


@contextmanager
def shown(
    directory: Path, ids: list[Any], host: str = "127.0.0.1", items: ItemColumns | None = None
) -> Iterator[Shown]:
    fake = Fake(ids, "recommender")
    repository = write_catalogue(directory, ids)
    with Page(host, 0) as page:
        page.start(
            Api(repository, lambda _: fake, follow=False, items=items)  # type: ignore[arg-type,return-value]
        )
        yield Shown(page, fake)


def say(
    page: Page,
    method: str,
    path: str,
    body: bytes | str | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, dict[str, str], Any]:
    """Status, headers and body of an answer, read as JSON where it is."""
    address = page.url.removeprefix("http://").rstrip("/")
    connection = http.client.HTTPConnection(address, timeout=10)
    defaults = {"Content-Type": "application/json"} if body is not None else {}
    connection.request(method, path, body, defaults | (headers or {}))
    response = connection.getresponse()
    content = response.read()
    connection.close()
    received = dict(response.getheaders())
    is_json = received.get("Content-Type") == "application/json"
    return response.status, received, json.loads(content) if is_json and content else content


def ask(page: Page, **asked: Any) -> tuple[int, Any]:
    status, _, body = say(page, "POST", "/api/recommend", json.dumps(asked))
    return status, body


def lists(client: Client, items: list[str], k: int = 10, **filters: Any) -> list[str]:
    return [str(i) for i in client.recommend([{"item_id": items}], k, **filters).items[0]]
