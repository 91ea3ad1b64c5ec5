"""Command line of `tritonserver`."""

import secrets
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from pathlib import Path

from pipeline.serve.triton.access import Tls
from pipeline.serve.triton.log import LogFormat
from pipeline.serve.triton.ports import Ports

CLOSED_APIS = ("model-repository", "shared-memory", "trace", "logging")
"""APIs that no client may use: predictions do not need them, and each lets a client change or read
the server's machine."""
KEY_APIS = ("inference", "metadata", "model-config", "statistics")
"""APIs that need the key. Health checks need none, as probes have no key."""
SHARED_MEMORY_BYTES = 1 << 20
"""Initial size and growth step of the region between Triton and each Python instance."""
STUB_TIMEOUT_SECONDS = 120  # importing torch from a cold disk takes longer than Triton's 30
LATENCY_QUANTILES = "0.5:0.01,0.95:0.005,0.99:0.001"
"""Quantiles of requests and steps in the metrics, each with its allowed error."""
EXIT_SECONDS = 5
"""Time that a stopping Triton has for running requests and its instances. An open HTTP connection,
even an idle one, makes it wait all this time and then report a failure."""


@dataclass(frozen=True, kw_only=True)
class TritonOptions:
    """Options of one server."""

    server_id: str
    """Name of the server and prefix of its shared memory."""
    repository: Path
    host: str
    """IPv4 address."""
    ports: Ports
    reload_seconds: int | None
    """Interval at which Triton polls the repository, None for no poll."""
    key: str | None
    key_header: str
    """Header in which Triton expects the key."""
    tls: Tls | None
    log_format: LogFormat
    metrics_host: str
    """IPv4 address."""

    @property
    def http_host(self) -> str:
        """Address of HTTP, which has no TLS in Triton: loopback if gRPC has TLS."""
        if self.tls is None or ip_address(self.host).is_loopback:
            return self.host
        return "127.0.0.1"

    def arguments(self, package: Path, backends: Path) -> list[str]:
        """Return program and options; `package` is the folder of pytriton."""
        # Triton takes several disjoint groups of APIs, each with its own header. The values are in
        # the process list: they protect from the network, not from users of the machine.
        groups = [f"{','.join(CLOSED_APIS)}:closed={secrets.token_hex(16)}"]
        if self.key is not None:
            groups.append(f"{','.join(KEY_APIS)}:{self.key_header}={self.key}")
        # the "pytorch" backend is a Python file and takes these settings from "python" as well
        settings = (
            f"shm-region-prefix-name={self.server_id}_",
            f"shm-default-byte-size={SHARED_MEMORY_BYTES}",
            f"shm-growth-byte-size={SHARED_MEMORY_BYTES}",
            f"stub-timeout-seconds={STUB_TIMEOUT_SECONDS}",
        )
        control = ["--model-control-mode=none"]
        if self.reload_seconds is not None:
            seconds = self.reload_seconds
            control = ["--model-control-mode=poll", f"--repository-poll-secs={seconds}"]
        return [
            str(package / "tritonserver" / "bin" / "tritonserver"),
            f"--id={self.server_id}",
            f"--model-repository={self.repository}",
            f"--backend-directory={backends}",
            f"--log-format={self.log_format}",
            # completion would start each Python instance twice, to read its configuration
            "--disable-auto-complete-config",
            "--exit-on-error=true",
            "--strict-readiness=true",
            f"--exit-timeout-secs={EXIT_SECONDS}",
            "--allow-sagemaker=false",
            "--allow-vertex-ai=false",
            "--metrics-config=summary_latencies=true",
            f"--metrics-config=summary_quantiles={LATENCY_QUANTILES}",
            *control,
            *(f"--{name}-port={port}" for name, port in asdict(self.ports).items()),
            f"--http-address={self.http_host}",
            f"--grpc-address={self.host}",
            f"--metrics-address={self.metrics_host}",
            *(f"--backend-config=python,{setting}" for setting in settings),
            *(f"--http-restricted-api={group}" for group in groups),
            *(f"--grpc-restricted-protocol={group}" for group in groups),
            *self._tls_arguments(),
        ]

    def _tls_arguments(self) -> list[str]:
        if self.tls is None:
            return []
        files = [f"--grpc-server-cert={self.tls.cert}", f"--grpc-server-key={self.tls.key}"]
        if self.tls.client_ca is not None:
            files += ["--grpc-use-ssl-mutual=true", f"--grpc-root-cert={self.tls.client_ca}"]
        return ["--grpc-use-ssl=true", *files]
