"""Tasks, heads, weights, and what a model tells."""

import math

import pytest
import torch
from torch import nn

from pipeline import model as tr
from pipeline.core.errors import ConfigError, DataError

ITEM = tr.ColumnSchema.create_categorical("item_id", 17, tags=["item_id"])
SCHEMA = tr.Schema((ITEM,))


def batch() -> tr.SessionBatch:
    features = {
        "item_id": torch.tensor([[4, 5, 6, 7], [8, 9, 0, 0], [10, 0, 0, 0]]),
        "bought": torch.tensor([1.0, 0.0, 1.0]),
        "spent": torch.tensor([2.0, -1.0, 0.5]),
        "clicked": torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0]]),
        "event": torch.tensor([[3, 4, 3, 4], [3, 4, 0, 0], [3, 0, 0, 0]]),
    }
    return tr.SessionBatch(features, torch.tensor([4, 2, 1]))


def body(masking: str | None = "clm", longest: int = 6) -> tr.SequentialBlock:
    torch.manual_seed(0)
    inputs = tr.TabularSequenceFeatures.from_schema(
        SCHEMA, max_sequence_length=longest, embedding_dim_default=8, masking=masking
    )
    config = tr.BertConfig.build(8, 2, 1, longest + 1, initializer_range=0.2)
    return tr.SequentialBlock(inputs, tr.TransformerBlock(config, masking=inputs.masking))


def one_head(task: object, masking: str | None = "clm") -> tr.Model:
    return tr.Model(tr.Head(body(masking), task)).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("masking", ["clm", "mlm", "plm", "rtd", None])
def test_a_target_of_the_session_is_learned_from_the_whole_session(masking: str | None) -> None:
    if masking == "plm":
        inputs = tr.TabularSequenceFeatures.from_schema(
            SCHEMA, max_sequence_length=6, embedding_dim_default=8, masking="plm"
        )
        block = tr.TransformerBlock(tr.XLNetConfig.build(8, 2, 1, 7), masking=inputs.masking)
        model = tr.Model(
            tr.Head(tr.SequentialBlock(inputs, block), tr.BinaryClassificationTask("bought"))
        ).eval()
    else:
        model = one_head(tr.BinaryClassificationTask("bought"), masking)
    chances = model.predict(batch())["bought/binary_classification_task"]
    assert chances.shape == (3,)
    expected = -(chances[0].log() + (1 - chances[1]).log() + chances[2].log()) / 3
    assert float(model.loss(batch())) == pytest.approx(float(expected), rel=1e-5)
    changed = batch()
    changed.features["item_id"][0, 3] = 11  # the last interaction counts
    assert float((model.predict(changed)["bought/binary_classification_task"] - chances)[0]) != 0


def test_numbers_are_learned_by_the_loss_that_was_chosen() -> None:
    for loss, gain in (
        ("mse", lambda d: d**2),
        ("l1", abs),
        ("huber", lambda d: d * d / 2 if abs(d) < 1 else abs(d) - 0.5),
    ):
        model = one_head(tr.RegressionTask("spent", loss=loss))  # type: ignore[arg-type]
        result = model.predict(batch())["spent/regression_task"]
        differences = (result - batch().features["spent"]).tolist()
        expected = sum(gain(d) for d in differences) / 3
        assert float(model.loss(batch())) == pytest.approx(expected, rel=1e-5)


def test_a_target_of_each_interaction_leaves_padding_out() -> None:
    model = one_head(tr.BinaryClassificationTask("clicked", summary_type=None))
    chances = model.predict(batch())["clicked/binary_classification_task"]
    assert chances.shape == (3, 4)
    clicked = batch().features["clicked"]
    terms = [
        -math.log(float(chances[r, c] if clicked[r, c] else 1 - chances[r, c]))
        for r, length in enumerate([4, 2, 1])
        for c in range(length)
    ]
    assert float(model.loss(batch())) == pytest.approx(sum(terms) / 7, rel=1e-5)


@pytest.mark.parametrize("masking", ["clm", "mlm"])
@pytest.mark.parametrize("summary", ["last", "mean", "first"])
def test_a_summary_does_not_depend_on_padding(masking: str, summary: str) -> None:
    if masking == "clm" and summary == "first":
        return  # refused, see below
    task = tr.RegressionTask("spent", summary_type=summary)  # type: ignore[arg-type]
    model = one_head(task, masking)
    together = model.predict(batch())["spent/regression_task"]
    alone = tr.SessionBatch(
        {n: v[1:2, :2] if v.dim() == 2 else v[1:2] for n, v in batch().features.items()},
        torch.tensor([2]),
    )
    result = model.predict(alone)["spent/regression_task"]
    assert float((result[0] - together[1]).abs()) < 1e-6


def test_losses_of_tasks_and_heads_are_weighted() -> None:
    shared = body()
    tasks = [tr.NextItemPredictionTask(), tr.BinaryClassificationTask("bought")]
    other = tr.RegressionTask("spent")
    first = tr.Head(shared, tasks, task_weights=[3.0, 1.0], loss_reduction="mean")
    second = tr.Head(shared, other)
    model = tr.Model(first, second, head_weights=[1.0, 0.5], head_reduction="sum").eval()
    parts = []
    for task in (*tasks, other):
        head = second if task is other else first
        only = tr.Model.__new__(tr.Model)  # the same weights, one task at a time
        nn.Module.__init__(only)
        single = tr.Head.__new__(tr.Head)
        nn.Module.__init__(single)
        single.body, single.tasks = head.body, nn.ModuleList([task])
        single.task_weights, single.loss_reduction = [1.0], "sum"
        only.heads = nn.ModuleList([single])
        only.head_weights, only.head_reduction = [1.0], "sum"
        parts.append(float(only.loss(batch())))
    expected = (3 * parts[0] + parts[1]) / 4 + 0.5 * parts[2]
    assert float(model.loss(batch())) == pytest.approx(expected, rel=1e-5)
    assert set(model.predict(batch())) == {
        "next-item",
        "bought/binary_classification_task",
        "spent/regression_task",
    }
    assert torch.equal(model.predict(batch())["next-item"], model(batch()))
    assert model.training_columns == ["item_id", "bought", "spent"]


def test_two_tasks_in_to_torch_model_work() -> None:
    """They raise a TypeError in Transformers4Rec."""
    inputs = tr.TabularSequenceFeatures.from_schema(SCHEMA, max_sequence_length=6, masking="clm")
    config = tr.GPT2Config.build(64, 4, 1, 6)
    model = config.to_torch_model(
        inputs,
        tr.NextItemPredictionTask(),
        tr.BinaryClassificationTask("bought"),
        task_weights=[1.0, 0.2],
    )
    model.loss(batch()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None or not parameter.requires_grad, name


def test_tasks_come_from_the_tags_of_the_schema() -> None:
    targets = tr.Schema(
        (
            ITEM,
            tr.ColumnSchema(name="bought", tags=frozenset({"binary_classification"})),
            tr.ColumnSchema(name="spent", tags=frozenset({"regression"})),
            tr.ColumnSchema(
                name="clicked", tags=frozenset({"binary_classification"}), is_list=True
            ),
        )
    )
    head = tr.Head.from_schema(
        targets,
        body(),
        task_blocks=tr.MLPBlock([4]),
        task_weights={"spent/regression_task": 2.0},
    )
    assert head.task_weights == [1.0, 2.0, 1.0]
    assert float(tr.Model(head).loss(batch())) > 0
    blocks = {id(task.task_block) for task in head.tasks}
    assert len(blocks) == 3, "each task has a block of its own"


def test_weights_of_interactions_weigh_their_targets() -> None:
    """A purchase (event 4) counts five times a view (event 3)."""
    table = torch.tensor([0, 0, 0, 1.0, 5.0])
    weighted = one_head(tr.NextItemPredictionTask(weights=tr.ColumnValues("event", table)))
    result = weighted.at_targets(batch())
    scores = weighted.scores(result.hidden)
    losses = -scores.log_softmax(1).gather(1, result.targets.unsqueeze(1)).squeeze(1)
    # targets are items 5, 6, 7 of the first session and 9 of the second
    weights = torch.tensor([5.0, 1.0, 5.0, 5.0])
    expected = float((losses * weights).sum() / weights.sum())
    assert float(weighted.loss(batch())) == pytest.approx(expected, rel=1e-5)
    assert weighted.training_columns == ["item_id", "event"]


def test_a_loss_of_ones_own_takes_scores_and_targets() -> None:
    model = one_head(tr.NextItemPredictionTask(loss=nn.CrossEntropyLoss(label_smoothing=0.1)))
    named = one_head(tr.NextItemPredictionTask(label_smoothing=0.1))
    original = one_head(tr.NextItemPredictionTask(loss=tr.LabelSmoothCrossEntropyLoss(0.1)))
    for other in (named, original):
        other.load_state_dict(model.state_dict(), strict=False)
        assert float(model.loss(batch())) == pytest.approx(float(other.loss(batch())), rel=1e-6)
    weighted = one_head(tr.NextItemPredictionTask(loss=nn.CrossEntropyLoss(), weights="clicked"))
    with pytest.raises(ConfigError, match="reduction='none'"):
        weighted.loss(batch())


@pytest.mark.parametrize("loss", ["sampled-softmax", "gbce", "bpr", "bpr-max", "top1", "top1-max"])
@pytest.mark.parametrize("negatives", ["uniform", "log-uniform", "popularity", "in-batch"])
@pytest.mark.parametrize("shared", [True, False])
def test_every_sampled_loss_trains_with_every_kind_of_negatives(
    loss: str, negatives: str, shared: bool
) -> None:
    torch.manual_seed(0)
    task = tr.NextItemPredictionTask(
        loss=loss,
        negatives=negatives,  # type: ignore[arg-type]
        num_negatives=6,
        shared_negatives=shared,
        item_counts=torch.arange(17, 0, -1),
        normalize=shared,
        softmax_temperature=0.5,
    )
    model = one_head(task).train()
    value = model.loss(batch())
    value.backward()
    assert float(value) > 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert bool(parameter.grad.isfinite().all()), name


def test_sampled_losses_learn_what_the_full_softmax_learns() -> None:
    """Item i is always followed by i + 1: after training it has the highest score."""
    steps = {"cross-entropy": 60, "sampled-softmax": 60, "bpr-max": 60, "gbce": 250}
    for loss in steps:
        torch.manual_seed(0)
        inputs = tr.TabularSequenceFeatures.from_schema(
            tr.Schema((tr.ColumnSchema.create_categorical("item_id", 40, tags=["item_id"]),)),
            max_sequence_length=5,
            embedding_dim_default=32,
            masking="clm",
        )
        config = tr.SASRecConfig.build(32, 2, 1, 5, layer_norm_eps=1e-5, dropout=0.0)
        task = tr.NextItemPredictionTask(loss=loss, num_negatives=20, negatives="uniform")
        model = config.to_torch_model(inputs, task)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(steps[loss]):
            begin = torch.randint(3, 38, (64, 1))
            rows = tr.SessionBatch({"item_id": begin + torch.arange(5)}, torch.full((64,), 5))
            value = model.loss(rows)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        begin = torch.arange(3, 38).unsqueeze(1)
        rows = tr.SessionBatch({"item_id": begin + torch.arange(4)}, torch.full((35,), 4))
        best = model.eval()(rows).argmax(1)
        assert float((best == begin[:, 0] + 4).float().mean()) > 0.9, loss


def test_top_k_leaves_out_excluded_items() -> None:
    model = one_head(tr.NextItemPredictionTask())
    session_batch = batch()
    with torch.no_grad():
        scores = model(session_batch)
        whole = model.top_k(session_batch, 17)
        expected, order = scores.sort(1, descending=True)
        assert torch.equal(whole.items, order[:, :17])
        assert torch.allclose(whole.scores, expected[:, :17])

        unseen = model.top_k(session_batch, 17, filter_seen=True)
        assert [int((row > 0).sum()) for row in unseen.items] == [13, 15, 16]
        for row, seen in enumerate([{4, 5, 6, 7}, {8, 9}, {10}]):
            kept = [i for i in order[row, :17].tolist() if i not in seen]
            assert unseen.items[row].tolist() == kept + [0] * len(seen)
            assert unseen.scores[row, len(kept) :].isneginf().all()

        blocked = model.top_k(session_batch, 3, excluded=torch.tensor([int(order[0, 0]), 0]))
        assert blocked.items[0].tolist() == order[0, 1:4].tolist()
        each = torch.stack([order[0, :2], order[1, 2:4], torch.zeros(2).long()])
        own = model.top_k(session_batch, 3, excluded=each)
        assert own.items[0].tolist() == order[0, 2:5].tolist()
        assert own.items[1].tolist() == [*order[1, :2].tolist(), int(order[1, 4])]
        assert own.items[2].tolist() == order[2, :3].tolist()

        few = torch.tensor([12, 5, 0, 12])
        among = model.top_k(session_batch, 3, candidates=few, filter_seen=True)
        assert among.items[0].tolist() == [12, 0, 0]
        best = sorted([5, 12], key=lambda i: -float(scores[1, i]))
        assert among.items[1].tolist() == [*best, 0]
        assert torch.allclose(among.scores[1, :2], scores[1, best])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"k": 0}, "k is 0"),
        ({"k": 2, "excluded": torch.tensor([-1])}, "holds indices from -1 to -1"),
        ({"k": 2, "candidates": torch.tensor([5, 20])}, "expected 0 to 19"),
        ({"k": 2, "candidates": [5]}, "expected a tensor of indices"),
    ],
)
def test_top_k_refuses_indices_that_are_none(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        one_head(tr.NextItemPredictionTask()).top_k(batch(), **arguments)  # type: ignore[arg-type]


def test_a_weight_of_the_session_weighs_all_its_targets() -> None:
    weighted = one_head(tr.NextItemPredictionTask(weights="bought"))
    result = weighted.at_targets(batch())
    losses = -weighted.scores(result.hidden).log_softmax(1).gather(1, result.targets.unsqueeze(1))
    # three targets of the first session, which weighs 1; the second weighs 0
    assert float(weighted.loss(batch())) == pytest.approx(float(losses[:3].mean()), rel=1e-5)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"weight_tying": False},
        {"normalize": True, "softmax_temperature": 0.07, "item_dropout": 0.5},
        {"task_block": tr.MLPBlock([5])},
    ],
)
def test_embeddings_of_sessions_and_items_give_the_scores(arguments: dict[str, object]) -> None:
    model = one_head(tr.NextItemPredictionTask(**arguments))  # type: ignore[arg-type]
    with torch.no_grad():
        product = model.session_embeddings(batch()) @ model.item_embeddings().T
        assert torch.allclose(product, model(batch())[:, 3:], atol=1e-5)


def test_item_vectors_are_dropped_in_training_alone() -> None:
    model = one_head(tr.NextItemPredictionTask(item_dropout=0.5))
    items = model.item_embeddings()
    assert bool(items[items != 0].any())
    dropped = model.train().item_embeddings()
    kept = dropped != 0
    assert 0.2 < float(kept.float().mean()) < 0.8
    assert torch.allclose(dropped[kept], 2 * items[kept]), "the sum is the same on average"


def test_core_scores_a_session_by_a_mean_of_its_item_vectors() -> None:
    torch.manual_seed(0)
    inputs = tr.TabularSequenceFeatures.from_schema(
        SCHEMA, max_sequence_length=6, embedding_dim_default=8, masking="clm"
    )
    config = tr.CoreConfig.build(8, 2, 1, 6, initializer_range=0.2)
    sequence = tr.SequentialBlock(inputs, tr.TransformerBlock(config, masking=inputs.masking))
    model = tr.Model(tr.Head(sequence, tr.NextItemPredictionTask())).eval()
    items = torch.tensor([[4, 4, 4], [5, 6, 0]])
    session_batch = tr.SessionBatch({"item_id": items}, torch.tensor([3, 2]))
    with torch.no_grad():
        sessions = model.session_embeddings(session_batch)
        table = model.inputs.item_table.weight
        weights = model.attention_weights(session_batch)[-1][1, 0, 1, :2]
    assert torch.allclose(sessions[0], table[4], atol=1e-6)
    assert torch.allclose(sessions[1], weights @ table[5:7], atol=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: tr.Head(body(None), tr.NextItemPredictionTask()), "has no masking"),
        (lambda: tr.Head(body(), []), "needs a task"),
        (lambda: tr.Head(body(), tr.BinaryClassificationTask("item_id")), "cannot be predicted"),
        (
            lambda: tr.Head(body(), tr.RegressionTask("x", summary_type="first")),
            "sees only one interaction",
        ),
        (lambda: tr.RegressionTask("x", summary_type="cls"), "expected 'last'"),  # type: ignore[arg-type]
        (lambda: tr.RegressionTask("x", loss="mea"), "expected mse, l1 or huber"),  # type: ignore[arg-type]
        (
            lambda: tr.Head(body(), [tr.RegressionTask("x"), tr.RegressionTask("x")]),
            "Two tasks have the same name",
        ),
        (
            lambda: tr.Head(body(), tr.RegressionTask("x"), task_weights=[1.0, 2.0]),
            "expected 1 numbers",
        ),
        (
            lambda: tr.Head(body(), tr.RegressionTask("x"), task_blocks={"y": nn.Tanh()}),
            "task_blocks names 'y'",
        ),
        (lambda: tr.Model(), "needs a Head"),
        (
            lambda: one_head(tr.NextItemPredictionTask())(batch().features),
            "SessionBatch.from_features(features, 'item_id')",
        ),
        (lambda: tr.Model(body()), "found SequentialBlock"),  # type: ignore[arg-type]
        (lambda: tr.Head(body(), [tr.RegressionTask]), "as a task, expected one"),  # type: ignore[list-item]
        (
            lambda: tr.Head(body(), tr.RegressionTask("x"), task_weights=[float("nan")]),
            "expected 1 numbers",
        ),
        (
            lambda: tr.SessionBatch.from_features({"item_id": torch.tensor([[0, 5]])}, "item_id"),
            "padding on the right",
        ),
        (lambda: tr.NextItemPredictionTask(loss="bpr-mx"), "`bpr-max`"),
        (lambda: tr.Head.from_schema(SCHEMA, body()), "No column of the schema"),
        (
            lambda: one_head(tr.RegressionTask("price")).loss(batch()),
            "no column 'price', which a task reads",
        ),
        (
            lambda: one_head(tr.RegressionTask("clicked")).loss(batch()),
            "set summary_type=None",
        ),
        (
            lambda: one_head(tr.RegressionTask("spent", summary_type=None)).loss(batch()),
            "has one value per session",
        ),
        (lambda: one_head(tr.RegressionTask("spent"))(batch()), "has no NextItemPredictionTask"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(make: object, words: str) -> None:
    with pytest.raises((ConfigError, DataError)) as error:
        make()  # type: ignore[operator]
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_that_are_all_tiny_weigh_by_their_ratios() -> None:
    task = tr.NextItemPredictionTask()
    task.build(4, 9, 4)
    hidden, table = torch.randn(2, 3, 4), torch.randn(9, 4)
    targets = torch.tensor([[3, 4, 5], [6, 7, 0]])
    weights = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 9.0]], dtype=torch.float64)
    expected = task.loss(hidden, targets, table, weights)
    assert torch.allclose(task.loss(hidden, targets, table, weights * 2.0**-900), expected)
    assert float(task.loss(hidden, targets, table, weights * 0)) == 0
