"""Starts and stops the Triton server of the `nvidia-pytriton` wheel, without a container.

A supervisor process between the launcher and Triton stops Triton when the launcher has ended for
any reason, and removes the files and shared memory that Triton leaves.
"""

import json
import os
import secrets
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

from pipeline.core.errors import ConfigError, ServingError
from pipeline.serve.proxy.limits import DEFAULT_LIMITS, Limits
from pipeline.serve.proxy.proxy import Proxy, ProxyOptions
from pipeline.serve.request_log.options import RequestLogOptions
from pipeline.serve.triton.access import (
    KEY_HEADER,
    PROXY_KEY_HEADER,
    ClientKey,
    Tls,
    check_key,
)
from pipeline.serve.triton.command import TritonOptions
from pipeline.serve.triton.installation import (
    build_backends,
    build_python,
    check_shared_python,
    environment,
    locate_package,
)
from pipeline.serve.triton.log import LogFormat, TritonLog
from pipeline.serve.triton.ports import Ports, check_ports, fill_ports, inner_ports, ipv4_address
from pipeline.serve.triton.supervisor import READY, Job, children, remove_traces

if TYPE_CHECKING:
    from pipeline.serve.proxy.experiment import Experiment

DEFAULT_PORTS = Ports()

# with `-c`, modules beside this file do not shadow those of the standard library
_SUPERVISOR = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from pipeline.serve.triton.supervisor import main; sys.exit(main(sys.argv[2]))"
)


class TritonServer:
    """A Triton server that runs while the `with` block does.

    with TritonServer("triton_models", ports=free_ports()) as server:
        server.wait_until_ready(timeout_seconds=60)

    ServingError for causes that a user can fix. A failed start leaves only the log that the message
    names.
    """

    # Long: every argument is described here.
    def __init__(
        self,
        repository: str | Path,
        *,
        ports: Ports = DEFAULT_PORTS,
        host: str = "127.0.0.1",
        log_path: str | Path | None = None,
        log_format: LogFormat = "default",
        reload_seconds: int | None = None,
        keys: Sequence[ClientKey] = (),
        tls: Tls | None = None,
        restarts: int = 0,
        proxy: bool = False,
        request_log: RequestLogOptions | None = None,
        experiment: "Experiment | None" = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        """Describe a server; nothing runs before `start`.

        Args:
            repository: model repository, a directory of models with a config.pbtxt each
            ports: TCP ports; free ones replace those that are 0
            host: IPv4 address, or its name, to listen on; others than loopback are open to the
                network
            log_path: file that Triton's log is appended to, or `STDERR`; None keeps the log only if
                a start fails
            log_format: Triton's own option of this name
            reload_seconds: interval at which Triton looks for new versions; None for never
            keys: values of the header `KEY_HEADER`, of which each request needs one; health checks
                need none. Several keys, and rates, need the proxy
            tls: gRPC then accepts only TLS, and HTTP only connections of this machine
            restarts: maximum number of restarts in 10 minutes of a Triton that was ready and
                crashed
            proxy: whether a proxy listens at `host`, once the server is ready, and refuses requests
                that crash Triton; Triton then listens on its own loopback ports
            request_log: options of the proxy's request log
            experiment: A/B test, by which the proxy routes sessions to other models
            limits: bounds of the proxy
        """
        self.repository = Path(repository).absolute()
        self.ports = fill_ports(ports)
        self.host = ipv4_address(host)
        self.ending = ""
        """Why the server ended by itself, once `wait` has returned."""
        self._id = f"triton_{secrets.token_hex(6)}"
        self._tls = tls
        if not proxy and (len(keys) > 1 or any(key.rate is not None for key in keys)):
            raise ConfigError(
                "Triton itself takes one key, without a rate. Leave out --no-proxy, or the others."
            )
        key = check_key(keys[0].key) if keys else None
        self._options = TritonOptions(
            server_id=self._id,
            repository=self.repository,
            host=self.host,
            ports=self.ports,
            reload_seconds=reload_seconds,
            # behind the proxy, which checks the keys of clients, Triton takes a key of the proxy
            key=secrets.token_hex(32) if proxy and key is not None else key,
            key_header=PROXY_KEY_HEADER if proxy else KEY_HEADER,
            tls=tls,
            log_format=log_format,
            metrics_host=self.host,
        )
        self._http_host = self._options.http_host
        self._proxy = self._add_proxy(keys, request_log, experiment, limits) if proxy else None
        self._log = TritonLog(None if log_path is None else Path(log_path))
        self._restarts = restarts
        self._scratch: Path | None = None
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._report: IO[bytes] | None = None
        self._pid = 0

    @property
    def http_url(self) -> str:
        """HOST:PORT of HTTP."""
        return f"{_reachable(self._http_host)}:{self.ports.http}"

    @property
    def grpc_url(self) -> str:
        """HOST:PORT of gRPC."""
        return f"{_reachable(self.host)}:{self.ports.grpc}"

    @property
    def grpc_scheme(self) -> str:
        """Scheme of the address that `Client` takes: grpc, or grpcs with TLS."""
        return "grpc" if self._tls is None else "grpcs"

    @property
    def metrics_url(self) -> str:
        """HOST:PORT of Prometheus' `/metrics`."""
        return f"{_reachable(self.host)}:{self.ports.metrics}"

    @property
    def triton_ports(self) -> Ports:
        """Ports of Triton itself, behind a proxy on loopback."""
        return self._options.ports

    @property
    def pid(self) -> int:
        """Process id of tritonserver, whose children are the instances of Python models.

        A restart changes it; during a restart it is that of the last process.
        """
        if self._supervisor is None:
            raise ServingError("the Triton server has not been started")
        for pid, name, state in children(self._supervisor.pid):
            if name == "tritonserver" and state != "Z":
                self._pid = pid
        return self._pid

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server without waiting for it; see `wait_until_ready`."""
        if self.is_alive():
            raise ServingError(f"the Triton server runs already, with process id {self._pid}")
        check_ports(self.host, self.ports, http_host=self._http_host)
        check_shared_python()
        try:
            self._scratch = Path(tempfile.mkdtemp(prefix="triton-"))
            self._launch(self._scratch)
        except BaseException:
            self.stop()
            raise

    def wait_until_ready(self, timeout_seconds: float = 60) -> None:
        """Block until all models answer.

        ServingError, with the server stopped, if it exits or the time is over.
        """
        if self._supervisor is None:
            raise ServingError("the Triton server has not been started; call `start` first")
        deadline = time.monotonic() + timeout_seconds
        try:
            while not self._is_ready():
                if not self.is_alive():
                    raise ServingError(f"Triton did not start: {self._log.failure()}")
                if time.monotonic() > deadline:
                    raise ServingError(
                        f"Triton was not ready after {timeout_seconds:g} seconds:"
                        f" {self._log.failure()}"
                    )
                time.sleep(0.05)
            self._supervisor.send_signal(READY)
            if self._proxy is not None:
                self._proxy.start()
        except BaseException:
            self.stop()
            raise

    def model_version(self, name: str) -> int | None:
        """Return the version of a model that is served, None if the server does not answer."""
        import http.client

        address = f"{_reachable(self._options.http_host)}:{self._options.ports.http}"
        with (
            suppress(OSError, http.client.HTTPException, ValueError, KeyError),
            closing(http.client.HTTPConnection(address, timeout=2)) as connection,
        ):
            connection.request("GET", f"/v2/models/{name}", headers=self._key_headers())
            return max(map(int, json.load(connection.getresponse())["versions"]))
        return None

    def is_alive(self) -> bool:
        """Whether the server runs, ready or not, or is about to restart."""
        return self._supervisor is not None and self._supervisor.poll() is None

    def wait(self, on_restart: Callable[[str], object] | None = None) -> int:
        """Block until the server ends and return its exit code, 0 if it was stopped.

        A server that was killed by a signal has the code 128 + signal, as in a shell. `on_restart`
        is called with a line of text for each restart.
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

    def stop(self) -> None:
        """Stop the server and remove its files; does nothing if no server runs.

        Running requests have `EXIT_SECONDS` to finish; processes that remain after `STOP_SECONDS`
        are killed. This takes 2 to 3 seconds, or `EXIT_SECONDS` with an open HTTP connection.
        """
        try:
            if self._proxy is not None:
                self._proxy.stop()
            if self._supervisor is not None:
                self._supervisor.terminate()
                self._supervisor.wait()
        finally:  # also after a second Ctrl-C; the supervisor then stops Triton by itself
            remove_traces(self._id, self._scratch, self._log.temporary)
            self._scratch = None
            if self._report is not None:
                self._report.close()
                self._report = None

    def _add_proxy(
        self,
        keys: Sequence[ClientKey],
        request_log: RequestLogOptions | None,
        experiment: "Experiment | None",
        limits: Limits,
    ) -> Proxy:
        """Return a proxy at Triton's HTTP and gRPC addresses, and move Triton to loopback."""
        inner = inner_ports(self.ports)
        proxy = Proxy(
            ProxyOptions(
                http_host=self._http_host,
                grpc_host=self.host,
                ports=self.ports,
                repository=self.repository,
                triton_host="127.0.0.1",
                triton_ports=inner,
                keys=tuple(keys),
                triton_key=self._options.key,
                tls=self._tls,
                request_log=request_log,
                experiment=experiment,
                limits=limits,
            )
        )
        self._options = replace(self._options, host="127.0.0.1", ports=inner, tls=None)
        return proxy

    def _key_headers(self) -> dict[str, str]:
        """Return the headers of the launcher's own requests to Triton."""
        options = self._options
        return {} if options.key is None else {options.key_header: options.key}

    def _launch(self, scratch: Path) -> None:
        package = locate_package()
        backends = build_backends(package, scratch)
        python = build_python(scratch)
        reader, report = os.pipe()
        self._report = os.fdopen(reader, "rb")
        with os.fdopen(report, "wb"), os.fdopen(self._log.open(), "wb") as log:
            job = Job(
                parent_pid=os.getpid(),
                report=report,
                server_id=self._id,
                scratch=str(scratch),
                log=str(self._log.temporary or ""),
                restarts=self._restarts,
                command=self._command(package, backends),
            )
            root = str(Path(__file__).parents[3])
            self._supervisor = subprocess.Popen(
                [sys.executable, "-I", "-c", _SUPERVISOR, root, json.dumps(job)],
                env=environment(package, python),
                cwd=scratch,  # stubs import modules from it, so not the launcher's directory
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in a terminal reaches only the launcher
                pass_fds=(report,),
            )
        line = self._report.readline()
        if not line:
            raise ServingError(f"the Triton server could not be started: {self._log.failure()}")
        self._pid = int(line)

    def _command(self, package: Path, backends: Path) -> list[str]:
        repository = self.repository
        if shlex.quote(str(repository)) != str(repository):
            # Triton passes the path to a shell without quoting it
            repository = backends.parent / "repository"
            repository.symlink_to(self.repository, target_is_directory=True)
        return replace(self._options, repository=repository).arguments(package, backends)

    def _is_ready(self) -> bool:
        import http.client  # late: such imports take half of this module's import time

        # directly, not through the proxy
        address = f"{_reachable(self._options.http_host)}:{self._options.ports.http}"
        with (
            suppress(OSError, http.client.HTTPException, ValueError),
            closing(http.client.HTTPConnection(address, timeout=2)) as connection,
        ):
            connection.request("GET", "/v2/health/ready")
            response = connection.getresponse()
            response.read()
            if response.status != 200:
                return False
            # another server may have taken the port after the check
            connection.request("GET", "/v2", headers=self._key_headers())
            return bool(json.load(connection.getresponse())["name"] == self._id)
        return False


def _reachable(host: str) -> str:
    return "127.0.0.1" if host == "0.0.0.0" else host  # noqa: S104  compared only
