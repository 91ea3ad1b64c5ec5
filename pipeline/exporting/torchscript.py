"""The model as a TorchScript program with its top-K; the only module that uses torch.jit.

torch 2.13 deprecates torch.jit; NVIDIA's Triton image serves it, and loading it runs nothing but
the program itself, in its own interpreter.
"""

import io
import warnings
import zipfile
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.core.columns import FIRST_ITEM, PADDING
from pipeline.core.errors import ConfigError, PipelineError
from pipeline.data.batch import SessionBatch
from pipeline.exporting.topk import best_items, best_items_int8, rounded
from pipeline.exporting.xlnet_inference import attend, lean
from pipeline.model.model import Model

NOT_FINITE = (
    "The model gives scores that are not finite; its training diverged. Train again with a lower "
    "`train.learning_rate`."
)


Scoring = Literal["fp32", "int8"]
"""How the catalogue is scored; int8 for a choice that fp32 then ranks. Lists are exact in both."""


class ServedModel(nn.Module):
    """Tensors in the order of `names`, then what a list may hold, to the best items."""

    items: Tensor
    """(V - 3, E)"""
    transposed: Tensor
    """(E, V - 3): one row of scores reads it in two thirds of the time."""

    def __init__(
        self,
        model: Model,
        names: list[str],
        session_names: set[str],
        scoring: Scoring = "fp32",
    ) -> None:
        super().__init__()
        self.model = model
        self.scoring = scoring
        self.program = lean(model, torch.jit.script(attend))
        self.names = names
        self.session_names = session_names
        with torch.no_grad():
            self.register_buffer("items", self.program.items().detach())
            if scoring == "int8":
                if self.width < 2:
                    raise ConfigError("--scoring int8 needs item vectors of 2 numbers or more.")
                for name, values in rounded(self.items)._asdict().items():
                    self.register_buffer(name, values)
            else:
                self.register_buffer("transposed", self.items.t().contiguous())

    @property
    def width(self) -> int:
        """E, of the vectors whose inner products are scores."""
        return int(self.items.size(1))

    def forward(self, packed: Tensor) -> Tensor:
        """What `packed` gives -> (B, 2 * K + E) int32, which `lists` reads.

        K is what it asks for, or all items.
        """
        *features, excluded, candidates = unpack(packed, *self.counts)
        queries = self.program.session_embeddings(self.batch(*self.in_order(features)))
        k = packed[0, 3]
        if self.scoring == "int8":
            scores, items = best_items_int8(
                *(queries, self.items, self.whole, self.steps, self.errors, self.reach),
                *(k, excluded, candidates),
            )
        else:
            scores, items = best_items(
                queries, self.items, self.transposed, k, excluded, candidates
            )
        return as_integers(items, scores, queries)

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """How many integer and float features there are of an interaction and of a session."""
        kinds = [self._kind(name) for name in self.names]
        return kinds.count(0), kinds.count(1), kinds.count(2), kinds.count(3)

    def _kind(self, name: str) -> int:
        is_float = name not in self.model.inputs.index_columns
        return 2 * (name in self.session_names) + is_float

    @property
    def packing(self) -> list[str]:
        """Names as `unpack` gives them: of an interaction integers, floats; of a session both."""
        return sorted(self.names, key=self._kind)

    def in_order(self, features: list[Tensor]) -> list[Tensor]:
        """From the order of `packing` to that of `names`."""
        found = dict(zip(self.packing, features, strict=True))
        return [found[name] for name in self.names]

    def batch(self, *tensors: Tensor) -> SessionBatch:
        """The features as sessions."""
        features = {
            name: values[:, 0] if name in self.session_names else values
            for name, values in zip(self.names, tensors, strict=True)
        }
        lengths = (features[self.model.inputs.item] != PADDING).sum(1)
        return SessionBatch(features, lengths)


@torch.jit.script
def unpack(
    packed: Tensor, integers: int, floats: int, session_integers: int, session_floats: int
) -> list[Tensor]:
    """One tensor a feature, then what is excluded and what is a candidate.

    A session's row holds it all, floats as the bits of integers: each tensor more that Triton
    passes from process to process costs as much as a layer of a small model.
    """
    width, excluded, candidates = int(packed[0, 0]), int(packed[0, 1]), int(packed[0, 2])
    count = integers * width + session_integers + excluded + candidates
    indices = packed.narrow(1, 4, count).to(torch.int64)
    numbers = packed.narrow(1, 4 + count, floats * width + session_floats)
    numbers = torch.view_copy(numbers, dtype=torch.float32)
    found: list[Tensor] = []
    for i in range(integers):
        found.append(indices.narrow(1, i * width, width))
    for i in range(floats):
        found.append(numbers.narrow(1, i * width, width))
    place = integers * width
    for i in range(session_integers):
        found.append(indices.narrow(1, place + i, 1))
    place += session_integers
    for i in range(session_floats):
        found.append(numbers.narrow(1, floats * width + i, 1))
    found.append(indices.narrow(1, place, excluded))
    found.append(indices.narrow(1, place + excluded, candidates))
    return found


def packed(
    served: ServedModel, features: list[Tensor], k: int, excluded: Tensor, candidates: Tensor
) -> Tensor:
    """Features in the order of `names`, (B, X) and (B, C) indices, 0 for none -> a program's input.

    As `pipeline.serve.runtime.batching` does with arrays.
    """
    by_name = dict(zip(served.names, features, strict=True))
    in_order = [by_name[name] for name in served.packing]
    width = by_name[served.model.inputs.item].size(1)
    indices = [t for t in in_order if not t.is_floating_point()]
    numbers = [t.float().view(torch.int32) for t in in_order if t.is_floating_point()]
    rows = excluded.size(0)
    sizes = torch.tensor([[width, excluded.size(1), candidates.size(1), k]], dtype=torch.int32)
    given = [sizes.expand(rows, 4).to(excluded.device), *indices, excluded, candidates, *numbers]
    return torch.cat([t.to(torch.int32) for t in given], 1)


@torch.jit.script
def as_integers(items: Tensor, scores: Tensor, queries: Tensor) -> Tensor:
    """Side by side, floats as their bits; `lists` reads it."""
    # not `view`, which TorchScript has for shapes alone
    bits = torch.view_copy(torch.cat([scores, queries], 1), dtype=torch.int32)
    return torch.cat([items.to(torch.int32), bits], 1)


class Lists(NamedTuple):
    """What a program gives."""

    scores: Tensor
    """(B, K), best first."""
    items: Tensor
    """(B, K) indices."""
    queries: Tensor
    """(B, E)"""


def lists(output: Tensor, width: int) -> Lists:
    """Of (B, 2 * K + E) int32, E being the `width`."""
    k = (output.size(1) - width) // 2
    numbers = output[:, k:].contiguous().view(torch.float32)
    return Lists(numbers[:, :k], output[:, :k].long(), numbers[:, k:])


class Example(NamedTuple):
    """Sessions to compare a program with its model by."""

    features: list[Tensor]
    excluded: Tensor
    candidates: Tensor
    k: int

    def packed(self, served: ServedModel) -> Tensor:
        """As the program takes it."""
        return packed(served, self.features, self.k, self.excluded, self.candidates)


def example(served: ServedModel, length: int, sessions: int, seed: int = 0, k: int = 10) -> Example:
    """Random sessions of 1 to `length` interactions, padded to `length`, where the model is.

    With items left out of odd rows, and candidates for every third.
    """
    device = next(served.parameters()).device  # a traced program holds on to it
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, length + 1, (sessions, 1), generator=generator)
    inside = torch.arange(length) < lengths
    tensors = []
    for name in served.names:
        shape = (sessions, 1) if name in served.session_names else (sessions, length)
        inputs = served.model.inputs
        if name in inputs.index_columns:
            rows = inputs.table(inputs.index_columns[name]).num_embeddings
            values = torch.randint(1, rows, shape, generator=generator)
        else:
            values = torch.randn(shape, generator=generator)
        if name not in served.session_names:
            values = values * inside.to(values.dtype)
        tensors.append(values.to(device))
    rows = served.items.size(0) + FIRST_ITEM
    row = torch.arange(sessions).unsqueeze(1)
    excluded = torch.randint(0, rows, (sessions, 5), generator=generator) * (row % 2)
    candidates = torch.randint(2, rows, (sessions, 30), generator=generator) * (row % 3 == 2)
    return Example(tensors, excluded.to(device), candidates.to(device), k)


@torch.no_grad()
def trace(served: ServedModel, length: int) -> torch.jit.ScriptModule:
    """Record the program; it takes any number of sessions, of `length` positions or fewer."""
    served.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            inputs = example(served, length, 2).packed(served)
            traced = torch.jit.trace(served, (inputs,), check_trace=False)
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
    for seed, (sessions, width, k) in enumerate(
        [
            (1, length, 1),
            (3, length, 10),
            (33, length, 100),
            (5, max(1, length // 2), 20),
            (1, 1, 7),
        ]
    ):
        given = example(served, width, sessions, seed, k)
        wanted, scores = expected(served, given)
        try:
            found, found_items, _ = lists(program(given.packed(served)), served.width)
        except RuntimeError as error:
            raise PipelineError(
                f"The program does not run for {sessions} sessions of {width}: {_line(error)} It "
                "was not written."
            ) from None
        if bool(scores.isnan().any()) or bool(scores.isposinf().any()):
            raise PipelineError(NOT_FINITE)
        difference = _difference(wanted, found)
        # items may differ where their scores tie; then each must have the score it is given
        misplaced = _difference(scores.gather(1, found_items), found)
        largest = max(largest, difference)
        # not `>`: a difference that is no number must not pass
        if not (difference <= tolerance and misplaced <= tolerance):
            raise PipelineError(
                f"The exported program differs from the model by {max(difference, misplaced):.2g} "
                f"for {sessions} sessions of {width}, allowed is {tolerance:.0e}. It was not "
                "written."
            )
    return largest


def expected(served: ServedModel, given: Example) -> tuple[Tensor, Tensor]:
    """(B, K) best scores and (B, V) all of them, by the model itself."""
    scores = served.model(served.batch(*given.features))
    allowed = torch.zeros_like(scores, dtype=torch.bool).scatter(1, given.candidates, True)
    allowed |= (given.candidates == 0).all(1, keepdim=True)
    scores = scores.masked_fill(~allowed, float("-inf"))
    scores = scores.scatter(1, given.excluded, float("-inf"))
    k = min(given.k, scores.size(1) - FIRST_ITEM)
    return scores[:, FIRST_ITEM:].topk(k).values, scores


def _difference(wanted: Tensor, found: Tensor) -> float:
    """Of scores; infinite where one list is shorter than the other."""
    same = wanted.isneginf() & found.isneginf()
    return float((wanted - found).abs().masked_fill(same, 0.0).max())


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
