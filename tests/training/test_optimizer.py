"""The optimizer is torch's AdamW with clipping, and updates touched rows alone where it should."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from pipeline.training.optimizer import TableAdamW


class Net(nn.Module):
    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 6, sparse=sparse)
        self.layer = nn.Linear(6, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return (self.layer(self.table(ids)) ** 2).sum() * 30


def batches(steps: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 50, (8,), generator=generator) for _ in range(steps)]


@pytest.mark.parametrize("max_norm", [0.5, 1e9])
@pytest.mark.parametrize("sparse", [False, True])
def test_steps_equal_adamw_with_clipped_gradients(max_norm: float, sparse: bool) -> None:
    torch.manual_seed(0)
    ours = Net(sparse)  # a sparse gradient of a table that is not lazy counts as a dense one
    theirs = copy.deepcopy(ours)
    theirs.table.sparse = False
    optimizer = TableAdamW(ours.parameters(), 0.01, weight_decay=0.1)
    reference = torch.optim.AdamW(theirs.parameters(), 0.01, weight_decay=0.1)
    for ids in batches(5):
        ours(ids).backward()
        theirs(ids).backward()
        norm = nn.utils.clip_grad_norm_(theirs.parameters(), max_norm)
        torch.testing.assert_close(optimizer.clip(max_norm), norm)
        optimizer.step()
        reference.step()
        for weight, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(weight, expected)
            weight.grad = expected.grad = None


def lazy(net: Net, *, row_wise: bool = False) -> TableAdamW:
    return TableAdamW(
        net.parameters(), 0.01, weight_decay=0.1, lazy=[net.table.weight], row_wise=row_wise
    )


@pytest.mark.parametrize("row_wise", [False, True])
def test_untouched_rows_do_not_change(row_wise: bool) -> None:
    net = Net(sparse=True)
    optimizer = lazy(net, row_wise=row_wise)
    for ids in batches(3):
        before = net.table.weight.detach().clone()
        optimizer.zero_grad()
        net(ids).backward()
        optimizer.clip(1.0)
        optimizer.step()
        touched = torch.zeros(50, dtype=torch.bool)
        touched[ids] = True
        assert torch.equal(net.table.weight[~touched], before[~touched])
        assert (net.table.weight[touched] != before[touched]).any(1).all()
    shape = optimizer.state[net.table.weight]["exp_avg_sq"].shape
    assert shape == ((50, 1) if row_wise else (50, 6))


def test_row_touched_in_every_step_equals_adamw() -> None:
    torch.manual_seed(0)
    ours = Net(sparse=True)
    theirs = copy.deepcopy(ours)
    theirs.table.sparse = False
    optimizer, reference = (
        lazy(ours),
        torch.optim.AdamW(theirs.parameters(), 0.01, weight_decay=0.1),
    )
    ids = torch.tensor([3, 7, 7])  # a row may stand there twice
    for _ in range(4):
        for net, step in ((ours, optimizer), (theirs, reference)):
            step.zero_grad()
            net(ids).backward()
            step.step()
    torch.testing.assert_close(ours.table.weight[[3, 7]], theirs.table.weight[[3, 7]])


def test_first_update_of_a_rare_row_has_the_usual_size() -> None:
    net = Net(sparse=True)
    optimizer = lazy(net)
    for ids in [torch.tensor([1])] * 30 + [torch.tensor([2])]:
        before = net.table.weight.detach().clone()
        optimizer.zero_grad()
        functional.embedding(ids, net.table.weight, sparse=True).sum().backward()
        optimizer.step()
    moved = (net.table.weight[2] - before[2] * (1 - 0.01 * 0.1)).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.01))


@pytest.mark.parametrize("row_wise", [False, True])
def test_a_dense_gradient_updates_the_rows_of_a_sparse_one(row_wise: bool) -> None:
    torch.manual_seed(0)
    sparse = Net(sparse=True)
    dense = copy.deepcopy(sparse)
    dense.table.sparse = False
    optimizers = [lazy(net, row_wise=row_wise) for net in (sparse, dense)]
    for ids in batches(6):
        for net, optimizer in zip((sparse, dense), optimizers, strict=True):
            net(ids).backward()
            optimizer.clip(0.5)
            optimizer.step()
            net.zero_grad()
        torch.testing.assert_close(dense.table.weight, sparse.table.weight)
    states = [
        optimizer.state[net.table.weight]
        for net, optimizer in zip((sparse, dense), optimizers, strict=True)
    ]
    assert states[0]["touches"].any()
    assert not states[0]["touches"].all()
    torch.testing.assert_close(states[1], states[0])


@pytest.mark.parametrize("row_wise", [False, True])
def test_gradients_that_overflow_in_half_precision_change_no_weight(row_wise: bool) -> None:
    net = Net(sparse=False)
    optimizer = lazy(net, row_wise=row_wise)
    before = copy.deepcopy(net.state_dict())
    (net(batches(1)[0]) * torch.inf).backward()
    optimizer.found_inf = torch.ones(())  # type: ignore[attr-defined]  # as GradScaler sets it
    optimizer.step()
    assert all(torch.equal(values, before[name]) for name, values in net.state_dict().items())
    assert not optimizer.state[net.table.weight]["touches"].any()
