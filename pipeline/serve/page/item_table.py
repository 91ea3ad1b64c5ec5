"""Names and pictures of items for the page, from a table of the user.

A picture is an http or https address, which the visitor's browser loads, or a file below a folder,
which the page serves by item id.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlsplit

import pyarrow as pa

from pipeline.core.columns import ITEM
from pipeline.core.errors import ConfigError, DataError
from pipeline.data import values
from pipeline.logs.files import check_features, scan_log
from pipeline.logs.row_counts import RowCounts
from pipeline.recipe.preprocess import Preprocess

IMAGE_TYPES = {
    ".avif": "image/avif",
    ".gif": "image/gif",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
}
"""Content types of picture files by suffix, without SVG, which may hold scripts."""
_MAX_NAME = 200
_MAX_ADDRESS = 2_000
FREE_ROWS = 250_000
"""Number of rows above which a table must have at least one byte per row."""
_BLOCK_ROWS = 50_000
_MOST_ORIGINS = 20
"""Largest number of picture hosts that the page's policy lists one by one."""


@dataclass(frozen=True, kw_only=True)
class ItemColumns:
    """Item table and its columns, from the options of the command line."""

    file: Path
    key: str | None = None
    """Column of the item ids, by default the item of the recipe."""
    title: str | None = None
    """Column of the names."""
    image: str | None = None
    """Column of the pictures."""
    image_folder: Path | None = None
    """Folder of the picture files."""

    def check(self) -> None:
        """ConfigError without a column to show, and for a missing file or folder."""
        if self.title is None and self.image is None:
            raise ConfigError("--items needs --title-column or --image-column: what to show.")
        if self.image_folder is not None and self.image is None:
            raise ConfigError("--image-folder goes with --image-column.")
        if not self.file.is_file():
            reason = "is no file" if self.file.exists() else "does not exist"
            raise ConfigError(f"--items {self.file} {reason}.")
        if self.image_folder is not None and not self.image_folder.is_dir():
            raise ConfigError(f"--image-folder {self.image_folder} is no folder.")


@dataclass(frozen=True)
class ItemTable:
    """Names and pictures by item id."""

    titles: dict[str, str] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)
    """Pictures on the web."""
    files: dict[str, Path] = field(default_factory=dict)
    """Pictures in the folder."""
    folder: Path | None = None
    skipped_images: int = 0
    """Values of the picture column that are neither an address nor a file of the folder."""

    @classmethod
    def read(cls, columns: ItemColumns, key: str) -> Self:
        """Read the table; `key` is the column of the ids. The first row of an id is used.

        DataError for a file that cannot be read or lacks a column.
        """
        folder = None if columns.image_folder is None else columns.image_folder.resolve()
        table = cls(folder=folder)
        skipped = 0
        for item, title, image in _rows(columns, columns.key or key):
            if item is None:
                continue
            if title and item not in table.titles:
                table.titles[item] = " ".join(title.split())[:_MAX_NAME]
            if not image or item in table.addresses or item in table.files:
                continue
            file = None if folder is None else _inside(folder, image)
            if _is_web_address(image):
                table.addresses[item] = image
            elif file is not None:
                table.files[item] = file
            else:
                skipped += 1
        return cls(table.titles, table.addresses, table.files, folder, skipped)

    def ids(self) -> set[str]:
        """Return the items with a name or a picture."""
        return self.titles.keys() | self.addresses.keys() | self.files.keys()

    def labels(self, items: Iterable[str]) -> dict[str, dict[str, str]]:
        """Return {"title", "image"} of each of `items` that has one of them."""
        labels: dict[str, dict[str, str]] = {}
        for item in items:
            label = {}
            if item in self.titles:
                label["title"] = self.titles[item]
            if item in self.addresses:
                label["image"] = self.addresses[item]
            elif item in self.files:
                label["image"] = f"image?item={quote(item, safe='')}"
            if label:
                labels[item] = label
        return labels

    def image_file(self, item: str) -> Path | None:
        """Return an item's picture file, None without one and for one outside the folder."""
        file = self.files.get(item)
        if file is None or self.folder is None:
            return None
        return _inside(self.folder, str(file))

    @property
    def image_sources(self) -> list[str]:
        """Sources of pictures besides the page itself, as a Content-Security-Policy lists them."""
        parts = [urlsplit(address) for address in self.addresses.values()]
        origins = sorted({f"{part.scheme.lower()}://{part.netloc.lower()}" for part in parts})
        return origins if len(origins) <= _MOST_ORIGINS else ["http:", "https:"]


def _rows(columns: ItemColumns, key: str) -> Iterator[tuple[str | None, ...]]:
    """Yield id, name and picture of each row as text. DataError for more rows than bytes."""
    shown = {"title": columns.title, "image": columns.image}
    reader = Preprocess.from_dict(
        {
            "session": key,
            "item": key,
            "features": [
                {"name": name, "column": column, "kind": "categorical"}
                for name, column in shown.items()
                if column is not None
            ],
        },
        "--items",
    )
    check_features(reader, [columns.file])
    most = max(FREE_ROWS, columns.file.stat().st_size)
    num_rows = 0
    for block in scan_log(reader, columns.file, RowCounts(), _BLOCK_ROWS):
        num_rows += block.num_rows
        if num_rows > most:
            raise DataError(
                f"{columns.file} has more than {most:,} rows, more than one a byte of the file, "
                "as no table of items has. Keep one row an item."
            )
        texts = [_as_text(block, name) for name in (ITEM, *shown)]
        yield from zip(*texts, strict=True)


def _as_text(rows: pa.Table, name: str) -> list[str | None]:
    """Values of a column, all missing where the table has none."""
    if name not in rows.column_names:
        return [None] * rows.num_rows
    column, _ = values.category_chunk(values.to_array(rows[name]), "string")
    texts: list[str | None] = values.decode_dictionary(column).to_pylist()
    return texts


def _is_web_address(text: str) -> bool:
    """Whether a text is an http or https address whose host a policy can name."""
    if len(text) > _MAX_ADDRESS or not text.isascii() or not text.isprintable() or " " in text:
        return False
    try:
        parts = urlsplit(text)
        _ = parts.port  # ValueError if it is not a number
    except ValueError:
        return False
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname:
        return False
    return all(letter.isalnum() or letter in "-.:[]" for letter in parts.netloc)


def _inside(folder: Path, text: str) -> Path | None:
    """Return the picture file of a text, None if it is no picture or not below the folder."""
    try:
        file = (folder / text).resolve()
        is_picture = file.suffix.lower() in IMAGE_TYPES and file.is_file()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, a loop of links
        return None
    return file if is_picture and file.is_relative_to(folder) else None


def describe(table: ItemTable, catalogue: Iterable[str]) -> dict[str, Any]:
    """Return the numbers of items of a catalogue with a name and with a picture."""
    ids = set(catalogue)
    images = table.addresses.keys() | table.files.keys()
    return {"titles": len(ids & table.titles.keys()), "images": len(ids & images)}
