"""Measures whether a finished body sees what it must not.

Each rule is a derivative that has to be exactly zero: of the hidden state that predicts, by what
it predicts, by what comes later, by padding, by another session of the batch. So any module of
one's own may stand anywhere, and a leak shows when the model is put together, not in its results.
"""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipeline.core.errors import ConfigError
from pipeline.model.masking import NoMasking, Stage

if TYPE_CHECKING:
    from pipeline.model.blocks import Encoded, SequentialBlock

_POSITIONS = 12
"""Interactions of the sessions that are tried; fewer where the model reads fewer."""
_DRAWS = 3
"""Random maskings that are tried of those that draw."""


def check_body(body: "SequentialBlock") -> None:
    """ConfigError if something shows that must not; weights and random numbers stay as they are."""
    limits = [_POSITIONS]
    if body.inputs.max_sequence_length is not None:
        limits.append(body.inputs.max_sequence_length)
    for module in body.modules():
        room = getattr(module, "total_seq_length", None)
        if isinstance(room, int):
            limits.append(max(room - body.masking.extra_positions, 1))
    width = min(limits)
    with _undisturbed(body):
        # two sessions, one of them shorter, so that it has padding
        short = (width + 1) // 2
        lengths = torch.tensor([width, short])
        if not isinstance(body.masking, NoMasking):
            _check_targets(body, lengths + 1)
        parts, encoded = _run(body, lengths, width, Stage.PREDICT)
        if body.masking.causal:
            for cut in sorted({1, short}):
                by = _derivatives(encoded.hidden[0, :cut], parts)
                _refuse(by[0, cut:].any(), "later interactions are seen under clm")
        by = _derivatives(encoded.hidden[1, encoded.query[1]], parts)
        _refuse(by[0].any(), "sessions of a batch see each other")
        _refuse(by[1, short:].any(), "padding changes what is predicted")
        _check_width(body, short, width)


def _check_targets(body: "SequentialBlock", lengths: Tensor) -> None:
    parts, encoded = _run(body, lengths, int(lengths.max()), Stage.EVALUATE)
    for row, length in enumerate(lengths.tolist()):
        by = _derivatives(encoded.hidden[row, encoded.query[row]], parts)
        _refuse(by[row, length - 1 :].any(), "the target is seen in evaluation")
    if not body.masking.causal:
        for _ in range(_DRAWS):
            _check_training(body, int(lengths.max()))


def _check_training(body: "SequentialBlock", width: int) -> None:
    parts, encoded = _run(body, torch.tensor([width, max(width // 2, 1)]), width, Stage.TRAIN)
    for row, position in (encoded.targets > 0).nonzero().tolist():
        by = _derivatives(encoded.hidden[row, position], parts)[row]
        hidden = encoded.targets[row] > 0
        if encoded.order is not None:
            order = encoded.order[row]
            hidden = (order >= order[position]) & (order >= 0)
        _refuse(by[hidden].any(), "targets are seen in training")


def _check_width(body: "SequentialBlock", length: int, width: int) -> None:
    """The same session in a row that is just as long and in a longer one."""
    parameter = next(body.parameters())
    example = body.inputs.example_parts()
    whole = {name: torch.randn(1, width, part.size(-1)) for name, part in example.items()}
    lengths = torch.tensor([length], device=parameter.device)
    found = []
    for columns in (length, width):
        parts = {n: part[:, :columns].to(parameter) for n, part in whole.items()}
        encoded = _through(body, parts, lengths, Stage.PREDICT)
        found.append(encoded.hidden[0, encoded.query[0]].double())
    apart = float((found[0] - found[1]).detach().abs().max())
    scale = max(1.0, float(found[0].detach().abs().max()))
    _refuse(
        torch.tensor(not apart <= 2e-5 * scale), "the amount of padding changes what is predicted"
    )


def _run(
    body: "SequentialBlock", lengths: Tensor, width: int, stage: Stage
) -> tuple[Tensor, "Encoded"]:
    """Random vectors of interactions, (B, W, d) of all parts together, and what becomes of them."""
    widths = {name: part.size(-1) for name, part in body.inputs.example_parts().items()}
    parameter = next(body.parameters())
    vectors = torch.randn(len(lengths), width, sum(widths.values()))
    vectors = vectors.to(parameter.device, parameter.dtype).requires_grad_()
    parts = dict(zip(widths, vectors.split(list(widths.values()), -1), strict=True))
    return vectors, _through(body, parts, lengths.to(parameter.device), stage)


def _through(
    body: "SequentialBlock", parts: dict[str, Tensor], lengths: Tensor, stage: Stage
) -> "Encoded":
    embeddings = body.inputs.combine(parts)
    inside = torch.arange(embeddings.size(1), device=lengths.device) < lengths.unsqueeze(1)
    items = inside.to(torch.int64) * 3
    return body.through(body.masking.apply_to(embeddings, items, lengths, stage))


def _derivatives(hidden: Tensor, vectors: Tensor) -> Tensor:
    """Of a random sum of hidden states by the vectors, (B, W, d)."""
    if not hidden.requires_grad:
        return torch.zeros_like(vectors)
    weights = torch.randn_like(hidden)
    (by,) = torch.autograd.grad(
        (hidden * weights).sum(), vectors, retain_graph=True, allow_unused=True
    )
    return torch.zeros_like(vectors) if by is None else by


def _refuse(seen: Tensor, what: str) -> None:
    if bool(seen):
        raise ConfigError(
            f"The blocks do not go together with the masking: {what}. Modules of one's own may "
            "look at one interaction at a time, or back alone; what looks elsewhere is a "
            "TransformerBlock, of which plm takes one."
        )


@contextlib.contextmanager
def _undisturbed(body: nn.Module) -> Iterator[None]:
    training = {module: module.training for module in body.modules()}
    body.eval()
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(0)
            yield
    finally:
        for module, mode in training.items():
            module.training = mode
