"""Cheap dropout is dropout."""

import pytest
import torch
from torch import nn

from pipeline.model.ops.dropout import FastDropout, with_fast_dropout


@pytest.mark.parametrize("probability", [0.1, 0.3, 0.5, 0.9])
def test_it_drops_by_chance_and_keeps_the_expectation(probability: float) -> None:
    torch.manual_seed(0)
    values = torch.ones(400, 500)
    dropped = FastDropout(probability)(values)
    share = (dropped == 0).float().mean().item()
    assert share == pytest.approx(probability, abs=0.005)
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.02)
    assert dropped[dropped > 0].unique().numel() == 1
    rows = (dropped == 0).float()
    # neighbours share their random bits and must not share their fate
    together = (rows[:, 1:] * rows[:, :-1]).mean().item()
    assert together == pytest.approx(probability**2, abs=0.005)


def test_its_gradient_is_zero_where_it_dropped_and_scaled_elsewhere() -> None:
    torch.manual_seed(0)
    values = torch.randn(30, 7, requires_grad=True)
    dropped = FastDropout(0.4)(values)
    dropped.sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad * values.detach(), dropped.detach())


def test_the_same_seed_drops_the_same() -> None:
    drop, values = FastDropout(0.3), torch.ones(11, 3)
    torch.manual_seed(4)
    first = drop(values)
    torch.manual_seed(4)
    assert torch.equal(drop(values), first)


def test_nothing_happens_at_prediction_with_none_or_with_nothing() -> None:
    values = torch.randn(5, 5)
    assert FastDropout(0.5).eval()(values) is values
    assert FastDropout(0.0)(values) is values
    assert FastDropout(0.5)(torch.empty(0, 3)).shape == (0, 3)
    assert FastDropout(1.0)(values).eq(0).all()


def test_every_dropout_inside_a_module_is_replaced() -> None:
    inside = nn.ModuleDict({"a": nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.2))}).eval()
    with_fast_dropout(inside)
    replaced = inside["a"][1]
    assert type(replaced) is FastDropout
    assert replaced.p == 0.2
    assert not replaced.training
