"""The graph of a whole step does what torch's optimizer does after a backward pass."""

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd

from pipeline.data.batch import SessionBatch
from pipeline.training.compilation import compiled
from pipeline.training.optimizer import TableAdamW
from pipeline.training.step_graph import StepGraph


class Net(nn.Module):
    """A table, layers, and a weight that no loss reads."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 6)
        self.layer = nn.Linear(6, 3)
        self.unused = nn.Parameter(torch.ones(2))

    def loss(self, batch: SessionBatch) -> Tensor:
        return (self.layer(self.table(batch.features["item_id"])) ** 2).sum() * 30


def optimizer_of(net: Net, tables: str) -> TableAdamW:
    lazy = [] if tables == "adamw" else [net.table.weight]
    groups = [
        {"params": [net.table.weight, net.layer.weight]},
        {"params": [net.layer.bias, net.unused], "weight_decay": 0.0},
    ]
    return TableAdamW(groups, 0.01, weight_decay=0.1, lazy=lazy, row_wise=tables == "rowwise-adamw")


def assert_close(values: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("max_norm", [0.5, 1e9])
@pytest.mark.parametrize("tables", ["adamw", "lazy-adamw", "rowwise-adamw"])
def test_a_graph_updates_weights_as_the_optimizer_does(tables: str, max_norm: float) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    net = Net()
    expected = copy.deepcopy(net)
    optimizer, reference = optimizer_of(net, tables), optimizer_of(expected, tables)
    graph = StepGraph(
        net.loss, optimizer, lambda step: compiled(step, backend="eager"), max_norm, nullcontext
    )
    for number in range(5):
        batch = SessionBatch({"item_id": torch.randint(50, (8, 2))}, torch.full((8,), 2), 16)
        loss = expected.loss(batch)
        loss.backward()
        norm = reference.clip(max_norm)
        for group in (*optimizer.param_groups, *reference.param_groups):
            group["lr"] = 0.01 * (number + 1)
        reference.step()
        reference.zero_grad()
        assert_close(graph(batch), loss.detach())
        assert_close(graph.norm, norm)
        for weight, other in zip(net.parameters(), expected.parameters(), strict=True):
            assert weight.grad is None
            assert_close(weight, other)
            for name, values in reference.state[other].items():
                assert_close(optimizer.state[weight][name], values)
    assert torch.equal(net.unused, torch.ones(2))


@pytest.mark.parametrize("tables", ["adamw", "rowwise-adamw"])
def test_all_but_the_batch_stays_at_its_address_so_that_a_cuda_graph_copies_nothing_else(
    tables: str,
) -> None:
    """torch records no CUDA graph of a graph that changes an input whose address may change."""
    torch._dynamo.reset()
    graphs = []

    def record(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        context = torch._guards.TracingContext.get()
        assert context.fw_metadata is not None
        graphs.append((context.fw_metadata, inputs))
        return make_boxed_func(graph.forward)

    net = Net()
    backend = aot_autograd(fw_compiler=record, inference_compiler=record)
    graph = StepGraph(
        net.loss,
        optimizer_of(net, tables),
        lambda step: compiled(step, backend=backend),
        1.0,
        nullcontext,
    )
    graph(SessionBatch({"item_id": torch.randint(50, (8, 2))}, torch.full((8,), 2), 16))
    [(metadata, inputs)] = graphs
    fixed = set(metadata.static_input_indices)
    assert set(metadata.mutated_inp_runtime_indices) <= fixed
    [batch] = [values for number, values in enumerate(inputs) if number not in fixed]
    assert batch.shape == (8, 2)
