"""The page in a real browser, beside a real Triton."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.core.errors import ServingError
from pipeline.serve.client.client import Client
from pipeline.serve.page.item_table import ItemColumns
from pipeline.serve.page.server import Page
from pipeline.serve.triton.server import TritonServer
from tests.conftest import Shop
from tests.serve.browser import Tab, find_browser, open_tab
from tests.serve.shown import ask, lists, say, shown
from tests.serve.test_item_table import PIXEL

IMAGE = '<img src=x onerror="document.title = 1">'
LONG = 9_007_199_254_740_993_000 + 7
"""19 digits; a browser's number would round it."""
LIST = "[...document.querySelectorAll('#list li')].map(row => row.dataset.id)"
CHIPS = "[...document.querySelectorAll('#chips li')].map(row => row.dataset.id)"
CATALOGUE = "[...document.querySelectorAll('#items button')].map(button => button.dataset.id)"
QUIET = "document.querySelector('#list').getAttribute('aria-busy') === 'false'"


@pytest.fixture(scope="module")
def program() -> str:
    browser = find_browser()
    if browser is None:
        pytest.skip("no browser to try the page in: neither Chromium nor Chrome is on the PATH")
    return browser


@pytest.fixture
def tab(program: str, tmp_path: Path) -> Iterator[Tab]:
    with open_tab(program, tmp_path / "profile") as opened:
        yield opened


@pytest.fixture(scope="module")
def page(shop: Shop, server: TritonServer) -> Iterator[Page]:
    with Page("127.0.0.1", 0) as opened:
        opened.open(shop.repository, server.grpc_url, follow=False)
        yield opened


@pytest.fixture(scope="module")
def client(server: TritonServer) -> Iterator[Client]:
    with Client(f"http://{server.http_url}") as opened:
        yield opened


def wait_for_chips(tab: Tab, items: list[str]) -> None:
    expected = json.dumps(items, separators=(",", ":"))
    tab.wait_for(f"JSON.stringify({CHIPS}) === {json.dumps(expected)} && {QUIET}")


def test_clicks_show_the_lists_of_the_client(tab: Tab, page: Page, client: Client) -> None:
    tab.open(page.url)
    tab.wait_for(f"{CATALOGUE}.length === 20")
    assert tab.evaluate("document.querySelector('#range').textContent") == "1–20 of 200"
    assert tab.evaluate(LIST) == []
    first = tab.evaluate(f"{CATALOGUE}[3]")

    tab.click("#items li:nth-child(4) button")
    wait_for_chips(tab, [first])
    before = tab.evaluate(LIST)
    assert before == lists(client, [first])
    assert "new" not in tab.evaluate("document.querySelector('#status').textContent")

    tab.click("#list li:nth-child(2) button")
    session = [first, before[1]]
    wait_for_chips(tab, session)
    after = tab.evaluate(LIST)
    assert after == lists(client, session) != before
    fresh = "[...document.querySelectorAll('#list .fresh')].map(row => row.dataset.id)"
    assert set(tab.evaluate(fresh)) == set(after) - set(before)
    status = tab.evaluate("document.querySelector('#status').textContent")
    assert f"10 items · {len(set(after) - set(before))} new · " in status
    assert status.endswith(" ms")

    # the address holds the session, so a user can pass it on
    address = tab.evaluate("location.href")
    tab.open("about:blank")
    tab.open(address)
    tab.wait_for(f"{LIST}.length === 10")
    wait_for_chips(tab, session)
    assert tab.evaluate(LIST) == after

    tab.click("#chips li:nth-child(1) button")
    wait_for_chips(tab, session[1:])
    assert tab.evaluate(LIST) == lists(client, session[1:])
    tab.evaluate("history.back()")
    wait_for_chips(tab, session)
    assert tab.evaluate(LIST) == after

    tab.click("#clear")
    wait_for_chips(tab, [])
    assert tab.evaluate(LIST) == []
    assert tab.complaints == []
    elsewhere = [u for u in tab.asked if not u.startswith((page.url, "about:blank"))]
    assert elsewhere == []
    assert any(url.endswith("/api/recommend") for url in tab.asked)


def test_search_settings_and_paging_work_from_the_keyboard(
    tab: Tab, page: Page, client: Client
) -> None:
    tab.open(page.url)
    tab.wait_for(f"{CATALOGUE}.length === 20")
    tab.press("/")
    assert tab.evaluate("document.activeElement.id") == "search"
    tab.write("SKU-0001")
    tab.wait_for(f"{CATALOGUE}.length === 10")
    ids = tab.evaluate(CATALOGUE)
    assert sorted(ids) == [f"sku-0001{i}" for i in range(10)]
    tab.press("Enter")
    wait_for_chips(tab, ids[:1])
    tab.press("ArrowDown")
    tab.press("ArrowDown")
    tab.press("Enter")
    session = ids[:2]
    wait_for_chips(tab, session)
    assert tab.evaluate(LIST) == lists(client, session, filter_seen=False)

    tab.evaluate("document.querySelector('#k').value = 150")
    tab.evaluate("document.querySelector('#k').dispatchEvent(new Event('change'))")
    tab.wait_for(f"{LIST}.length === 100 && {QUIET}")
    everything = tab.evaluate(LIST)
    assert set(session) & set(everything)
    tab.click("#seen")
    tab.wait_for(f"location.hash.includes('seen=hide') && {QUIET}")
    hidden = tab.evaluate(LIST)
    assert hidden == lists(client, session, 100, filter_seen=True)
    assert not set(session) & set(hidden)

    tab.evaluate("document.querySelector('#search').select()")
    tab.write("no such item")
    tab.wait_for(f"{CATALOGUE}.length === 0")
    tab.evaluate("document.querySelector('#search').select()")
    tab.write("sku")
    tab.wait_for(f"{CATALOGUE}.length === 20")
    top = tab.evaluate(CATALOGUE)
    tab.click("#next")
    tab.wait_for("document.querySelector('#range').textContent === '21–40 of 200'")
    assert not set(top) & set(tab.evaluate(CATALOGUE))
    assert tab.complaints == []


def test_an_item_id_that_is_html_is_shown_as_text(tab: Tab, tmp_path: Path) -> None:
    ids = [IMAGE, "a&b=c#d", "<script>document.title = 2</script>", "ключ"]
    with shown(tmp_path, ids) as (page, fake):
        tab.open(page.url)
        tab.wait_for(f"{CATALOGUE}.length === 4")
        for place in (1, 2, 4):
            tab.click(f"#items li:nth-child({place}) button")
            tab.wait_for(f"{CHIPS}.length === {min(place, 3)} && {QUIET}")
        assert tab.evaluate(CHIPS) == [ids[0], ids[1], ids[3]]
        assert fake.tensors["item_id"].tolist() == [[ids[0], ids[1], ids[3]]]
        assert tab.evaluate("document.querySelector('#list .id').textContent") == IMAGE
        assert tab.evaluate("document.querySelectorAll('main img, main script').length") == 0
        assert tab.evaluate("document.title") == "recommender"
        assert tab.complaints == []


def test_names_and_pictures_of_the_table_are_shown_as_text_and_images(
    tab: Tab, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(PIXEL)
    names = pd.DataFrame(
        {"i": ["a", "b", "c"], "t": [IMAGE, "Blue shoe", None], "p": ["a.png", "", "broken.png"]}
    )
    names.to_csv(tmp_path / "items.csv", index=False)
    columns = ItemColumns(
        file=tmp_path / "items.csv", title="t", image="p", image_folder=tmp_path
    )  # fmt: skip
    with shown(tmp_path, ["a", "b", "c"], items=columns) as (page, _):
        tab.open(page.url + "#i=b&i=nope")
        tab.wait_for(f"{LIST}.length === 2 && {QUIET}")
        words = "[...document.querySelectorAll('#items .words')].map(e => e.textContent)"
        assert tab.evaluate(words) == [f"{IMAGE}a", "Blue shoeb", "c"]
        session = "[...document.querySelectorAll('#chips .face')].map(e => e.textContent)"
        assert tab.evaluate(session) == ["Blue shoeb", "nope"]
        assert tab.evaluate("document.querySelector('#list .title').textContent") == IMAGE
        pictures = "[...document.querySelectorAll('#items img, #list img')]"
        tab.wait_for(f"{pictures}.length === 2 && {pictures}.every(e => e.naturalWidth === 1)")
        assert tab.evaluate(f"{pictures}.map(e => e.getAttribute('src'))") == ["image?item=a"] * 2
        assert tab.evaluate("document.querySelectorAll('main script').length") == 0
        facts = tab.evaluate("document.querySelector('#facts').textContent")
        assert facts == "3 items · 2 with a name · 1 with a picture · version 1 of the export"
        tab.evaluate("document.querySelector('#search').focus()")
        tab.write("BLUE")
        tab.wait_for(f"JSON.stringify({CATALOGUE}) === '[\"b\"]'")
        legend = tab.evaluate("document.querySelector('#legend').innerText")
        for text in ("score", "not in the list before the last click", "already in the session"):
            assert text in legend
        shadow = "getComputedStyle(document.querySelector('#legend .unknown')).color"
        unknown = "getComputedStyle(document.querySelector('#chips .unknown .id')).color"
        assert tab.evaluate(shadow) == tab.evaluate(unknown), "the legend has the colours it names"
        assert tab.complaints == []


def test_page_shows_the_error_of_the_server(tab: Tab, tmp_path: Path) -> None:
    with shown(tmp_path, ["a", "b"]) as (page, fake):
        fake.error = ServingError("The server refused: the model is tired")
        tab.open(page.url + "#i=b")
        tab.wait_for("!document.querySelector('#error').hidden")
        said = tab.evaluate("document.querySelector('#error').textContent")
        assert said == "The server refused: the model is tired"
        assert ask(page, items=["b"]) == (502, {"error": said})
        fake.error = None
        tab.click("#items button")
        tab.wait_for(f"{LIST}.length === 2 && {QUIET}")
        assert tab.evaluate("document.querySelector('#error').hidden")


def test_whole_numbers_of_19_digits_survive(tab: Tab, tmp_path: Path) -> None:
    with shown(tmp_path, [5, LONG, -LONG]) as (page, fake):
        assert say(page, "GET", "/api/items")[2]["items"] == ["5", str(LONG), str(-LONG)]
        tab.open(page.url)
        tab.wait_for(f"{CATALOGUE}.length === 3")
        tab.click("#items li:nth-child(2) button")
        tab.wait_for(f"{LIST}.length === 2 && {QUIET}")
        assert fake.tensors["item_id"].dtype == np.int64
        assert fake.tensors["item_id"].tolist() == [[LONG]]
        tab.click("#list li:nth-child(2) button")
        wait_for_chips(tab, [str(LONG), str(LONG)])
        assert fake.tensors["item_id"].tolist() == [[LONG, LONG]]
        status, answer = ask(page, items=["12"], exclude=[str(-LONG)], k=3)
        assert status == 200
        assert answer["unknown"] == ["12"]
        assert [e["item_id"] for e in answer["recommendations"]] == ["5", str(LONG), str(-LONG)]
        assert fake.tensors["exclude"].tolist() == [[-LONG]]
        status, answer = ask(page, items=["twelve"])
        assert (status, answer) == (
            400,
            {"error": "item_id is ['twelve'], expected whole numbers."},
        )
