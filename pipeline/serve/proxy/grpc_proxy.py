"""gRPC part of the proxy: messages pass as bytes, whatever the method."""

import hmac
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import grpc
import grpc.aio

from pipeline.serve.proxy.request_checks import MAX_BODY_BYTES, RefusedRequestError, check_message
from pipeline.serve.triton.access import GRPC_PREFIX, KEY_HEADER, Tls

INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM_INFER = "ModelStreamInfer"
_SERVER_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_BODY_BYTES),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),
]
_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Triton may restart: look for it soon
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
]


class GrpcProxy(grpc.GenericRpcHandler):
    """Passes calls on to the Triton at `address`, after a check of the requests."""

    def __init__(self, address: str, key: str | None) -> None:
        self._address = address
        self._key = key
        self._channel: grpc.aio.Channel
        self._server: grpc.aio.Server

    async def start(self, address: str, tls: Tls | None) -> None:
        """Listen at HOST:PORT."""
        self._channel = grpc.aio.insecure_channel(self._address, options=_CHANNEL_OPTIONS)
        self._infer = grpc.unary_unary_rpc_method_handler(
            _handler(self._channel.unary_unary(INFER))
        )
        self._server = grpc.aio.server(handlers=[self], options=_SERVER_OPTIONS)
        if tls is None:
            self._server.add_insecure_port(address)
        else:
            self._server.add_secure_port(address, _credentials(tls))
        await self._server.start()

    async def stop(self) -> None:
        """Close all connections."""
        await self._server.stop(0)
        await self._channel.close()

    def service(self, handler_call_details: Any) -> Any:
        """Return the handler of a method."""
        method = handler_call_details.method
        if method == INFER:
            return self._infer
        if method.endswith(f"/{STREAM_INFER}"):
            handler = _stream_handler(self._channel.stream_stream(method), self._key)
            return grpc.stream_stream_rpc_method_handler(handler)
        return grpc.unary_unary_rpc_method_handler(_handler(self._channel.unary_unary(method)))


# grpc.aio takes coroutine functions, and no objects that can be called
def _handler(call: Any) -> Callable[[bytes, Any], Coroutine[Any, Any, bytes]]:
    async def answer(message: bytes, context: Any) -> bytes:
        try:
            check_message(message)
        except RefusedRequestError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        try:
            response: bytes = await call(message, **_arguments(context))
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details() or "")
        return response

    return answer


def _stream_handler(
    call: Any, key: str | None
) -> Callable[[AsyncIterator[bytes], Any], AsyncIterator[bytes]]:
    async def answer(messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        # grpc.aio loses the status of a stream that Triton refuses at its beginning
        sent = dict(context.invocation_metadata() or ()).get(GRPC_PREFIX + KEY_HEADER, "")
        if key is not None and not hmac.compare_digest(sent.encode(), key.encode()):
            line = f"This protocol is restricted, expecting header '{GRPC_PREFIX}{KEY_HEADER}'"
            await context.abort(grpc.StatusCode.UNAVAILABLE, line)
        refusals: list[RefusedRequestError] = []

        async def checked() -> AsyncIterator[bytes]:
            async for message in messages:
                try:
                    check_message(message)
                except RefusedRequestError as error:
                    refusals.append(error)
                    return  # requests before this one get their answers
                yield message

        try:
            async for response in call(checked(), **_arguments(context)):
                yield response
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details() or "")
        for refusal in refusals:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(refusal))

    return answer


def _arguments(context: Any) -> dict[str, Any]:
    """Return metadata and deadline of a call for the next one."""
    metadata = [
        (name, value)
        for name, value in context.invocation_metadata() or ()
        if not name.startswith(("grpc-", ":")) and name != "user-agent"
    ]
    return {"metadata": metadata, "timeout": context.time_remaining()}


def _credentials(tls: Tls) -> Any:
    authority = None if tls.client_ca is None else tls.client_ca.read_bytes()
    pair = (tls.key.read_bytes(), tls.cert.read_bytes())
    return grpc.ssl_server_credentials([pair], authority, tls.client_ca is not None)
