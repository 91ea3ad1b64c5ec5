"""API of the page: the model, its catalogue, recommendations.

Item ids are text, as a browser rounds numbers of more than 53 bits. The client converts them back
for a catalogue of numbers.
"""

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

from pydantic import Field, StrictBool, StrictInt, StrictStr

from pipeline.core.artifact import read_manifest
from pipeline.core.columns import ITEM, TIMESTAMP
from pipeline.core.config import Config
from pipeline.core.errors import ArtifactError, ConfigError, PipelineError
from pipeline.core.manifest import MANIFEST
from pipeline.serve.client.answers import SCORE
from pipeline.serve.client.client import Client
from pipeline.serve.client.served_model import ServedModel, request_tables
from pipeline.serve.page.item_table import ItemColumns, ItemTable, describe
from pipeline.serve.runtime.lookups import read_values

MAX_ITEMS = 1_000
"""Maximum number of items of a session, and of excluded items."""

ItemId = Annotated[StrictStr, Field(min_length=1)]


class ItemsRequest(Config):
    """Query of a part of the catalogue."""

    search: str = Field("", max_length=200)
    """Text that the item ids or names contain, without regard to case."""
    offset: int = Field(0, ge=0)
    limit: int = Field(50, ge=1, le=200)


class RecommendRequest(Config):
    """Session, and options of its list."""

    items: list[ItemId] = Field(min_length=1, max_length=MAX_ITEMS)
    k: StrictInt | None = None
    filter_seen: StrictBool | None = None
    exclude: list[ItemId] = Field([], max_length=MAX_ITEMS)


class Catalogue:
    """Raw item ids as text, most frequent first."""

    def __init__(self, ids: list[str], titles: Mapping[str, str] = MappingProxyType({})) -> None:
        """`titles` are names of items by id, which are searched too."""
        self.ids = ids
        self._titles = titles
        self._set = frozenset(ids)
        # a client requests the pages of one search in turn; a result may be as large as `ids`
        self.search = lru_cache(maxsize=4)(self._search)

    @classmethod
    def read(cls, folder: Path, kind: str, titles: Mapping[str, str]) -> "Catalogue":
        """Read the tables of the request runtime. ArtifactError if they are missing."""
        try:
            values = read_values(folder, ITEM, kind)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"The catalogue in {folder} cannot be read: {error}.") from None
        if isinstance(values, list):
            return cls([value.decode("utf-8", "replace") for value in values], titles)
        return cls([str(value) for value in values.tolist()], titles)

    def __contains__(self, item: str) -> bool:
        return item in self._set

    def __len__(self) -> int:
        return len(self.ids)

    def _search(self, text: str) -> list[str]:
        """Return the ids that contain `text`, or whose names do, without regard to case.

        An id that equals `text` comes first.
        """
        if not text:
            return self.ids
        folded = text.casefold()
        items = [
            item
            for item in self.ids
            if folded in item.casefold() or folded in self._titles.get(item, "").casefold()
        ]
        if text in self._set:
            items.remove(text)
            items.insert(0, text)
        return items


class _Export(NamedTuple):
    """The version of the export that the server has loaded."""

    client: Client
    served: ServedModel
    catalogue: Catalogue


class Api:
    """Answers the page's requests; several threads may call it at once."""

    def __init__(
        self,
        repository: Path,
        connect: Callable[[str], Client],
        *,
        follow: bool,
        items: ItemColumns | None = None,
    ) -> None:
        """Read the catalogue and the table of `items`.

        `connect` returns a client of a model by name. With `follow`, a newer export is used as soon
        as the server has loaded it. ArtifactError or ServingError if the catalogue cannot be read;
        DataError for the table, ConfigError if none of its ids is in the catalogue.
        """
        self.table = ItemTable()
        self._columns = items
        self._repository = repository
        self._connect = connect
        self._follow = follow
        self._lock = threading.Lock()
        self._loaded: tuple[int, int] | None = None
        """Stamp of the export in the repository, if the server has loaded that one."""
        self._export = self._load(None)
        if items is not None and self.table.ids().isdisjoint(self._export.catalogue.ids):
            raise ConfigError(
                f"--items {items.file}: none of its ids is in the catalogue, which has ids such as "
                f"{self._export.catalogue.ids[0]!r}. Name the column of the ids by --id-column."
            )

    def model(self) -> dict[str, Any]:
        """Return name, sizes and defaults of the model."""
        client, served, catalogue = self._current()
        columns = [name for name in served.types if name != ITEM]
        if served.timestamp_type is not None:
            columns.append(TIMESTAMP)
        return {
            "name": client.name,
            "version": served.version,
            "catalogue_items": len(catalogue),
            "default_k": served.default_k,
            "max_k": served.max_k,
            "filter_seen": served.recipe.filter_seen,
            "other_columns": columns,
            "most_items": MAX_ITEMS,
            "labels": describe(self.table, catalogue.ids),
        }

    def items(self, query: dict[str, str]) -> dict[str, Any]:
        """Return the item ids of an `ItemsRequest`. ConfigError for a wrong one."""
        request = ItemsRequest.from_dict(query, "The query")
        _, served, catalogue = self._current()
        items = catalogue.search(request.search.strip())
        shown = items[request.offset : request.offset + request.limit]
        return {
            "version": served.version,
            "total": len(items),
            "items": shown,
            "labels": self.table.labels(shown),
        }

    def recommend(self, values: Any) -> dict[str, Any]:
        """Return the list of a `RecommendRequest`. ConfigError for a wrong one; ServingError."""
        request = RecommendRequest.from_dict(values, "The request")
        client, served, catalogue = self._current()
        if request.k is not None and not 1 <= request.k <= served.max_k:
            raise ConfigError(f"k is {request.k}, expected 1 to {served.max_k}.")
        begin = time.perf_counter()
        answer = client.recommend(
            [{ITEM: request.items}],
            request.k,
            exclude=request.exclude or None,
            filter_seen=request.filter_seen,
        )
        milliseconds = (time.perf_counter() - begin) * 1e3
        [record] = answer.records([None])
        recommendations = [
            {ITEM: str(entry[ITEM]), SCORE: entry[SCORE]} for entry in record["recommendations"]
        ]
        shown = [*request.items, *(entry[ITEM] for entry in recommendations)]
        return {
            "version": served.version,
            "milliseconds": round(milliseconds, 3),
            "unknown": sorted({item for item in request.items if item not in catalogue}),
            "recommendations": recommendations,
            "labels": self.table.labels(shown),
        }

    def _current(self) -> _Export:
        if self._follow:
            with self._lock:
                if _stamp(self._repository) != self._loaded:
                    # while one export replaces the other, the previous one stays in use
                    with suppress(PipelineError):
                        self._export = self._load(self._export)
        return self._export

    def _load(self, previous: _Export | None) -> _Export:
        """Return the export that the server has loaded; it loads a newer one with a delay."""
        stamp = _stamp(self._repository)
        facts = read_manifest(self._repository, "repository", check_files=False)
        client = self._connect(facts["name"])
        served = client.served
        is_newest = served.version == facts["version"]
        if not is_newest and previous is not None and served.version == previous.served.version:
            return previous
        if self._columns is not None and previous is None:
            self.table = ItemTable.read(self._columns, served.recipe.item)
        folder = request_tables(self._repository, facts["name"], served.version)
        catalogue = Catalogue.read(folder, served.types[ITEM], self.table.titles)
        export = _Export(client, served, catalogue)
        if is_newest:
            self._loaded = stamp
        return export


def _stamp(repository: Path) -> tuple[int, int] | None:
    """Return a value that differs for each export to the same repository."""
    try:
        status = (repository / MANIFEST).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns
