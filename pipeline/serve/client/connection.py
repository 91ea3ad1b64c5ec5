"""Connection to a Triton server over HTTP or gRPC, and its errors in one line."""

import importlib
from collections.abc import Sequence
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from numpy.typing import NDArray

from pipeline.core.errors import ConfigError, PipelineError, ServingError
from pipeline.serve.client.answers import OUTPUTS, Answer
from pipeline.serve.client.bounds import (
    GRPC_OPTIONS,
    bound_async_http,
    bound_http,
    check_description,
)
from pipeline.serve.client.served_model import ServedModel
from pipeline.serve.proxy.session_names import SESSION_PARAMETER
from pipeline.serve.triton.access import NO_ACCESS, Access, PemPath, check_key, read_pem

TIMEOUT_SECONDS = 30.0
_REFUSALS = ("is restricted", "maximum queue size", "timeout expired")
"""Triton's messages with the gRPC status UNAVAILABLE, which a missing server also has."""

Scheme = Literal["http", "grpc", "grpcs"]


class Connection:
    """Common part of `Client` and `AsyncClient`: arguments and results of tritonclient's calls."""

    _asynchronous: ClassVar[bool] = False
    """Whether calls of tritonclient are awaited."""

    def __init__(
        self,
        url: str,
        *,
        name: str = "recommender",
        key: str | None = None,
        timeout: float = TIMEOUT_SECONDS,
        ca: PemPath = None,
        cert: PemPath = None,
        cert_key: PemPath = None,
    ) -> None:
        """ConfigError for a wrong argument. The first request connects to the server."""
        self.name = name
        self.url = url
        self._timeout = timeout
        self._access = access = Access(key, ca, cert, cert_key)
        self._served: ServedModel | None = None
        scheme, address = address_of(url)
        self._protocol: Literal["http", "grpc"] = "http" if scheme == "http" else "grpc"
        if not 0 < timeout < float("inf"):
            raise ConfigError(f"timeout is {timeout}, expected seconds above 0.")
        if key is not None:
            check_key(key)
        if scheme != "grpcs" and access._replace(key=None) != NO_ACCESS:
            raise ConfigError(f"ca, cert and cert_key are for grpcs://HOST:PORT, not for {url}.")
        options: dict[str, Any] = {}
        if scheme == "grpcs":
            options["creds"] = channel_credentials(access)
        elif scheme == "http" and self._asynchronous:
            options["conn_timeout"] = timeout
        elif scheme == "http":
            options |= {"connection_timeout": timeout, "network_timeout": timeout}
        if self._protocol == "grpc":
            options["channel_args"] = GRPC_OPTIONS
        self._module: Any = importlib.import_module(
            f"tritonclient.{self._protocol}{'.aio' if self._asynchronous else ''}"
        )
        self._client: Any = self._module.InferenceServerClient(address, **options)
        if scheme == "http" and self._asynchronous:
            bound_async_http(self._client)
        elif scheme == "http":
            bound_http(self._client, timeout)

    def _arguments(self) -> dict[str, Any]:
        """Return the arguments of each call of tritonclient."""
        headers = self._access.headers(self._protocol)
        if self._protocol == "http":  # aiohttp accepts compression by default
            headers = {**(headers or {}), "Accept-Encoding": "identity"}
        timeout = {"client_timeout": self._timeout} if self._protocol == "grpc" else {}
        return {"model_name": self.name, "headers": headers, **timeout}

    def _read_config(self, config: Any) -> ServedModel:
        if self._protocol == "grpc":
            from google.protobuf.json_format import MessageToDict

            if config is None:  # gRPC for asyncio returns None for an invalid message
                raise ServingError(f"The server at {self.url} sent no description of its model.")
            check_description(config.ByteSize())
            config = MessageToDict(config, preserving_proto_field_name=True)
        if not isinstance(config, dict):
            config = {}
        self._served = ServedModel.from_config(config.get("config", config), self.name)
        return self._served

    def prepare(
        self,
        tensors: dict[str, NDArray[Any]],
        outputs: Sequence[str] = OUTPUTS,
        session: str | None = None,
    ) -> dict[str, Any]:
        """Return a request of (B, n) tensors as arguments of tritonclient's `infer`.

        `session` is the id of its session for the request log and the A/B test of the server.
        """
        from tritonclient.utils import np_to_triton_dtype

        inputs = []
        for name, array in tensors.items():
            field = self._module.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
            try:
                field.set_data_from_numpy(array)
            except Exception as error:
                raise self._error(error) from None
            inputs.append(field)
        requested = [self._module.InferRequestedOutput(output) for output in outputs]
        named = {} if session is None else {"parameters": {SESSION_PARAMETER: session}}
        return self._arguments() | {"inputs": inputs, "outputs": requested, **named}

    def _answer(self, result: Any, outputs: list[str], served: ServedModel) -> Answer:
        """Decode a result of tritonclient's `infer`. ServingError for an invalid answer."""
        try:
            response = result.get_response()
            is_json = isinstance(response, dict)
            version = response["model_version"] if is_json else response.model_version
            answer = Answer.from_outputs(result.as_numpy, outputs, served)
            return answer._replace(version=int(version))
        except Exception as error:  # NumPy and struct raise many types on invalid bytes
            raise self._error(error) from None

    def _error(self, error: Exception) -> PipelineError:
        """Translate an exception of tritonclient into one line."""
        from tritonclient.utils import InferenceServerException

        if isinstance(error, PipelineError):
            return error
        if isinstance(error, InferenceServerException):
            return self._triton_error(" ".join(str(error.message()).split()), str(error.status()))
        if isinstance(error, TimeoutError):
            return self._triton_error("timed out", "")
        if isinstance(error, OSError):
            return self._triton_error("", "UNAVAILABLE")
        if isinstance(error, UnicodeError):
            return ConfigError(f"A value is not text in UTF-8: {error}.")
        # the HTTP library has many exceptions for a response in another protocol
        return ServingError(
            f"The server at {self.url} does not speak Triton's {self._protocol}: "
            f"{type(error).__name__}. Check the port."
        )

    def _triton_error(self, message: str, status: str) -> ServingError:
        if "is restricted" in message:
            key = "no key" if self._access.key is None else "another key than the server's"
            return ServingError(
                f"{self.url} refused: it was asked with {key}. Use the one in the --key-file of "
                "`pipeline serve`."
            )
        if "unexpected inference output" in message:
            return ServingError(
                f"An older version exported the model {self.name!r} of {self.url}. Export its run "
                "again, by `pipeline export`."
            )
        if "DEADLINE_EXCEEDED" in status or "timed out" in message:
            return ServingError(
                f"{self.url} did not answer within {self._timeout:g} seconds. It is busy, or no "
                "Triton."
            )
        no_server = "failed to connect" in message or "UNAVAILABLE" in status
        if not no_server or any(words in message for words in _REFUSALS):
            return ServingError(f"The server refused: {message}")
        if self.url.startswith("grpcs:"):
            return ServingError(
                f"No server answers at {self.url} with a certificate of the right authority, or it"
                " needs one of the client: check ca, cert and cert_key."
            )
        return ServingError(
            f"No server answers at {self.url}. Start one with `pipeline serve REPOSITORY`."
        )


def channel_credentials(access: Access) -> Any:
    """Return gRPC's credentials. ConfigError for files that are not PEM."""
    import grpc

    if (access.cert is None) != (access.cert_key is None):
        raise ConfigError("Give both cert and cert_key, or neither of them.")
    authority, chain, key = read_pem(access.ca, access.cert, access.cert_key)
    return grpc.ssl_channel_credentials(authority, key, chain)


def address_of(url: str) -> tuple[Scheme, str]:
    """Return scheme and HOST:PORT. ConfigError for another form."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    schemes: dict[str, Scheme] = {"http": "http", "grpc": "grpc", "grpcs": "grpcs"}
    if parts.scheme not in schemes or not parts.hostname or port is None:
        raise ConfigError(
            f"{url!r} is no address, expected http://HOST:PORT, grpc://HOST:PORT or "
            "grpcs://HOST:PORT."
        )
    if ":" in parts.hostname:
        raise ConfigError(f"{url!r} is an address of IPv6, which Triton's clients do not take.")
    return schemes[parts.scheme], f"{parts.hostname}:{port}"
