"""What people hand to a client by mistake: it is understood, or refused in one line."""

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline.core.errors import ArtifactError, ConfigError, DataError
from pipeline.in_process import open_run
from pipeline.serve.client.client import Client
from pipeline.serve.client.in_process import InProcessClient
from tests.conftest import SESSION, Shop

ITEMS = SESSION["item_id"]


@pytest.fixture(scope="module")
def client(shop: Shop) -> Iterator[InProcessClient]:
    with open_run(str(shop.run)) as opened:
        yield opened


def ids(client: InProcessClient, session: Any = None, **more: Any) -> list[Any]:
    return client.recommend([session or {"item_id": ITEMS}], 5, **more).items[0].tolist()


def test_filters_may_be_iterators(client: InProcessClient) -> None:
    best = ids(client)[:2]
    without = ids(client, exclude=best)
    assert not set(best) & set(without)
    assert ids(client, exclude=iter(best)) == without
    assert ids(client, exclude=map(str, best)) == without
    assert ids(client, exclude=set(best)) == without
    assert ids(client, exclude=dict.fromkeys(best)) == without
    assert ids(client, candidates=(b for b in best)) == ids(client, candidates=best)


def test_bytes_are_read_as_utf8_text(client: InProcessClient) -> None:
    best = ids(client)
    assert ids(client, {"item_id": [item.encode() for item in ITEMS]}) == best
    assert ids(client, exclude=[best[0].encode()]) == ids(client, exclude=best[:1])


@pytest.mark.parametrize(
    ("sessions", "more", "words"),
    [
        ([{"item_id": "sku-00001"}], {}, "item_id is 'sku-00001', expected a list"),
        ([{"item_id": None}], {}, "item_id is None, expected a list"),
        ([{"item_id": [b"\xff"]}], {}, "expected text or bytes of UTF-8"),
        ({"item_id": ITEMS}, {}, "The sessions are dict, expected a list of sessions"),
        ([], {}, "There is no session with an item_id"),
        ([{}], {}, "There is no session with an item_id"),
        ([{"item_id": ITEMS}], {"k": 2.5}, "k is 2.5, expected a whole number"),
        ([{"item_id": ITEMS}], {"k": True}, "k is True, expected a whole number"),
        ([{"item_id": ITEMS}], {"k": "2"}, "k is '2', expected a whole number"),
        ([{"item_id": ITEMS}], {"filter_seen": "no"}, "expected True or False"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(
    client: InProcessClient, sessions: Any, more: dict, words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        client.recommend(sessions, **more)
    assert "\n" not in str(caught.value)


def test_paths_may_be_text(shop: Shop, client: InProcessClient) -> None:
    record = next(client.recommend_log([str(shop.clicks)], 3, sessions=1))
    assert next(client.recommend_log(str(shop.clicks), 3, sessions=1)) == record
    with pytest.raises(ConfigError, match="no/such"):
        Client("grpcs://127.0.0.1:1", ca="no/such")


def test_wrong_directory_kind_is_named_in_the_error(shop: Shop) -> None:
    with pytest.raises(
        ArtifactError, match=r"is a repository directory, expected a run directory\. Give one"
    ):
        open_run(shop.repository)
    with pytest.raises(ArtifactError, match=r"is no directory\. Give one that `pipeline train`"):
        open_run(shop.clicks)


def test_written_files_are_as_readable_as_their_directory(shop: Shop) -> None:
    for directory in (shop.data, shop.run, shop.repository):
        readable = directory.stat().st_mode & 0o444
        for file in directory.rglob("*"):
            assert file.is_dir() or file.stat().st_mode & 0o444 == readable, file


def test_unreadable_rows_of_a_log_are_reported_on_stderr(shop: Shop, tmp_path: Path) -> None:
    lines = gzip.decompress(shop.clicks.read_bytes()).splitlines()[:3_000]
    columns = lines[0].replace(b'"', b"").split(b",")
    nowhere = lines[1].split(b",")
    nowhere[columns.index(shop.recipe.preprocess.session.encode())] = b""
    whole = gzip.compress(b"\n".join([*lines, b"1,2", b",".join(nowhere), *lines[1:]]), mtime=0)
    log = tmp_path / "cut.csv.gz"
    log.write_bytes(whole[:-99])
    words = ["recommend", shop.run, "--input", log, "--sessions", "1", "--k", "2", "--json"]
    result = subprocess.run(
        [sys.executable, "-m", "pipeline", *map(str, words)], capture_output=True, text=True
    )
    assert result.returncode == 0
    assert len(json.loads(result.stdout)["sessions"]) == 1
    [line] = result.stderr.splitlines()
    assert line.startswith(f"Warning: {log}: ")
    for reason in (
        "1 lines with another number of columns",
        "1 rows without a session id",
        "1 files cut off or damaged",
    ):
        assert reason in line


def test_a_log_may_lack_the_columns_of_items(
    shop: Shop, client: InProcessClient, tmp_path: Path
) -> None:
    clicks = pd.read_csv(shop.clicks).head(60)
    clicks.to_csv(tmp_path / "all.csv", index=False)
    clicks.drop(columns=["category", "price"]).to_csv(tmp_path / "items.csv", index=False)
    clicks.drop(columns=["action"]).to_csv(tmp_path / "none.csv", index=False)
    records = list(client.recommend_log([tmp_path / "all.csv"], 5))
    assert len(records) > 1
    assert list(client.recommend_log([tmp_path / "items.csv"], 5)) == records
    with pytest.raises(DataError, match="has no column for action"):
        list(client.recommend_log([tmp_path / "none.csv"], 5))
