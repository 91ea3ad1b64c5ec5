"""Start and stop, without a container, the Triton server that the `nvidia-pytriton` wheel carries.

A small supervisor process stands between the caller and Triton. It ends Triton when the caller is
gone, however that came about, and removes what Triton leaves behind. The kernel's own signal for
this (PR_SET_PDEATHSIG) is not enough: it fires when the *thread* that started the process ends.
"""

import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, Literal, Self

from pipeline.core.errors import ServingError
from pipeline.serve.triton.access import Access, Tls, check_key, check_tls
from pipeline.serve.triton.command import Settings
from pipeline.serve.triton.installation import (
    build_backends,
    build_python,
    check_shared_python,
    environment,
    locate_package,
)
from pipeline.serve.triton.log import LogFormat, TritonLog
from pipeline.serve.triton.ports import Ports, check_ports, filled, ipv4_address
from pipeline.serve.triton.supervisor import AT_ONCE, PID_FILE, READY, end_orphans, remove_traces

Api = Literal["model-repository", "shared-memory", "trace", "logging"]
CLOSED_APIS: tuple[Api, ...] = ("model-repository", "shared-memory", "trace", "logging")
"""Not needed to ask for predictions, and each lets a client change or read the server's machine."""

DEFAULT_POLL_SECONDS = 5
DEFAULT_PORTS = Ports()

# One line, because `-c` keeps the modules beside this file from shadowing the standard library's.
SUPERVISOR = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from pipeline.serve.triton.supervisor import supervise; sys.exit(supervise(*sys.argv[2:]))"
)


class TritonServer:
    """A Triton server that runs while the `with` block does.

    with TritonServer("triton_models", ports=free_ports()) as server:
        server.wait_until_ready(timeout_seconds=60)

    Every method that starts something raises ServingError where a user can mend the cause. When a
    start fails, nothing stays behind but the log that the message names.
    """

    def __init__(
        self,
        repository: str | Path,
        *,
        ports: Ports = DEFAULT_PORTS,
        host: str = "127.0.0.1",
        log_path: str | Path | None = None,
        log_format: LogFormat = "text",
        poll_seconds: int | None = None,
        model_control: Literal["none", "poll"] = "none",
        allow: Collection[Api] = (),
        key: str | None = None,
        tls: Tls | None = None,
        restarts: int = 0,
    ) -> None:
        """Describe a server; nothing runs before `start`.

        Args:
            repository: model repository, a directory of models with a config.pbtxt each
            ports: where to listen; ports that are 0 are chosen here
            host: IPv4 address, or its name, to bind; all but loopback is open to the network
            log_path: file that Triton's log is appended to, or `STDERR`; None keeps it only if a
                start fails
            log_format: "text" as Triton writes it, or "json": an object a line with `time`,
                `level`, `process`, `source` and `message`
            poll_seconds: interval between two looks at the repository, with model_control "poll"
            model_control: "poll" loads new versions as they appear, "none" what is there at start
            allow: APIs of `CLOSED_APIS` that anybody who reaches the ports may use
            key: what the header `KEY_HEADER` of a request must hold; health needs none
            tls: gRPC takes connections with TLS alone, and HTTP only those of this machine
            restarts: how often in 10 minutes a Triton that was ready comes back after a signal
                ended it
        """
        if model_control == "none" and poll_seconds is not None:
            raise ServingError(
                f"poll_seconds is {poll_seconds} but model_control is 'none'; it needs 'poll'"
            )
        if poll_seconds is not None and poll_seconds < 1:
            raise ServingError(f"poll_seconds is {poll_seconds}; expected a whole number from 1")
        if unknown := set(allow) - set(CLOSED_APIS):
            raise ServingError(f"cannot allow {sorted(unknown)}; expected some of {CLOSED_APIS}")
        self.repository = Path(repository).absolute()
        self.ports = filled(ports)
        self.host = ipv4_address(host)
        # Names this server's shared memory regions, and the server itself when asked who it is.
        self._id = f"triton_{secrets.token_hex(6)}"
        self._settings = Settings(
            name=self._id,
            repository=self.repository,
            host=self.host,
            ports=self.ports,
            poll_seconds=(poll_seconds or DEFAULT_POLL_SECONDS)
            if model_control == "poll"
            else None,
            closed=[api for api in CLOSED_APIS if api not in allow],
            key=None if key is None else check_key(key),
            tls=None if tls is None else check_tls(tls),
        )
        self._scratch: Path | None = None
        self._log = TritonLog(None if log_path is None else Path(log_path), log_format, self._id)
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._report: IO[bytes] | None = None
        self._pid = 0
        self._restarts = restarts
        self.ending = ""
        """Why the server ended by itself, once `wait` has returned."""

    @property
    def http_url(self) -> str:
        """Where the HTTP client connects, without a scheme."""
        return f"{_reachable(self._settings.http_host)}:{self.ports.http}"

    @property
    def grpc_url(self) -> str:
        """Where the gRPC client connects."""
        return f"{_reachable(self.host)}:{self.ports.grpc}"

    @property
    def grpc_scheme(self) -> str:
        """Of the address that `Client` takes: grpc, or grpcs with TLS."""
        return "grpc" if self._settings.tls is None else "grpcs"

    @property
    def metrics_url(self) -> str:
        """Host and port of Prometheus' `/metrics`."""
        return f"{_reachable(self.host)}:{self.ports.metrics}"

    @property
    def pid(self) -> int:
        """Process id of tritonserver itself; the instances of Python models are its children.

        Another one after a restart, and the last one while there is none.
        """
        self._pid = self._pid_now() or self._pid
        if not self._pid:
            raise ServingError("the Triton server has not been started")
        return self._pid

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and return at once; `wait_until_ready` tells when it answers."""
        if self.is_alive():
            raise ServingError(f"the Triton server runs already, with process id {self._pid}")
        _check_repository(self.repository, may_be_empty=self._settings.poll_seconds is not None)
        check_ports(self.host, self.ports, http_host=self._settings.http_host)
        check_shared_python()
        try:
            self._scratch = Path(tempfile.mkdtemp(prefix="triton-"))
            self._launch(locate_package(), self._scratch)
        except BaseException:
            self.stop()
            raise

    def wait_until_ready(self, timeout_seconds: float = 60) -> None:
        """Return when all models answer.

        Raises ServingError, with the server stopped, when it exits or the time is over.
        """
        if self._supervisor is None:
            raise ServingError("the Triton server has not been started; call `start` first")
        deadline = time.monotonic() + timeout_seconds
        try:
            while not self._is_ready():
                if not self.is_alive():
                    raise ServingError(f"Triton did not start: {self._log.summary(ended=True)}")
                if time.monotonic() > deadline:
                    raise ServingError(
                        f"Triton was not ready after {timeout_seconds:g} seconds:"
                        f" {self._log.summary(ended=not self.is_alive())}"
                    )
                time.sleep(0.05)
            self._supervisor.send_signal(READY)
        except BaseException as error:
            if isinstance(error, ServingError):
                self._log.keep()
            self.stop()
            raise

    def is_alive(self) -> bool:
        """Whether the server runs, ready or not, or is brought back."""
        return self._supervisor is not None and self._supervisor.poll() is None

    def wait(self, on_restart: Callable[[str], object] | None = None) -> int:
        """Block until the server ends by itself or by a signal; its exit code, 0 when it was told.

        A server that a signal killed has the code 128 + signal, as in a shell. `on_restart` gets a
        line for each time that it comes back.
        """
        if self._supervisor is None:
            raise ServingError("the Triton server has not been started")
        for line in self._report or ():
            text = line.decode().strip()
            if text.startswith("-"):
                self.ending = text[1:]
            elif on_restart is not None:
                on_restart(text[1:])
        return self._supervisor.wait()

    def stop(self, timeout_seconds: float = 15) -> None:
        """End the server and remove all it left; does nothing where there is nothing to end.

        Running requests have `EXIT_SECONDS` to finish; what still lives after `timeout_seconds` is
        killed. Takes 2 to 3 seconds, with an HTTP connection open somewhere `EXIT_SECONDS`.
        """
        try:
            if self._supervisor is not None and self._supervisor.poll() is None:
                self._supervisor.terminate()
                with suppress(subprocess.TimeoutExpired):
                    self._supervisor.wait(timeout_seconds)
        finally:  # also when a second Ctrl-C arrives here
            self._kill()
            self._remove_traces(timeout_seconds)

    def _remove_traces(self, timeout_seconds: float) -> None:
        if pid := self._pid_now():  # then the supervisor did not end by its own will
            end_orphans(pid, self._id, timeout_seconds)
        remove_traces(self._id, self._scratch, self._log.temporary)
        self._scratch = None
        if self._report is not None:
            self._report.close()
            self._report = None
        self._log.close()

    def _kill(self) -> None:
        if self._supervisor is None or self._supervisor.poll() is not None:
            return
        self._supervisor.send_signal(AT_ONCE)
        with suppress(subprocess.TimeoutExpired):
            self._supervisor.wait(5)
        if self._supervisor.poll() is not None:
            return
        # One that is stopped reaps no Triton: the number in the file stays Triton's.
        self._supervisor.send_signal(signal.SIGSTOP)
        if pid := self._pid_now():
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        self._supervisor.kill()
        self._supervisor.wait()

    def _pid_now(self) -> int:
        """0 where there is no Triton."""
        with suppress(OSError, ValueError):
            if self._scratch is not None:
                return int((self._scratch / PID_FILE).read_text())
        return 0

    def _launch(self, package: Path, scratch: Path) -> None:
        backends = build_backends(package, scratch)
        log = self._log.open()
        reader, writer = os.pipe()
        self._report = os.fdopen(reader, "rb")
        with os.fdopen(log, "ab") as log_end:
            try:
                self._supervisor = subprocess.Popen(
                    [
                        *(sys.executable, "-I", "-c", SUPERVISOR),
                        str(Path(__file__).parents[3]),
                        *(str(os.getpid()), str(writer)),
                        *(
                            self._id,
                            str(scratch),
                            str(self._log.own_file or ""),
                            str(self._restarts),
                        ),
                        *self._command(package, backends),
                    ],
                    env=environment(package, build_python(scratch)),
                    cwd=scratch,  # stubs look for modules in it: not where the caller happens to be
                    stdin=subprocess.DEVNULL,
                    stdout=log_end,
                    stderr=log_end,
                    start_new_session=True,  # Ctrl-C in a terminal reaches the caller alone
                    pass_fds=(writer,),
                )
            finally:
                os.close(writer)
            line = self._report.readline()
        if not line:
            self._log.keep()
            summary = self._log.summary(ended=not self.is_alive())
            raise ServingError(f"the Triton server could not be started: {summary}")
        self._pid = int(line)

    def _command(self, package: Path, backends: Path) -> list[str]:
        repository = self.repository
        if shlex.quote(str(repository)) != str(repository):
            # Triton hands the path to a shell without quoting it.
            repository = backends.parent / "repository"
            repository.symlink_to(self.repository, target_is_directory=True)
        return replace(self._settings, repository=repository).arguments(package, backends)

    def _is_ready(self) -> bool:
        import http.client  # here, like others below: they make up half of this module's import

        with (
            suppress(OSError, http.client.HTTPException, ValueError),
            closing(http.client.HTTPConnection(self.http_url, timeout=2)) as connection,
        ):
            connection.request("GET", "/v2/health/ready")
            response = connection.getresponse()
            response.read()
            if response.status != 200:
                return False
            connection.request("GET", "/v2", headers=Access(self._settings.key).headers("http"))
            # Another server may have taken the port between our look at it and Triton's.
            return bool(json.load(connection.getresponse())["name"] == self._id)
        return False


def _reachable(host: str) -> str:
    return "127.0.0.1" if host == "0.0.0.0" else host  # noqa: S104  compared only


def _check_repository(repository: Path, *, may_be_empty: bool) -> None:
    if not repository.is_dir():
        raise ServingError(
            f"no model repository at {repository}; expected a directory with one folder per model"
        )
    if not may_be_empty and not any(repository.glob("*/config.pbtxt")):
        raise ServingError(
            f"model repository {repository} has no model; expected MODEL/config.pbtxt and"
            " MODEL/VERSION/ in it"
        )
