"""Ask a Triton server for recommendations: raw interactions in, raw item ids out."""

import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.core import values
from pipeline.core.columns import ITEM, SESSION, TIMESTAMP
from pipeline.core.errors import ConfigError, DataError, ServingError
from pipeline.core.logfile import Report, read_log
from pipeline.core.recipe import Preprocess

MISSING_INTEGER = -(2**63)
"""What the server's encoder takes for a missing value among integers."""
_SESSIONS_A_REQUEST = 64
_TIMEOUT_SECONDS = 30.0
_PARAMETER = "pipeline"
_NUMPY_TYPES: dict[str, Any] = {"int64": np.int64, "float64": np.float64, "string": np.object_}
_PADDING: dict[str, Any] = {"int64": 0, "float64": np.nan, "string": ""}

Columns = dict[str, list[Any]]


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """What the server says of the ensemble that it serves."""

    recipe: Preprocess
    session: str
    columns: dict[str, str]
    """Column of the log, by tensor."""
    types: dict[str, str]
    scopes: dict[str, str]
    timestamp_type: str | None
    time_needed: bool
    default_k: int
    max_k: int

    @classmethod
    def from_config(cls, config: dict[str, Any], name: str) -> Self:
        """From the parameters of the ensemble's configuration."""
        try:
            stored = json.loads(config["parameters"][_PARAMETER]["string_value"])
            stored["recipe"] = Preprocess.from_dict(stored["recipe"], name)
            return cls(**{field: stored[field] for field in cls.__dataclass_fields__})
        except (KeyError, TypeError, ValueError):
            raise ServingError(
                f"The server's model {name!r} was not exported by `pipeline export`."
            ) from None


class Answer(NamedTuple):
    """Lists of one request, best first."""

    items: np.ndarray
    """(B, K) raw ids: int64 or text."""
    scores: np.ndarray
    """(B, K) float32."""


class Client:
    """A connection to one server; `url` is http://HOST:PORT or grpc://HOST:PORT.

    ServingError where the server does not answer or refuses a request, in its own words.
    """

    def __init__(self, url: str, *, name: str = "recommender") -> None:
        self.name = name
        self.url = url
        self._protocol, address = _address(url)
        module = importlib.import_module(f"tritonclient.{self._protocol}")
        if self._protocol == "http":
            timeouts = {
                "connection_timeout": _TIMEOUT_SECONDS,
                "network_timeout": _TIMEOUT_SECONDS,
            }
            self._client = module.InferenceServerClient(address, **timeouts)
        else:
            self._client = module.InferenceServerClient(address)
        self._module = module
        self._served: ServedModel | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    @property
    def served(self) -> ServedModel:
        """What the server's model takes; asked once."""
        if self._served is None:
            if self._protocol == "http":
                config = self._ask(lambda: self._client.get_model_config(self.name))
            else:
                config = self._ask(lambda: self._client.get_model_config(self.name, as_json=True))
                config = config["config"]
            self._served = ServedModel.from_config(config, self.name)
        return self._served

    def infer(self, tensors: dict[str, np.ndarray]) -> Answer:
        """One request of (B, n) tensors as they are."""
        inputs = []
        for name, array in tensors.items():
            from tritonclient.utils import np_to_triton_dtype

            tensor = self._module.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
            tensor.set_data_from_numpy(array)
            inputs.append(tensor)
        timeout = {"client_timeout": _TIMEOUT_SECONDS} if self._protocol == "grpc" else {}
        answer = self._ask(lambda: self._client.infer(self.name, inputs, **timeout))
        items = answer.as_numpy("item_ids")
        if items.dtype == np.object_:
            texts = [v.decode("utf-8", "replace") for v in items.reshape(-1)]
            items = np.array(texts, object).reshape(items.shape)
        return Answer(items, answer.as_numpy("scores"))

    def recommend(self, sessions: list[Columns], k: int | None = None) -> Answer:
        """Lists for sessions given as columns by tensor name, such as {"item_id": [...]}.

        All values of an interaction's column stand in the order of the interactions; a column of
        the session holds one value. None is a missing value.
        """
        return self.infer(self._tensors(sessions, k))

    def recommend_log(self, files: list[Path], k: int | None = None) -> Iterator[dict[str, Any]]:
        """One record a session of raw log files, sessions in the order of their first row."""
        for ids, sessions in _batches(self._sessions(files)):
            answer = self.recommend(sessions, k)
            for session, items, scores in zip(ids, answer.items, answer.scores, strict=True):
                yield {
                    SESSION: session,
                    "recommendations": [
                        {ITEM: item, "score": float(score)}
                        for item, score in zip(items.tolist(), scores, strict=True)
                    ],
                }

    def _tensors(self, sessions: list[Columns], k: int | None) -> dict[str, np.ndarray]:
        served = self.served
        types = dict(served.types)
        if served.timestamp_type is not None:
            types[TIMESTAMP] = served.timestamp_type
        lengths = [len(session.get(ITEM, ())) for session in sessions]
        width = max(lengths, default=0)
        tensors = {}
        for name in {name: None for session in sessions for name in session}:
            if name not in types:
                raise ConfigError(
                    f"The model has no column {name!r}. It has: {', '.join(sorted(types))}."
                )
            rows = [_typed(session.get(name, []), types[name], name) for session in sessions]
            size = 1 if served.scopes.get(name) == "session" else width
            array = np.full((len(rows), size), _PADDING[types[name]], _NUMPY_TYPES[types[name]])
            for row, given in enumerate(rows):
                expected = size if size == 1 and name != ITEM else lengths[row]
                if len(given) != expected:
                    raise ConfigError(
                        f"{name} has {len(given)} values, expected {expected} to go with "
                        f"{lengths[row]} item ids."
                    )
                array[row, : len(given)] = given
            tensors[name] = array
        if len(sessions) > 1:
            tensors["length"] = np.array(lengths, np.int32)[:, np.newaxis]
        if k is not None:
            if not -(2**31) <= k < 2**31:
                raise ConfigError(f"k is {k}, expected 1 to {served.max_k}.")
            tensors["k"] = np.full((len(sessions), 1), k, np.int32)
        return tensors

    def _sessions(self, files: list[Path]) -> Iterator[tuple[Any, Columns]]:
        """Raw rows as columns of each session, rows of a session in the order of the file."""
        served = self.served
        report = Report()
        tables = [read_log(served.recipe, file, report) for file in files]
        chunks = {
            name: [values.plain(table[name]) for table in tables]
            for name in [SESSION, *served.columns]
        }
        sessions = values.categories(chunks.pop(SESSION), None)[0]
        columns: dict[str, Any] = {}
        for name, parts in chunks.items():
            kind = served.types.get(name) or served.timestamp_type
            if name == TIMESTAMP:
                columns[name] = _raw_times(parts, str(kind))
            elif kind == "float64":
                columns[name] = values.numbers(parts, positive=False)[0]
            else:
                columns[name] = values.categories(parts, kind)[0]  # type: ignore[arg-type]
        frame = pd.DataFrame(columns)
        if not len(frame):
            raise DataError(f"{', '.join(map(str, files))} holds no row to recommend for.")
        for session, rows in frame.groupby(sessions.to_numpy(), sort=False, dropna=True):
            taken: Columns = {}
            for name in frame.columns:
                given = [None if pd.isna(v) else v for v in rows[name].tolist()]
                taken[name] = given[-1:] if served.scopes.get(name) == "session" else given
            yield session, taken

    def _ask(self, call: Any) -> Any:
        """Run a call of tritonclient; its errors become ours, in one line."""
        from tritonclient.utils import InferenceServerException

        try:
            return call()
        except InferenceServerException as error:
            message = " ".join(str(error.message()).split())
            unreachable = "failed to connect" in message or "UNAVAILABLE" in str(error.status())
            if unreachable:
                raise self._no_server() from None
            raise ServingError(f"The server refused: {message}") from None
        except (OSError, TimeoutError):
            raise self._no_server() from None

    def _no_server(self) -> ServingError:
        return ServingError(
            f"No server answers at {self.url}. Start one with `pipeline serve REPOSITORY`."
        )


def _address(url: str) -> tuple[Literal["http", "grpc"], str]:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme not in ("http", "grpc") or not parts.hostname or port is None:
        raise ConfigError(f"{url!r} is no address, expected http://HOST:PORT or grpc://HOST:PORT.")
    return ("http" if parts.scheme == "http" else "grpc"), f"{parts.hostname}:{port}"


def _typed(given: list[Any], kind: str, name: str) -> list[Any]:
    """Values for a tensor; ConfigError for one that has another type."""
    try:
        if kind == "int64":
            return [MISSING_INTEGER if v in (None, "") else _integer(v) for v in given]
        if kind == "float64":
            return [float("nan") if v in (None, "") else float(v) for v in given]
    except (TypeError, ValueError):
        wanted = "whole numbers" if kind == "int64" else "numbers"
        raise ConfigError(f"{name} is {given!r}, expected {wanted}.") from None
    return ["" if v is None else str(v) for v in given]


def _integer(value: Any) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError(value)
    whole = int(value)
    if not -(2**63) <= whole < 2**63:
        raise ValueError(value)
    return whole


def _raw_times(parts: list[pa.Array], kind: str) -> Any:
    """Times as the server takes them: text, or numbers in the log's unit."""
    if kind == "string":
        texts = []
        for part in parts:
            if pa.types.is_timestamp(part.type):
                part = part.cast(pa.timestamp("us"), safe=False)
            texts += part.cast(pa.string()).to_pylist()
        return texts
    if kind == "int64":
        return values.categories(parts, "int64")[0]
    return values.numbers(parts, positive=False)[0]


def _batches(
    sessions: Iterator[tuple[Any, Columns]],
) -> Iterator[tuple[list[Any], list[Columns]]]:
    ids: list[Any] = []
    batch: list[Columns] = []
    for session, columns in sessions:
        ids.append(session)
        batch.append(columns)
        if len(batch) == _SESSIONS_A_REQUEST:
            yield ids, batch
            ids, batch = [], []
    if batch:
        yield ids, batch
