"""The model with its top-K as a TorchScript program, and its comparison with the model.

torch 2.13 deprecates torch.jit, but NVIDIA's Triton image serves it, and a loaded program runs only
in TorchScript's own interpreter.
"""

import re
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.core.columns import FIRST_ITEM, ITEM, PADDING, SESSION, TIMESTAMP
from pipeline.core.errors import ConfigError, PipelineError
from pipeline.data.batch import SessionBatch
from pipeline.exporting.counting import CountingTopK
from pipeline.exporting.options import Scoring
from pipeline.exporting.topk import best_items, best_items_by, best_items_int8, quantize
from pipeline.exporting.xlnet_inference import attend, optimize_xlnet
from pipeline.model.counting.model import CountingModel
from pipeline.model.model import Model

RESERVED_OUTPUTS = ("item_ids", "scores", "num_known", "embedding", "session_ids")
RESERVED_KEYS = ("rank", "score")
"""Keys of an item of a list, besides its targets."""
REQUEST_TENSORS = (ITEM, SESSION, TIMESTAMP, "length", "k", "exclude", "candidates", "filter_seen")
NOT_FINITE = (
    "The model gives numbers that are not finite; its training diverged. Train again with a lower "
    "`train.learning_rate`, or correct a `model.rank_by` that divides by zero."
)


class InferenceModel(nn.Module):
    """A model with its top-K: a packed request -> items, scores, session embeddings, targets.

    Letters: N targets of sessions and of interactions, M targets per item. A model that does not
    predict the next item returns only targets.
    """

    items: Tensor
    """(V - 3, E)"""
    transposed: Tensor
    """(E, V - 3), with which scoring one row takes two thirds of the time; (W, V - 3) with
    `rank_by` or `repeats`."""
    names: list[str]
    """Features in the order of `unpack_request`: integers of interactions, then of sessions, then
    floats of interactions and of sessions."""

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
        self.optimized = optimize_xlnet(model, torch.jit.script(attend))
        self.session_names = session_names
        self.names = sorted(names, key=self._kind)
        self.targets, self.item_targets = target_names(model)
        with torch.no_grad():
            if not model.ranks_items:
                if scoring == "int8":
                    raise ConfigError("--scoring int8 is for runs that predict the next item.")
                self.register_buffer("items", torch.empty(0, 0))
                return
            if isinstance(model, CountingModel):
                self._add_counting(model)
                return
            self.register_buffer("items", self.optimized.item_embeddings().detach())
            if scoring == "int8":
                if model.rank_by is not None:
                    raise ConfigError(
                        "--scoring int8 ranks by inner products, and the run by `model.rank_by: "
                        f"{model.rank_by.text}`. Leave one of them out."
                    )
                if model.repeats is not None:
                    raise ConfigError(
                        "--scoring int8 ranks by inner products, and the run has `model.repeats`. "
                        "Leave one of them out."
                    )
                if self.width < 2:
                    raise ConfigError("--scoring int8 needs item vectors of 2 numbers or more.")
                for name, values in quantize(self.items)._asdict().items():
                    self.register_buffer(name, values)
            elif model.by_inner_product:
                self.register_buffer("transposed", self.items.t().contiguous())
            else:
                self.register_buffer("transposed", self.optimized.items().detach().t().contiguous())
                self._best_ranked = best_items_by(self._score_program())

    @property
    def width(self) -> int:
        """E, the width of the vectors whose inner products are scores."""
        return int(self.items.size(1))

    def forward(self, packed: Tensor) -> Tensor:
        """Output of `pack_request` -> (B, (2 + M) * K + E + N) int32, input of `unpack_answer`.

        K is the one of the request, at most the size of the catalogue.
        """
        *features, excluded, candidates = unpack_request(packed, *self.feature_counts)
        if isinstance(self.model, CountingModel):
            values = self.model.session_values(self.batch(*features))
            scores, items = self.counting(values, packed[0, 3], excluded, candidates)
            return pack_answer(items, scores, scores[:, :0])
        answer = self.optimized.answer(self.batch(*features))
        numbers = [values.unsqueeze(1) for values in answer.targets.values()]
        queries = answer.queries
        if queries is None:
            none = packed[:, :0]
            return pack_answer(none, none.to(numbers[0].dtype), torch.cat(numbers, 1))
        embeddings = queries[:, : self.width]
        request = packed[0, 3], excluded, candidates
        if self.scoring == "int8":
            scores, items = best_items_int8(
                *(embeddings, self.items),
                *(self.quantized, self.scales, self.errors, self.max_row_sum),
                *request,
            )
        elif self.model.by_inner_product:
            scores, items = best_items(embeddings, self.items, self.transposed, *request)
        else:
            scores, items = self._best_ranked(queries, self.items, self.transposed, *request)
        of_items = self.optimized.targets_of_items(queries, items).values()
        return pack_answer(items, scores, torch.cat([*of_items, embeddings, *numbers], 1))

    def _add_counting(self, model: CountingModel) -> None:
        """Set up the top-K of a counting model. ConfigError for an option that it does not have."""
        if self.scoring == "int8":
            raise ConfigError("--scoring int8 is for item vectors, and a counting model has none.")
        self.register_buffer("items", self.model.items()[:, :0])
        self.counting = torch.jit.script(CountingTopK(model.scorer))

    def _score_program(self) -> Any:
        """Trace `Model.score` into a program with the inputs of `topk.inner_products`."""
        model = self.optimized
        queries = model.queries(self.items.new_zeros(2, model.query_width))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.jit.trace(
                lambda queries, _items, transposed: model.score(queries, transposed),
                (queries, self.items, self.transposed),
                check_trace=False,
            )

    def unpack(self, output: Tensor) -> "ProgramAnswer":
        """Output of the model -> its parts."""
        return unpack_answer(output, self.width, len(self.targets), len(self.item_targets))

    @property
    def feature_counts(self) -> tuple[int, int, int, int]:
        """Counts of integers of interactions and of sessions, then of floats of each."""
        kinds = [self._kind(name) for name in self.names]
        integers, floats = ((kinds.count((kind, 0)), kinds.count((kind, 1))) for kind in (0, 1))
        return *integers, *floats

    def _kind(self, name: str) -> tuple[int, int]:
        is_float = name not in self.model.inputs.index_columns
        return int(is_float), int(name in self.session_names)

    def batch(self, *tensors: Tensor) -> SessionBatch:
        """Features in the order of `names` -> sessions."""
        features = {
            name: values[:, 0] if name in self.session_names else values
            for name, values in zip(self.names, tensors, strict=True)
        }
        lengths = (features[self.model.inputs.item] != PADDING).sum(1)
        return SessionBatch(features, lengths)


@torch.jit.script
def unpack_request(
    packed: Tensor, integers: int, session_integers: int, floats: int, session_floats: int
) -> list[Tensor]:
    """Output of `pack_request` -> a tensor for each feature, then excluded items and candidates.

    The row of a session holds all of them, floats as the bits of integers, because each further
    tensor that Triton passes between processes costs as much as a layer of a small model.
    """
    width, excluded, candidates = int(packed[0, 0]), int(packed[0, 1]), int(packed[0, 2])
    count = integers * width + session_integers + excluded + candidates
    indices = packed.narrow(1, 4, count).to(torch.int64)
    numbers = packed.narrow(1, 4 + count, floats * width + session_floats)
    numbers = torch.view_copy(numbers, dtype=torch.float32)
    ids = [excluded, candidates]
    tensors = indices.split([width] * integers + [1] * session_integers + ids, 1)
    features = numbers.split([width] * floats + [1] * session_floats, 1)
    return tensors[:-2] + features + tensors[-2:]


def pack_request(
    model: InferenceModel, features: list[Tensor], k: int, excluded: Tensor, candidates: Tensor
) -> Tensor:
    """Features in the order of `names`, (B, X) and (B, C) indices, 0 for none -> a packed request.

    `pipeline.serve.runtime.batching` packs NumPy arrays in the same layout.
    """
    width = features[model.names.index(model.model.inputs.item)].size(1)
    indices = [t for t in features if not t.is_floating_point()]
    numbers = [t.float().view(torch.int32) for t in features if t.is_floating_point()]
    rows = excluded.size(0)
    sizes = torch.tensor([[width, excluded.size(1), candidates.size(1), k]], dtype=torch.int32)
    parts = [sizes.expand(rows, 4).to(excluded.device), *indices, excluded, candidates, *numbers]
    return torch.cat([t.to(torch.int32) for t in parts], 1)


@torch.jit.script
def pack_answer(items: Tensor, scores: Tensor, numbers: Tensor) -> Tensor:
    """Concatenate items, scores and other numbers, with floats as their bits."""
    # not `view`, which has no dtype argument in TorchScript
    bits = torch.view_copy(torch.cat([scores, numbers], 1), dtype=torch.int32)
    return torch.cat([items.to(torch.int32), bits], 1)


class ProgramAnswer(NamedTuple):
    """Answer of a program for B sessions."""

    scores: Tensor
    """(B, K), best first."""
    items: Tensor
    """(B, K) indices."""
    queries: Tensor
    """(B, E)"""
    targets: Tensor
    """(B, N) predictions of the tasks besides the next item."""
    item_targets: Tensor
    """(B, M, K) predictions of the tasks per item for the items of the list."""


def unpack_answer(
    output: Tensor, width: int, targets: int = 0, item_targets: int = 0
) -> ProgramAnswer:
    """(B, (2 + M) * K + E + N) int32 -> its parts; `width` is E, `targets` N, `item_targets` M."""
    k = (output.size(1) - width - targets) // (2 + item_targets)
    numbers = output[:, k:].contiguous().view(torch.float32)
    scores, of_items, queries, values = numbers.split([k, item_targets * k, width, targets], 1)
    of_items = of_items.reshape(len(output), item_targets, k)
    return ProgramAnswer(scores, output[:, :k].long(), queries, values, of_items)


def target_names(model: Model) -> tuple[list[str], list[str]]:
    """Return the output names of the tasks besides the next item, and of the tasks per item.

    ConfigError for a name that another tensor of a server has.
    """
    names = [re.sub(r"\W", "_", task.task_name) for _, task in model.target_tasks]
    per_item = [re.sub(r"\W", "_", name) for name in model.item_target_names]
    every = [*names, *per_item]
    # inputs and outputs of a served ensemble share one name space
    taken = {*RESERVED_OUTPUTS, *REQUEST_TENSORS, *model.inputs.feature_names}
    for name in every:
        if every.count(name) > 1 or name in taken or (name in per_item and name in RESERVED_KEYS):
            raise ConfigError(
                f"The task {name!r} has the name of another input or output of a server. Set "
                "another task_name."
            )
    return names, per_item


class ExampleRequest(NamedTuple):
    """Random sessions for tracing and for the parity check."""

    features: list[Tensor]
    excluded: Tensor
    candidates: Tensor
    k: int

    def packed(self, model: InferenceModel) -> Tensor:
        """Return the packed request."""
        return pack_request(model, self.features, self.k, self.excluded, self.candidates)


def example_request(
    model: InferenceModel, length: int, sessions: int, seed: int = 0, k: int = 10
) -> ExampleRequest:
    """Return random sessions of 1 to `length` interactions, padded to `length`.

    They are on the model's device. Odd rows have excluded items, every third row candidates.
    """
    device = model.model.device  # a traced program keeps it
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, length + 1, (sessions, 1), generator=generator)
    inside = torch.arange(length) < lengths
    tensors = []
    for name in model.names:
        shape = (sessions, 1) if name in model.session_names else (sessions, length)
        inputs = model.model.inputs
        if name in inputs.index_columns:
            rows = inputs.table(inputs.index_columns[name]).num_embeddings
            values = torch.randint(1, rows, shape, generator=generator)
        else:
            values = torch.randn(shape, generator=generator)
        if name not in model.session_names:
            values = values * inside.to(values.dtype)
        tensors.append(values.to(device))
    rows = model.items.size(0) + FIRST_ITEM
    row = torch.arange(sessions).unsqueeze(1)
    excluded = torch.randint(0, rows, (sessions, 5), generator=generator) * (row % 2)
    candidates = torch.randint(2, rows, (sessions, 30), generator=generator) * (row % 3 == 2)
    return ExampleRequest(tensors, excluded.to(device), candidates.to(device), k)


@torch.no_grad()
def trace(model: InferenceModel, length: int) -> torch.jit.ScriptModule:
    """Trace the model into a program for any number of sessions of up to `length` positions."""
    model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            inputs = example_request(model, length, 2).packed(model)
            traced = torch.jit.trace(model, (inputs,), check_trace=False)
        except RuntimeError as error:
            raise PipelineError(f"The model cannot be traced: {_line(error)}") from None
        frozen = torch.jit.freeze(traced.eval())
    assert isinstance(frozen, torch.jit.ScriptModule)  # noqa: S101
    return frozen


@torch.no_grad()
def prove_parity(
    model: InferenceModel, program: torch.jit.ScriptModule, length: int, tolerance: float = 1e-4
) -> float:
    """Return the largest difference of scores between program and model, at untraced shapes.

    PipelineError if it is above `tolerance`, or if a listed score is not that of its item.
    """
    largest = 0.0
    half = max(1, length // 2)
    shapes = [(1, length, 1), (3, length, 10), (33, length, 100), (5, half, 20), (1, 1, 7)]
    for seed, (sessions, width, k) in enumerate(shapes):
        request = example_request(model, width, sessions, seed, k)
        expected, scores = reference_scores(model, request)
        try:
            output = program(request.packed(model))
            answer = model.unpack(output)
        except RuntimeError as error:
            raise PipelineError(
                f"The program does not run for {sessions} sessions of {width}: {_line(error)} It "
                "was not written."
            ) from None
        finite = not (scores.isnan().any() or scores.isposinf().any())
        predicted = torch.cat([answer.targets.flatten(), answer.item_targets.flatten()])
        if not finite or not predicted.isfinite().all():
            raise PipelineError(NOT_FINITE)
        relative = model.model.rank_by is not None  # its scores may have a unit, such as a price
        difference = max(
            _difference(expected, answer.scores, relative=relative),
            _target_difference(model, request, answer),
        )
        # items may differ where their scores tie; then each must have the score of its position
        own_scores = scores.gather(1, answer.items)
        misplaced = _difference(own_scores, answer.scores, relative=relative)
        largest = max(largest, difference)
        # not `>`: a difference that is NaN must not pass
        if not (difference <= tolerance and misplaced <= tolerance):
            raise PipelineError(
                f"The exported program differs from the model by {max(difference, misplaced):.2g} "
                f"for {sessions} sessions of {width}, allowed is {tolerance:.0e}. It was not "
                "written."
            )
    return largest


def reference_scores(model: InferenceModel, request: ExampleRequest) -> tuple[Tensor, Tensor]:
    """Return the (B, K) best scores and all (B, V) scores of the model itself."""
    if not model.model.ranks_items:
        none = torch.zeros(len(request.excluded), 0)
        return none, none
    scores = model.model(model.batch(*request.features))
    allowed = torch.zeros_like(scores, dtype=torch.bool).scatter(1, request.candidates, True)
    allowed |= (request.candidates == 0).all(1, keepdim=True)
    scores = scores.masked_fill(~allowed, float("-inf"))
    scores = scores.scatter(1, request.excluded, float("-inf"))
    k = min(request.k, scores.size(1) - FIRST_ITEM)
    return scores[:, FIRST_ITEM:].topk(k).values, scores


def _difference(expected: Tensor, actual: Tensor, *, relative: bool = False) -> float:
    """Return the largest difference; infinite, or NaN, if one list is shorter than the other.

    With `relative`, the difference of numbers above 1 is relative.
    """
    same = expected.isneginf() & actual.isneginf()
    differences = (expected - actual).abs()
    if relative:
        differences = differences / expected.abs().clamp(min=1)
    differences = differences.masked_fill(same, 0.0)
    return float(differences.max()) if differences.numel() else 0.0


def _target_difference(
    model: InferenceModel, request: ExampleRequest, actual: ProgramAnswer
) -> float:
    """Return the largest difference of the targets' predictions, relative for numbers above 1."""
    answer = model.model.answer(model.batch(*request.features))
    pairs = [*zip(answer.targets.values(), actual.targets.unbind(1), strict=True)]
    if answer.queries is not None:
        of_items = model.model.targets_of_items(answer.queries, actual.items)
        pairs += zip(of_items.values(), actual.item_targets.unbind(1), strict=True)
    return max((_difference(*pair, relative=True) for pair in pairs), default=0.0)


def _line(error: Exception) -> str:
    """Return the last line of an error of TorchScript, which has its reason."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else type(error).__name__
