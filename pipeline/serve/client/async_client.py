"""The client for programs that do other things while they wait."""

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from pipeline.serve.client.answers import Answer, frame_of
from pipeline.serve.client.client import Connection, batches
from pipeline.serve.client.served_model import ServedModel
from pipeline.serve.client.tensors import Columns, listed, request_tensors

if TYPE_CHECKING:
    import pandas as pd

_REQUESTS_AT_ONCE = 8


class AsyncClient(Connection):
    """As `Client`, with methods to await; open it inside a running event loop.

    async with AsyncClient("grpc://127.0.0.1:8001") as client:
        answer = await client.recommend([{"item_id": ["a", "b"]}], k=10)
    """

    _asynchronous = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._wire.client.close()

    async def served(self) -> ServedModel:
        """What the server's model takes; asked once."""
        if self._served is None:
            asked = self._wire.config_arguments(self.name)
            config = await self._ask(self._wire.client.get_model_config(**asked))
            self._served = ServedModel.from_config(config.get("config", config), self.name)
        return self._served

    async def infer(self, tensors: dict[str, np.ndarray], *, embeddings: bool = False) -> Answer:
        """One request of (B, n) tensors as they are."""
        try:
            arguments = self._wire.arguments(self.name, tensors, embeddings=embeddings)
        except Exception as error:
            raise self._wire.error(error) from None
        result = await self._ask(self._wire.client.infer(**arguments))
        return self._wire.answer(result, embeddings=embeddings)

    async def recommend(
        self,
        sessions: list[Columns],
        k: int | None = None,
        *,
        embeddings: bool = False,
        **filters: Any,
    ) -> Answer:
        """As `Client.recommend`."""
        tensors = request_tensors(await self.served(), sessions, k=k, **filters)
        return await self.infer(tensors, embeddings=embeddings)

    async def recommend_frame(
        self, frame: "pd.DataFrame", k: int | None = None, **filters: Any
    ) -> "pd.DataFrame":
        """As `Client.recommend_frame`, several requests at a time."""
        from pipeline.serve.client.logs import sessions_of_frame

        served = await self.served()
        filters = listed(filters)
        free = asyncio.Semaphore(_REQUESTS_AT_ONCE)

        async def ask(ids: list[Any], batch: list[Columns]) -> list[dict[str, Any]]:
            async with free:
                answer = await self.recommend(batch, k, **filters)
            return list(answer.records(ids))

        parts = batches(sessions_of_frame(served, frame), served, filters)
        found = await asyncio.gather(*(ask(ids, batch) for ids, batch in parts))
        return frame_of(record for records in found for record in records)

    async def _ask(self, call: Awaitable[Any]) -> Any:
        try:
            return await asyncio.wait_for(call, self._wire.timeout)
        except Exception as error:
            raise self._wire.error(error) from None
