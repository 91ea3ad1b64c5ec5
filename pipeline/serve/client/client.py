"""Clients: raw interactions in, recommended raw item ids out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from numpy.typing import NDArray

from pipeline.core.columns import ITEM
from pipeline.core.errors import ConfigError
from pipeline.serve.client.answers import Answer, outputs_of, records_to_frame, target_frame
from pipeline.serve.client.connection import Connection
from pipeline.serve.client.served_model import ServedModel
from pipeline.serve.client.tensors import Columns, id_lists, listed, request_tensors
from pipeline.serve.runtime.request import MAX_REQUEST_IDS

if TYPE_CHECKING:
    import pandas as pd

SESSIONS_PER_REQUEST = 64


class SyncClient(ABC):
    """Methods that `Client` and `InProcessClient` share.

    `recommend`, `recommend_log` and `recommend_frame` take `filters`: `exclude`, raw item ids that
    no list may hold, for all sessions or, with `recommend`, a list for each; `candidates`, the only
    ids that lists may hold; `filter_seen`, whether the session's own items are excluded, by default
    as in the recipe.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Close what the client opened."""

    @property
    @abstractmethod
    def served(self) -> ServedModel:
        """Description of the model."""

    @abstractmethod
    def infer(
        self,
        tensors: dict[str, NDArray[Any]],
        *,
        lists: bool = True,
        embeddings: bool = False,
        targets: bool = False,
        session: str | None = None,
    ) -> Answer:
        """Send one request of (B, n) tensors; `lists`, `embeddings` and `targets` are outputs."""

    def predict(self, sessions: list[Columns]) -> "pd.DataFrame":
        """Return the targets besides the next item by name, one row per session, without lists.

        Probabilities, or numbers in the units of the log. ConfigError for a model without targets.
        """
        tensors = request_tensors(self.served, sessions)
        answer = self.infer(tensors, lists=False, targets=True)
        return target_frame(answer.records(range(len(sessions))))

    def recommend(
        self,
        sessions: list[Columns],
        k: int | None = None,
        *,
        embeddings: bool = False,
        targets: bool = False,
        session: str | None = None,
        **filters: Any,
    ) -> Answer:
        """Return lists for sessions, each a dict of columns such as {"item_id": [...]}.

        A column has one value per interaction, oldest first; a column of the session has one value.
        None is a missing value, and so is a column that only other sessions have. An item feature
        that no session has takes the last value of each item in training. With `targets` the answer
        also has the predictions besides the next item, or only them if the model has no lists.
        `session` is the session id for the request log and the A/B test of the server.
        """
        tensors = request_tensors(self.served, sessions, k=k, **filters)
        lists = self.served.ranks_items or not targets
        return self.infer(
            tensors, lists=lists, embeddings=embeddings, targets=targets, session=session
        )

    def num_known(self, ids: Sequence[Any]) -> int:
        """Return how many of some raw item ids are in the model's catalogue."""
        return int(self.recommend([{ITEM: list(ids)}], 1).num_known[0, 0])

    def recommend_log(
        self,
        files: list[Path],
        k: int | None = None,
        *,
        sessions: int | None = None,
        **filters: Any,
    ) -> Iterator[dict[str, Any]]:
        """Yield one record for each session of raw log files, by its start time.

        `sessions` is the maximum number of sessions.
        """
        from pipeline.serve.client.logs import read_sessions  # imports pandas and Arrow

        if isinstance(files, str | Path):
            files = [Path(files)]
        rows = islice(read_sessions(self.served, [Path(file) for file in files]), sessions)
        yield from self._records(rows, k, filters)

    def recommend_frame(
        self, frame: "pd.DataFrame", k: int | None = None, **filters: Any
    ) -> "pd.DataFrame":
        """Return session_id, rank, item_id, score for raw interactions with the log's columns.

        All columns but session and item are optional.
        """
        from pipeline.serve.client.logs import sessions_of_frame

        return records_to_frame(self._records(sessions_of_frame(self.served, frame), k, filters))

    def _records(
        self, sessions: Iterator[tuple[Any, Columns]], k: int | None, filters: dict[str, Any]
    ) -> Iterator[dict[str, Any]]:
        filters = listed(filters)
        for ids, batch in batches(sessions, self.served, filters):
            yield from self.recommend(batch, k, **filters).records(ids)


class Client(Connection, SyncClient):
    """A connection to one server: http://HOST:PORT, grpc://HOST:PORT, or grpcs with TLS.

    `key` is that of the server's --key-file, `timeout` the longest time of an answer in seconds.
    PEM files for grpcs: `ca`, the authority of the server's certificate if the system does not
    trust it; `cert` and `cert_key`, those of the client. ServingError if the server does not answer
    or refuses a request, with its reason.
    """

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    @property
    def served(self) -> ServedModel:
        """Description of the server's model, requested once."""
        if self._served is None:
            arguments = self._arguments()
            return self._read_config(self._call(self._client.get_model_config, arguments))
        return self._served

    def infer(
        self,
        tensors: dict[str, NDArray[Any]],
        *,
        lists: bool = True,
        embeddings: bool = False,
        targets: bool = False,
        session: str | None = None,
    ) -> Answer:
        """Send one request of (B, n) tensors; `lists`, `embeddings` and `targets` are outputs."""
        served = self.served
        outputs = outputs_of(served, lists=lists, embeddings=embeddings, targets=targets)
        result = self.send(self.prepare(tensors, outputs, session))
        return self._answer(result, outputs, served)

    def send(self, request: dict[str, Any]) -> Any:
        """Send a request of `prepare`; return tritonclient's result."""
        return self._call(self._client.infer, request)

    def _call(self, function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        try:
            return function(**arguments)
        except Exception as error:
            raise self._error(error) from None


def batches(
    sessions: Iterator[tuple[Any, Columns]], served: ServedModel, filters: dict[str, Any]
) -> Iterator[tuple[list[Any], list[Columns]]]:
    """Yield the ids and columns of the sessions of each request.

    ConfigError for a filter with a list for each session, as their number is unknown.
    """
    max_ids = 1
    for name in ("exclude", "candidates"):
        if filters.get(name) is None:
            continue
        max_ids = max(max_ids, len(filters[name]))
        if id_lists(filters[name], name) is not None:
            raise ConfigError(
                f"{name} has a list for each session, but these sessions come from a log. Give one "
                "list for all, or call `recommend`."
            )
    size = max(1, min(SESSIONS_PER_REQUEST, served.max_batch, MAX_REQUEST_IDS // max_ids))
    while batch := list(islice(sessions, size)):
        yield [session for session, _ in batch], [columns for _, columns in batch]
