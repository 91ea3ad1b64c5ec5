"""Cross-entropy over the catalogue under autocast, and its passes on a GPU as fake tensors."""

import weakref
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.core.columns import FIRST_ITEM
from pipeline.model.device import device_chunk_bytes
from pipeline.model.losses import LabelSmoothCrossEntropyLoss
from pipeline.model.ops import catalogue_cross_entropy as catalogue
from pipeline.model.ops import catalogue_scan_device as device_form
from pipeline.model.ops.catalogue_chunks import Scratch, Settings
from pipeline.model.tasks.next_item import NextItemPredictionTask

D = 64
GIB = 2**30
CHUNK_BYTES = GIB // 2
LOSS_SCALE = 2.0**10
"""As GradScaler multiplies, since small gradients would vanish in float16."""


@pytest.fixture(autouse=True)
def many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_form, "CPU_CHUNK_BYTES", 2**18)


def trained_tensors(sessions: int, num_items: int, confidence: float) -> tuple[Tensor, ...]:
    """Hidden states (B, L, D), targets (B, L), table (V, D) and weights (B, L) in float64.

    `confidence` moves each hidden state to the item of its target.
    """
    generator = torch.Generator().manual_seed(sessions)
    draw = {"generator": generator, "dtype": torch.float64}
    table = torch.randn(FIRST_ITEM + num_items, D, **draw)
    targets = torch.randint(FIRST_ITEM, FIRST_ITEM + num_items, (sessions, 6), generator=generator)
    hidden = (torch.randn(sessions, 6, D, **draw) + confidence * table[targets]) / D**0.5
    targets[:, -1] = 0
    return hidden, targets, table, torch.rand(sessions, 6, **draw) + 0.1


def cosine(one: Tensor, other: Tensor) -> float:
    return float(functional.cosine_similarity(one.double().flatten(), other.flatten(), dim=0))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", ["cross-entropy", "sampled-softmax", "gbce"])
@settings(max_examples=15, deadline=None)
@given(
    scores=st.sampled_from(["products", "cosines", "projected"]),
    smoothing=st.sampled_from([0.0, 0.1]),
    weighted=st.booleans(),
    recompute=st.booleans(),
    tying=st.booleans(),
    confidence=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_low_precision_is_near_float64(
    kind: torch.dtype,
    loss: str,
    scores: str,
    smoothing: float,
    weighted: bool,
    recompute: bool,
    tying: bool,
    confidence: float,
) -> None:
    hidden, targets, table, weights = trained_tensors(40, 1_500, confidence)
    options: dict[str, Any] = {"loss": loss, "recompute": recompute, "weight_tying": tying}
    options |= {"cosines": {"normalize": True, "softmax_temperature": 0.07}}.get(scores, {})
    if loss == "cross-entropy":
        options["label_smoothing"] = smoothing
    results = []
    for dtype, autocast in ((torch.float64, False), (torch.float32, True)):
        task = NextItemPredictionTask(**options, num_negatives=200)
        torch.manual_seed(0)
        task.build(D, len(table), D // 2 if scores == "projected" else D)
        task.to(dtype)
        rows = table[:, : D // 2] if scores == "projected" and tying else table
        inputs = [part.to(dtype, copy=True).requires_grad_() for part in (hidden, rows)]
        torch.manual_seed(0)  # of the negatives
        with torch.autocast("cpu", kind, enabled=autocast):
            value = task.loss(inputs[0], targets, inputs[1], weights if weighted else None)
        (value * LOSS_SCALE).backward()
        read = [*inputs[: 1 + tying], *task.parameters()]
        results.append((value.detach(), [part.grad for part in read]))
    (exact, exact_gradients), (result, gradients) = results
    assert result.dtype == torch.float32
    assert abs(float(result - exact)) < 2e-3 * abs(float(exact))
    for expected, gradient in zip(exact_gradients, gradients, strict=True):
        assert expected is not None
        assert cosine(gradient, expected) > 0.999


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_autocast_rounds_the_factors(kind: torch.dtype) -> None:
    hidden, targets, table, _ = trained_tensors(40, 1_500, 0.5)
    queries, positions = hidden.flatten(0, 1).float(), targets.flatten().clamp(FIRST_ITEM) - 3
    arguments = table.float(), positions
    exact = catalogue.catalogue_cross_entropy(queries, *arguments, first=3)
    with torch.autocast("cpu", kind):
        result = catalogue.catalogue_cross_entropy(queries, *arguments, first=3)
        twice = catalogue.catalogue_cross_entropy(queries.double(), table, positions, first=3)
    expected = catalogue.catalogue_cross_entropy(
        queries.to(kind).float(), table.to(kind).float(), positions, first=3
    )
    assert not torch.equal(result, exact)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    assert twice.dtype == torch.float64
    torch.testing.assert_close(twice.float(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("kept", [False, True])
def test_passes_of_a_gpu_give_the_loss_and_gradients_of_the_cpu(
    monkeypatch: pytest.MonkeyPatch, smoothing: float, normalize: bool, kept: bool
) -> None:
    hidden, targets, table, weights = trained_tensors(40, 1_500, 0.5)
    positions = targets.flatten().clamp(FIRST_ITEM) - FIRST_ITEM

    def gradients() -> list[Tensor]:
        parts = hidden.flatten(0, 1).clone().requires_grad_(), table.clone().requires_grad_()
        losses = catalogue.catalogue_cross_entropy(
            *parts,
            positions,
            first=FIRST_ITEM,
            smoothing=smoothing,
            normalize=normalize,
            scratch=Scratch() if kept else None,
        )
        loss = (losses * weights.flatten()).sum()
        once = torch.autograd.grad(loss, parts, retain_graph=True)
        return [losses, *once, *torch.autograd.grad(loss, parts)]

    expected = gradients()
    monkeypatch.setattr(catalogue, "_fits_cache", lambda *_: False)
    torch.testing.assert_close(gradients(), expected)


@pytest.mark.parametrize(("recompute", "autocast"), [(False, True), (True, True), (None, False)])
def test_loss_compiles_without_a_graph_break(recompute: bool | None, autocast: bool) -> None:
    hidden, targets, table, weights = trained_tensors(40, 1_500, 0.5)
    loss = LabelSmoothCrossEntropyLoss(0.1, "none", recompute)
    positions = targets.flatten().clamp(FIRST_ITEM) - FIRST_ITEM
    inputs = hidden.flatten(0, 1).float().requires_grad_(), table.float().requires_grad_()

    def weighted_loss(queries: Tensor, items: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            losses = loss.over_catalogue(queries, items, positions, first=3, normalize=True)
        return (losses * weights.flatten()).sum()

    compiled = torch.compile(weighted_loss, fullgraph=True, backend="aot_eager")
    expected, result = weighted_loss(*inputs), compiled(*inputs)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(
        torch.autograd.grad(result, inputs), torch.autograd.grad(expected, inputs)
    )


class DeviceUse(TorchDispatchMode):
    """Largest number of bytes of live tensors, and the types of products."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.bytes = 0
        self.products: Counter[tuple[torch.dtype, torch.dtype]] = Counter()
        self._users: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})
        if func._schema.name == "aten::mm":
            self.products[args[0].dtype, out.dtype] += 1
        for tensor in out if isinstance(out, list | tuple) else [out]:
            if isinstance(tensor, Tensor):
                self._add(tensor)
        return out

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        self._users[key] += 1
        if self._users[key] == 1:
            self.bytes += size
            self.peak = max(self.peak, self.bytes)
        weakref.finalize(tensor, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._users[key] -= 1
        if not self._users[key]:
            self.bytes -= size


class Context(SimpleNamespace):
    """Stand-in of the context of an autograd function, as autograd itself needs a real GPU."""

    needs_input_grad = (True, True, False, False)

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        self.saved_tensors = tensors


def losses_and_gradients_on_a_fake_gpu(
    targets: int, num_items: int, settings: Settings
) -> DeviceUse:
    """Run both passes with fake CUDA tensors; a synchronizing operator raises an exception."""
    with FakeTensorMode(), DeviceUse() as use:
        queries = torch.empty(targets, 128, device="cuda", dtype=torch.float32)
        table = torch.empty(settings.first + num_items, 128, device="cuda")
        positions = torch.empty(targets, device="cuda", dtype=torch.int64)
        context = Context()
        function = catalogue._CatalogueCrossEntropy
        losses = function.forward(context, queries, table, positions, settings)
        assert losses.dtype == torch.float32
        gradients = function.backward(context, torch.empty_like(losses))
        assert [g.shape for g in gradients[:2]] == [queries.shape, table.shape]
        del context, losses, gradients
    return use


@pytest.fixture
def large_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of the size of a GPU of 80 GB."""
    monkeypatch.setattr(device_form, "device_chunk_bytes", lambda _: CHUNK_BYTES)


@pytest.mark.usefixtures("large_gpu")
@pytest.mark.parametrize("normalize", [False, True])
def test_million_items_fit_8_gb_of_a_gpu(normalize: bool) -> None:
    # 1,024 sessions of 5 interactions have 4,096 targets; table and queries are counted
    settings = Settings(FIRST_ITEM, 0.1, normalize, None, None, torch.bfloat16)
    use = losses_and_gradients_on_a_fake_gpu(4_096, 1_000_000, settings)
    table = 1_000_000 * 128 * 4
    adam = 2 * table
    assert 2 * table < use.peak < 8e9 - adam - GIB  # a gigabyte for the rest of the model
    # all scores would be 16 GB


@pytest.mark.usefixtures("large_gpu")
@pytest.mark.parametrize("factors", [torch.bfloat16, torch.float16])
def test_products_on_a_gpu_take_low_precision_and_give_float32(factors: torch.dtype) -> None:
    settings = Settings(FIRST_ITEM, 0.0, False, None, None, factors)
    use = losses_and_gradients_on_a_fake_gpu(4_096, 200_000, settings)
    num_chunks = round(200_000 * 4_096 * 4 / CHUNK_BYTES)
    # scores twice, the gradient of the queries and that of the table
    assert use.products == {(factors, torch.float32): 4 * num_chunks}


def test_fake_gpu_detects_synchronization() -> None:
    with FakeTensorMode():
        values = torch.empty(3, device="cuda")
        with pytest.raises(DataDependentOutputException):
            values.sum().item()
        with pytest.raises(DynamicOutputShapeException):
            values[values > 0]


def test_chunk_of_a_device_is_a_share_of_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {}
    for gigabytes in (4, 16, 32, 80):
        properties = SimpleNamespace(total_memory=gigabytes * GIB)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, p=properties: p)
        sizes[gigabytes] = device_chunk_bytes(torch.device("cuda")) / 2**20
    assert sizes == {4: 64, 16: 128, 32: 256, 80: 512}


@pytest.fixture
def gpu() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    return torch.device("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("normalize", [False, True])
def test_loss_on_a_gpu_is_near_float64(
    gpu: torch.device, kind: torch.dtype, smoothing: float, normalize: bool
) -> None:
    hidden, targets, table, weights = trained_tensors(40, 1_500, 0.5)
    positions = targets.flatten().clamp(FIRST_ITEM) - FIRST_ITEM
    results = []
    for device, dtype in ((torch.device("cpu"), torch.float64), (gpu, torch.float32)):
        parts = [part.to(device, dtype, copy=True) for part in (hidden.flatten(0, 1), table)]
        parts = [part.requires_grad_() for part in parts]
        low = dtype == torch.float32 and kind != torch.float32
        with torch.autocast(device.type, kind if low else torch.bfloat16, enabled=low):
            losses = catalogue.catalogue_cross_entropy(
                *parts,
                positions.to(device),
                first=FIRST_ITEM,
                smoothing=smoothing,
                normalize=normalize,
            )
        loss = (losses * weights.flatten().to(device)).sum()
        (loss * LOSS_SCALE).backward()
        results.append((float(loss.detach()), [part.grad.cpu() for part in parts]))
    (exact, exact_gradients), (result, gradients) = results
    assert abs(result - exact) < 2e-3 * abs(exact)
    for expected, gradient in zip(exact_gradients, gradients, strict=True):
        assert cosine(gradient, expected) > 0.999


@pytest.mark.gpu
def test_million_items_take_the_memory_of_fake_tensors(gpu: torch.device) -> None:
    settings = Settings(FIRST_ITEM, 0.1, True, None, None, torch.bfloat16)
    counted = losses_and_gradients_on_a_fake_gpu(4_096, 1_000_000, settings).peak
    torch.cuda.reset_peak_memory_stats(gpu)
    before = torch.cuda.memory_allocated(gpu)
    queries = torch.randn(4_096, 128, device=gpu, requires_grad=True)
    table = torch.randn(1_000_000 + FIRST_ITEM, 128, device=gpu, requires_grad=True)
    positions = torch.randint(0, 1_000_000, (4_096,), device=gpu)
    with torch.autocast("cuda", torch.bfloat16):
        losses = catalogue.catalogue_cross_entropy(
            queries, table, positions, first=FIRST_ITEM, smoothing=0.1, normalize=True
        )
    losses.sum().backward()
    assert torch.cuda.max_memory_allocated(gpu) - before < 1.2 * counted
