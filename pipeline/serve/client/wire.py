"""Triton's protocols, as both clients speak them."""

import importlib
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from pipeline.core.errors import ConfigError, PipelineError, ServingError
from pipeline.serve.client.answers import Answer
from pipeline.serve.triton.access import NO_ACCESS, Access, check_key, read_pem

TIMEOUT_SECONDS = 30.0
_EMBEDDING = "embedding"
_REFUSALS = ("is restricted", "maximum queue size", "timeout expired")
"""What Triton says of requests with the same status that gRPC has where no server answers."""


class Wire(NamedTuple):
    """A connection by one protocol."""

    url: str
    protocol: Literal["http", "grpc"]
    module: Any
    """Of tritonclient."""
    client: Any
    access: Access
    timeout: float
    """Seconds that an answer may take."""

    @classmethod
    def connect(
        cls,
        url: str,
        access: Access = NO_ACCESS,
        *,
        timeout: float = TIMEOUT_SECONDS,
        asynchronous: bool = False,
    ) -> "Wire":
        """ConfigError where an argument cannot be; whether a server answers shows later."""
        scheme, address = address_of(url)
        protocol: Literal["http", "grpc"] = "http" if scheme == "http" else "grpc"
        if not 0 < timeout < float("inf"):
            raise ConfigError(f"timeout is {timeout}, expected seconds above 0.")
        if access.key is not None:
            check_key(access.key)
        module = importlib.import_module(
            f"tritonclient.{protocol}.aio" if asynchronous else f"tritonclient.{protocol}"
        )
        options: dict[str, Any] = {}
        if protocol == "http":
            options["conn_timeout" if asynchronous else "connection_timeout"] = timeout
            if not asynchronous:
                options["network_timeout"] = timeout
        if scheme == "grpcs":
            options["creds"] = channel_credentials(access)
        elif access[1:] != NO_ACCESS[1:]:
            raise ConfigError(f"ca, cert and cert_key are for grpcs://HOST:PORT, not for {url}.")
        client = module.InferenceServerClient(address, **options)
        return cls(url, protocol, module, client, access, timeout)

    def config_arguments(self, name: str) -> dict[str, Any]:
        """Of tritonclient's `get_model_config`."""
        found: dict[str, Any] = {"model_name": name, "headers": self._headers}
        if self.protocol == "grpc":
            found |= {"as_json": True, "client_timeout": self.timeout}
        return found

    @property
    def _headers(self) -> dict[str, str]:
        return self.access.headers(self.protocol)

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
            "headers": self._headers,
        }
        if self.protocol == "grpc":
            found["client_timeout"] = self.timeout
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
            message, status = " ".join(str(error.message()).split()), str(error.status())
            if "is restricted" in message:
                found = "no key" if self.access.key is None else "another key than the server's"
                return ServingError(
                    f"{self.url} refused: it was asked with {found}. Give the one that stands in "
                    "the --key-file of `pipeline serve`."
                )
            if "DEADLINE_EXCEEDED" in status or "timed out" in message:
                return self._late()
            no_server = "failed to connect" in message or "UNAVAILABLE" in status
            if no_server and not any(words in message for words in _REFUSALS):
                return self._no_server()
            return ServingError(f"The server refused: {message}")
        if isinstance(error, TimeoutError):
            return self._late()
        if isinstance(error, OSError):
            return self._no_server()
        if isinstance(error, UnicodeError):
            return ConfigError(f"A value is not text in UTF-8: {error}.")
        # what its HTTP library says of an answer in another protocol has many types
        return ServingError(
            f"What answers at {self.url} does not speak Triton's {self.protocol}: "
            f"{type(error).__name__}. Check the port."
        )

    def _late(self) -> ServingError:
        return ServingError(
            f"{self.url} did not answer within {self.timeout:g} seconds. It is busy, or no Triton."
        )

    def _no_server(self) -> ServingError:
        if self.url.startswith("grpcs:"):
            return ServingError(
                f"No server answers at {self.url} with a certificate of the right authority, or it"
                " wants one of the client: check ca, cert and cert_key."
            )
        return ServingError(
            f"No server answers at {self.url}. Start one with `pipeline serve REPOSITORY`."
        )


def channel_credentials(access: Access) -> Any:
    """Return gRPC's credentials. ConfigError for files that are no PEM."""
    import grpc

    if (access.cert is None) != (access.cert_key is None):
        raise ConfigError("Give both cert and cert_key, or neither of them.")
    authority, chain, key = read_pem(access.ca, access.cert, access.cert_key)
    return grpc.ssl_channel_credentials(authority, key, chain)


def address_of(url: str) -> tuple[Literal["http", "grpc", "grpcs"], str]:
    """Scheme and HOST:PORT. ConfigError for another form."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    schemes: dict[str, Literal["http", "grpc", "grpcs"]] = {
        "http": "http",
        "grpc": "grpc",
        "grpcs": "grpcs",
    }
    if parts.scheme not in schemes or not parts.hostname or port is None:
        raise ConfigError(
            f"{url!r} is no address, expected http://HOST:PORT, grpc://HOST:PORT or "
            "grpcs://HOST:PORT."
        )
    if ":" in parts.hostname:
        raise ConfigError(f"{url!r} is an address of IPv6, which Triton's clients do not take.")
    return schemes[parts.scheme], f"{parts.hostname}:{port}"
