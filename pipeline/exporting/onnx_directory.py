"""`pipeline export --format onnx`: writes a run as an ONNX file with the tables of its raw ids.

```
shop.onnx/
  model.onnx      tensors of indices in, lists of item indices out
  encoder/        encoder.json and the tables with which a server encodes requests
  manifest.json   inputs and outputs of the file, size and hash of every file
```
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.core.artifact import new_artifact
from pipeline.data.fingerprint import fingerprint_of
from pipeline.exporting.onnx_model import OPSET, OnnxModel, OnnxTensor, compare_onnx, write_onnx
from pipeline.exporting.options import ExportOptions
from pipeline.exporting.request_tables import encoder_spec, write_encoder
from pipeline.exporting.run import load_served
from pipeline.model.run import Run

MODEL_FILE = "model.onnx"
ENCODER_DIRECTORY = "encoder"


@dataclass(frozen=True, kw_only=True)
class OnnxResult:
    """Facts of an ONNX directory in its manifest."""

    catalogue_items: int
    max_k: int
    opset: int
    inputs: list[dict[str, Any]]
    """Name, type and axes of each tensor; a dynamic axis is a name."""
    outputs: list[dict[str, Any]]
    largest_difference: float | None
    """Between the file in onnxruntime and the model, relative for numbers above 1; None without
    onnxruntime."""
    run: str
    fingerprint: str | None
    """Fingerprint of the run and the options, None for a run in memory."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def export_onnx(run: Run | Path, out: Path, options: ExportOptions) -> OnnxResult:
    """Write the model with its top-K and its tables to the directory `out`.

    ConfigError without the package onnx; PipelineError for a model that ONNX cannot express, or
    whose file differs from it; ArtifactError if `out` holds something else.
    """
    run = Run.open(run)
    fingerprint = None
    if not run.in_memory:
        fingerprint = fingerprint_of(asdict(options), [], [run.path])
    facts: dict[str, Any] = {}
    with new_artifact(out, "onnx", facts, fingerprint=fingerprint) as directory:
        fitted, served = load_served(run)
        num_items = len(fitted.item.values)
        max_k, length = min(options.max_k, num_items), fitted.recipe.max_sequence_length
        served.cpu().eval()
        model = OnnxModel(served, max_k, filter_seen=fitted.recipe.filter_seen)
        write_onnx(served, model, length, directory / MODEL_FILE)
        difference = compare_onnx(served, model, directory / MODEL_FILE, length)
        spec = encoder_spec(fitted, min(options.default_k, max_k), max_k)
        (directory / ENCODER_DIRECTORY).mkdir()
        write_encoder(directory / ENCODER_DIRECTORY, fitted, spec)
        result = OnnxResult(
            catalogue_items=num_items,
            max_k=max_k,
            opset=OPSET,
            inputs=_described(model.inputs),
            outputs=_described(model.outputs),
            largest_difference=difference,
            run=run.name,
            fingerprint=fingerprint,
        )
        facts.update(result.to_dict())
    return result


def _described(tensors: list[OnnxTensor]) -> list[dict[str, Any]]:
    return [{"name": t.name, "type": t.type, "axes": list(t.axes)} for t in tensors]
