"""Leakage check: proves that a body does not see the targets.

Each rule is a derivative that must be exactly zero: of the predicting hidden state by the target,
by later interactions, by padding and by other sessions of the batch. Blocks may thus be any
modules, and a leak is an error when the model is built, not an inflated metric. The functions at
the end check single modules: a block of a sequence, and a task block.

Shape letters: B sessions, L positions, d width of the input vectors.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.core.errors import ConfigError
from pipeline.model.masking import Encoded, Stage
from pipeline.model.mlp import MLPBlock

_POSITIONS = 12
"""Number of interactions of the test sessions; fewer if the model reads fewer."""
_DRAWS = 3
"""Number of random maskings per check."""
_TOLERANCE = 2e-5
"""Largest relative difference of hidden states between two amounts of padding."""


def check_leakage(body: Any) -> None:
    """ConfigError if hidden states depend on targets, the future, padding or other sessions.

    `body` is a SequentialBlock; its weights, modes and the random state are unchanged.
    """
    limits = [_POSITIONS]
    if body.inputs.max_sequence_length is not None:
        limits.append(body.inputs.max_sequence_length)
    for module in body.modules():
        positions = getattr(module, "total_seq_length", None)
        if isinstance(positions, int):
            limits.append(max(positions - body.masking.extra_positions, 1))
    width = min(limits)
    with _evaluation_mode(body):
        # two sessions, the shorter one with padding
        short = (width + 1) // 2
        lengths = torch.tensor([width, short])
        if body.masking.has_targets:
            _check_targets(body, lengths + 1)
        vectors, encoded = _encode_random(body, lengths, width, Stage.PREDICT)
        if body.masking.causal:
            for cut in sorted({1, short}):
                gradient = _gradient(encoded.hidden[0, :cut], vectors)
                _refuse(gradient[0, cut:].any(), "later interactions are seen under clm")
        gradient = _gradient(encoded.hidden[1, encoded.query[1]], vectors)
        _refuse(gradient[0].any(), "sessions of a batch see each other")
        _refuse(gradient[1, short:].any(), "padding changes what is predicted")
        _check_padding(body, short, width)


def _check_targets(body: Any, lengths: Tensor) -> None:
    """Check that neither evaluation nor training sees its targets."""
    vectors, encoded = _encode_random(body, lengths, int(lengths.max()), Stage.EVALUATE)
    for row, length in enumerate(lengths.tolist()):
        gradient = _gradient(encoded.hidden[row, encoded.query[row]], vectors)
        _refuse(gradient[row, length - 1 :].any(), "the target is seen in evaluation")
    if not body.masking.causal:
        for _ in range(_DRAWS):
            _check_training(body, int(lengths.max()))


def _check_training(body: Any, width: int) -> None:
    """Check that the hidden state of a target does not depend on targets masked for it."""
    lengths = torch.tensor([width, max(width // 2, 1)])
    vectors, encoded = _encode_random(body, lengths, width, Stage.TRAIN)
    for row, position in (encoded.targets > 0).nonzero().tolist():
        gradient = _gradient(encoded.hidden[row, position], vectors)[row]
        masked = encoded.targets[row] > 0
        if encoded.order is not None:
            order = encoded.order[row]
            masked = (order >= order[position]) & (order >= 0)
        _refuse(gradient[masked].any(), "targets are seen in training")


def _check_padding(body: Any, length: int, width: int) -> None:
    """Check that the hidden state of a session does not depend on the padding of its row."""
    parameter = next(body.parameters())
    example = body.inputs.example_parts()
    whole = {name: torch.randn(1, width, part.size(-1)) for name, part in example.items()}
    lengths = torch.tensor([length], device=parameter.device)
    hidden = []
    for columns in (length, width):
        parts = {name: part[:, :columns].to(parameter) for name, part in whole.items()}
        encoded = _encode(body, parts, lengths, Stage.PREDICT)
        hidden.append(encoded.hidden[0, encoded.query[0]].detach().double())
    difference = float((hidden[0] - hidden[1]).abs().max())
    scale = max(1.0, float(hidden[0].abs().max()))
    _refuse(
        torch.tensor(not difference <= _TOLERANCE * scale),
        "the amount of padding changes what is predicted",
    )


def _encode_random(body: Any, lengths: Tensor, width: int, stage: Stage) -> tuple[Tensor, Encoded]:
    """Random concatenated vectors of all features, (B, L, d), and their hidden states."""
    widths = {name: part.size(-1) for name, part in body.inputs.example_parts().items()}
    parameter = next(body.parameters())
    vectors = torch.randn(len(lengths), width, sum(widths.values()))
    vectors = vectors.to(parameter.device, parameter.dtype).requires_grad_()
    parts = dict(zip(widths, vectors.split(list(widths.values()), -1), strict=True))
    return vectors, _encode(body, parts, lengths.to(parameter.device), stage)


def _encode(body: Any, parts: dict[str, Tensor], lengths: Tensor, stage: Stage) -> Encoded:
    """Vectors of the features by name, (B, L, d) each -> hidden states."""
    embeddings = body.inputs.combine(parts)
    inside = torch.arange(embeddings.size(1), device=lengths.device) < lengths.unsqueeze(1)
    items = inside.to(torch.int64) * 3
    return body.through(body.masking.apply_to(embeddings, items, lengths, stage))


def _gradient(hidden: Tensor, vectors: Tensor) -> Tensor:
    """Gradient of a random sum of hidden states by the input vectors, (B, L, d)."""
    if not hidden.requires_grad:
        return torch.zeros_like(vectors)
    weights = torch.randn_like(hidden)
    (gradient,) = torch.autograd.grad(
        (hidden * weights).sum(), vectors, retain_graph=True, allow_unused=True
    )
    return torch.zeros_like(vectors) if gradient is None else gradient


def _refuse(leaks: Tensor, reason: str) -> None:
    if bool(leaks):
        raise ConfigError(
            f"The blocks do not fit the masking: {reason}. Custom modules must read one "
            "interaction at a time or be causal; any other attention needs a TransformerBlock, of "
            "which plm allows one."
        )


@contextlib.contextmanager
def _evaluation_mode(body: nn.Module) -> Iterator[None]:
    """Evaluation mode and a fixed seed inside the context; both are restored."""
    training = {module: module.training for module in body.modules()}
    body.eval()
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(0)
            yield
    finally:
        for module, mode in training.items():
            module.training = mode


def block_output_size(block: nn.Module, width: int) -> int:
    """Output width of a module on (B, L, width).

    ConfigError if it mixes sessions or attends to later interactions.
    """
    name = type(block).__name__
    for module in block.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ConfigError(f"{name} mixes sessions and padding by a batch norm. Use LayerNorm.")
    first = next(block.parameters(), torch.empty(0))
    vectors = torch.randn(2, 3, width, device=first.device, dtype=first.dtype, requires_grad=True)
    output = _try(block, vectors, f"(B, L, {width})")
    output = output[0] if isinstance(output, tuple) else output
    if not isinstance(output, Tensor) or output.dim() != 3 or output.shape[:2] != (2, 3):
        raise ConfigError(f"{name} does not return one vector per interaction, (B, L, D).")
    if output.requires_grad:
        weights = torch.randn_like(output)
        early = (output[:, :2] * weights[:, :2]).sum()
        (by_early,) = torch.autograd.grad(early, vectors, retain_graph=True)
        of_first, of_second = (output * weights).sum((1, 2))
        (by_first,) = torch.autograd.grad(of_first, vectors, retain_graph=True)
        (by_second,) = torch.autograd.grad(of_second, vectors)
        if bool(by_first[1].any()) or bool(by_second[0].any()):
            raise ConfigError(
                f"{name} mixes the sessions of a batch. Recurrent modules of torch need "
                "batch_first=True."
            )
        if bool(by_early[:, 2].any()):
            raise ConfigError(
                f"{name} attends to later interactions, so that it would see padding and targets. "
                "Use a TransformerBlock, whose attention follows the masking."
            )
    return int(output.size(-1))


def task_block_output_size(block: nn.Module, width: int) -> int:
    """Output width of a block between hidden states (T, width) and a task; builds an MLPBlock.

    ConfigError unless it treats rows independently.
    """
    if isinstance(block, MLPBlock):
        block.build(width)
        return block.dimensions[-1]
    name = type(block).__name__
    hidden = torch.randn(3, width, requires_grad=True)
    output = _try(block, hidden, f"(T, {width})")
    if not isinstance(output, Tensor) or output.dim() != 2 or output.size(0) != 3:
        raise ConfigError(f"{name} does not give one vector for each, as a task_block must.")
    if output.requires_grad:
        first = (output[0] * torch.randn_like(output[0])).sum()
        (gradient,) = torch.autograd.grad(first, hidden)
        if bool(gradient[1:].any()):
            raise ConfigError(f"{name} mixes rows, so it cannot be a task_block.")
    return int(output.size(-1))


def _try(block: nn.Module, values: Tensor, shape: str) -> Any:
    """Output of a module in evaluation mode. ConfigError if it rejects the shape."""
    training = block.training
    try:
        return block.eval()(values)
    except ConfigError:
        raise
    except Exception as error:
        line = " ".join(str(error).split())[:120]
        raise ConfigError(
            f"{type(block).__name__} does not take {shape}, what comes before it: {line}"
        ) from None
    finally:
        block.train(training)
