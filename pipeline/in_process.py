"""In-process client of a run, without a server: `pipeline recommend RUN`."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.model.run import Run


def open_run(run: "Run | Path") -> Any:
    """Return an `InProcessClient` of the run, which has the methods of `Client`.

    Its responses are those of a server of the exported run, computed on the CPU, with lists up to
    the size of the catalogue. ArtifactError if the run is missing, incomplete or damaged.
    """
    import torch

    from pipeline.core.errors import PipelineError
    from pipeline.exporting.options import ExportOptions
    from pipeline.exporting.repository import client_facts, request_spec
    from pipeline.exporting.request_tables import write_encoder
    from pipeline.exporting.run import load_served
    from pipeline.exporting.torchscript import NOT_FINITE
    from pipeline.model.run import Run
    from pipeline.serve.client.in_process import InProcessClient
    from pipeline.serve.client.served_model import ServedModel

    run = Run.open(run)
    fitted, model = load_served(run)
    model.eval()

    @torch.inference_mode()
    def ask(packed: "NDArray[Any]") -> "NDArray[Any]":
        answer: torch.Tensor = model(torch.from_numpy(packed))
        scores = model.unpack(answer).scores
        if bool(scores.isnan().any()) or bool(scores.isposinf().any()):
            raise PipelineError(NOT_FINITE)
        return answer.numpy()

    num_items = len(fitted.item.values)
    options = ExportOptions(default_k=min(ExportOptions.default_k, num_items), max_k=num_items)
    spec = request_spec(fitted, model, options)
    facts = client_facts(fitted, spec) | {"max_batch": options.max_batch, "version": 1}
    # the server's request encoder reads its tables from files
    with TemporaryDirectory(prefix="pipeline-") as directory:
        write_encoder(Path(directory), fitted, spec)
        return InProcessClient(ServedModel.from_facts(facts, str(run.path)), Path(directory), ask)
