"""Cross-entropy in chunks of the catalogue is cross-entropy, and so are its gradients."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from pipeline.model.losses import LabelSmoothCrossEntropyLoss
from pipeline.model.ops import catalogue_scan_cpu, catalogue_scan_device
from pipeline.model.ops.catalogue_chunks import Scratch
from pipeline.model.ops.catalogue_cross_entropy import catalogue_cross_entropy
from pipeline.model.ops.shared_gradient_embedding import share_gradient

FIRST = 3


@pytest.fixture(autouse=True)
def many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks even of a small catalogue."""
    monkeypatch.setattr(catalogue_scan_cpu, "CHUNK_BYTES", 400)
    monkeypatch.setattr(catalogue_scan_cpu, "FEWEST_ITEMS", 3)
    monkeypatch.setattr(catalogue_scan_device, "CPU_CHUNK_BYTES", 400)
    monkeypatch.setattr(catalogue_scan_device, "MULTIPLE", 3)


def given_tensors(num_targets: int, num_items: int, seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(num_targets, 5, dtype=torch.float64, generator=generator)
    table = torch.randn(FIRST + num_items, 5, dtype=torch.float64, generator=generator)
    targets = torch.randint(0, num_items, (num_targets,), generator=generator)
    weights = torch.rand(num_targets, dtype=torch.float64, generator=generator)
    return queries.requires_grad_(), table.requires_grad_(), targets, weights


def plain(
    queries: Tensor, table: Tensor, targets: Tensor, *, smoothing: float, normalize: bool
) -> Tensor:
    items = functional.normalize(table[FIRST:], dim=-1) if normalize else table[FIRST:]
    return functional.cross_entropy(
        queries @ items.T, targets, reduction="none", label_smoothing=smoothing
    )


@settings(max_examples=50)
@given(
    num_targets=st.integers(1, 9),
    num_items=st.integers(1, 60),
    smoothing=st.sampled_from([0.0, 0.1]),
    normalize=st.booleans(),
    kept=st.booleans(),
    scale=st.sampled_from([1.0, 300.0]),
)
def test_losses_and_gradients_equal_those_of_all_logits_at_once(
    num_targets: int, num_items: int, smoothing: float, normalize: bool, kept: bool, scale: float
) -> None:
    queries, table, targets, weights = given_tensors(num_targets, num_items)
    expected = plain(queries * scale, table, targets, smoothing=smoothing, normalize=normalize)
    result = catalogue_cross_entropy(
        queries * scale,
        table,
        targets,
        first=FIRST,
        smoothing=smoothing,
        normalize=normalize,
        scratch=Scratch() if kept else None,
    )
    torch.testing.assert_close(result, expected)
    reference = torch.autograd.grad((expected * weights).sum(), [queries, table])
    torch.testing.assert_close(
        torch.autograd.grad((result * weights).sum(), [queries, table]), reference
    )


def test_a_loss_keeps_its_exponentials_while_another_is_computed() -> None:
    scratch = Scratch()
    expected, losses, inputs = [], [], []
    for seed in (1, 2):  # as of a generator and a discriminator, or of gradients that accumulate
        queries, table, targets, _ = given_tensors(6, 40, seed)
        inputs.append([queries, table])
        loss = plain(queries, table, targets, smoothing=0.0, normalize=False).sum()
        expected.append(torch.autograd.grad(loss, inputs[-1]))
        losses.append(
            catalogue_cross_entropy(queries, table, targets, first=FIRST, scratch=scratch).sum()
        )
    for loss, parts, reference in zip(losses, inputs, expected, strict=True):
        torch.testing.assert_close(torch.autograd.grad(loss, parts), reference)


def test_gradient_is_written_into_released_memory() -> None:
    queries, table, targets, _ = given_tensors(6, 40)
    gradients = Scratch()

    def gradient() -> Tensor:
        losses = catalogue_cross_entropy(
            queries, table, targets, first=FIRST, scratch=Scratch(), gradients=gradients
        )
        return torch.autograd.grad(losses.sum(), table)[0]

    expected = gradient().clone()
    spent = torch.full_like(table, float("nan"))
    gradients.release(spent)
    result = gradient()
    assert result.data_ptr() == spent.data_ptr()
    torch.testing.assert_close(result, expected)
    assert gradient().data_ptr() != spent.data_ptr()  # it is in use


def test_going_back_twice_gives_the_same_gradient() -> None:
    queries, table, targets, _ = given_tensors(6, 40)
    loss = catalogue_cross_entropy(queries, table, targets, first=FIRST, scratch=Scratch()).sum()
    first = torch.autograd.grad(loss, [queries, table], retain_graph=True)
    other_queries, other_table, other_targets, _ = given_tensors(6, 40, seed=3)
    torch.testing.assert_close(torch.autograd.grad(loss, [queries, table]), first)
    assert other_targets.shape == targets.shape
    assert other_queries.shape == queries.shape
    assert other_table.shape == table.shape


def test_products_in_bfloat16_stay_near_the_exact_loss() -> None:
    queries, table, targets, _ = given_tensors(6, 40)
    exact = plain(queries, table, targets, smoothing=0.0, normalize=False)
    half = queries.detach().bfloat16().requires_grad_()
    whole = table.detach().float().requires_grad_()
    for scratch in (None, Scratch()):
        result = catalogue_cross_entropy(half, whole, targets, first=FIRST, scratch=scratch)
        assert result.dtype == torch.float32
        torch.testing.assert_close(result.double(), exact.detach(), atol=0.05, rtol=0.02)
        by_query, by_table = torch.autograd.grad(result.sum(), [half, whole])
        assert by_query.dtype == torch.bfloat16
        assert by_table.dtype == torch.float32
        expected = torch.autograd.grad(exact.sum(), [queries, table], retain_graph=True)
        torch.testing.assert_close(by_query.double(), expected[0], atol=0.05, rtol=0.05)
        torch.testing.assert_close(by_table.double(), expected[1], atol=0.05, rtol=0.05)


@pytest.mark.parametrize("recompute", [True, False, None])
def test_the_loss_module_gives_the_same_over_logits_and_over_the_catalogue(
    recompute: bool | None,
) -> None:
    queries, table, targets, _ = given_tensors(6, 40)
    for smoothing, reduction in itertools.product((0.0, 0.2), ("mean", "sum", "none")):
        loss = LabelSmoothCrossEntropyLoss(smoothing, reduction, recompute)
        result = loss.over_catalogue(queries, table, targets, first=FIRST, normalize=False)
        torch.testing.assert_close(result, loss(queries @ table[FIRST:].T, targets))


def test_memory_of_the_recomputing_form_does_not_grow_with_the_catalogue() -> None:
    queries, table, targets, _ = given_tensors(50, 5000)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        catalogue_cross_entropy(queries, table, targets, first=FIRST, scratch=None)
    largest = max(t.numel() for t in kept if t.data_ptr() != table.data_ptr())
    assert largest < 50 * 5000 / 10


def test_a_tied_table_has_the_gradient_of_both_its_places() -> None:
    table = torch.randn(20, 4, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([[4, 5, 4, 0]])

    def loss(looked_up: Tensor, scored: Tensor, sparse: bool) -> Tensor:
        read = functional.embedding(ids, looked_up, 0, sparse=sparse)
        return ((read.sum((0, 1)) @ scored.T) ** 2).sum()

    (expected,) = torch.autograd.grad(loss(table, table, False), table)
    looked_up, scored = share_gradient(table)
    (got,) = torch.autograd.grad(loss(looked_up, scored, True), table)
    assert not got.is_sparse
    torch.testing.assert_close(got, expected)


def test_a_tied_table_of_which_one_place_alone_counts_has_its_gradient() -> None:
    table = torch.randn(20, 4, dtype=torch.float64, requires_grad=True)
    (scored,) = torch.autograd.grad((share_gradient(table)[1] ** 2).sum(), table)
    torch.testing.assert_close(scored, 2 * table.detach())
    looked_up, _ = share_gradient(table)
    (rows,) = torch.autograd.grad(functional.embedding(torch.tensor([4]), looked_up).sum(), table)
    assert rows[4].eq(1).all()
    assert rows.sum() == 4


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
def test_rounded_factors_change_the_loss_by_no_more_than_their_rounding(
    kept: bool, normalize: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    queries, table, targets, weights = (
        t.detach().float() if t.is_floating_point() else t for t in given_tensors(40, 60)
    )
    result = {}
    before = torch.get_float32_matmul_precision()
    for precision in ("highest", "medium"):
        parts = queries.clone().requires_grad_(), table.clone().requires_grad_()
        torch.set_float32_matmul_precision(precision)
        try:
            losses = catalogue_cross_entropy(
                *parts,
                targets,
                first=FIRST,
                smoothing=0.1,
                normalize=normalize,
                scratch=Scratch() if kept else None,
            )
            (losses * weights).sum().backward()
        finally:
            torch.set_float32_matmul_precision(before)
        result[precision] = [losses.detach(), *(part.grad for part in parts)]
    for exact, rounded in zip(result["highest"], result["medium"], strict=True):
        assert exact.dtype == rounded.dtype
        assert float((exact - rounded).norm() / exact.norm()) < 0.01
    assert not torch.equal(result["highest"][1], result["medium"][1]), "nothing was rounded"


@pytest.mark.parametrize("kept", [True, False])
def test_a_step_without_a_target_has_no_losses_and_no_gradient(kept: bool) -> None:
    queries, table, targets, _ = given_tensors(0, 20)
    losses = catalogue_cross_entropy(
        queries, table, targets, first=FIRST, scratch=Scratch() if kept else None
    )
    assert losses.shape == (0,)
    losses.sum().backward()
    assert not bool(table.grad.any())
