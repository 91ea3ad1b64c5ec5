"""Ask a Triton server for recommendations: raw interactions in, raw item ids out."""

import importlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self
from urllib.parse import urlsplit

import numpy as np

from pipeline.core.columns import ITEM, SESSION, TIMESTAMP
from pipeline.core.errors import ConfigError, ServingError
from pipeline.serve.served import ServedModel

MISSING_INTEGER = -(2**63)
"""What the server's encoder takes for a missing value among integers."""
_SESSIONS_A_REQUEST = 64
_TIMEOUT_SECONDS = 30.0
_NUMPY_TYPES: dict[str, Any] = {"int64": np.int64, "float64": np.float64, "string": np.object_}
_PADDING: dict[str, Any] = {"int64": 0, "float64": np.nan, "string": ""}

Columns = dict[str, list[Any]]


class Answer(NamedTuple):
    """Lists of one request, best first."""

    items: np.ndarray
    """(B, K) raw ids: int64 or text."""
    scores: np.ndarray
    """(B, K) float32."""

    def records(self, sessions: Iterable[Any]) -> Iterator[dict[str, Any]]:
        """One a session, as JSON takes it: its id and its list, best first.

        `sessions` are B ids, None where there is none.
        """
        for session, items, scores in zip(sessions, self.items, self.scores, strict=True):
            pairs = zip(items.tolist(), scores.tolist(), strict=True)
            yield {
                SESSION: session,
                "recommendations": [{ITEM: item, "score": score} for item, score in pairs],
            }


class Client:
    """A connection to one server; `url` is http://HOST:PORT or grpc://HOST:PORT.

    ServingError where the server does not answer or refuses a request, in its own words.
    """

    def __init__(self, url: str, *, name: str = "recommender") -> None:
        self.name = name
        self.url = url
        self._protocol, address = address_of(url)
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
        from tritonclient.utils import np_to_triton_dtype

        inputs = []
        for name, array in tensors.items():
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

    def recommend_log(
        self, files: list[Path], k: int | None = None, *, sessions: int | None = None
    ) -> Iterator[dict[str, Any]]:
        """One record a session of raw log files, sessions in the order of their beginning.

        With `sessions` for that many of them alone.
        """
        from pipeline.serve.log import read_sessions  # pandas and Arrow, for files alone

        asked = islice(read_sessions(self.served, files), sessions)
        for ids, batch in _batches(asked, min(_SESSIONS_A_REQUEST, self.served.max_batch)):
            yield from self.recommend(batch, k).records(ids)

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
        except UnicodeError as error:
            raise ConfigError(f"A value is not text in UTF-8: {error}.") from None
        except Exception as error:
            # what its HTTP library says of an answer in another protocol has many types
            raise ServingError(
                f"What answers at {self.url} does not speak Triton's {self._protocol}: "
                f"{type(error).__name__}. Check the port."
            ) from None

    def _no_server(self) -> ServingError:
        return ServingError(
            f"No server answers at {self.url}. Start one with `pipeline serve REPOSITORY`."
        )


def address_of(url: str) -> tuple[Literal["http", "grpc"], str]:
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


def _batches(
    sessions: Iterator[tuple[Any, Columns]], size: int
) -> Iterator[tuple[list[Any], list[Columns]]]:
    ids: list[Any] = []
    batch: list[Columns] = []
    for session, columns in sessions:
        ids.append(session)
        batch.append(columns)
        if len(batch) == size:
            yield ids, batch
            ids, batch = [], []
    if batch:
        yield ids, batch
