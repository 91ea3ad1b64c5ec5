"""`pipeline recommend RUN`: a run that answers raw interactions, without a server."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.core.artifact import read_manifest

DEFAULT_K = 10
"""As `pipeline export` has it."""
SESSIONS_AT_ONCE = 256


def open_run(run: Path) -> Any:
    """A `pipeline.serve.local.LocalClient`, which has the methods of `Client`.

    It answers what a server of the run's export would, on the CPU, with lists up to the size of
    the catalogue. ArtifactError if the run is not whole.
    """
    read_manifest(run, "run")
    import numpy as np
    import torch

    from pipeline.core.errors import PipelineError
    from pipeline.export.repository import client_facts, request_spec
    from pipeline.export.run import load_served
    from pipeline.export.tables import write_encoder
    from pipeline.export.torchscript import NOT_FINITE
    from pipeline.serve.local import LocalClient
    from pipeline.serve.served import ServedModel

    fitted, model = load_served(run)
    model.eval()

    @torch.inference_mode()
    def ask(inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        numbers, items = (t.numpy() for t in model(*map(torch.from_numpy, inputs.values())))
        scores = numbers[:, : items.shape[1]]
        if np.isnan(scores).any() or np.isposinf(scores).any():
            raise PipelineError(NOT_FINITE)
        return numbers, items

    items = len(fitted.item.values)
    spec = request_spec(
        fitted, model, default_k=min(DEFAULT_K, items), max_k=items, max_batch=SESSIONS_AT_ONCE
    )
    facts = client_facts(fitted, spec) | {"max_batch": SESSIONS_AT_ONCE, "version": 1}
    # the server's encoder reads files, so it gets them
    with TemporaryDirectory(prefix="pipeline-") as directory:
        write_encoder(Path(directory), fitted, spec)
        return LocalClient(ServedModel.from_facts(facts, str(run)), Path(directory), ask)
