"""A masked model does the last layer's work at its targets alone, and learns the same."""

import copy

import pytest
import torch
from torch import Tensor, nn

from pipeline.model import ColumnSchema, Model, Schema, SessionBatch
from pipeline.model.blocks import TransformerBlock
from pipeline.model.build import build_model
from pipeline.recipe.model import ModelConfig

SCHEMA = Schema((ColumnSchema.create_categorical("item_id", 30, tags=["item_id"]),))
ARCHITECTURES = ["bert", "roberta", "electra", "xlnet"]


def built(architecture: str, masking: str = "mlm", **more: object) -> Model:
    torch.manual_seed(0)
    config = ModelConfig(
        architecture=architecture, masking=masking, d_model=8, n_head=2, dropout=0.0, **more
    )
    return build_model(SCHEMA, config, 6).train()


def batch() -> SessionBatch:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 7, (9,), generator=generator)
    items = torch.randint(3, 33, (9, 6), generator=generator)
    return SessionBatch({"item_id": items * (torch.arange(6) < lengths.unsqueeze(1))}, lengths)


def encoder(model: Model) -> nn.Module:
    block = model.head.body.blocks[-1]
    assert isinstance(block, TransformerBlock)
    return block.encoder


def learned(model: Model) -> tuple[float, list[Tensor]]:
    torch.manual_seed(1)
    model.zero_grad()
    loss = model.loss(batch())
    loss.backward()
    return float(loss.detach()), [
        p.grad for p in model.parameters() if p.grad is not None and p.grad.any()
    ]


@pytest.mark.parametrize("masking", ["mlm", "rtd"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_and_gradients_are_those_of_all_positions(architecture: str, masking: str) -> None:
    model = built(architecture, masking)
    restricted = learned(model)
    encoder(model).token_pruning = None
    everywhere = learned(model)
    assert restricted[0] == pytest.approx(everywhere[0], abs=1e-6)
    assert len(restricted[1]) == len(everywhere[1])
    for one, other in zip(restricted[1], everywhere[1], strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_work_is_that_of_the_targets_in_a_copy_too(architecture: str) -> None:
    model = copy.deepcopy(built(architecture))
    seen = []
    layers = [m for m in encoder(model).modules() if isinstance(m, nn.Linear)]
    widest = [layer for layer in layers if layer.out_features == 32]
    for layer in widest:
        layer.register_forward_hook(lambda _m, _i, output: seen.append(output[..., 0].numel()))
    model.loss(batch())
    assert len(seen) == 2
    assert seen[0] == 9 * 6
    assert seen[1] < seen[0] / 2
    seen.clear()
    model.eval()(batch())
    assert seen[0] == seen[1]


def test_a_block_behind_it_that_mixes_positions_gets_all_of_them() -> None:
    model = built("bert")
    body = model.head.body
    body.blocks.append(nn.GRU(8, 8, batch_first=True, bidirectional=False))
    one = learned(model)[0]
    encoder_ = body.blocks[0].encoder
    encoder_.token_pruning = None
    assert one == learned(model)[0]
