"""The process between Triton and a log that is not simply a file: records as JSON, or a stream.

Triton writes `I1122 21:53:27.835992 23417 server.cc:241] "text"`, without a year, and below some
of these a table or a traceback; what runs inside it prints as it likes. All of it comes through one
pipe, which this process reads until nobody holds the other end, whatever becomes of the log.
"""

import json
import os
import re
import select
import signal
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

PREFIX = re.compile(r"([IWEFV])(\d{4} \d\d:\d\d:\d\d\.\d{6}) +(\d{1,10}) (\S+?)\] ?(.*)", re.DOTALL)
PLAIN = {"error: ": "error", "terminate called ": "fatal", "Signal (": "fatal"}
"""How lines begin that Triton writes in no form when it fails, and their level."""
LEVELS = {"V": "debug", "I": "info", "W": "warning", "E": "error", "F": "fatal"}
LONGEST_RECORD = 1 << 20
"""Bytes of a record; what is longer becomes several."""
QUIET_SECONDS = 0.2
"""After which a record is taken to be over, though no other follows."""
START_BYTES = 1 << 20
"""Of the beginning of the log that are kept apart as they are, for who explains a failed start."""


def relay(log_format: str, start_copy: str, _name: str) -> int:
    """Standard input to standard output until its end; body of the process.

    `log_format` is text or json. `start_copy` is the path of the copy of the beginning; `_name`,
    the server's, stands in the command line for who looks for what belongs to it.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the end of the pipe ends it, after the last record
    records = Records()
    with Path(start_copy).open("wb", buffering=0) as copy:
        copied = 0
        while True:
            waiting = QUIET_SECONDS if records.is_open else None
            if not select.select([0], [], [], waiting)[0]:
                _write("".join(records.finish()).encode())
                continue
            chunk = os.read(0, 1 << 16)
            if not chunk:
                break
            if copied < START_BYTES:
                copied += len(chunk)
                copy.write(chunk)
            _write(
                "".join(records.feed(chunk)).encode() if log_format == "json" else chunk,
            )
    _write("".join(records.finish()).encode())
    return 0


class Records:
    """Lines as they come to JSON objects, a line each."""

    def __init__(self) -> None:
        self._rest = b""
        self._lines: list[str] = []
        self._size = 0

    @property
    def is_open(self) -> bool:
        """Whether something waits for what may follow it."""
        return bool(self._lines or self._rest)

    def feed(self, chunk: bytes) -> Iterator[str]:
        """The records that are complete with `chunk`."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > LONGEST_RECORD:
            lines, self._rest = [*lines, self._rest], b""
        for line in lines:
            yield from self._add(line.decode(errors="replace"))

    def finish(self) -> Iterator[str]:
        """What waits, as it is."""
        if self._rest:
            rest, self._rest = self._rest, b""
            yield from self._add(rest.decode(errors="replace"))
        yield from self._close()

    def _add(self, line: str) -> Iterator[str]:
        begins = PREFIX.match(line) or line.startswith(tuple(PLAIN))
        if begins or self._size + len(line) > LONGEST_RECORD:
            yield from self._close()
        self._lines.append(line)
        self._size += len(line)

    def _close(self) -> Iterator[str]:
        text = "\n".join(self._lines).strip("\n")
        self._lines, self._size = [], 0
        if text.strip():
            yield json.dumps(as_record(text, datetime.now(UTC)), ensure_ascii=False) + "\n"


def as_record(text: str, now: datetime) -> dict[str, object]:
    """One record of Triton's log, or of another's that only has a message, at the time `now`.

    `time` is UTC by RFC 3339, `source` the file and line in Triton.
    """
    match = PREFIX.match(text)
    if match is None:
        level = next((level for start, level in PLAIN.items() if text.startswith(start)), "info")
        return {"time": _rfc3339(now), "level": level, "message": text}
    level, time, process, source, message = match.groups()
    return {
        "time": _rfc3339(_with_year(time, now)),
        "level": LEVELS[level],
        "process": int(process),
        "source": source,
        "message": _unquoted(message.strip()),
    }


def _with_year(time: str, now: datetime) -> datetime:
    """The date nearest to `now`: Triton leaves the year out, and a record may be of last year."""
    for year in (now.year, now.year - 1, now.year + 1):
        try:
            found = datetime.strptime(f"{year}{time}+0000", "%Y%m%d %H:%M:%S.%f%z")
        except ValueError:  # 29 February, or no date at all
            continue
        if abs(found - now) < timedelta(days=180):
            return found
    return now


def _unquoted(message: str) -> str:
    """Triton quotes as JSON does what it writes in one line; others may print below it."""
    first, end, rest = message.partition("\n")
    if first.startswith('"') and first.endswith('"'):
        with suppress(ValueError):
            first = str(json.loads(first)).encode("utf-8", "replace").decode("utf-8")
    return first + end + rest


def _rfc3339(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _write(data: bytes) -> None:
    """All of it, or nothing more where the log takes nothing: Triton must not stop for that."""
    while data:
        try:
            data = data[os.write(1, data) :]
        except BlockingIOError:
            select.select([], [1], [])
        except OSError:
            return
