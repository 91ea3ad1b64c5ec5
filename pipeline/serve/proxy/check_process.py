"""Process that decompresses and checks large requests, so that small ones do not wait for them.

It has low priority and bounded memory, and checks one request at a time, with clients in turn.
Messages on its pipes are a line of JSON, then the bytes whose size the line gives.
"""

import asyncio
import json
import os
import resource
import select
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from pipeline.serve.proxy.limits import Limits
from pipeline.serve.proxy.request_checks import (
    CheckedBody,
    CheckedMessage,
    RefusedRequestError,
    check_body,
    check_message,
    inflate,
    inflate_message,
)
from pipeline.serve.proxy.turns import Turns

CHECK_SECONDS = 20
"""Longest time of one check, after which the process is killed."""
MAX_MEMORY_BYTES = 4 << 30
"""Largest address space of the process."""
_KEPT_BYTES = 256 << 20
"""Resident memory above which the process ends after a check; the next check starts a new one."""
_NICE = 5
_IDLE_SECONDS = 5
"""Time without a request after which the process ends."""
# with `-c`, modules beside this file do not shadow those of the standard library
_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from pipeline.serve.proxy.check_process import main; main(sys.argv[2])"
)


class CheckProcess:
    """Starts its process at the first large request."""

    def __init__(self, limits: Limits) -> None:
        self._limits = json.dumps(asdict(limits))
        self._thread = ThreadPoolExecutor(1, "checks")
        self._turns = Turns()
        self._lock = threading.Lock()
        """Guards `_process` and `_is_stopped`."""
        self._process: subprocess.Popen[bytes] | None = None
        self._is_stopped = False

    async def check_body(
        self,
        client: str,
        body: bytes,
        encoding: str,
        json_lengths: list[str],
        model: str,
        *,
        adds_outputs: bool,
    ) -> CheckedBody:
        """Run `inflate` and `check_body`; `adds_outputs`: whether the model recommends items."""
        names = [model] if adds_outputs else []
        values, content = await self._ask(
            client, body, ["body", encoding, json_lengths, model, names]
        )
        return CheckedBody(content, *values)

    async def check_message(
        self, client: str, message: bytes, *, is_compressed: bool, models: list[str]
    ) -> CheckedMessage:
        """Run `inflate_message` and `check_message`; `models` are those that recommend items."""
        values, content = await self._ask(client, message, ["message", is_compressed, models])
        return CheckedMessage(content, *values)

    @property
    def runs(self) -> bool:
        """Whether there is a process."""
        return self._process is not None

    def reap(self) -> None:
        """Release a process that ended by itself."""
        with self._lock:
            self._reap()

    def stop(self) -> None:
        """Kill the process and its current check."""
        with self._lock:
            self._is_stopped = True
            if self._process is not None:
                self._process.kill()
        self._thread.shutdown(cancel_futures=True)
        if self._process is not None:
            self._process.wait()
            _close(self._process)

    async def _ask(self, client: str, content: bytes, job: list[Any]) -> tuple[list[Any], bytes]:
        loop = asyncio.get_running_loop()
        await self._turns.acquire(client)
        work = loop.run_in_executor(self._thread, self._exchange, content, job)
        work.add_done_callback(lambda _: self._turns.release())
        # a cancelled request keeps its turn until the thread is free: others would queue behind it
        answer, checked = await asyncio.shield(work)
        if "refusal" in answer:
            raise RefusedRequestError(*answer["refusal"])
        return answer["values"], content if checked is None else checked

    def _exchange(self, content: bytes, job: list[Any]) -> tuple[dict[str, Any], bytes | None]:
        """Have the process check one request."""
        for _ in range(2):
            process = self._started()
            timer = threading.Timer(CHECK_SECONDS, process.kill)
            timer.start()
            try:
                assert process.stdin is not None  # noqa: S101
                assert process.stdout is not None  # noqa: S101
                _write(process.stdin, job, content)
                answer, checked = _read(process.stdout)
                return answer, checked if answer.get("is_new") else None
            except (OSError, ValueError):
                process.kill()
                if process.wait() != 0:
                    break  # a crash; a process that ended by itself after a check is replaced
            finally:
                timer.cancel()
        return {"refusal": ["the request could not be checked. Ask later.", 503]}, None

    def _started(self) -> subprocess.Popen[bytes]:
        with self._lock:
            self._reap()
            if self._process is None:
                root = str(Path(__file__).parents[3])
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-c", _PROGRAM, root, self._limits],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    start_new_session=True,  # Ctrl-C in a terminal reaches only the launcher
                )
            if self._is_stopped:
                self._process.kill()
            return self._process

    def _reap(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            _close(self._process)
            self._process = None


def main(limits: str) -> None:
    """Check the requests on stdin until its other end is closed."""
    bounds = Limits(**json.loads(limits))
    os.nice(_NICE)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    reader, writer = sys.stdin.buffer, sys.stdout.buffer
    while select.select([reader], [], [], _IDLE_SECONDS)[0]:
        try:
            job, content = _read(reader)
        except ValueError:  # the proxy is gone
            return
        try:
            checked, values = _check(job, content, bounds)
            is_new = checked is not content
            answer = {"values": values, "is_new": is_new}
            _write(writer, answer, checked if is_new else b"")
        except RefusedRequestError as error:
            _write(writer, {"refusal": [str(error), error.status]}, b"")
        except MemoryError:
            _write(writer, {"refusal": ["the request needs too much memory", 413]}, b"")
        job = content = checked = b""  # frees their memory before it is measured
        if _resident_bytes() > _KEPT_BYTES:
            return


def _check(job: list[Any], content: bytes, limits: Limits) -> tuple[bytes, list[Any]]:
    """Return the content for Triton and the other fields of a check."""
    if job[0] == "body":
        encoding, json_lengths, model, names = job[1:]
        body = inflate(content, encoding, limits.max_body_bytes)
        checked = check_body(body, json_lengths, model, names, limits)
        return checked.content, list(checked[1:])
    is_compressed, names = job[1:]
    message = inflate_message(content, limits.max_body_bytes) if is_compressed else content
    result = check_message(message, names, limits)
    return result.content, list(result[1:])


def _write(stream: IO[bytes], line: Any, content: bytes) -> None:
    stream.write(json.dumps([line, len(content)]).encode() + b"\n" + content)
    stream.flush()


def _read(stream: IO[bytes]) -> tuple[Any, bytes]:
    """Return a line and its bytes. ValueError for a closed pipe."""
    line, size = json.loads(stream.readline())
    content = stream.read(size)
    if len(content) < size:
        raise ValueError("the other process is gone")
    return line, content


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _close(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):  # the process left a request unread
                pipe.close()
