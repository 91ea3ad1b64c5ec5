"""`pipeline serve`: run Triton on a model repository until it is stopped."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from pipeline.core.artifact import read_manifest
from pipeline.core.errors import ArtifactError
from pipeline.serve.client.answers import NUM_KNOWN
from pipeline.serve.proxy.ranking_models import model_configs
from pipeline.serve.repository_code import check_code
from pipeline.serve.triton.server import TritonServer


@contextmanager
def running_server(
    repository: Path,
    *,
    timeout_seconds: float = 120,
    proxy: bool = True,
    any_code: bool = False,
    **options: Any,
) -> Iterator[TritonServer]:
    """Yield a server that is ready; `options` are those of `TritonServer`.

    ArtifactError for a damaged repository, and unless `any_code` for one whose Python is not the
    project's; ServingError if the server does not start in time.
    """
    read_manifest(repository, "repository")
    _check_outputs(repository)
    if not any_code:
        check_code(repository)
    with TritonServer(repository, proxy=proxy, **options) as server:
        server.wait_until_ready(timeout_seconds)
        yield server


def _check_outputs(repository: Path) -> None:
    """ArtifactError for a model that lacks an output of clients, as those of older versions do."""
    for name, config in model_configs(repository).items():
        if f'name: "{NUM_KNOWN}"' not in config:
            raise ArtifactError(
                f"{repository}: an older version exported the model {name}. Export its run again, "
                f"by `pipeline export RUN --out {repository} --name {name}`."
            )


def describe(repository: Path, server: TritonServer, page_url: str | None = None) -> dict[str, Any]:
    """Return the addresses of a server, its model, and the size of the catalogue."""
    facts = read_manifest(repository, "repository")
    return {
        "http": f"http://{server.http_url}",
        "grpc": f"{server.grpc_scheme}://{server.grpc_url}",
        "metrics": f"http://{server.metrics_url}/metrics",
        **({} if page_url is None else {"page": page_url}),
        "model": facts["name"],
        "other_models": sorted(facts.get("other_models", ())),
        "catalogue_items": facts["catalogue_items"],
    }


def wait_for_signal(
    server: TritonServer, on_restart: Callable[[str], object] | None = None
) -> bool:
    """Block until Ctrl-C, SIGTERM or the end of the server; return whether it still runs.

    `on_restart` is called with a line of text for each restart of the server.
    """

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        server.wait(on_restart)
    except KeyboardInterrupt:
        return True
    finally:
        signal.signal(signal.SIGTERM, previous)
    return False
