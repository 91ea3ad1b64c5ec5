"""Streams of one gRPC connection: their messages, windows and counts."""

import asyncio
import struct
from collections import deque
from dataclasses import dataclass, field

from pipeline.serve.proxy import http2
from pipeline.serve.proxy.admission import Admission
from pipeline.serve.proxy.calls import Call
from pipeline.serve.proxy.request_checks import RefusedRequestError
from pipeline.serve.request_log.exchange import Exchange

PREFIX = struct.Struct(">BL")
"""Prefix of each message: whether it is compressed, and its size."""


class AnswerCounter:
    """Counts the messages in the DATA frames of an answer."""

    def __init__(self) -> None:
        self._prefix = bytearray()
        self._left = 0
        """Bytes of a message that have not arrived."""

    def feed(self, data: bytes) -> int:
        """Return how many messages begin in `data`."""
        position, count = min(self._left, len(data)), 0
        self._left -= position
        while position < len(data):
            part = data[position : position + PREFIX.size - len(self._prefix)]
            self._prefix += part
            position += len(part)
            if len(self._prefix) < PREFIX.size:
                break
            _, size = PREFIX.unpack(self._prefix)
            self._prefix.clear()
            count += 1
            step = min(size, len(data) - position)
            position += step
            self._left = size - step
        return count


@dataclass
class GrpcStream:
    """Request and answer of one call, an HTTP/2 stream."""

    window: int
    """Bytes of DATA that Triton's window still allows."""
    deadline: float
    """Time of the event loop at which the stream is refused as too slow."""
    call: Call
    received: bytearray = field(default_factory=bytearray)
    """Start of an incomplete message."""
    waiting: bytearray = field(default_factory=bytearray)
    """Checked messages that wait for Triton's window."""
    is_ended: bool = False
    """Whether the client has sent all data."""
    check: asyncio.Task[None] | None = None
    """Check of a message in the check process, None if there is none."""
    has_headers: bool = False
    """Whether Triton has begun to answer."""
    debt: int = 0
    """Bytes of the client that are not yet returned to its window."""
    num_messages: int = 0
    num_waiting: int = 0
    """Messages for a model that Triton has not answered."""
    num_checked: int = 0
    """Bytes in the check process."""
    num_bytes: int = 0
    """Bytes that are counted as buffered."""
    answers: AnswerCounter = field(default_factory=AnswerCounter)
    exchange: Exchange | None = None
    """Request and answer for the request log, only of a call with one message."""

    @property
    def is_checking(self) -> bool:
        """Whether a message is in the check process."""
        return self.check is not None

    @property
    def num_held(self) -> int:
        """Bytes that the proxy holds for the stream."""
        return len(self.received) + len(self.waiting) + self.num_checked

    def next_message(self, max_bytes: int) -> bytes | None:
        """Remove the first message, with its prefix, from `received`; None until it is complete.

        RefusedRequestError for a message of more than `max_bytes`.
        """
        if len(self.received) < PREFIX.size:
            return None
        _, size = PREFIX.unpack_from(self.received)
        if size > max_bytes:
            raise RefusedRequestError(f"the message has more than {max_bytes} bytes.")
        stop = PREFIX.size + size
        if len(self.received) < stop:
            return None
        whole = bytes(self.received[:stop])
        del self.received[:stop]
        return whole


class GrpcStreams:
    """Open streams of a connection by number, with Triton's windows in bytes (RFC 9113, 5.2)."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._streams: dict[int, GrpcStream] = {}
        self._window = self._first_window = http2.DEFAULT_WINDOW
        self._announced: deque[int] = deque()
        """Initial windows of Triton's settings that the client has not acknowledged."""

    def __len__(self) -> int:
        return len(self._streams)

    def __contains__(self, number: int) -> bool:
        return number in self._streams

    @property
    def are_busy(self) -> bool:
        """Whether a request waits for its check or its answer."""
        return any(s.num_waiting or s.is_checking for s in self._streams.values())

    def get(self, number: int) -> GrpcStream | None:
        """Return an open stream."""
        return self._streams.get(number)

    def late(self, now: float) -> list[int]:
        """Return the numbers of the streams that are past their deadline."""
        return [number for number, stream in self._streams.items() if now > stream.deadline]

    def open(self, number: int, deadline: float, call: Call) -> None:
        """Add a stream."""
        self._streams[number] = GrpcStream(self._first_window, deadline, call)

    def close(self, number: int) -> GrpcStream | None:
        """Remove a stream and its counts, and cancel its check."""
        stream = self._streams.pop(number, None)
        if stream is not None:
            check, stream.check = stream.check, None
            if check is not None:  # it would hold its message, which is no longer counted
                check.cancel()
            self.count_answers(stream, stream.num_waiting)
            self._admission.buffer(stream.num_bytes, 0)
        return stream

    def close_all(self) -> None:
        """Remove all streams."""
        for number in list(self._streams):
            self.close(number)

    def count_answers(self, stream: GrpcStream, count: int) -> None:
        """Remove answered messages from the count, at most those that wait."""
        for _ in range(min(count, stream.num_waiting)):
            stream.num_waiting -= 1
            self._admission.end_request()

    def count_bytes(self, stream: GrpcStream) -> None:
        """Count the bytes that a stream holds. RefusedRequestError if all hold too many."""
        before, stream.num_bytes = stream.num_bytes, stream.num_held
        self._admission.buffer(before, stream.num_bytes)

    def take_data(self, number: int) -> tuple[bytes, bool]:
        """Return DATA frames that Triton's windows allow, and whether no content is left."""
        stream = self._streams[number]
        size = max(0, min(len(stream.waiting), stream.window, self._window))
        is_last = size == len(stream.waiting) and not stream.is_checking
        ends = is_last and stream.is_ended
        if not size and not ends:
            return b"", is_last
        content = bytes(stream.waiting[:size])
        del stream.waiting[:size]
        stream.window -= size
        self._window -= size
        return http2.write_data(number, content, ends=ends), is_last

    def widen(self, frame: http2.Frame) -> list[int]:
        """Add a WINDOW_UPDATE of Triton; return the streams whose content waits for it."""
        size = http2.read_window_update(frame)
        if frame.stream == 0:
            self._window += size
            return self._waiting()
        stream = self._streams.get(frame.stream)
        if stream is None:
            return []
        stream.window += size
        return [frame.stream] if stream.waiting else []

    def announce(self, settings: http2.Frame) -> None:
        """Store the initial window of Triton's settings, which applies once acknowledged."""
        last = self._announced[-1] if self._announced else self._first_window
        first = http2.read_settings(settings).get(http2.INITIAL_WINDOW_SIZE, last)
        self._announced.append(first)

    def acknowledge(self) -> list[int]:
        """Apply the oldest settings; return the streams whose content waits for them.

        ProtocolError if no settings wait.
        """
        if not self._announced:
            raise http2.ProtocolError("an acknowledgement without settings")
        before, self._first_window = self._first_window, self._announced.popleft()
        for stream in self._streams.values():
            stream.window += self._first_window - before
        return self._waiting()

    def _waiting(self) -> list[int]:
        return [number for number, stream in self._streams.items() if stream.waiting]
