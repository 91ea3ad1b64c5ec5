"""Request log of a proxy: a bounded queue, and a thread that decodes and writes."""

import logging
import queue
import random
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from pipeline.serve.proxy.session_names import session_fraction
from pipeline.serve.request_log.exchange import Exchange, Row, read_rows
from pipeline.serve.request_log.files import open_log, to_batch, write_file
from pipeline.serve.request_log.options import RequestLogOptions

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)
_SAMPLE_KEY = "request log"
_ROWS_PER_BATCH = 1_000
_IDS_PER_BATCH = 100_000
_STOP_SECONDS = 10
_DROPPED = "{} requests were not logged: the queue was full"
_UNREADABLE = "{} requests were not logged: they are not valid requests for lists"
_UNWRITTEN = "{} rows were lost: the file could not be written"


class RequestLog:
    """Request log that runs from `start` to `stop`.

    The proxy's thread calls `put`, which never blocks and never raises: exchanges that do not fit
    in the queue are dropped and counted. A full disk, or another error of writing, causes one
    warning until a file can be written again.
    """

    def __init__(self, options: RequestLogOptions) -> None:
        """Create the directory. ConfigError if it cannot be written."""
        open_log(options.directory)
        self._options = options
        self._queue: queue.Queue[Exchange | None] = queue.Queue(options.max_queued)
        self._put_bytes = self._taken_bytes = 0
        self._batches: list[pa.RecordBatch] = []
        self._rows: list[Row] = []
        self._num_ids = 0
        self._is_failing = False
        self.counts = {_DROPPED: 0, _UNREADABLE: 0, _UNWRITTEN: 0}
        self._reported = dict(self.counts)
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread that writes exchanges."""
        self._thread = threading.Thread(target=self._run, name="request log", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Write the queued exchanges; does nothing if the log does not run."""
        if self._thread is not None:
            with suppress(queue.Full):  # an ended thread no longer empties the queue
                self._queue.put(None, timeout=_STOP_SECONDS)
                self._thread.join()
            self._thread = None

    def wants(self, session: str | None) -> bool:
        """Return whether a request is in the sample, all of a session or none."""
        share = self._options.share
        if share >= 1:
            return True
        if session is None:
            return random.random() < share  # noqa: S311  a sample, not a secret
        return session_fraction(_SAMPLE_KEY, session) < share

    def put(self, exchange: Exchange) -> None:
        """Queue an exchange whose answer is complete."""
        size = exchange.num_bytes
        if self._put_bytes - self._taken_bytes + size > self._options.max_queued_bytes:
            self.counts[_DROPPED] += 1
            return
        try:
            self._queue.put_nowait(exchange)
        except queue.Full:
            self.counts[_DROPPED] += 1
        else:
            self._put_bytes += size

    def _run(self) -> None:
        is_over = False
        while not is_over:
            deadline = time.monotonic() + self._options.rotate_seconds
            num_bytes = 0
            while not is_over and num_bytes < self._options.rotate_bytes:
                try:
                    exchange = self._queue.get(timeout=max(0, deadline - time.monotonic()))
                except queue.Empty:
                    break
                is_over = exchange is None
                if exchange is not None:
                    num_bytes += self._take(exchange)
            self._write()
            self._report()

    def _take(self, exchange: Exchange) -> int:
        """Read the rows of an exchange; return the bytes of the batch that they complete, or 0."""
        self._taken_bytes += exchange.num_bytes
        try:
            rows = read_rows(exchange)
        except Exception:  # no request of a client may end the log
            logger.debug("A request is not logged.", exc_info=True)
            self.counts[_UNREADABLE] += 1
            return 0
        self._rows += rows
        self._num_ids += sum(len(row.items) + len(row.recommendations) for row in rows)
        is_full = len(self._rows) >= _ROWS_PER_BATCH or self._num_ids >= _IDS_PER_BATCH
        return self._end_batch() if is_full else 0

    def _end_batch(self) -> int:
        rows, self._rows, self._num_ids = self._rows, [], 0
        try:
            batch = to_batch(rows)
        except Exception:  # a number outside the range of its column
            logger.debug("Rows are not logged.", exc_info=True)
            self.counts[_UNREADABLE] += len(rows)
            return 0
        self._batches.append(batch)
        return int(batch.nbytes)

    def _write(self) -> None:
        if self._rows:
            self._end_batch()
        batches, self._batches = self._batches, []
        if not batches:
            return
        try:
            write_file(self._options.directory, batches, self._options.metadata)
        except Exception as error:
            self.counts[_UNWRITTEN] += sum(batch.num_rows for batch in batches)
            if not self._is_failing:
                logger.warning(
                    "Warning: requests cannot be logged in %s: %s. The server continues.",
                    self._options.directory, getattr(error, "strerror", None) or error,
                )  # fmt: skip
            self._is_failing = True
        else:
            if self._is_failing:
                logger.info("Requests are logged in %s again.", self._options.directory)
            self._is_failing = False

    def _report(self) -> None:
        """Log how many more rows are missing, by reason."""
        if self._is_failing:  # reported already
            return
        for text, count in self.counts.items():
            if count > self._reported[text]:
                logger.warning("Request log: %s.", text.format(count - self._reported[text]))
                self._reported[text] = count
