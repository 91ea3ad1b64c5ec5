"""Asynchronous client."""

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, Self

from numpy.typing import NDArray

from pipeline.serve.client.answers import Answer, outputs_of, records_to_frame, target_frame
from pipeline.serve.client.client import batches
from pipeline.serve.client.connection import Connection
from pipeline.serve.client.served_model import ServedModel
from pipeline.serve.client.tensors import Columns, listed, request_tensors

if TYPE_CHECKING:
    import pandas as pd

_CONCURRENT_REQUESTS = 8


class AsyncClient(Connection):
    """`Client` with asynchronous methods; open it inside a running event loop.

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
        await self._client.close()

    async def served(self) -> ServedModel:
        """Return the description of the server's model, requested once."""
        if self._served is None:
            arguments = self._arguments()
            return self._read_config(await self._wait(self._client.get_model_config(**arguments)))
        return self._served

    async def infer(
        self,
        tensors: dict[str, NDArray[Any]],
        *,
        lists: bool = True,
        embeddings: bool = False,
        targets: bool = False,
        session: str | None = None,
    ) -> Answer:
        """Send one request of (B, n) tensors; `lists`, `embeddings` and `targets` are outputs."""
        served = await self.served()
        outputs = outputs_of(served, lists=lists, embeddings=embeddings, targets=targets)
        result = await self._wait(self._client.infer(**self.prepare(tensors, outputs, session)))
        return self._answer(result, outputs, served)

    async def predict(self, sessions: list[Columns]) -> "pd.DataFrame":
        """As `Client.predict`."""
        tensors = request_tensors(await self.served(), sessions)
        answer = await self.infer(tensors, lists=False, targets=True)
        return target_frame(answer.records(range(len(sessions))))

    async def recommend(
        self,
        sessions: list[Columns],
        k: int | None = None,
        *,
        embeddings: bool = False,
        targets: bool = False,
        session: str | None = None,
        **filters: Any,
    ) -> Answer:
        """As `Client.recommend`."""
        served = await self.served()
        tensors = request_tensors(served, sessions, k=k, **filters)
        lists = served.ranks_items or not targets
        return await self.infer(
            tensors, lists=lists, embeddings=embeddings, targets=targets, session=session
        )

    async def recommend_frame(
        self, frame: "pd.DataFrame", k: int | None = None, **filters: Any
    ) -> "pd.DataFrame":
        """As `Client.recommend_frame`, with several concurrent requests."""
        from pipeline.serve.client.logs import sessions_of_frame

        served = await self.served()
        filters = listed(filters)
        slots = asyncio.Semaphore(_CONCURRENT_REQUESTS)

        async def ask(ids: list[Any], batch: list[Columns]) -> list[dict[str, Any]]:
            async with slots:
                answer = await self.recommend(batch, k, **filters)
            return list(answer.records(ids))

        parts = batches(sessions_of_frame(served, frame), served, filters)
        results = await asyncio.gather(*(ask(ids, batch) for ids, batch in parts))
        return records_to_frame(record for records in results for record in records)

    async def _wait(self, call: Awaitable[Any]) -> Any:
        try:
            return await asyncio.wait_for(call, self._timeout)
        except Exception as error:
            raise self._error(error) from None
