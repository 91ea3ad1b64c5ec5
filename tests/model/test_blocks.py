"""Blocks in rows and towers, and any Hugging Face architecture."""

import pytest
import torch
import transformers
from torch import nn

from pipeline import model as tr
from pipeline.core.errors import ConfigError

SCHEMA = tr.Schema((tr.ColumnSchema.create_categorical("item_id", 27, tags=["item_id"]),))


def inputs(masking: str | None = "clm", width: int = 16) -> tr.TabularSequenceFeatures:
    return tr.TabularSequenceFeatures.from_schema(
        SCHEMA, max_sequence_length=6, embedding_dim_default=width, masking=masking
    )


def gpt2(width: int = 16) -> tr.GPT2Config:
    return tr.GPT2Config.build(width, 2, 1, 6)


def batch() -> tr.SessionBatch:
    ids = torch.tensor([[4, 5, 6, 7], [8, 9, 0, 0]])
    return tr.SessionBatch({"item_id": ids}, torch.tensor([4, 2]))


def model_of(first: tr.TabularSequenceFeatures, *blocks: nn.Module) -> tr.Model:
    body = tr.SequentialBlock(first, *blocks)
    return tr.Model(tr.Head(body, tr.NextItemPredictionTask())).eval()


def test_mlp_block_has_the_layers_that_were_asked_for() -> None:
    block = tr.MLPBlock(
        [8, 4], activation=nn.GELU, use_bias=False, dropout=0.1, normalization="layer_norm"
    )
    block.build(5)
    kinds = [type(layer).__name__ for layer in block]
    assert kinds == ["Linear", "GELU", "LayerNorm", "Dropout"] * 2
    assert block(torch.zeros(2, 3, 5)).shape == (2, 3, 4)
    assert block[0].bias is None
    plain = tr.MLPBlock(7, activation=None)
    plain.build(3)
    assert [type(layer).__name__ for layer in plain] == ["Linear"]


def test_towers_side_by_side_see_the_same_input() -> None:
    first = inputs()
    towers = tr.ParallelBlock(
        tr.TransformerBlock(gpt2(), masking=first.masking),
        [nn.Linear(16, 8), nn.Tanh()],
        [tr.MLPBlock([8]), nn.GRU(8, 4, batch_first=True)],
    )
    model = model_of(first, towers, tr.MLPBlock([16]))
    assert towers(torch.zeros(1, 2, 16), masked(first)).shape == (1, 2, 16 + 8 + 4)
    assert model(batch()).shape == (2, 30)
    assert len(model.training_columns) == 1


def masked(first: tr.TabularSequenceFeatures) -> object:
    ids = torch.tensor([[4, 5]])
    assert first.masking is not None
    return first.masking.apply_to(torch.zeros(1, 2, 16), ids, torch.tensor([2]), tr.Stage.PREDICT)


def test_towers_of_one_width_can_be_added() -> None:
    first = inputs()
    one, two = nn.Linear(16, 8), nn.Linear(16, 8)
    block = tr.ParallelBlock(one, two, aggregation="element-wise-sum")
    tr.SequentialBlock(first, block)
    hidden = torch.randn(1, 2, 16)
    assert torch.allclose(block(hidden, masked(first)), one(hidden) + two(hidden))


@pytest.mark.parametrize("module", [nn.GRU, nn.LSTM, nn.RNN])
def test_plain_recurrent_modules_stand_among_blocks(module: type) -> None:
    model = model_of(inputs(), module(16, 12, batch_first=True), nn.Dropout(0.2))
    assert model(batch()).shape == (2, 30)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: [nn.GRU(16, 16)], "need batch_first=True"),
        (lambda: [nn.GRU(16, 16, batch_first=True, bidirectional=True)], "attends to later"),
        (lambda: [nn.TransformerEncoderLayer(16, 2, batch_first=True)], "attends to later"),
        (lambda: [nn.Linear(15, 4)], "does not take (B, L, 16)"),
        (lambda: [nn.Flatten()], "does not return one vector per interaction"),
        (lambda: [nn.Sequential(nn.Linear(16, 4), nn.BatchNorm1d(4))], "mixes sessions"),
        (lambda: [tr.TransformerBlock(gpt2(8), masking=tr.CausalMasking())], "d_model is 8"),
        (lambda: [tr.TransformerBlock(gpt2())], "Pass masking=inputs.masking"),
        (
            lambda: [
                tr.TransformerBlock(tr.GPT2Config.build(16, 2, 1, 5), masking=tr.CausalMasking())
            ],
            "total_seq_length 5 is too small",
        ),
        (
            lambda: [
                tr.ParallelBlock(nn.Linear(16, 4), nn.Linear(16, 5), aggregation="element-wise-sum")
            ],
            "one width, found [4, 5]",
        ),
        (lambda: [tr.ParallelBlock()], "at least one tower"),
        (lambda: [tr.ParallelBlock(nn.Tanh(), aggregation="stack")], "expected concat or"),
        (lambda: [tr.MLPBlock([4], normalization="batch_norm")], "mix sessions"),
        (lambda: [tr.TransformerBlock("gpt2")], "expected a config"),
    ],
)
def test_a_block_that_cannot_stand_there_is_refused(make: object, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        tr.SequentialBlock(inputs(), *make())  # type: ignore[operator]
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_one_mlp_block_in_two_places_is_refused() -> None:
    block = tr.MLPBlock([16])
    with pytest.raises(ConfigError, match="two places"):
        tr.SequentialBlock(inputs(), block, block)


DECODERS = (transformers.Qwen3Config, transformers.MistralConfig)


@pytest.mark.parametrize(
    ("config", "masking"),
    [
        (transformers.Qwen3Config, "clm"),
        (transformers.MistralConfig, "clm"),
        (transformers.DistilBertConfig, "mlm"),
        (transformers.BertConfig, "clm"),
        (transformers.XLNetConfig, "clm"),
        (transformers.XLNetConfig, "mlm"),
        (transformers.RobertaConfig, "mlm"),
    ],
)
def test_a_config_or_model_of_hugging_face_is_a_block_as_it_is(config: type, masking: str) -> None:
    if config is transformers.DistilBertConfig:
        transformer_config = config(vocab_size=1, dim=16, n_heads=2, n_layers=1, hidden_dim=32)
    elif config is transformers.XLNetConfig:
        transformer_config = config(vocab_size=4, d_model=16, n_head=2, n_layer=1, d_inner=32)
    else:
        transformer_config = config(
            vocab_size=4,
            hidden_size=16,
            num_attention_heads=2,
            num_hidden_layers=1,
            intermediate_size=32,
            **({"num_key_value_heads": 2} if config in DECODERS else {}),
        )
    for transformer in (transformer_config, transformers.AutoModel.from_config(transformer_config)):
        first = inputs(masking)
        model = model_of(first, tr.TransformerBlock(transformer, masking=first.masking))
        with torch.no_grad():
            together = model(batch())
            ids = batch().features["item_id"][1:, :2]
            alone = model(tr.SessionBatch({"item_id": ids}, torch.tensor([2])))
        assert torch.allclose(together[1, 3:], alone[0, 3:], atol=1e-5)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: tr.HuggingFaceConfig.build("lama", 16, 2, 1, 6), "did you mean `llama`"),
        (
            lambda: tr.HuggingFaceConfig.build("llama", 16, 2, 1, 6, options={"hiden_act": "relu"}),
            "did you mean `hidden_act`",
        ),
        (lambda: tr.HuggingFaceConfig.build("vit", 16, 2, 1, 6), "does not run on `inputs_embeds`"),
        (lambda: tr.HuggingFaceConfig.build("funnel", 16, 2, 1, 6), "FunnelConfig cannot be made"),
        (lambda: tr.HuggingFaceConfig.build("dbrx", 16, 2, 1, 6), "dbrx"),
        (lambda: tr.BertConfig.build(16, 2, 1, 6, hidden_act="gleu"), "bert cannot be made"),
        (lambda: tr.GPT2Config.build(16, 2, 0, 6), "n_layer is 0"),
        (lambda: transformers.CLIPConfig(), "no hidden_size"),
        (lambda: tr.XLNetConfig.build(15, 3, 1, 6), "even d_model"),
        (lambda: tr.GPT2Config.build(16, 2, 1), "give total_seq_length"),
        (lambda: tr.GPT2Config.build(16, 2, 1, 6, options={"n_innr": 3}), "did you mean `n_inner`"),
    ],
)
def test_a_config_that_cannot_be_is_refused(build: object, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        tr.TransformerBlock(build(), masking=tr.CausalMasking())  # type: ignore[operator]
    assert words in str(error.value)
    assert "\n" not in str(error.value)
