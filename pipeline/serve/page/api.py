"""What the page asks: the model, its catalogue, recommendations. Ids are text on the way.

A number of more than 53 bits does not survive a browser; the client makes numbers of them again,
where the catalogue has numbers.
"""

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.core.artifact import MANIFEST, read_manifest
from pipeline.core.columns import ITEM, TIMESTAMP
from pipeline.core.errors import ConfigError, PipelineError
from pipeline.serve.client.answers import SCORE
from pipeline.serve.client.client import Client
from pipeline.serve.client.served_model import ServedModel, request_tables
from pipeline.serve.page.catalogue import Catalogue

MOST_ITEMS = 1_000
"""Of a session, and of what is left out."""
MOST_LISTED = 200
"""Items of the catalogue at a time."""
LONGEST_SEARCH = 200

Connect = Callable[[str], Client]
"""A client of the model of this name."""


class _Export(NamedTuple):
    """One version of the export, as the server has it."""

    client: Client
    served: ServedModel
    catalogue: Catalogue


class Api:
    """Answers the page's requests; any number of threads may ask at once."""

    def __init__(self, repository: Path, connect: Connect, *, follow: bool) -> None:
        """Read the catalogue. ArtifactError or ServingError where that fails.

        With `follow`, what the server has taken up from a newer export counts from then on.
        """
        self._repository = repository
        self._connect = connect
        self._follow = follow
        self._lock = threading.Lock()
        self._settled: tuple[int, int] | None = None
        self._export = self._look(None)

    def model(self) -> dict[str, Any]:
        """Name, sizes and defaults."""
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
            "most_items": MOST_ITEMS,
        }

    def items(self, query: dict[str, str]) -> dict[str, Any]:
        """Ids of the catalogue that hold `search`, `limit` of them from `offset`. ConfigError."""
        _check_names(query, {"search", "offset", "limit"})
        search = query.get("search", "").strip()
        if len(search) > LONGEST_SEARCH:
            raise ConfigError(
                f"search has {len(search)} characters, expected up to {LONGEST_SEARCH}."
            )
        offset = _whole(query.get("offset", "0"), "offset", 0, 2**31)
        limit = _whole(query.get("limit", "50"), "limit", 1, MOST_LISTED)
        _, served, catalogue = self._current()
        found = catalogue.find(search)
        return {
            "version": served.version,
            "total": len(found),
            "items": found[offset : offset + limit],
        }

    def recommend(self, asked: Any) -> dict[str, Any]:
        """What comes after the session `items`. ConfigError for a wrong request; ServingError."""
        if not isinstance(asked, dict):
            raise ConfigError("The request is no JSON object, expected one with items.")
        _check_names(asked, {"items", "k", "filter_seen", "exclude"})
        items = _ids(asked.get("items"), "items")
        if not items:
            raise ConfigError("items is empty, expected the item ids of a session.")
        exclude = _ids(asked.get("exclude", []), "exclude")
        client, served, catalogue = self._current()
        k = asked.get("k")
        if k is not None and (type(k) is not int or not 1 <= k <= served.max_k):
            raise ConfigError(f"k is {_short(k)}, expected a whole number, 1 to {served.max_k}.")
        filter_seen = asked.get("filter_seen")
        if filter_seen is not None and type(filter_seen) is not bool:
            raise ConfigError(f"filter_seen is {_short(filter_seen)}, expected true or false.")
        begin = time.perf_counter()
        answer = client.recommend(
            [{ITEM: items}], k, exclude=exclude or None, filter_seen=filter_seen
        )
        milliseconds = (time.perf_counter() - begin) * 1e3
        [record] = answer.records([None])
        return {
            "version": served.version,
            "milliseconds": round(milliseconds, 3),
            "unknown": sorted({item for item in items if item not in catalogue}),
            "recommendations": [
                {ITEM: str(entry[ITEM]), SCORE: entry[SCORE]} for entry in record["recommendations"]
            ],
        }

    def _current(self) -> _Export:
        if self._follow:
            with self._lock:
                if _stamp(self._repository) != self._settled:
                    # while an export takes the other's place, the one that is known goes on
                    with suppress(PipelineError):
                        self._export = self._look(self._export)
        return self._export

    def _look(self, known: _Export | None) -> _Export:
        """The export that the server has, which takes up a newer one some seconds late."""
        stamp = _stamp(self._repository)
        facts = read_manifest(self._repository, "repository", check_files=False)
        client = self._connect(facts["name"])
        served = client.served
        taken_up = served.version == facts["version"]
        if known is None or taken_up or served.version != known.served.version:
            folder = request_tables(self._repository, facts["name"], served.version)
            catalogue = Catalogue.read(folder, served.types[ITEM])  # type: ignore[arg-type]
            known = _Export(client, served, catalogue)
        if taken_up:
            self._settled = stamp
        return known


def _stamp(repository: Path) -> tuple[int, int] | None:
    """Differs when another export has taken the place."""
    try:
        found = (repository / MANIFEST).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _check_names(given: dict[str, Any], known: set[str]) -> None:
    for name in given:
        if name not in known:
            raise ConfigError(f"{_short(name)} is unknown, expected {', '.join(sorted(known))}.")


def _whole(text: str, name: str, least: int, most: int) -> int:
    wrong = ConfigError(
        f"{name} is {_short(text)}, expected a whole number from {least} to {most}."
    )
    if not (text.isascii() and text.isdecimal() and len(text) < 12):
        raise wrong
    if not least <= int(text) <= most:
        raise wrong
    return int(text)


def _ids(given: Any, name: str) -> list[str]:
    if not isinstance(given, list) or not all(isinstance(item, str) and item for item in given):
        raise ConfigError(f"{name} is {_short(given)}, expected a list of item ids, each as text.")
    if len(given) > MOST_ITEMS:
        raise ConfigError(f"{name} has {len(given)} item ids, expected up to {MOST_ITEMS}.")
    return given


def _short(value: Any) -> str:
    """As JSON, in a line."""
    try:
        text = json.dumps(value)
    except RecursionError:
        return "nested too deeply"
    return text if len(text) <= 60 else f"{text[:57]}..."
