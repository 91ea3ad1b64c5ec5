"""Leaks of a combination of parts are errors when the model is built."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline import model as tr
from pipeline.core.errors import ConfigError

L = 8
SCHEMA = tr.Schema((tr.ColumnSchema.create_categorical("item_id", 37, tags=["item_id"]),))


def inputs(masking: str | None, **others: Any) -> tr.TabularSequenceFeatures:
    return tr.TabularSequenceFeatures.from_schema(
        SCHEMA, max_sequence_length=L, embedding_dim_default=16, masking=masking, **others
    )


def xlnet(first: tr.TabularSequenceFeatures) -> tr.TransformerBlock:
    return tr.TransformerBlock(tr.XLNetConfig.build(16, 2, 1, L + 1), masking=first.masking)


def gpt2(first: tr.TabularSequenceFeatures) -> tr.TransformerBlock:
    return tr.TransformerBlock(tr.GPT2Config.build(16, 2, 1, L), masking=first.masking)


class AddMean(nn.Module):
    """Each interaction learns of all others."""

    def forward(self, parts: dict[str, Tensor]) -> Any:
        return {n: p + p.mean(1, keepdim=True) for n, p in parts.items()}


class MeanOfAll(nn.Module):
    def forward(self, parts: dict[str, Tensor]) -> Tensor:
        whole = torch.cat(list(parts.values()), -1)
        return whole + whole.mean(1, keepdim=True)


class FarAhead(nn.Module):
    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + nn.functional.pad(hidden, (0, 0, 0, 4))[:, 4:]


class ByWidth(nn.Module):
    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * hidden.size(1)


Blocks = Callable[[tr.TabularSequenceFeatures], list[nn.Module]]
LEAKS: list[tuple[str, Blocks, str]] = [
    ("plm", lambda f: [tr.ParallelBlock(xlnet(f), tr.MLPBlock([16]))], "the target is seen"),
    ("plm", lambda f: [tr.ParallelBlock(xlnet(f), [])], "the target is seen"),
    ("plm", lambda _: [tr.MLPBlock([16])], "the target is seen"),
    ("plm", lambda _: [nn.GRU(16, 16, batch_first=True)], "the target is seen"),
    ("plm", lambda f: [nn.GRU(16, 16, batch_first=True), xlnet(f)], "are seen in training"),
    ("clm", lambda f: [FarAhead(), gpt2(f)], "is seen"),
    ("clm", lambda f: [ByWidth(), gpt2(f)], "the amount of padding"),
    ("mlm", lambda f: [ByWidth(), xlnet(f)], "the amount of padding"),
]


@pytest.mark.parametrize(("masking", "blocks", "words"), LEAKS)
def test_a_row_of_blocks_that_leaks_is_refused(masking: str, blocks: Blocks, words: str) -> None:
    first = inputs(masking)
    with pytest.raises(ConfigError) as error:
        tr.SequentialBlock(first, *blocks(first))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "blocks",
    [lambda f: [xlnet(f), xlnet(f)], lambda f: [xlnet(f), nn.GRU(16, 16, batch_first=True)]],
)
def test_plm_of_all_interactions_does_not_let_the_first_see_all(blocks: Blocks) -> None:
    first = inputs("plm", permute_all=True)
    with pytest.raises(ConfigError, match="are seen in training"):
        tr.SequentialBlock(first, *blocks(first))


@pytest.mark.parametrize(
    "others",
    [
        {
            "projection": nn.Sequential(
                nn.Linear(16, 16), nn.TransformerEncoderLayer(16, 2, batch_first=True)
            )
        },
        {"projection": nn.TransformerEncoderLayer(16, 2)},
        {"post": AddMean()},
        {"aggregation": MeanOfAll()},
    ],
)
@pytest.mark.parametrize("masking", ["clm", "mlm"])
def test_an_input_block_that_leaks_is_refused(masking: str, others: dict[str, Any]) -> None:
    first = inputs(masking, **others)
    with pytest.raises(ConfigError, match="do not fit the masking"):
        tr.SequentialBlock(first, gpt2(first) if masking == "clm" else xlnet(first))


def test_an_activation_along_the_session_is_refused() -> None:
    first = inputs("clm")
    block = tr.MLPBlock([16], activation=lambda: nn.Softmax(dim=1))
    with pytest.raises(ConfigError, match="do not fit the masking"):
        tr.SequentialBlock(first, block, gpt2(first))


@pytest.mark.parametrize(
    ("masking", "blocks"),
    [
        ("clm", lambda f: [nn.GRU(16, 16, batch_first=True), gpt2(f), nn.Dropout(0.1)]),
        ("clm", lambda f: [gpt2(f), gpt2(f)]),
        ("mlm", lambda f: [tr.ParallelBlock(xlnet(f), [nn.Linear(16, 8), xlnet_of(f, 8)])]),
        ("plm", lambda f: [tr.MLPBlock([16]), xlnet(f), tr.MLPBlock([16])]),
        ("plm", lambda f: [tr.ParallelBlock(xlnet(f), xlnet(f))]),
        ("rtd", lambda f: [xlnet(f), xlnet(f)]),
    ],
)
def test_a_row_of_blocks_that_does_not_leak_is_taken(masking: str, blocks: Blocks) -> None:
    torch.manual_seed(0)
    first = inputs(masking)
    random = torch.get_rng_state()
    body = tr.SequentialBlock(first, *blocks(first))
    assert all(module.training for module in body.modules()), "as they were"
    assert all(p.grad is None for p in body.parameters())
    model = tr.Model(tr.Head(body, tr.NextItemPredictionTask())).eval()
    ids = torch.randint(3, 40, (2, L + 1))
    rows = tr.SessionBatch({"item_id": ids}, torch.tensor([L + 1, L + 1]))
    with torch.no_grad():
        result = model.at_targets(rows)
        scores = model.scores(result.hidden)[result.is_last]
        expected = model(tr.SessionBatch({"item_id": ids[:, :-1]}, torch.tensor([L, L])))
    assert torch.allclose(scores[:, 3:], expected[:, 3:], atol=1e-5)
    assert len(random) > 0


def xlnet_of(first: tr.TabularSequenceFeatures, width: int) -> tr.TransformerBlock:
    return tr.TransformerBlock(tr.XLNetConfig.build(width, 2, 1, L + 1), masking=first.masking)


def test_looking_for_leaks_draws_no_random_numbers() -> None:
    first = inputs("mlm")
    block = xlnet(first)
    before = torch.get_rng_state()
    tr.SequentialBlock(first, block)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (nn.GRU(16, 16, batch_first=True), "does not give one vector for each"),
        (nn.Softmax(dim=0), "mixes rows"),
        (nn.Linear(15, 3), "does not take (T, 16)"),
        (nn.Sequential(tr.MLPBlock([32])), "learns its input width"),
    ],
)
def test_a_task_block_takes_one_row_at_a_time(block: nn.Module, words: str) -> None:
    first = inputs("clm")
    body = tr.SequentialBlock(first, gpt2(first))
    with pytest.raises(ConfigError) as error:
        tr.Head(body, tr.NextItemPredictionTask(task_block=block))
    assert words in str(error.value)


def test_reformer_is_not_opened_by_an_option() -> None:
    config = tr.ReformerConfig.build(16, 2, 1, L, options={"is_decoder": False})
    with pytest.raises(ConfigError, match="`is_decoder` of ReformerConfig follows from the rest"):
        tr.TransformerBlock(config, masking=tr.CausalMasking())


def test_an_mlp_block_inside_another_module_says_that_it_has_no_layers() -> None:
    with pytest.raises(ConfigError, match="learns its input width"):
        tr.SequentialBlock(inputs("clm"), nn.Sequential(tr.MLPBlock([32])))


@pytest.mark.parametrize(
    ("masking", "words"),
    [
        (tr.MaskedMasking(8), "mask vector of the masking has 8 numbers"),
        (tr.CausalMasking, "expected clm, mlm, plm, rtd"),
        (3, "expected clm, mlm, plm, rtd"),
    ],
)
def test_a_masking_that_was_made_already_is_checked(masking: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        inputs(masking)


def test_a_made_rtd_that_would_give_itself_away_is_refused() -> None:
    schema = SCHEMA + tr.Schema((tr.ColumnSchema.create_continuous("price"),))
    with pytest.raises(ConfigError, match="give the drawn ones away"):
        tr.TabularSequenceFeatures.from_schema(
            schema,
            embedding_dim_default=15,
            masking=tr.ReplacementMasking(16, sample_from_batch=False),
        )


@pytest.mark.parametrize("masking", ["clm", "mlm"])
def test_a_model_may_have_fewer_positions_than_are_tried(masking: str) -> None:
    first = tr.TabularSequenceFeatures.from_schema(
        SCHEMA, embedding_dim_default=16, masking=masking
    )
    config = tr.BertConfig.build(16, 2, 1, 5)
    body = tr.SequentialBlock(first, tr.TransformerBlock(config, masking=first.masking))
    model = tr.Model(tr.Head(body, tr.NextItemPredictionTask())).eval()
    assert model(tr.SessionBatch({"item_id": torch.full((1, 4), 5)}, torch.tensor([4]))).shape
    with pytest.raises(ConfigError, match="total_seq_length is 5"):
        model(tr.SessionBatch({"item_id": torch.full((1, 6), 5)}, torch.tensor([6])))
