"""`pipeline recommend RUN`: a run that answers raw interactions, without a server."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.model.run import Run

DEFAULT_K = 10
"""As `pipeline export` has it."""
SESSIONS_AT_ONCE = 256


def open_run(run: "Run | Path") -> Any:
    """A `pipeline.serve.client.in_process.InProcessClient`, which has the methods of `Client`.

    It answers what a server of the run's export would, on the CPU, with lists up to the size of
    the catalogue. ArtifactError if the run is not whole.
    """
    import numpy as np
    import torch

    from pipeline.core.errors import PipelineError
    from pipeline.exporting.repository import client_facts, request_spec
    from pipeline.exporting.request_tables import write_encoder
    from pipeline.exporting.run import load_served
    from pipeline.exporting.torchscript import NOT_FINITE, lists
    from pipeline.model.run import Run
    from pipeline.serve.client.in_process import InProcessClient
    from pipeline.serve.client.served_model import ServedModel

    run = Run.open(run)
    fitted, model = load_served(run)
    model.eval()

    @torch.inference_mode()
    def ask(packed: np.ndarray) -> np.ndarray:
        found: torch.Tensor = model(torch.from_numpy(packed))
        scores = lists(found, model.width).scores
        if bool(scores.isnan().any()) or bool(scores.isposinf().any()):
            raise PipelineError(NOT_FINITE)
        return found.numpy()

    items = len(fitted.item.values)
    spec = request_spec(
        fitted, model, default_k=min(DEFAULT_K, items), max_k=items, max_batch=SESSIONS_AT_ONCE
    )
    facts = client_facts(fitted, spec) | {"max_batch": SESSIONS_AT_ONCE, "version": 1}
    # the server's encoder reads files, so it gets them
    with TemporaryDirectory(prefix="pipeline-") as directory:
        write_encoder(Path(directory), fitted, spec)
        return InProcessClient(ServedModel.from_facts(facts, str(run.path)), Path(directory), ask)
