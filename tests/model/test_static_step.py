"""The static form of a training step: fixed shapes, no wait for the device, one graph.

On a CPU it computes what the packed form computes, which is compared here.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

from pipeline import model as tr
from pipeline.core.errors import ConfigError
from pipeline.model.build import TrainingStatistics, build_model
from pipeline.model.encoders import huggingface
from pipeline.model.inputs.transformations import StochasticSwapNoise
from pipeline.model.ops import catalogue_scan_device
from pipeline.model.ops.slots import Slots
from pipeline.recipe.choices import FULL_LOSSES, NEGATIVES, SAMPLED_LOSSES
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.train import TrainConfig
from pipeline.training.compilation import compiled
from tests.model.synchronization import NoSynchronization

ITEMS = 30
LONGEST = 6
SCHEMA = tr.Schema((tr.ColumnSchema.create_categorical("item_id", ITEMS, tags=["item_id"]),))
BODIES = [
    ("gpt2", "clm"),
    ("sasrec", "clm"),
    ("hstu", "clm"),
    ("gru", "clm"),
    ("xlnet", "clm"),
    ("xlnet", "mlm"),
    ("xlnet", "plm"),
    ("xlnet", "rtd"),
    ("bert", "clm"),
    ("bert", "mlm"),
    ("bert", "rtd"),
]
OBJECTIVES = [("cross-entropy", "uniform", True)] + [
    (loss, negatives, shared)
    for loss in SAMPLED_LOSSES
    for negatives, shared in (("log-uniform", True), ("popularity", False), ("in-batch", True))
]


@pytest.fixture(autouse=True)
def masks_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface, "prefers_whole_masks", lambda _: True)


@pytest.fixture
def large_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue_scan_device, "device_chunk_bytes", lambda _: 512 * 2**20)


def built(
    body: tuple[str, str], model: dict[str, object] | None = None, **train: object
) -> tr.Model:
    torch.manual_seed(0)
    architecture, masking = body
    config = ModelConfig.from_dict(
        {"architecture": architecture, "masking": masking, "d_model": 8, "n_head": 2, "n_layer": 2}
        | {"dropout": 0.0, **(model or {})},
        "model",
    )
    statistics = TrainingStatistics(item_counts=torch.arange(1, ITEMS + 1))
    settings = TrainConfig.from_dict({"num_negatives": 7, **train}, "train")
    return build_model(SCHEMA, config, LONGEST, settings, statistics).train()


def batch(most_interactions: int | None, seed: int = 0) -> tr.SessionBatch:
    """Sessions of 1 to 8 interactions, padded by three rows and a column."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.cat([torch.randint(1, 9, (9,), generator=generator), torch.zeros(3).long()])
    inside = torch.arange(9) < lengths.unsqueeze(1)
    items = torch.randint(3, 3 + ITEMS, (12, 9), generator=generator) * inside
    return tr.SessionBatch({"item_id": items}, lengths, most_interactions)


def learned(model: nn.Module, sessions: tr.SessionBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients by name."""
    torch.manual_seed(1)
    model.zero_grad()
    loss = model.loss(sessions)  # type: ignore[operator]
    loss.backward()
    named = {name: weight.grad for name, weight in model.named_parameters()}
    gradients = {name: grad for name, grad in named.items() if grad is not None}
    return loss.detach(), {n: g.to_dense() if g.is_sparse else g for n, g in gradients.items()}


def check_forms_agree(model: nn.Module) -> None:
    """The static form learns what the packed form does, and never waits for the device."""
    packed = learned(model, batch(None))
    with NoSynchronization():
        static = learned(model, batch(70))
    assert packed[0].item() > 0
    torch.testing.assert_close(static, packed, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("body", BODIES, ids="-".join)
def test_loss_and_gradients_are_those_of_the_packed_form(body: tuple[str, str]) -> None:
    check_forms_agree(built(body))


FAST = (("sasrec", "clm"), ("bert", "mlm"))
AGREEING = [
    pytest.param(
        body, *objective, marks=() if body in FAST else pytest.mark.slow, id=f"{body}-{objective}"
    )
    for body in BODIES
    for objective in OBJECTIVES
    # rtd draws negatives for each slot, then replacements, which are others where slots are empty
    if body[1] != "rtd" or objective[2]
]


@pytest.mark.parametrize(("body", "loss", "negatives", "shared"), AGREEING)
def test_every_loss_agrees(body: tuple[str, str], loss: str, negatives: str, shared: bool) -> None:
    check_forms_agree(built(body, loss=loss, negatives=negatives, shared_negatives=shared))


@pytest.mark.parametrize("loss", SAMPLED_LOSSES)
def test_rtd_with_negatives_of_each_target_does_not_wait_for_the_device(loss: str) -> None:
    model = built(("bert", "rtd"), loss=loss, negatives="popularity", shared_negatives=False)
    _, expected = learned(model, batch(None))
    with NoSynchronization():
        result, gradients = learned(model, batch(70))
    assert result > 0
    assert gradients.keys() == expected.keys()
    assert all(values.isfinite().all() for values in gradients.values())


def test_every_loss_and_distribution_is_covered() -> None:
    assert {loss for loss, _, _ in OBJECTIVES} == {*FULL_LOSSES, *SAMPLED_LOSSES}
    assert {negatives for _, negatives, _ in OBJECTIVES} == {*NEGATIVES}


@pytest.mark.parametrize(
    ("body", "model", "train"),
    [
        (("gpt2", "clm"), {"train_on_last_item_seq_only": True}, {}),
        (("gpt2", "clm"), {"normalize": True, "temperature": 0.1}, {"label_smoothing": 0.1}),
        (("gpt2", "clm"), {"weight_tying": False, "task_mlp": [8]}, {"recompute": True}),
        (("xlnet", "rtd"), {"tied_generator": False}, {"loss": "gbce", "negatives": "in-batch"}),
        (("bert", "rtd"), {"sample_from_batch": True}, {}),
        (("bert", "mlm"), {"mlm_probability": 0.7}, {}),
        (("gpt2", "clm"), {"towers": [{"architecture": "gru"}]}, {}),
    ],
)
def test_options_agree(
    body: tuple[str, str], model: dict[str, object], train: dict[str, object]
) -> None:
    check_forms_agree(built(body, model, **train))


def other_tasks() -> tr.Model:
    """A model with weights of targets, targets of sessions, interactions and items, and noise."""
    torch.manual_seed(0)
    schema = tr.Schema(
        (
            *SCHEMA,
            tr.ColumnSchema.create_categorical("category", 5),
            tr.ColumnSchema.create_continuous("price"),
        )
    )
    inputs = tr.TabularSequenceFeatures.from_schema(
        schema, max_sequence_length=LONGEST, masking="clm", d_output=8, embedding_dim_default=8
    )
    block = tr.TransformerBlock(
        tr.SASRecConfig.build(8, 2, 1, total_seq_length=LONGEST, dropout=0.0), inputs.masking
    )
    tasks = [
        tr.NextItemPredictionTask(weights="weight"),
        tr.BinaryClassificationTask("bought"),
        tr.RegressionTask("spent", summary_type=None),
        tr.BinaryClassificationTask("sold", per_item=True),
    ]
    return tr.Model(tr.Head(tr.SequentialBlock(inputs, block), tasks)).train()


def with_features(sessions: tr.SessionBatch) -> tr.SessionBatch:
    items = sessions.features["item_id"]
    numbers = torch.where(items > 0, items / 10, 0)
    features = {
        "category": items % 5 + (items > 0),
        "price": numbers,
        "weight": numbers,
        "spent": numbers,
        "bought": (sessions.lengths % 2).float(),
        "sold": (items % 2).float(),
    }
    return sessions._replace(features=sessions.features | features)


def test_other_tasks_and_weights_agree() -> None:
    model = other_tasks()
    packed = learned(model, with_features(batch(None)))
    with NoSynchronization():
        static = learned(model, with_features(batch(70)))
    torch.testing.assert_close(static, packed, atol=1e-5, rtol=1e-5)


def test_noise_and_dropout_do_not_wait_for_the_device() -> None:
    options = {"swap_noise": 0.3, "shared_embedding_noise": 0.3, "item_dropout": 0.2}
    model = built(("gpt2", "clm"), {**options, "feature_dropout": 0.2, "dropout": 0.2})
    for module in model.modules():
        if isinstance(module, StochasticSwapNoise):
            break
    else:
        pytest.fail("the model has no noise")
    with NoSynchronization():
        loss, gradients = learned(model, batch(70))
    assert loss > 0
    assert gradients


@pytest.mark.parametrize("body", [BODIES[1], BODIES[-2], BODIES[-1]], ids="-".join)
def test_packed_form_waits_for_the_device(body: tuple[str, str]) -> None:
    with pytest.raises(RuntimeError, match="waits for the device"), NoSynchronization():
        learned(built(body), batch(None))


def test_a_batch_without_targets_has_no_loss() -> None:
    for body in BODIES:
        model = built(body)
        model.zero_grad()
        empty = tr.SessionBatch({"item_id": torch.zeros(2, 3).long()}, torch.zeros(2).long(), 6)
        loss = model.loss(empty)
        loss.backward()
        assert loss == 0
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_a_loss_that_reduces_itself_is_refused() -> None:
    task = tr.NextItemPredictionTask(loss=nn.CrossEntropyLoss())
    task.build(8, 3 + ITEMS, 8)
    hidden, targets, table = torch.zeros(2, 3, 8), torch.full((2, 3), 5), torch.zeros(33, 8)
    with pytest.raises(ConfigError, match="reduction='none'"):
        task.loss(hidden, targets, table, None, 6)


@given(mask=st.lists(st.booleans(), min_size=1, max_size=12), spare=st.integers(0, 3))
def test_filled_slots_are_the_rows_of_the_packed_form(mask: list[bool], spare: int) -> None:
    rows = torch.tensor(mask)
    packed, static = Slots.of(rows, None), Slots.of(rows, sum(mask) + spare)
    number = sum(mask)
    assert static.filled is not None
    assert static.filled.tolist() == [n < number for n in range(len(static.rows))]
    assert len(static.rows) == min(number + spare, len(mask))
    assert torch.equal(static.rows[:number], packed.rows)
    values = torch.randn(len(mask), 2)
    assert torch.equal(static.take(values)[:number], values[rows])
    for slots in (packed, static):
        changed = slots.put(values, -slots.take(values))
        assert torch.equal(changed, torch.where(rows.unsqueeze(1), -values, values))
        assert slots.num_filled() == number
        torch.testing.assert_close(
            slots.mean(slots.take(values[:, 0])),
            values[rows, 0].mean() if number else torch.zeros(()),
        )


def test_rows_beyond_the_last_slot_are_left_out() -> None:
    assert Slots.of(torch.tensor([True, False, True, True]), 2).rows.tolist() == [0, 2]


@given(
    lengths=st.lists(st.integers(0, 20), min_size=1, max_size=64),
    probability=st.floats(0.05, 0.95),
    seed=st.integers(0, 2**20),
)
def test_masked_interactions_fit_their_slots(
    lengths: list[int], probability: float, seed: int
) -> None:
    torch.manual_seed(seed)
    masking = tr.MaskedMasking(4, probability)
    drawn, _ = masking.draw(torch.tensor(lengths), 20)
    assert int(drawn.sum()) <= masking.most_targets(len(lengths), sum(lengths))


# Each takes seconds, most of them to trace the model twice.
COMPILED = [
    pytest.param(
        body, loss, marks=() if number < 2 else pytest.mark.slow, id="-".join([*body, loss])
    )
    for number, (body, loss) in enumerate(
        [
            (("gpt2", "clm"), "cross-entropy"),
            (("bert", "rtd"), "cross-entropy"),
            (("xlnet", "mlm"), "bpr-max"),
            (("gru", "clm"), "gbce"),
            *(
                (body, "cross-entropy")
                for body in BODIES
                if body not in (("gpt2", "clm"), ("bert", "rtd"))
            ),
            *((("sasrec", "clm"), loss) for loss in SAMPLED_LOSSES),
        ]
    )
]


@pytest.mark.parametrize(("body", "loss"), COMPILED)
def test_step_is_one_graph(body: tuple[str, str], loss: str) -> None:
    torch._dynamo.reset()
    model = built(body, loss=loss)
    packed = [learned(model, batch(None, seed)) for seed in range(3)]
    graphs = CompileCounterWithBackend("aot_eager")
    model.loss = compiled(model.loss, backend=graphs)  # type: ignore[method-assign]
    static = [learned(model, batch(70, seed)) for seed in range(3)]
    assert graphs.frame_count == 1
    torch.testing.assert_close(static, packed, atol=1e-5, rtol=1e-5)


def fake(values: Tensor) -> Tensor:
    return torch.empty(values.shape, dtype=values.dtype, device="cuda")


def on_a_fake_gpu(model: tr.Model) -> tr.Model:
    """The model with fake weights on a GPU, inside of a FakeTensorMode."""
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = nn.Parameter(fake(weight), weight.requires_grad)
        for name, values in module._buffers.items():
            if values is not None:
                module._buffers[name] = fake(values)
    return model


def fake_loss(model: tr.Model, sessions: tr.SessionBatch) -> Tensor:
    """Loss of a fake GPU, of which autograd would need a real one."""
    with FakeTensorMode(), torch.no_grad():
        features = {name: fake(values) for name, values in sessions.features.items()}
        batch = sessions._replace(features=features, lengths=fake(sessions.lengths))
        return on_a_fake_gpu(model).loss(batch)


FAKE = "gpt2-clm sasrec-clm hstu-clm xlnet-mlm xlnet-plm bert-rtd in-batch noise tasks"


@pytest.mark.usefixtures("large_gpu")
@pytest.mark.parametrize("name", FAKE.split())
def test_forward_pass_has_one_device_and_reads_no_value(name: str) -> None:
    """A recurrent network is left out: cuDNN is asked for its buffers, and is not here."""
    options = {"dropout": 0.1, "feature_dropout": 0.1}
    sessions = batch(70)
    if name == "tasks":
        model, sessions = other_tasks(), with_features(sessions)
    elif name == "in-batch":
        model = built(("sasrec", "clm"), {"item_dropout": 0.1}, loss="gbce", negatives="in-batch")
    elif name == "noise":
        noise = {"swap_noise": 0.3, "shared_embedding_noise": 0.3}
        model = built(("gpt2", "clm"), {**options, **noise})
    else:
        architecture, masking = name.split("-")
        model = built((architecture, masking), options)
    loss = fake_loss(model, sessions)
    assert loss.device.type == "cuda"
    assert loss.shape == ()


def test_packed_form_reads_a_value_of_a_gpu() -> None:
    with pytest.raises(DynamicOutputShapeException):
        fake_loss(built(("sasrec", "clm")), batch(None))
