"""Client of a model in this process."""

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pipeline.core.errors import ConfigError
from pipeline.serve.client.answers import Answer, outputs_of
from pipeline.serve.client.client import SyncClient
from pipeline.serve.client.served_model import ServedModel
from pipeline.serve.runtime import RequestError
from pipeline.serve.runtime.batching import BatchRunner, RunModel, response_tensors
from pipeline.serve.runtime.lookups import object_array
from pipeline.serve.runtime.request import RequestReader
from pipeline.serve.runtime.request_encoder import Encoder


class InProcessClient(SyncClient):
    """`Client` without a server: the code that runs in Triton reads and encodes the requests.

    `pipeline.in_process.open_run` returns one. ConfigError for a request that a server would
    refuse.
    """

    def __init__(self, served: ServedModel, directory: Path, run_model: RunModel) -> None:
        """Read `encoder.json` and its tables in `directory`."""
        encoder = Encoder(directory)
        self._served = served
        self._reader = RequestReader(encoder)
        self._runner = BatchRunner(encoder, run_model)

    def close(self) -> None:
        """Do nothing: there is no connection."""

    @property
    def served(self) -> ServedModel:
        """Description of the model."""
        return self._served

    def infer(
        self,
        tensors: dict[str, NDArray[Any]],
        *,
        lists: bool = True,
        embeddings: bool = False,
        targets: bool = False,
        session: str | None = None,  # noqa: ARG002  for a server's log
    ) -> Answer:
        """Run one request of (B, n) tensors; `session` is ignored."""
        served = self._served
        outputs = outputs_of(served, lists=lists, embeddings=embeddings, targets=targets)
        k = tensors.get("k")
        if k is not None and not ((k >= 1) & (k <= self._served.max_k)).all():
            raise ConfigError(
                f"k is {k.flat[0]}, expected 1 to {self._served.max_k}, the items of the catalogue."
            )
        try:
            request = self._reader.read({name: _as_sent(array) for name, array in tensors.items()})
        except RequestError as error:
            raise ConfigError(str(error)) from None
        except UnicodeError as error:
            raise ConfigError(f"A value is not text in UTF-8: {error}.") from None
        results = self._runner([request])
        response = response_tensors(request, results, self._reader.encoder, outputs)
        return Answer.from_outputs(response.get, outputs, served)


def _as_sent(array: NDArray[Any]) -> NDArray[Any]:
    """Encode text as bytes, as a server receives it."""
    if array.dtype.kind not in "OU":
        return array
    texts = [v if isinstance(v, bytes) else str(v).encode() for v in array.reshape(-1).tolist()]
    return object_array(texts).reshape(array.shape)
