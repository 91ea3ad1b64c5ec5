"""Losses of several tasks on one body: the same numbers with fewer passes of the encoder."""

import math

import pytest
import torch

from pipeline import model as tr
from pipeline.core.errors import ConfigError, DataError
from pipeline.model.masking import Stage
from pipeline.model.task_losses import task_losses
from tests.model.test_tasks import SCHEMA, batch, body


def three_tasks() -> list[tr.BinaryClassificationTask | tr.RegressionTask]:
    return [
        tr.BinaryClassificationTask("bought"),
        tr.RegressionTask("spent", summary_type="mean"),
        tr.BinaryClassificationTask("clicked", summary_type=None),
    ]


def one_model(masking: str) -> tr.Model:
    torch.manual_seed(1)
    tasks = [tr.NextItemPredictionTask(), *three_tasks()]
    return tr.Model(tr.Head(body(masking), tasks)).eval()


def gradients(model: tr.Model, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("masking", "passes"), [("clm", 1), ("mlm", 2), ("rtd", 3)])
def test_any_number_of_tasks_costs_one_pass_at_most(masking: str, passes: int) -> None:
    model = one_model(masking)
    encoder = model.head.body.blocks[0]
    calls = []
    encoder.register_forward_hook(lambda *_: calls.append(1))
    model.loss(batch())
    assert len(calls) == passes
    calls.clear()
    model.answer(batch())
    assert len(calls) == 1, "a server needs one for all tasks"


def test_plm_says_what_goes_with_a_target_of_each_interaction() -> None:
    inputs = tr.TabularSequenceFeatures.from_schema(
        SCHEMA, max_sequence_length=6, embedding_dim_default=8, masking="plm"
    )
    block = tr.TransformerBlock(tr.XLNetConfig.build(8, 2, 1, 7), masking=inputs.masking)
    for task, advice in (
        (tr.BinaryClassificationTask("clicked", summary_type=None), "goes with masking clm, mlm"),
        (tr.RegressionTask("spent", summary_type="mean"), "Use summary 'last'"),
    ):
        with pytest.raises(ConfigError, match=advice):
            tr.Head(tr.SequentialBlock(inputs, block), [task])


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("on_last", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_losses_of_one_pass_are_those_of_a_pass_for_each(
    static: bool, on_last: bool, weighted: bool
) -> None:
    torch.manual_seed(2)
    block = body("clm").eval()
    block.masking.train_on_last_item_seq_only = on_last  # type: ignore[assignment]
    next_item = tr.NextItemPredictionTask(weights="spent_each" if weighted else None)
    tasks = [next_item, *three_tasks()]
    model = tr.Model(tr.Head(block, tasks, task_weights=[1.0, 2.0, 0.5, 3.0])).eval()  # type: ignore[arg-type]
    sessions = batch()
    sessions.features["spent_each"] = torch.rand(3, 4)
    if static:
        sessions = sessions._replace(most_interactions=9)
    alone = [task_losses(block, [task], sessions)[0] for task in model.head.all_tasks]
    together = task_losses(block, model.head.all_tasks, sessions)
    torch.testing.assert_close(together, alone)
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0])
    expected = (torch.stack(alone) * weights).sum() / weights.sum()
    torch.testing.assert_close(model.loss(sessions), expected)
    torch.testing.assert_close(gradients(model, model.loss(sessions)), gradients(model, expected))


def test_shares_scale_the_loss_of_each_task() -> None:
    model = one_model("clm")
    losses = task_losses(model.head.body, model.head.all_tasks, batch())
    shares = torch.tensor([0.5, 0.25, 1.0, 0.0])
    expected = (torch.stack(losses) * shares).mean()
    torch.testing.assert_close(model.loss(batch(), shares), expected)


@pytest.mark.parametrize("static", [False, True])
def test_a_missing_target_is_not_learned(static: bool) -> None:
    model = one_model("clm")
    sessions = batch()
    sessions.features["bought"][1] = math.nan
    if static:
        sessions = sessions._replace(most_interactions=9)
    _, bought, *_ = task_losses(model.head.body, model.head.all_tasks, sessions)
    chances = model.predict_targets(batch())["bought/binary_classification_task"]
    expected = -(chances[0].log() + chances[2].log()) / 2
    torch.testing.assert_close(bought, expected)
    every = gradients(model, bought).values()
    assert all(bool(gradient.to_dense().isfinite().all()) for gradient in every)


def test_a_binary_target_is_0_or_1() -> None:
    sessions = batch()
    sessions.features["bought"][1] = 0.5
    with pytest.raises(DataError, match=r"'bought' has 0\.5 as a binary target, expected 0 or 1"):
        one_model("clm").loss(sessions)


@pytest.mark.parametrize("masking", ["clm", "mlm"])
def test_the_answer_of_a_server_has_the_newest_interaction(masking: str) -> None:
    model, sessions = one_model(masking), batch()
    answer = model.answer(sessions)
    predictions = model.predict(sessions)
    assert answer.queries is not None
    torch.testing.assert_close(answer.queries, model.session_embeddings(sessions))
    clicked = predictions["clicked/binary_classification_task"]
    newest = clicked[torch.arange(3), sessions.lengths - 1]
    torch.testing.assert_close(answer.targets["clicked/binary_classification_task"], newest)
    bought = predictions["bought/binary_classification_task"]
    torch.testing.assert_close(answer.targets["bought/binary_classification_task"], bought)


def test_the_whole_session_is_an_input_of_the_shared_pass() -> None:
    block, sessions = body("clm", longest=3).eval(), batch()
    whole = block(block.crop(sessions, Stage.TRAIN_WHOLE), Stage.TRAIN_WHOLE)
    predicted = block(block.crop(sessions, Stage.PREDICT), Stage.PREDICT)
    torch.testing.assert_close(whole.hidden, predicted.hidden)
    assert whole.targets.tolist() == [[6, 7, 0], [9, 0, 0], [0, 0, 0]]
