"""The model with its top-K as an ONNX file, and its comparison with the model in onnxruntime.

Shape letters: B sessions, W positions of a request, L positions of the model, K list length, E
width of queries and items, V rows of the item table.
"""

import contextlib
import copy
import importlib.util
import io
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.core.columns import FIRST_ITEM, PADDING
from pipeline.core.errors import ConfigError, PipelineError
from pipeline.data.batch import SessionBatch
from pipeline.exporting.longformer_inference import with_plain_attention
from pipeline.exporting.torchscript import NOT_FINITE, InferenceModel, example_request
from pipeline.model.counting.model import CountingModel
from pipeline.model.encoders.huggingface import HuggingFaceEncoder
from pipeline.model.model import Model
from pipeline.model.program import ProgramModel

OPSET = 18
"""Version of ONNX's operator set."""
LISTS = ("item_index", "item_score", "embedding")
"""Outputs of a model that ranks items, before the targets."""
LIST_LENGTH = "k"
"""Input with the length of a list."""


class OnnxTensor(NamedTuple):
    """An input or output of the file."""

    name: str
    type: str
    axes: tuple[str | int, ...]
    """Size of each axis, a name for a dynamic axis."""


class OnnxModel(nn.Module):
    """A model with its top-K: a tensor for each feature, and K -> lists, queries and targets.

    Sessions may be of any number and width; the newest L interactions are read. ConfigError for a
    program, for a counting model, and for a feature or task with the name of another tensor.
    """

    catalogue: Tensor
    """(W, V - 3)"""

    def __init__(self, served: InferenceModel, max_k: int, *, filter_seen: bool = False) -> None:
        super().__init__()
        if isinstance(served.model, ProgramModel):
            raise ConfigError(
                "The run holds a program, which cannot be written as ONNX. Export where the model "
                "is made: pipeline.export(model, data=data, out=..., format='onnx')."
            )
        if isinstance(served.model, CountingModel):
            raise ConfigError(
                "A counting model looks rows of different lengths up in its tables, which ONNX has "
                "no operators for. Export it without --format onnx."
            )
        if served.model.repeats is not None:
            raise ConfigError(
                "A run with `model.repeats` cannot be written as ONNX. Export TorchScript, or "
                "train without it."
            )
        self.model = _without_views(served.model)
        self.names, self.session_names = served.names, served.session_names
        self.targets, self.item_targets = served.targets, served.item_targets
        self.max_k, self.filter_seen = max_k, filter_seen
        self.width = served.width
        self.ranks_items = served.model.ranks_items
        items = served.model.items().detach() if self.ranks_items else served.items
        self.register_buffer("catalogue", items.t().contiguous())
        _check_unique([tensor.name for tensor in (*self.inputs, *self.outputs)])

    @property
    def inputs(self) -> list[OnnxTensor]:
        """Features in the order of `names`, then K."""
        tensors = []
        for name in self.names:
            kind = "int64" if name in self.model.inputs.index_columns else "float32"
            positions: str | int = 1 if name in self.session_names else "positions"
            tensors.append(OnnxTensor(name, kind, ("sessions", positions)))
        length = [OnnxTensor(LIST_LENGTH, "int64", (1,))] if self.ranks_items else []
        return tensors + length

    @property
    def outputs(self) -> list[OnnxTensor]:
        """Lists and queries, then the targets of sessions, then the targets of listed items."""
        kinds = dict(zip(LISTS, ("int64", "float32", "float32"), strict=True))
        axes: dict[str, str | int] = dict(zip(LISTS, ("k", "k", self.width), strict=True))
        names = LISTS if self.ranks_items else ()
        lists = [OnnxTensor(name, kinds[name], ("sessions", axes[name])) for name in names]
        targets = [OnnxTensor(name, "float32", ("sessions", 1)) for name in self.targets]
        of_items = [OnnxTensor(name, "float32", ("sessions", "k")) for name in self.item_targets]
        return lists + targets + of_items

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Tensors in the order of `inputs` -> tensors in the order of `outputs`.

        A list is shorter than K if the catalogue or `max_k` is smaller, and ends in item 0 with a
        score of minus infinity if `filter_seen` leaves fewer items.
        """
        features = dict(zip(self.names, tensors[: len(self.names)], strict=True))
        items = features[self.model.inputs.item]
        answer = self.model.answer(self._newest(features))
        targets = tuple(values.unsqueeze(1) for values in answer.targets.values())
        queries = answer.queries
        if queries is None:
            return targets
        scores = self.model.score(queries, self.catalogue)
        if self.filter_seen:
            scores = nn.functional.pad(scores, (FIRST_ITEM, 0))
            lowest = torch.full_like(items, -torch.inf, dtype=scores.dtype)
            scores = scores.scatter(1, items, lowest)[:, FIRST_ITEM:]
        # a tensor, so that K stays an input of the trace
        k: Any = tensors[-1][0].clamp(1, min(self.max_k, self.catalogue.size(1)))
        best, columns = torch.topk(scores, k)
        best_items = torch.where(best == -torch.inf, PADDING, columns + FIRST_ITEM)
        of_items = self.model.targets_of_items(queries, columns + FIRST_ITEM).values()
        return best_items, best, queries[:, : self.width], *targets, *of_items

    def _newest(self, features: dict[str, Tensor]) -> SessionBatch:
        """Return the newest L interactions, padded to the longest session.

        Like `pipeline.data.batch.newest`, but without a branch on the width of the request, as a
        trace keeps only one branch.
        """
        lengths = (features[self.model.inputs.item] != PADDING).sum(1)
        longest = self.model.inputs.max_sequence_length
        assert longest is not None  # noqa: S101  an exported model has one
        kept = lengths.clamp(max=longest)
        columns = torch.arange(kept.max().clamp(min=1), device=lengths.device)  # type: ignore[call-overload]
        inside = columns < kept.unsqueeze(1)
        positions = torch.where(inside, (lengths - kept).unsqueeze(1) + columns, 0)
        newest = {
            name: values[:, 0]
            if name in self.session_names
            else values.gather(1, positions) * inside.to(values.dtype)
            for name, values in features.items()
        }
        return SessionBatch(newest, kept)


def _without_views(model: Model) -> Model:
    """Return a copy of the model whose modules ONNX can express."""
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if isinstance(module, HuggingFaceEncoder):
            config = module.transformer.config
            if module.mask == "none" and config._attn_implementation == "sdpa":
                # without a mask, Hugging Face searches the position ids for packed sessions
                module.mask = "padding"
            if config.model_type == "longformer":
                with_plain_attention(module.transformer)
    return copied.eval()


def _check_unique(names: list[str]) -> None:
    """ConfigError for a feature or task with the name of another tensor."""
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"{name!r} would be the name of two tensors of the ONNX file. Name the feature or "
                "task otherwise."
            )


@torch.no_grad()
def write_onnx(served: InferenceModel, model: OnnxModel, length: int, path: Path) -> None:
    """Trace the model on random sessions and write the file.

    ConfigError without the package onnx; PipelineError for a model that ONNX cannot express.
    """
    if importlib.util.find_spec("onnx") is None:
        raise ConfigError("--format onnx needs the onnx extra: pip install 'pipeline[onnx]'.")
    inputs, outputs = model.inputs, model.outputs
    axes = {
        tensor.name: {i: axis for i, axis in enumerate(tensor.axes) if isinstance(axis, str)}
        for tensor in (*inputs, *outputs)
    }
    request = example_request(served, length + 1, 2)
    printed = io.StringIO()  # torch prints the whole graph if an operator is missing
    with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
        warnings.simplefilter("ignore")
        try:
            # the exporter that traces: torch's other one takes 10 s and more for one GRU
            torch.onnx.export(
                model,
                arguments(model, request.features, request.k),
                path,
                dynamo=False,
                opset_version=OPSET,
                input_names=[tensor.name for tensor in inputs],
                output_names=[tensor.name for tensor in outputs],
                dynamic_axes=axes,
            )
        except (RuntimeError, torch.onnx.OnnxExporterError) as error:
            line = " ".join(str(error).split())[:200]
            raise PipelineError(f"The model cannot be written as ONNX: {line}") from None


def arguments(model: OnnxModel, features: list[Tensor], k: int) -> tuple[Tensor, ...]:
    """Features in the order of `names` and K -> inputs of the model."""
    return (*features, torch.tensor([k])) if model.ranks_items else tuple(features)


@torch.no_grad()
def compare_onnx(
    served: InferenceModel, model: OnnxModel, path: Path, length: int, tolerance: float = 1e-4
) -> float | None:
    """Return the largest difference between the file and the model, at untraced shapes.

    None without the package onnxruntime. PipelineError if it is above `tolerance`, or if a listed
    score is not that of its item.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    largest = 0.0
    half = max(1, length // 2)
    shapes = [(1, length, 1), (3, length, 10), (33, half, 100), (5, 2 * length, 20), (1, 1, 7)]
    for seed, (sessions, width, k) in enumerate(shapes):
        features = example_request(served, width, sessions, seed).features
        inputs = arguments(model, features, k)
        feed = {t.name: values.numpy() for t, values in zip(model.inputs, inputs, strict=True)}
        try:
            answer = session.run(None, feed)
        except Exception as error:  # onnxruntime has no root class of its errors
            raise PipelineError(
                f"The ONNX file does not run for {sessions} sessions of {width}: "
                f"{' '.join(str(error).split())[-200:]} It was not written."
            ) from None
        difference = _difference(model, served, features, k, answer)
        largest = max(largest, difference)
        # not `>`: a difference that is NaN must not pass
        if not difference <= tolerance:
            raise PipelineError(
                f"The ONNX file differs from the model by {difference:.2g} for {sessions} sessions "
                f"of {width}, allowed is {tolerance:.0e}. It was not written."
            )
    return largest


def _difference(
    model: OnnxModel, served: InferenceModel, features: list[Tensor], k: int, answer: list[Any]
) -> float:
    """Return the largest difference of scores, queries and targets, relative above 1."""
    batch = served.batch(*features)
    expected = served.model.answer(batch)
    actual = [torch.from_numpy(values) for values in answer]
    pairs = []
    if expected.queries is not None:
        items, scores, embeddings, *actual = actual
        k = min(k, model.max_k, model.catalogue.size(1))
        best = served.model.top_k(batch, k, filter_seen=model.filter_seen).scores
        every = served.model.score(expected.queries, served.model.items().T)
        every = nn.functional.pad(every, (FIRST_ITEM, 0), value=-torch.inf)
        # items may differ where their scores tie; then each must have the score of its position
        pairs = [
            (best, scores),
            (expected.queries[:, : model.width], embeddings),
            (every.gather(1, items), scores),
        ]
    values = [target.unsqueeze(1) for target in expected.targets.values()]
    if expected.queries is not None:
        values += served.model.targets_of_items(expected.queries, items).values()
    differences = [0.0]
    for right, wrong in [*pairs, *zip(values, actual, strict=True)]:
        if right.isnan().any() or right.isposinf().any():
            raise PipelineError(NOT_FINITE)
        same = right.isneginf() & wrong.isneginf()
        shares = (right - wrong).abs() / right.abs().clamp(min=1)
        differences.append(float(shares.masked_fill(same, 0.0).max()))
    return max(differences)
