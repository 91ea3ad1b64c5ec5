"""Targets per item and lists that are ranked by them."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from pipeline import model as tr
from pipeline.core.columns import FIRST_ITEM
from pipeline.core.errors import ConfigError, DataError, PipelineError
from pipeline.evaluation.ranking import rank_in_catalogue
from pipeline.exporting.options import Scoring
from pipeline.exporting.torchscript import InferenceModel, prove_parity, trace
from pipeline.model.program import read_program, write_program
from pipeline.model.task_losses import task_losses
from pipeline.model.tasks.item_output import ItemOutput
from pipeline.training.batches import loss_scales
from pipeline.training.compilation import compiled
from tests.model.synchronization import NoSynchronization

ITEMS, L = 17, 6
SCHEMA = tr.Schema(
    (
        tr.ColumnSchema.create_categorical("item_id", ITEMS, tags=["item_id"]),
        tr.ColumnSchema.create_categorical("kind", 5),
    )
)
NAN = math.nan
MASKINGS = ["clm", "mlm", "plm"]


def batch(most_interactions: int | None = None) -> tr.SessionBatch:
    items = torch.tensor([[4, 5, 6, 7], [8, 9, 0, 0], [10, 0, 0, 0], [5, 2, 8, 9]])
    bought = [[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 1, NAN, 1]]
    features = {
        "item_id": items,
        "kind": items % 4 + (items > 0),
        "bought": torch.tensor(bought),
        "price": items / 10,
        "mood": torch.tensor([1.0, 0.0, 1.0, 0.0]),
    }
    return tr.SessionBatch(features, torch.tensor([4, 2, 1, 4]), most_interactions)


def built(masking: str = "clm", rank_by: str | None = None, *others: Any, **task: Any) -> tr.Model:
    torch.manual_seed(0)
    inputs = tr.TabularSequenceFeatures.from_schema(
        SCHEMA, max_sequence_length=L, embedding_dim_default=8, d_output=8, masking=masking
    )
    config = tr.XLNetConfig.build(8, 2, 1, L + 1, initializer_range=0.5)
    body = tr.SequentialBlock(inputs, tr.TransformerBlock(config, masking=inputs.masking))
    tasks = [
        tr.BinaryClassificationTask("bought", task_name="bought", per_item=True),
        tr.NextItemPredictionTask(**task),
        tr.RegressionTask("price", task_name="price", per_item=True),
        *others,
    ]
    model = tr.Model(tr.Head(body, tasks, loss_reduction="sum"), rank_by=rank_by)
    for item_task in model.item_tasks:
        assert isinstance(item_task.output, ItemOutput)
        torch.nn.init.normal_(item_task.output.item_bias)
    return model.eval()


def chances_by_hand(model: tr.Model, hidden: Tensor) -> Tensor:
    """(T, D) -> (T, V - 3) by the formula of `ItemOutput`."""
    output = model.item_tasks[0].output
    assert isinstance(output, ItemOutput)
    head = model.head
    vectors = head.next_item_task().items(head.item_table)
    queries = output.queries(hidden)
    logits = queries[:, :-1] @ vectors.T + queries[:, -1:] + output.item_bias[FIRST_ITEM:, 0]
    return logits.sigmoid()


@pytest.mark.parametrize("with_session_target", [False, True])
def test_loss_is_that_of_the_label_of_the_next_interaction(with_session_target: bool) -> None:
    others = [tr.BinaryClassificationTask("mood")] if with_session_target else []
    model = built("clm", None, *others)
    # (row, position of the hidden state, next item, label); item 2 is unknown, one label is missing
    pairs = [(0, 0, 5, 0), (0, 1, 6, 1), (0, 2, 7, 0), (1, 0, 9, 1), (3, 2, 9, 1)]
    hidden = model.encode(batch(), tr.Stage.PREDICT).hidden
    rows, positions, items, labels = (torch.tensor(column) for column in zip(*pairs, strict=True))
    chances = chances_by_hand(model, hidden[rows, positions])
    chance = chances[torch.arange(5), items - FIRST_ITEM]
    expected = -torch.where(labels == 1, chance, 1 - chance).log().mean()
    loss = task_losses(model.head.body, model.head.all_tasks, batch())[0]
    torch.testing.assert_close(loss, expected)
    scales = loss_scales(model, batch()).tolist()
    assert scales[:3] == [5, 6, 6], "one next item has no label, and one is unknown"


@pytest.mark.parametrize("masking", MASKINGS)
@pytest.mark.parametrize("task", [{}, {"weight_tying": False, "normalize": True}], ids=str)
def test_labels_train_all_but_the_item_vectors(masking: str, task: dict[str, Any]) -> None:
    model = built(masking, **task)
    body, head = model.head.body, model.head
    torch.manual_seed(1)
    loss = task_losses(body, head.all_tasks, batch())[0]
    table = head.item_table if task == {} else head.next_item_task().output_table
    assert table is not None
    output = model.item_tasks[0].output
    assert isinstance(output, ItemOutput)
    loss.backward()
    assert output.item_bias.grad is not None
    assert output.item_bias.grad.any()
    assert output.queries.weight.grad is not None
    if task:
        assert table.grad is None, "a table that scores alone gets no gradient"
    else:  # it does as the input of the interactions that came before
        touched = table.grad.to_dense().any(1).nonzero()[:, 0]  # type: ignore[union-attr]
        assert 7 not in touched.tolist() or masking != "clm", "which is only a last item"


@pytest.mark.parametrize("masking", MASKINGS)
def test_a_label_is_predicted_from_what_comes_before_its_interaction(masking: str) -> None:
    """The leakage check covers hidden states, this the label that each of them is compared with."""
    model = built(masking)
    sessions = batch()
    sessions.features["bought"] = torch.full((4, 4), NAN)
    sessions.features["bought"][0, 2] = 1.0
    changed = sessions._replace(features={n: v.clone() for n, v in sessions.features.items()})
    changed.features["kind"][0, 2] = 0
    if masking == "clm":  # the others see later interactions
        changed.features["kind"][0, 3] = 0
        changed.features["item_id"][0, 3] = 12
    losses = []
    for sessions_read in (sessions, changed):
        for seed in range(12):  # masks of mlm and plm, of which some have the label
            torch.manual_seed(seed)
            losses.append(
                task_losses(model.head.body, model.head.all_tasks, sessions_read)[0].item()
            )
    assert any(losses)
    assert losses[:12] == losses[12:]


def learned(model: tr.Model, sessions: tr.SessionBatch) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(1)
    model.zero_grad()
    loss = model.loss(sessions)
    loss.backward()
    named = {name: weight.grad for name, weight in model.named_parameters()}
    return loss.detach(), {n: g.to_dense() for n, g in named.items() if g is not None}


@pytest.mark.parametrize("masking", MASKINGS)
def test_static_step_is_one_graph_and_learns_what_the_packed_form_does(masking: str) -> None:
    torch._dynamo.reset()
    model = built(masking, None, tr.BinaryClassificationTask("mood"))
    packed = learned(model, batch())
    with NoSynchronization():
        static = learned(model, batch(20))
    torch.testing.assert_close(static, packed, atol=1e-5, rtol=1e-5)
    graphs = CompileCounterWithBackend("aot_eager")
    model.loss = compiled(model.loss, backend=graphs)  # type: ignore[method-assign]
    torch.testing.assert_close(learned(model, batch(20)), packed, atol=1e-5, rtol=1e-5)
    assert graphs.frame_count == 1


def test_a_batch_without_labels_has_no_loss() -> None:
    model = built()
    for most in (None, 20):
        sessions = batch(most)
        sessions.features["bought"] = torch.full((4, 4), NAN)
        loss = task_losses(model.head.body, model.head.all_tasks, sessions)[0]
        assert float(loss) == 0
        loss.backward()


@pytest.mark.parametrize("masking", MASKINGS)
def test_lists_are_ranked_by_the_expression(masking: str) -> None:
    model = built(masking, "next_item - 2 * log(bought) / (1 + price * price)")
    sessions = batch()
    hidden = model.session_embedding(model.encode(sessions, tr.Stage.PREDICT))
    values = model.predict(sessions)
    bought, price = (values[name][:, FIRST_ITEM:] for name in ("bought", "price"))
    torch.testing.assert_close(bought, chances_by_hand(model, hidden))
    expected = values["next-item"][:, FIRST_ITEM:] - 2 * bought.log() / (1 + price**2)
    torch.testing.assert_close(model(sessions)[:, FIRST_ITEM:], expected)
    best = model.top_k(sessions, 5)
    scores, order = expected.topk(5)
    torch.testing.assert_close(best.scores, scores)
    assert best.items.tolist() == (order + FIRST_ITEM).tolist()
    torch.testing.assert_close(best.targets["bought"], bought.gather(1, order))
    torch.testing.assert_close(best.targets["price"], price.gather(1, order))
    # evaluation counts, in chunks
    targets = torch.tensor([3, 0, 16, 8])
    queries, items = model.queries(hidden), model.items()
    ranks = rank_in_catalogue(queries, items, targets, score=model.score).ranks
    own = expected.gather(1, targets[:, None])
    assert ranks.tolist() == (expected >= own).sum(1).tolist()


def test_vectors_and_next_item_alone_stay_those_of_the_next_item() -> None:
    plain, alone = built(), built("clm", "next_item")
    sessions = batch()
    for model in (plain, alone):
        vectors = model.session_embeddings(sessions) @ model.item_embeddings().T
        torch.testing.assert_close(vectors, model(sessions)[:, FIRST_ITEM:])
    first, second = plain.top_k(sessions, ITEMS), alone.top_k(sessions, ITEMS)
    assert first.scores.numpy(force=True).tobytes() == second.scores.numpy(force=True).tobytes()
    assert torch.equal(first.items, second.items)
    by_chance = built("clm", "0 * next_item + bought").top_k(sessions, ITEMS)
    assert (by_chance.targets["bought"].diff(dim=1) <= 0).all()
    assert not torch.equal(by_chance.items, first.items)


def test_division_by_zero_and_logarithms_of_nothing_rank_last_or_first() -> None:
    model = built("clm", "log(price - 1000)")
    lowest = model.top_k(batch(), 3).scores
    torch.testing.assert_close(lowest, torch.full((4, 3), math.log(torch.finfo().tiny)))
    assert built("clm", "1 / (price - price)").top_k(batch(), 2).scores.isposinf().all()


@pytest.mark.parametrize("masking", MASKINGS)
@pytest.mark.parametrize(
    ("rank_by", "scoring"),
    [(None, "fp32"), (None, "int8"), ("log(2) + (next_item + 50) * bought * 1000", "fp32")],
)
def test_exported_program_gives_the_lists_and_targets_of_the_model(
    masking: str, rank_by: str | None, scoring: Scoring
) -> None:
    served = InferenceModel(built(masking, rank_by), ["item_id", "kind"], set(), scoring)
    assert served.item_targets == ["bought", "price"]
    assert prove_parity(served, trace(served, L), L) < 1e-5


def test_program_ranks_as_the_model(tmp_path: Path) -> None:
    model = built("clm", "next_item + log(bought) * price", tr.BinaryClassificationTask("mood"))
    first = batch()
    others = tr.SessionBatch({n: v[:3] for n, v in first.features.items()}, first.lengths[:3])
    program = read_program(tmp_path, write_program(tmp_path, model, [first, others]))
    with torch.no_grad():
        expected, best = model.top_k(others, 7), program.top_k(others, 7)
        assert torch.equal(best.items, expected.items)
        torch.testing.assert_close(best.scores, expected.scores)
        torch.testing.assert_close(best.targets, expected.targets)
        torch.testing.assert_close(
            program.session_embeddings(others), model.session_embeddings(others)
        )
    assert torch.equal(program.item_embeddings(), model.item_embeddings())
    assert {"bought", "price", "mood"} <= {*program.columns}

    class Doubled(tr.RegressionTask):
        def predictions(self, outputs: Tensor) -> Tensor:
            return 2 * outputs

    doubled = built("clm", None, Doubled("price", per_item=True))
    with pytest.raises(PipelineError, match="'price/regression_task' has predictions of its own"):
        write_program(tmp_path, doubled, [first])


@pytest.mark.parametrize(
    ("rank_by", "words"),
    [
        ("next_item + sold", r"no value for the name `sold`; known here: next_item, bought, price"),
        ("next_item ** 2", r"`next_item \*\* 2` is not allowed"),
        ("log(bought, 2)", "takes 1 argument, here are 2"),
        ("1 + 2", "one number for all items"),
    ],
)
def test_an_expression_that_ranks_nothing_is_refused(rank_by: str, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"rank_by: .*{words}"):
        built("clm", rank_by)


def test_what_has_no_target_per_item_is_refused() -> None:
    with pytest.raises(ConfigError, match="clm, mlm and plm"):
        built("rtd")
    with pytest.raises(ConfigError, match="leave summary_type out"):
        tr.RegressionTask("price", per_item=True, summary_type=None)
    head = built().head
    alone = tr.BinaryClassificationTask("mood", per_item=True)
    with pytest.raises(ConfigError, match="no NextItemPredictionTask"):
        tr.Head(head.body, alone)
    model = tr.Model(tr.Head(head.body, [tr.NextItemPredictionTask(), alone]))
    with pytest.raises(
        ConfigError, match="'mood' has one value per session, and per_item needs one"
    ):
        model.loss(batch())
    with pytest.raises(ConfigError, match="an Ensemble has no targets per item"):
        tr.Ensemble(head)
    with pytest.raises(ConfigError, match="belong to the head that scores items"):
        tr.Model(tr.Head(head.body, tr.NextItemPredictionTask(task_name="first")), head)
    with pytest.raises(ConfigError, match="nothing to combine"):
        tr.Model(tr.Head(head.body, tr.NextItemPredictionTask()), rank_by="next_item")
    sessions = batch()
    sessions.features["bought"] = sessions.features["bought"] / 2
    with pytest.raises(DataError, match=r"'bought' has 0\.5 as a binary target"):
        built().loss(sessions)
