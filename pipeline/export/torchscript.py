"""The model as a TorchScript program with its top-K; the only module that uses torch.jit.

torch 2.13 deprecates torch.jit; NVIDIA's Triton image serves it, and loading it runs nothing but
the program itself, in its own interpreter.
"""

import io
import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.core.columns import FIRST_ITEM, PADDING
from pipeline.core.errors import PipelineError
from pipeline.model.batch import SessionBatch
from pipeline.model.model import Model


class ServedModel(nn.Module):
    """Tensors in the order of `names` to the K best items."""

    def __init__(self, model: Model, names: list[str], session_names: set[str], k: int) -> None:
        super().__init__()
        self.model = model
        self.names = names
        self.session_names = session_names
        self.k = k

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L) per feature of an interaction, (B, 1) of a session -> (B, K) scores, indices."""
        scores = self.model(self.batch(*tensors))[:, FIRST_ITEM:]
        best, indices = torch.topk(scores, self.k)
        return best, indices + FIRST_ITEM

    def batch(self, *tensors: Tensor) -> SessionBatch:
        """The same tensors as sessions."""
        features = {
            name: values[:, 0] if name in self.session_names else values
            for name, values in zip(self.names, tensors, strict=True)
        }
        lengths = (features[self.model.inputs.item] != PADDING).sum(1)
        return SessionBatch(features, lengths)


def example_inputs(
    served: ServedModel, length: int, sessions: int, seed: int = 0
) -> tuple[Tensor, ...]:
    """Random sessions of 1 to `length` interactions, padded to `length`, where the model is."""
    device = next(served.parameters()).device  # a traced program holds on to it
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, length + 1, (sessions, 1), generator=generator)
    inside = torch.arange(length) < lengths
    tensors = []
    for name in served.names:
        shape = (sessions, 1) if name in served.session_names else (sessions, length)
        inputs = served.model.inputs
        if name in inputs.tables:
            rows = inputs.table(name).num_embeddings
            values = torch.randint(1, rows, shape, generator=generator)
        else:
            values = torch.randn(shape, generator=generator)
        if name not in served.session_names:
            values = values * inside.to(values.dtype)
        tensors.append(values.to(device))
    return tuple(tensors)


@torch.no_grad()
def trace(served: ServedModel, length: int) -> torch.jit.ScriptModule:
    """Record the program; it takes any number of sessions, of `length` positions or fewer."""
    served.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            traced = torch.jit.trace(served, example_inputs(served, length, 2), check_trace=False)
        except RuntimeError as error:
            raise PipelineError(f"The model cannot be made a program: {_line(error)}") from None
        frozen = torch.jit.freeze(traced.eval())
    assert isinstance(frozen, torch.jit.ScriptModule)  # noqa: S101
    return frozen


@torch.no_grad()
def prove_parity(
    served: ServedModel, program: torch.jit.ScriptModule, length: int, tolerance: float = 1e-4
) -> float:
    """Largest difference of scores between program and model at shapes that were not traced.

    PipelineError if it is above `tolerance`, or if an item does not have the score it is given.
    """
    largest = 0.0
    for seed, (sessions, width) in enumerate(
        [(1, length), (3, length), (33, length), (5, max(1, length // 2)), (1, 1)]
    ):
        inputs = example_inputs(served, width, sessions, seed)
        wanted, _ = served(*inputs)
        try:
            found, found_items = program(*inputs)
        except RuntimeError as error:
            raise PipelineError(
                f"The program does not run for {sessions} sessions of {width}: {_line(error)} It "
                "was not written."
            ) from None
        if not bool(wanted.isfinite().all()):
            raise PipelineError(
                "The model gives scores that are not finite; its training diverged. Train again "
                "with a lower `train.learning_rate`."
            )
        difference = float((wanted - found).abs().max())
        largest = max(largest, difference)
        # items may differ where their scores tie; then each must have the score it is given
        ranked = served.model(served.batch(*inputs))
        misplaced = (ranked.gather(1, found_items) - found).abs() > tolerance
        # not `>`: a difference that is no number must not pass
        if not difference <= tolerance or bool(misplaced.any()):
            raise PipelineError(
                f"The exported program differs from the model by {difference:.2g} for {sessions} "
                f"sessions of {width}, allowed is {tolerance:.0e}. It was not written."
            )
    return largest


def _line(error: Exception) -> str:
    """The last line of what TorchScript says, which is its reason."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else type(error).__name__


def save(program: torch.jit.ScriptModule, path: Path) -> None:
    """Write `model.pt` without its debugging records: they hold pickled source positions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        buffer = io.BytesIO()
        torch.jit.save(program, buffer)
    with zipfile.ZipFile(buffer) as whole, zipfile.ZipFile(path, "w") as stripped:
        for record in whole.infolist():
            if not record.filename.endswith(".debug_pkl"):
                stripped.writestr(record, whole.read(record))


def load(path: Path) -> torch.jit.ScriptModule:
    """Read `model.pt`; nothing runs but TorchScript's own interpreter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.jit.load(str(path), map_location="cpu")
    assert isinstance(program, torch.jit.ScriptModule)  # noqa: S101
    return program
