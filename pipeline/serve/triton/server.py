"""Start and stop, without a container, the Triton server of the `nvidia-pytriton` wheel.

A supervisor process between the launcher and Triton ends Triton when the launcher is gone, whatever
ended it, and removes what Triton leaves behind.
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

# One line, because `-c` keeps the modules beside this file from shadowing the standard library's.
_SUPERVISOR = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from pipeline.serve.triton.supervisor import main; sys.exit(main(sys.argv[2]))"
)


class TritonServer:
    """A Triton server that runs while the `with` block does.

    with TritonServer("triton_models", ports=free_ports()) as server:
        server.wait_until_ready(timeout_seconds=60)

    ServingError where a user can repair the cause. A start that fails leaves nothing behind but the
    log that the message names.
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
            host: IPv4 address, or its name, to listen on; all but loopback is open to the network
            log_path: file that Triton's log is appended to, or `STDERR`; None keeps the log only if
                a start fails
            log_format: Triton's own option of this name
            reload_seconds: interval at which Triton looks for new versions; None for never
            keys: values of the header `KEY_HEADER`, of which each request needs one; health needs
                none. Several, and their rates, need the proxy
            tls: gRPC takes connections with TLS alone, and HTTP only those of this machine
            restarts: maximum number of restarts in 10 minutes, of a Triton that was ready and
                crashed
            proxy: whether a proxy listens at `host`, once the server is ready, and keeps requests
                that end Triton away from it; Triton then listens on loopback ports of its own
            request_log: where the proxy logs requests and their lists
            experiment: by which the proxy sends sessions to other models
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
            # behind the proxy, which checks the clients' keys, it is the proxy's own
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
        """Ports of Triton itself: behind a proxy, others than `ports`, on loopback."""
        return self._options.ports

    @property
    def pid(self) -> int:
        """Process id of tritonserver, whose children are the instances of Python models.

        A restart changes it; between two Tritons it is that of the last one.
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
        """Start the server without waiting until it answers, which `wait_until_ready` does."""
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

        Raises ServingError, with the server stopped, when it exits or the time is over.
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
        """Return the version of a model that is served, None where the server does not say."""
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
        """Block until the server ends and return its exit code, 0 when it was stopped.

        A server that a signal killed has the code 128 + signal, as in a shell. `on_restart` is
        called with a line of text for each restart.
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
        """End the server and remove all it left; does nothing where nothing runs.

        Running requests have `EXIT_SECONDS` to finish; what still lives after `STOP_SECONDS` is
        killed. Takes 2 to 3 seconds, with an HTTP connection open somewhere `EXIT_SECONDS`.
        """
        try:
            if self._proxy is not None:
                self._proxy.stop()
            if self._supervisor is not None:
                self._supervisor.terminate()
                self._supervisor.wait()
        finally:  # also when a second Ctrl-C arrives here; the supervisor then stops Triton alone
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
        """Return a proxy at the addresses of Triton's HTTP and gRPC, and move these to loopback."""
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
        """Headers of the launcher's own requests to Triton."""
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
                cwd=scratch,  # stubs look for modules in it: not where the launcher happens to be
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in a terminal reaches the launcher alone
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
        import http.client  # here, like others below: they make up half of this module's import

        # past the proxy
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
            # another server may have taken the port since it was checked
            connection.request("GET", "/v2", headers=self._key_headers())
            return bool(json.load(connection.getresponse())["name"] == self._id)
        return False


def _reachable(host: str) -> str:
    return "127.0.0.1" if host == "0.0.0.0" else host  # noqa: S104  compared only
