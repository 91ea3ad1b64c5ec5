"""Masking, losses, the input block, and what is refused."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import model as tr
from pipeline.core.errors import ArtifactError, ConfigError
from pipeline.data.batch import newest

ITEM = tr.ColumnSchema(
    name="item_id", tags=frozenset({"categorical", "item_id"}), num_rows=20, is_list=True
)
PRICE = tr.ColumnSchema(name="price", tags=frozenset({"continuous"}), is_float=True, is_list=True)
SCHEMA = tr.Schema((ITEM, PRICE))


def batch(rows: list[list[int]]) -> tr.SessionBatch:
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return tr.SessionBatch({"item_id": ids, "price": ids * 0.1}, lengths)


@pytest.mark.parametrize(
    ("masking", "architecture"), [("causal", tr.XLNetConfig), ("clm", tr.GPT2Config)]
)
def test_the_quick_tour_program_runs(masking: str, architecture: type) -> None:
    input_module = tr.TabularSequenceFeatures.from_schema(
        SCHEMA,
        max_sequence_length=20,
        continuous_projection=64,
        aggregation="concat",
        masking=masking,
    )
    config = architecture.build(d_model=64, n_head=4, n_layer=2, total_seq_length=20)
    model = config.to_torch_model(input_module, tr.NextItemPredictionTask())
    assert model(batch([[4, 5, 6], [7]])).shape == (2, 20)


def test_the_composed_program_runs() -> None:
    inputs = tr.TabularSequenceFeatures.from_schema(
        SCHEMA,
        embedding_dim_default=128,
        max_sequence_length=20,
        d_output=100,
        aggregation="concat",
        masking="clm",
    )
    config = tr.GPT2Config.build(d_model=64, n_head=4, n_layer=2, total_seq_length=20)
    body = tr.SequentialBlock(
        inputs, tr.MLPBlock([64]), tr.TransformerBlock(config, masking=inputs.masking)
    )
    task = tr.NextItemPredictionTask(weight_tying=True)
    model = tr.Model(tr.Head(body, task, inputs=inputs))
    assert model(batch([[4, 5, 6], [7]])).shape == (2, 20)
    assert float(model.loss(batch([[4, 5, 6], [7, 8]]))) > 0


def test_clm_predicts_the_item_after_each_position() -> None:
    session_batch = batch([[4, 5, 6], [7, 8]])
    ids, embeddings = session_batch.features["item_id"], torch.zeros(2, 3, 1)
    masked = tr.CausalMasking().apply_to(embeddings, ids, session_batch.lengths, tr.Stage.TRAIN)
    assert masked.targets.tolist() == [[5, 6], [8, 0]]
    assert masked.query.tolist() == [1, 0]


def test_mlm_hides_the_last_item_to_evaluate_and_adds_a_position_to_predict() -> None:
    session_batch = batch([[4, 5, 6], [7, 8]])
    ids, embeddings = session_batch.features["item_id"], torch.ones(2, 3, 1)
    masking = tr.MaskedMasking(1)
    hidden = float(masking.hidden_item)
    evaluated = masking.apply_to(embeddings, ids, session_batch.lengths, tr.Stage.EVALUATE)
    assert evaluated.targets.tolist() == [[0, 0, 6], [0, 8, 0]]
    assert evaluated.embeddings[0, :, 0].tolist() == [1, 1, hidden]
    assert evaluated.embeddings[1, :, 0].tolist() == [1, hidden, 1]
    predicted = masking.apply_to(embeddings, ids, session_batch.lengths, tr.Stage.PREDICT)
    assert predicted.query.tolist() == [3, 2]
    assert predicted.lengths.tolist() == [4, 3]
    assert predicted.embeddings[0, 3].item() == hidden
    assert predicted.embeddings[1, 2].item() == hidden
    assert int(predicted.targets.sum()) == 0


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    probability=st.floats(0.01, 0.99),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_mlm_hides_at_least_one_and_never_all(
    lengths: list[int], probability: float, seed: int
) -> None:
    torch.manual_seed(seed)
    given_batch = batch([list(range(3, 3 + n)) for n in lengths])
    ids = given_batch.features["item_id"]
    embeddings = torch.ones(*ids.shape, 1)
    masking = tr.MaskedMasking(1, probability)
    masked = masking.apply_to(embeddings, ids, given_batch.lengths, tr.Stage.TRAIN)
    for row, length in enumerate(lengths):
        hidden = masked.targets[row] > 0
        assert int(hidden.sum()) == 0 if length == 1 else 1 <= int(hidden.sum()) < length
        assert torch.equal(masked.targets[row][hidden], ids[row][hidden])
        assert not bool(hidden[length:].any())


def test_mlm_hides_about_the_share_that_was_asked_for() -> None:
    torch.manual_seed(0)
    given_batch = batch([list(range(3, 15))] * 2000)
    ids = given_batch.features["item_id"]
    masked = tr.MaskedMasking(1, 0.3).apply_to(
        torch.ones(*ids.shape, 1), ids, given_batch.lengths, tr.Stage.TRAIN
    )
    share = float((masked.targets > 0).float().mean())
    assert share == pytest.approx(0.3, abs=0.01)


def test_the_loss_is_the_mean_negative_log_softmax_of_the_targets() -> None:
    """Against the definition in float64, with smoothing, temperature and both scorings."""
    torch.manual_seed(0)
    table = torch.randn(9, 4)
    hidden, targets = torch.randn(2, 3, 4), torch.tensor([[5, 3, 0], [8, 2, 1]])
    for smoothing in (0.0, 0.2):
        for normalize in (False, True):
            task = tr.NextItemPredictionTask(
                softmax_temperature=0.5, label_smoothing=smoothing, normalize=normalize
            )
            task.build(4, 9, 4)
            terms = []
            for row, position in ((0, 0), (0, 1), (1, 0)):  # 0, 1 and 2 are no items
                h = hidden[row, position].double()
                items = table[3:].double()
                if normalize:
                    h = h / h.norm()
                    items = items / items.norm(dim=1, keepdim=True)
                logits = (items @ h) / 0.5
                log_p = logits - math.log(sum(math.exp(float(x)) for x in logits))
                expected = float(log_p[int(targets[row, position]) - 3])
                terms.append(-(1 - smoothing) * expected - smoothing * float(log_p.mean()))
            assert float(task.loss(hidden, targets, table)) == pytest.approx(
                sum(terms) / 3, rel=1e-5
            )


def test_a_table_of_its_own_scores_where_weights_are_not_tied() -> None:
    inputs = tr.TabularSequenceFeatures.from_schema(
        SCHEMA, max_sequence_length=5, d_output=8, masking="clm"
    )
    config = tr.GPT2Config.build(d_model=8, n_head=2, n_layer=1, total_seq_length=5)
    model = config.to_torch_model(inputs, tr.NextItemPredictionTask(weight_tying=False))
    model.loss(batch([[4, 5, 6]])).backward()
    assert model.head.next_item_task().output_table is not None
    assert float(model.head.next_item_task().output_table.grad.abs().sum()) > 0


def test_newest_keeps_the_newest() -> None:
    cut = newest(batch([[3, 4, 5, 6], [7, 8]]), 3)
    assert cut.features["item_id"].tolist() == [[4, 5, 6], [7, 8, 0]]
    assert cut.lengths.tolist() == [3, 2]


def test_unknown_values_say_nothing_before_training() -> None:
    inputs = tr.TabularSequenceFeatures.from_schema(tr.Schema((ITEM,)), masking="clm")
    assert float(inputs.item_table.weight[:3].abs().sum()) == 0


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (lambda: tr.GPT2Config.build(10, 3, 1, 5), "n_head 3 does not divide d_model 10"),
        (lambda: features(masking="plmm"), "masking is 'plmm'; did you mean `plm`? Expected clm"),
        (lambda: features(embedding_dims={"brnad": 3}), "no column 'brnad'. It has: item_id"),
        (lambda: features(aggregation="element-wise-sum"), "vectors of one width"),
        (
            lambda: tr.Head(tr.SequentialBlock(features()), tr.NextItemPredictionTask()),
            "no masking",
        ),
        (lambda: tr.SequentialBlock(tr.MLPBlock([3])), "expected the input block"),
        (lambda: tr.MLPBlock([]), "at least one dimension"),
        (lambda: tr.NextItemPredictionTask(softmax_temperature=0), "softmax_temperature is 0"),
        (lambda: gpt2_with("mlm"), "mlm works with xlnet"),
        (lambda: tr.Schema((PRICE,)).item_id, "Expected one column tagged item_id"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(what: object, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        what()  # type: ignore[operator]
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def features(**arguments: object) -> tr.TabularSequenceFeatures:
    return tr.TabularSequenceFeatures.from_schema(SCHEMA, **arguments)  # type: ignore[arg-type]


def gpt2_with(masking: str) -> tr.Model:
    inputs = features(max_sequence_length=5, masking=masking)
    config = tr.GPT2Config.build(d_model=8, n_head=2, n_layer=1, total_seq_length=6)
    return config.to_torch_model(inputs, tr.NextItemPredictionTask())


def test_weights_of_another_model_are_refused(tmp_path: object) -> None:
    from pathlib import Path

    from pipeline.model.build import build_model
    from pipeline.model.model_files import load_model, save_model
    from pipeline.recipe.model import ModelConfig

    directory = Path(str(tmp_path))
    config = ModelConfig(d_model=8, n_head=2, n_layer=1)
    model = build_model(SCHEMA, config, 5)
    save_model(directory, model, SCHEMA, config, 5)
    text = (directory / "model.json").read_text()
    (directory / "model.json").write_text(text.replace('"d_model": 8', '"d_model": 16'))
    with pytest.raises(ArtifactError, match="does not hold a model of this version"):
        load_model(directory)
    (directory / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ArtifactError):
        load_model(directory)
