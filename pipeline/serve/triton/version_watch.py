"""Reports changes of the versions that a polling Triton serves."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

from pipeline.core.errors import PipelineError
from pipeline.serve.proxy.ranking_models import model_configs
from pipeline.serve.triton.server import TritonServer


class VersionWatch:
    """Thread that reports each change of a served version while the `with` block runs."""

    def __init__(
        self,
        server: TritonServer,
        repository: Path,
        interval_seconds: float,
        report: Callable[[str], object],
    ) -> None:
        """`report` is called in the thread with a line of text; the server must be ready."""
        self._server = server
        self._repository = repository
        self._interval_seconds = interval_seconds
        self._report = report
        self._versions: dict[str, int] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="version watch", daemon=True)

    def __enter__(self) -> Self:
        self._versions = self._served()
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._interval_seconds):
            for name, version in self._served().items():
                before = self._versions.get(name)
                if version != before:
                    self._versions[name] = version
                    past = "" if before is None else f", in place of version {before}"
                    self._report(f"Serving version {version} of {name}{past}.")

    def _served(self) -> dict[str, int]:
        """Return the version by model, without models that do not answer, as during a change."""
        try:
            names = model_configs(self._repository)
        except (PipelineError, OSError):  # being replaced
            return {}
        versions = {name: self._server.model_version(name) for name in names}
        return {name: version for name, version in versions.items() if version is not None}
