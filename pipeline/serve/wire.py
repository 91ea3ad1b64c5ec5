"""Triton's protocols, as both clients speak them."""

import importlib
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from pipeline.core.errors import ConfigError, PipelineError, ServingError
from pipeline.serve.answers import Answer

TIMEOUT_SECONDS = 30.0
_EMBEDDING = "embedding"


class Wire(NamedTuple):
    """A connection by one protocol."""

    url: str
    protocol: Literal["http", "grpc"]
    module: Any
    """Of tritonclient."""
    client: Any

    @classmethod
    def connect(cls, url: str, *, asynchronous: bool = False) -> "Wire":
        """ConfigError where `url` is no address; whether a server answers shows later."""
        protocol, address = address_of(url)
        module = importlib.import_module(
            f"tritonclient.{protocol}.aio" if asynchronous else f"tritonclient.{protocol}"
        )
        timeouts = {}
        if protocol == "http":
            timeouts["conn_timeout" if asynchronous else "connection_timeout"] = TIMEOUT_SECONDS
            if not asynchronous:
                timeouts["network_timeout"] = TIMEOUT_SECONDS
        return cls(url, protocol, module, module.InferenceServerClient(address, **timeouts))

    def arguments(
        self, name: str, tensors: dict[str, np.ndarray], *, embeddings: bool
    ) -> dict[str, Any]:
        """Of tritonclient's `infer`."""
        from tritonclient.utils import np_to_triton_dtype

        inputs = []
        for tensor, array in tensors.items():
            made = self.module.InferInput(tensor, array.shape, np_to_triton_dtype(array.dtype))
            made.set_data_from_numpy(array)
            inputs.append(made)
        wanted = ["item_ids", "scores", *([_EMBEDDING] if embeddings else [])]
        found: dict[str, Any] = {
            "model_name": name,
            "inputs": inputs,
            "outputs": [self.module.InferRequestedOutput(output) for output in wanted],
        }
        if self.protocol == "grpc":
            found["client_timeout"] = TIMEOUT_SECONDS
        return found

    def answer(self, result: Any, *, embeddings: bool) -> Answer:
        """What `infer` gave."""
        vectors = result.as_numpy(_EMBEDDING) if embeddings else None
        return Answer.of(result.as_numpy("item_ids"), result.as_numpy("scores"), vectors)

    def error(self, error: Exception) -> PipelineError:
        """What went wrong in one line, from what tritonclient raised."""
        from tritonclient.utils import InferenceServerException

        if isinstance(error, PipelineError):
            return error
        if isinstance(error, InferenceServerException):
            message = " ".join(str(error.message()).split())
            if "failed to connect" in message or "UNAVAILABLE" in str(error.status()):
                return self._no_server()
            return ServingError(f"The server refused: {message}")
        if isinstance(error, OSError | TimeoutError):
            return self._no_server()
        if isinstance(error, UnicodeError):
            return ConfigError(f"A value is not text in UTF-8: {error}.")
        # what its HTTP library says of an answer in another protocol has many types
        return ServingError(
            f"What answers at {self.url} does not speak Triton's {self.protocol}: "
            f"{type(error).__name__}. Check the port."
        )

    def _no_server(self) -> ServingError:
        return ServingError(
            f"No server answers at {self.url}. Start one with `pipeline serve REPOSITORY`."
        )


def address_of(url: str) -> tuple[Literal["http", "grpc"], str]:
    """Protocol and HOST:PORT. ConfigError for another form."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme not in ("http", "grpc") or not parts.hostname or port is None:
        raise ConfigError(f"{url!r} is no address, expected http://HOST:PORT or grpc://HOST:PORT.")
    return ("http" if parts.scheme == "http" else "grpc"), f"{parts.hostname}:{port}"
