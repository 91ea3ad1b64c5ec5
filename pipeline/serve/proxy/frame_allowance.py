"""Allowance of a client for HTTP/2 frames without a request: floods of resets, pings, settings."""

from collections.abc import Callable

from pipeline.serve.proxy import http2
from pipeline.serve.proxy.admission import Admission

_MAX_COST, _COST_A_SECOND = 1_000, 100
"""Largest cost that a client may spend at once, and the allowance that it regains a second."""
_FRAME_COSTS = {http2.RESET: 5, http2.HEADERS: 0, http2.DATA: 0}
"""Cost of a frame; 1 for other types."""
_BLOCK_BYTES = 4_096
"""Bytes of headers that cost 1."""
_ANSWER_CREDIT, _ANSWER_DATA_CREDIT = 20, 2
"""Credit for an answer and for each of its frames, which clients acknowledge by other frames."""


class FrameAllowance:
    """Cost that one connection may still spend on frames.

    :param admission: logs a client that has used up its allowance
    :param now: clock in seconds
    """

    def __init__(self, admission: Admission, now: Callable[[], float]) -> None:
        self._admission = admission
        self._now = now
        self._left = float(_MAX_COST)
        self._since = now()

    def spend_frame(self, frame: http2.Frame) -> None:
        """Pay for a frame. ProtocolError if the allowance is used up."""
        is_empty = frame.kind == http2.DATA and not frame.payload
        self._spend(_FRAME_COSTS.get(frame.kind, 1) or is_empty)

    def spend_headers(self, block: bytes) -> None:
        """Pay for the headers of a request. ProtocolError if the allowance is used up."""
        self._spend(len(block) // _BLOCK_BYTES)

    def spend_refusal(self) -> None:
        """Pay for a refused request. ProtocolError if the allowance is used up."""
        self._spend(_FRAME_COSTS[http2.RESET])

    def earn_answer(self) -> None:
        """Credit a whole answer."""
        self._earn(_ANSWER_CREDIT)

    def earn_data(self) -> None:
        """Credit a frame of an answer."""
        self._earn(_ANSWER_DATA_CREDIT)

    def _earn(self, credit: float) -> None:
        self._left = min(self._left + credit, _MAX_COST)

    def _spend(self, cost: float) -> None:
        self._left -= cost
        if self._left >= 0:
            return
        now = self._now()
        self._earn((now - self._since) * _COST_A_SECOND)
        self._since = now
        if self._left < 0:
            self._admission.log("frames", "a client sends frames without requests")
            raise http2.ProtocolError("too many frames without a request")
