"""The command line of `tritonserver`."""

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from pipeline.serve.triton.access import KEY_HEADER, Tls, is_loopback
from pipeline.serve.triton.ports import Ports

KEPT_APIS = ("inference", "metadata", "model-config", "statistics")
"""What a key opens. Health stays open, for who looks after the server has no key."""
SHARED_MEMORY_BYTES = 1 << 20
"""First size and growth step of the region between Triton and each Python instance."""
STUB_TIMEOUT_SECONDS = 120  # importing torch from a cold disk takes longer than Triton's 30
LATENCY_QUANTILES = "0.5:0.01,0.95:0.005,0.99:0.001"
"""Of requests and steps, each with the error that it may have."""
EXIT_SECONDS = 5
"""How long Triton, told to stop, waits for running requests and for its instances to end. An open
HTTP connection, though idle, makes it wait all that time, and then report a failure."""
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What one server is to do."""

    name: str
    """Of the server, and of its shared memory."""
    repository: Path
    host: str
    """IPv4 address."""
    ports: Ports
    poll_seconds: int | None
    """Between two looks at the repository; None for no look but the first."""
    closed: Sequence[str]
    """APIs that nobody may use."""
    key: str | None
    tls: Tls | None

    @property
    def http_host(self) -> str:
        """Triton's HTTP knows no TLS: beside gRPC that has it, only this machine may ask it."""
        return self.host if self.tls is None or is_loopback(self.host) else LOOPBACK

    def arguments(self, package: Path, backends: Path) -> list[str]:
        """Program and options; `package` is pytriton's folder."""
        return [
            str(package / "tritonserver" / "bin" / "tritonserver"),
            f"--id={self.name}",
            f"--model-repository={self.repository}",
            f"--backend-directory={backends}",
            f"--model-control-mode={'none' if self.poll_seconds is None else 'poll'}",
            *([] if self.poll_seconds is None else [f"--repository-poll-secs={self.poll_seconds}"]),
            # Completion would start each Python instance twice, only to ask for a configuration.
            "--disable-auto-complete-config",
            "--exit-on-error=true",
            "--strict-readiness=true",
            f"--exit-timeout-secs={EXIT_SECONDS}",
            "--allow-sagemaker=false",
            "--allow-vertex-ai=false",
            "--metrics-config=summary_latencies=true",
            f"--metrics-config=summary_quantiles={LATENCY_QUANTILES}",
            *self._addresses(),
            *self._backend_settings(),
            *self._restrictions(),
            *self._tls_options(),
        ]

    def _addresses(self) -> Iterator[str]:
        for protocol in fields(self.ports):
            host = self.http_host if protocol.name == "http" else self.host
            yield f"--{protocol.name}-address={host}"
            yield f"--{protocol.name}-port={getattr(self.ports, protocol.name)}"

    def _backend_settings(self) -> Iterator[str]:
        # The "pytorch" backend is a Python file and takes these settings from "python" as well.
        for setting in (
            f"shm-region-prefix-name={self.name}_",
            f"shm-default-byte-size={SHARED_MEMORY_BYTES}",
            f"shm-growth-byte-size={SHARED_MEMORY_BYTES}",
            f"stub-timeout-seconds={STUB_TIMEOUT_SECONDS}",
        ):
            yield f"--backend-config=python,{setting}"

    def _restrictions(self) -> Iterator[str]:
        # Triton takes several groups, each with a header of its own, where none shares an API. What
        # they want stands in the process list: it keeps out the network, not the machine's users.
        groups = []
        if self.closed:
            groups.append(f"{','.join(self.closed)}:closed={secrets.token_hex(16)}")
        if self.key is not None:
            groups.append(f"{','.join(KEPT_APIS)}:{KEY_HEADER}={self.key}")
        for group in groups:
            yield f"--http-restricted-api={group}"
            yield f"--grpc-restricted-protocol={group}"

    def _tls_options(self) -> Iterator[str]:
        if self.tls is None:
            return
        yield "--grpc-use-ssl=true"
        yield f"--grpc-server-cert={self.tls.cert}"
        yield f"--grpc-server-key={self.tls.key}"
        if self.tls.client_ca is not None:
            yield "--grpc-use-ssl-mutual=true"
            yield f"--grpc-root-cert={self.tls.client_ca}"
