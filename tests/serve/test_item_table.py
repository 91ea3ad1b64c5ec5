"""Names and pictures of the page: reading the table, pictures from the web and from a folder."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from pipeline.cli.main import app
from pipeline.core.errors import ConfigError, DataError
from pipeline.serve.page.item_table import ItemColumns, ItemTable
from pipeline.serve.page.server import content_security_policy
from tests.serve.shown import ask, say, shown

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c63f8cfc0f01f00050001ff56c72f0d0000000049454e44ae426082"
)
"""A picture of one pixel, as PNG."""


def read(folder: Path, rows: list[dict[str, Any]], **columns: Any) -> ItemTable:
    pd.DataFrame(rows).to_csv(folder / "items.csv", index=False)
    defaults = {"title": "title", "image": "image"}
    return ItemTable.read(ItemColumns(file=folder / "items.csv", **{**defaults, **columns}), "id")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.JPG", "page.html", "drawing.svg"):
        (folder / name).write_bytes(PIXEL)
    (tmp_path / "secret.png").write_bytes(b"secret")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    return folder


@pytest.mark.parametrize(
    "image",
    [
        *(
            "javascript:alert(1)",
            "data:image/png;base64,AAAA",
            "file:///etc/passwd",
            "ftp://a/b.png",
        ),
        *("//host/a.png", "https:///a.png", "http://a b/c.png", "https://a;script-src/x.png"),
        *("https://a'b/x.png", "http://a:port/x.png", "https://user@host/x.png", "http://ü/x.png"),
        *("https://h/" + "a" * 2_000, "../secret.png", "link.png", "page.html", "drawing.svg"),
        *("none.png", "sub", "a.png\x00.html", "a" * 5_000 + ".png", "https://[/x.png"),
    ],
)
def test_other_pictures_are_left_out(tmp_path: Path, pictures: Path, image: str) -> None:
    rows = [{"id": "x", "title": "X", "image": image}]
    table = read(tmp_path, rows, image_folder=pictures)
    assert table.labels(["x"]) == {"x": {"title": "X"}}
    assert table.skipped_images == 1
    assert table.image_sources == []
    absolute = str(tmp_path / "secret.png")
    rows = [{"id": "x", "title": "X", "image": absolute}]
    assert read(tmp_path, rows, image_folder=pictures).skipped_images == 1
    rows = [{"id": "x", "title": "X", "image": "a.png"}]
    assert read(tmp_path, rows).skipped_images == 1, "a file needs --image-folder"


def test_pictures_are_addresses_and_files_of_the_folder(tmp_path: Path, pictures: Path) -> None:
    rows = [
        {"id": 1, "title": "  one\n two ", "image": "https://Shop.example:8443/a.png?x=1&y=2"},
        {"id": 2, "title": None, "image": "sub/b.JPG"},
        {"id": 3, "title": "three", "image": None},
        {"id": 1, "title": "again", "image": "a.png"},
        {"id": None, "title": "nothing", "image": "a.png"},
        {"id": "a b&c", "title": "t" * 500, "image": "a.png"},
    ]
    table = read(tmp_path, rows, image_folder=pictures)
    assert table.labels(["1", "2", "3", "a b&c", "4"]) == {
        "1": {"title": "one two", "image": "https://Shop.example:8443/a.png?x=1&y=2"},
        "2": {"image": "image?item=2"},
        "3": {"title": "three"},
        "a b&c": {"title": "t" * 200, "image": "image?item=a%20b%26c"},
    }
    assert table.skipped_images == 0
    assert table.image_file("2") == pictures.resolve() / "sub" / "b.JPG"
    assert table.image_file("1") is None
    policy = content_security_policy(table.image_sources)
    assert policy.endswith("; img-src 'self' https://shop.example:8443")
    (pictures / "sub" / "b.JPG").unlink()
    (pictures / "sub" / "b.JPG").symlink_to(tmp_path / "secret.png")
    assert table.image_file("2") is None, "a file that became a link out of the folder"


def test_policy_lists_few_hosts_or_allows_all_addresses(tmp_path: Path) -> None:
    def sources(count: int) -> list[str]:
        hosts = [f"https://h{number % count}.example/{number}.png" for number in range(60)]
        rows = [{"id": i, "title": "", "image": host} for i, host in enumerate(hosts)]
        return read(tmp_path, rows).image_sources

    assert sources(2) == ["https://h0.example", "https://h1.example"]
    assert sources(40) == ["http:", "https:"]
    assert "img-src" not in content_security_policy([])


def test_tables_of_other_forms_and_wrong_columns(tmp_path: Path) -> None:
    frame = pd.DataFrame({"id": [2**60 + 1], "title": ["x"]})
    frame.to_parquet(tmp_path / "items.parquet")
    columns = ItemColumns(file=tmp_path / "items.parquet", title="title")
    assert ItemTable.read(columns, "id").titles == {str(2**60 + 1): "x"}
    with pytest.raises(DataError, match="nope"):
        ItemTable.read(ItemColumns(file=tmp_path / "items.parquet", title="nope"), "id")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--items", "items.csv"], "--items goes with --page"),
        (["--page", "--title-column", "title"], "go with --items"),
        (["--page", "--items", "items.csv"], "needs --title-column or --image-column"),
        (["--page", "--items", "none.csv", "--title-column", "t"], "none.csv does not exist"),
        (["--page", "--items", "items.csv", "--title-column", "t", "--image-folder", "."],
         "--image-folder goes with --image-column"),
        (["--page", "--items", "items.csv", "--image-column", "i", "--image-folder", "none"],
         "none is no folder"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "items.csv").write_text("id,t,i\n")
    with pytest.raises(ConfigError, match=message):
        CliRunner().invoke(
            app, ["serve", "repository", *words], catch_exceptions=False, standalone_mode=False
        )


def test_page_answers_with_labels_pictures_and_a_policy(tmp_path: Path, pictures: Path) -> None:
    file = tmp_path / "items.csv"
    pd.DataFrame(
        {
            "i": ["a", "b", "zz"],
            "name": ["Red <b>shirt", "blue shoe", "gone"],
            "picture": ["a.png", "http://h.example/b.png", "a.png"],
        }
    ).to_csv(file, index=False)
    columns = ItemColumns(file=file, title="name", image="picture", image_folder=pictures)
    with shown(tmp_path, ["a", "b", "c"], items=columns) as (page, _):
        status, headers, model = say(page, "GET", "/api/model")
        assert status == 200
        assert model["labels"] == {"titles": 2, "images": 2}
        assert headers["Content-Security-Policy"].endswith("img-src 'self' http://h.example")
        assert "script-src" not in headers["Content-Security-Policy"]
        red = {"title": "Red <b>shirt", "image": "image?item=a"}
        answer = say(page, "GET", "/api/items?search=SHIRT")[2]
        assert (answer["items"], answer["labels"]) == (["a"], {"a": red})
        blue = {"title": "blue shoe", "image": "http://h.example/b.png"}
        status, answer = ask(page, items=["b", "c"], k=1)
        assert status == 200
        assert answer["labels"] == {"a": red, "b": blue}, "of the session and of the list"
        status, headers, content = say(page, "GET", "/image?item=a")
        assert (status, headers["Content-Type"]) == (200, "image/png")
        assert headers["X-Content-Type-Options"] == "nosniff"
        for query in ("?item=b", "?item=c", "?item=../secret.png", "", "?item=zzz"):
            status, headers, content = say(page, "GET", f"/image{query}")
            assert (status, content) == (404, {"error": "The item has no picture file."})


def test_table_of_other_items_is_refused(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("i,name\nx,X\n")
    columns = ItemColumns(file=tmp_path / "items.csv", title="name")
    with (
        pytest.raises(ConfigError, match=r"none of its ids is in the catalogue, .* such as 'a'"),
        shown(tmp_path, ["a"], items=columns),
    ):
        pass
