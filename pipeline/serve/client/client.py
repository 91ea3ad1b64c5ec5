"""Ask a Triton server for recommendations: raw interactions in, raw item ids out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from pipeline.core.errors import ConfigError
from pipeline.serve.client.answers import Answer, frame_of
from pipeline.serve.client.served_model import ServedModel
from pipeline.serve.client.tensors import Columns, id_lists, listed, request_tensors
from pipeline.serve.client.wire import TIMEOUT_SECONDS, Wire
from pipeline.serve.runtime.request import MOST_IN_ALL
from pipeline.serve.triton.access import Access

if TYPE_CHECKING:
    import pandas as pd

SESSIONS_A_REQUEST = 64


class Answering(ABC):
    """What answers tensors, and so sessions, logs and frames.

    `recommend` and its kin take further `filters`: `exclude`, raw item ids that no list holds, for
    all sessions or, of `recommend`, a list for each; `candidates`, the only ones that lists hold;
    `filter_seen`, whether items of the session itself are left out, where not as the recipe says.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Give back what was opened."""

    @property
    @abstractmethod
    def served(self) -> ServedModel:
        """What the model takes."""

    @abstractmethod
    def infer(self, tensors: dict[str, np.ndarray], *, embeddings: bool = False) -> Answer:
        """One request of (B, n) tensors as they are."""

    def recommend(
        self,
        sessions: list[Columns],
        k: int | None = None,
        *,
        embeddings: bool = False,
        **filters: Any,
    ) -> Answer:
        """Lists for sessions given as columns by tensor name, such as {"item_id": [...]}.

        All values of an interaction's column stand in the order of the interactions; a column of
        the session holds one value. None is a missing value, and so is a column that only others of
        the sessions have. A feature of items that none of them has is what training has last seen.
        """
        tensors = request_tensors(self.served, sessions, k=k, **filters)
        return self.infer(tensors, embeddings=embeddings)

    def recommend_log(
        self,
        files: list[Path],
        k: int | None = None,
        *,
        sessions: int | None = None,
        **filters: Any,
    ) -> Iterator[dict[str, Any]]:
        """One record a session of raw log files, sessions in the order of their beginning.

        With `sessions` for that many of them alone.
        """
        from pipeline.serve.client.logs import read_sessions  # pandas and Arrow, for files alone

        if isinstance(files, str | Path):
            files = [Path(files)]
        asked = islice(read_sessions(self.served, [Path(file) for file in files]), sessions)
        yield from self._records(asked, k, filters)

    def recommend_frame(
        self, frame: "pd.DataFrame", k: int | None = None, **filters: Any
    ) -> "pd.DataFrame":
        """Raw interactions, columns as in the log -> session_id, rank, item_id, score.

        Columns but those of session and item may be missing.
        """
        from pipeline.serve.client.logs import sessions_of_frame

        return frame_of(self._records(sessions_of_frame(self.served, frame), k, filters))

    def _records(
        self, sessions: Iterator[tuple[Any, Columns]], k: int | None, filters: dict[str, Any]
    ) -> Iterator[dict[str, Any]]:
        filters = listed(filters)
        for ids, batch in batches(sessions, self.served, filters):
            yield from self.recommend(batch, k, **filters).records(ids)


class Connection:
    """What both clients are made of: the address of a server, and how it is reached."""

    _asynchronous: ClassVar[bool] = False
    """Whether calls of tritonclient are awaited."""

    def __init__(
        self,
        url: str,
        *,
        name: str = "recommender",
        key: str | None = None,
        timeout: float = TIMEOUT_SECONDS,
        ca: str | Path | None = None,
        cert: str | Path | None = None,
        cert_key: str | Path | None = None,
    ) -> None:
        """ConfigError where an argument cannot be; whether a server answers shows later."""
        self.name = name
        self.url = url
        self._wire = Wire.connect(
            url, Access(key, ca, cert, cert_key), timeout=timeout, asynchronous=self._asynchronous
        )
        self._served: ServedModel | None = None


class Client(Connection, Answering):
    """A connection to one server: http://HOST:PORT, grpc://HOST:PORT, or grpcs with TLS.

    `key` is that of the server's --key-file, `timeout` the seconds that an answer may take. For
    grpcs, PEM files: `ca`, the authority of the server's certificate, where the system does not
    know it, `cert` and `cert_key`, the client's own. ServingError where the server does not answer
    or refuses a request, in its own words.
    """

    def close(self) -> None:
        """Close the connection."""
        self._wire.client.close()

    @property
    def served(self) -> ServedModel:
        """What the server's model takes; asked once."""
        if self._served is None:
            asked = self._wire.config_arguments(self.name)
            config = self._ask(lambda: self._wire.client.get_model_config(**asked))
            self._served = ServedModel.from_config(config.get("config", config), self.name)
        return self._served

    def infer(self, tensors: dict[str, np.ndarray], *, embeddings: bool = False) -> Answer:
        """One request of (B, n) tensors as they are."""
        made = self._wire.arguments
        arguments = self._ask(lambda: made(self.name, tensors, embeddings=embeddings))
        result = self._ask(lambda: self._wire.client.infer(**arguments))
        return self._wire.answer(result, embeddings=embeddings)

    def _ask(self, call: Callable[[], Any]) -> Any:
        """Run a call of tritonclient; its errors become ours, in one line."""
        try:
            return call()
        except Exception as error:
            raise self._wire.error(error) from None


def batches(
    sessions: Iterator[tuple[Any, Columns]], served: ServedModel, filters: dict[str, Any]
) -> Iterator[tuple[list[Any], list[Columns]]]:
    """Some sessions at a time, their ids apart.

    ConfigError for a filter with a list for each session, which are not known to be as many.
    """
    widest = 1
    for name in ("exclude", "candidates"):
        if filters.get(name) is None:
            continue
        widest = max(widest, len(filters[name]))
        if id_lists(filters[name], name) is not None:
            raise ConfigError(
                f"{name} has lists of its own for sessions, which come from a log here. Give one "
                "list for all, or ask by `recommend`."
            )
    size = max(1, min(SESSIONS_A_REQUEST, served.max_batch, MOST_IN_ALL // widest))
    while some := list(islice(sessions, size)):
        yield [session for session, _ in some], [columns for _, columns in some]
