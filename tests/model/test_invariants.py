"""What must hold for every architecture with every masking it allows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.recipe import ModelConfig
from pipeline.export.torchscript import ServedModel, trace
from pipeline.model import ColumnSchema, Model, Schema, SessionBatch, Stage
from pipeline.model.build import build_model, load_model, save_model

L, V = 8, 40
ARCHITECTURES = [("gpt2", "clm"), ("xlnet", "clm"), ("xlnet", "mlm")]
SCHEMA = Schema(
    (
        ColumnSchema(
            name="item_id", tags=frozenset({"categorical", "item_id"}), num_rows=V, is_list=True
        ),
        ColumnSchema(name="brand", tags=frozenset({"categorical"}), num_rows=7, is_list=True),
        ColumnSchema(name="price", tags=frozenset({"continuous"}), is_float=True, is_list=True),
        ColumnSchema(name="device", tags=frozenset({"categorical"}), num_rows=6),
    )
)
_MODELS: dict[tuple[str, str], Model] = {}


def make_model(architecture: str, masking: str) -> Model:
    """Random weights, large enough that an effect shows."""
    if (architecture, masking) not in _MODELS:
        torch.manual_seed(0)
        config = ModelConfig(architecture=architecture, masking=masking, d_model=16, n_head=2)
        model = build_model(SCHEMA, config, L)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(5)
        _MODELS[architecture, masking] = model
    return _MODELS[architecture, masking].eval()


def sessions(lengths: list[int], seed: int, width: int | None = None) -> SessionBatch:
    generator = torch.Generator().manual_seed(seed)
    width = width or max(lengths)
    inside = torch.arange(width) < torch.tensor(lengths).unsqueeze(1)
    shape = (len(lengths), width)
    return SessionBatch(
        {
            "item_id": torch.randint(1, V, shape, generator=generator) * inside,
            "brand": torch.randint(1, 7, shape, generator=generator) * inside,
            "price": torch.randn(shape, generator=generator) * inside,
            "device": torch.randint(1, 6, shape[:1], generator=generator),
        },
        torch.tensor(lengths),
    )


def cut(batch: SessionBatch, row: int, start: int, stop: int, padding: int = 0) -> SessionBatch:
    """Interactions start..stop-1 of one session, with `padding` more positions."""
    features = {}
    for name, values in batch.features.items():
        if values.dim() == 2:
            values = torch.nn.functional.pad(values[row : row + 1, start:stop], (0, padding))
        else:
            values = values[row : row + 1]
        features[name] = values
    return SessionBatch(features, torch.tensor([stop - start]))


def largest(a: torch.Tensor, b: torch.Tensor) -> float:
    assert torch.equal(a.isinf(), b.isinf())
    return float((a.nan_to_num(neginf=0) - b.nan_to_num(neginf=0)).abs().max())


@pytest.mark.parametrize(("architecture", "masking"), ARCHITECTURES)
@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, L + 1), min_size=1, max_size=5), seed=st.integers(0, 999))
def test_evaluating_a_session_is_predicting_it_without_its_last_item(
    architecture: str, masking: str, lengths: list[int], seed: int
) -> None:
    model, batch = make_model(architecture, masking), sessions(lengths, seed)
    with torch.no_grad():
        found = model.at_targets(batch)
        scores = model.scores(found.hidden)
        last = {int(r): i for i, r in enumerate(found.rows) if found.is_last[i]}
        for row, length in enumerate(lengths):
            target = int(batch.features["item_id"][row, length - 1])
            assert (row in last) == (length > 1 and target > 1)
            if row in last:
                predicted = model(cut(batch, row, 0, length - 1))
                assert largest(predicted[0], scores[last[row]]) < 1e-5
                assert int(found.targets[last[row]]) == target


@pytest.mark.parametrize(("architecture", "masking"), ARCHITECTURES)
@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, L), min_size=2, max_size=5), seed=st.integers(0, 999))
def test_scores_depend_neither_on_padding_nor_on_batch_mates(
    architecture: str, masking: str, lengths: list[int], seed: int
) -> None:
    model, batch = make_model(architecture, masking), sessions(lengths, seed)
    with torch.no_grad():
        together = model(batch)
        for row, length in enumerate(lengths):
            for padding in (0, L - length):
                alone = model(cut(batch, row, 0, length, padding))
                assert largest(alone[0], together[row]) < 1e-5


@pytest.mark.parametrize("architecture", ["gpt2", "xlnet"])
@settings(max_examples=15, deadline=None)
@given(length=st.integers(3, L), seed=st.integers(0, 999), data=st.data())
def test_causal_hidden_states_do_not_depend_on_later_interactions(
    architecture: str, length: int, seed: int, data: st.DataObject
) -> None:
    model, batch = make_model(architecture, "clm"), sessions([length], seed)
    first_changed = data.draw(st.integers(1, length - 1))
    changed = {k: v.clone() for k, v in batch.features.items()}
    changed["item_id"][0, first_changed:] = 3 + (changed["item_id"][0, first_changed:] + 1) % 30
    changed["price"][0, first_changed:] += 1
    with torch.no_grad():
        a = model.encode(batch, Stage.PREDICT).hidden[:, :first_changed]
        b = model.encode(SessionBatch(changed, batch.lengths), Stage.PREDICT).hidden
    assert largest(a, b[:, :first_changed]) < 1e-6
    assert largest(a[:, -1], b[:, -1]) > 1e-4, "the change must show somewhere"


@pytest.mark.parametrize(("architecture", "masking"), ARCHITECTURES)
def test_sessions_beyond_the_longest_are_read_by_their_newest_interactions(
    architecture: str, masking: str
) -> None:
    model, batch = make_model(architecture, masking), sessions([3 * L, 2, L + 1], 5)
    with torch.no_grad():
        together = model(batch)
        assert largest(model(cut(batch, 0, 2 * L, 3 * L))[0], together[0]) < 1e-5
        assert largest(model(cut(batch, 1, 0, 2))[0], together[1]) < 1e-5
        assert largest(model(cut(batch, 2, 1, L + 1))[0], together[2]) < 1e-5


@pytest.mark.parametrize(("architecture", "masking"), ARCHITECTURES)
def test_reserved_indices_are_never_recommended(architecture: str, masking: str) -> None:
    scores = make_model(architecture, masking)(sessions([4, 1], 1))
    assert scores.shape == (2, V)
    assert bool(scores[:, :3].isneginf().all())
    assert bool(scores[:, 3:].isfinite().all())


@pytest.mark.parametrize(("architecture", "masking"), ARCHITECTURES)
def test_one_step_changes_every_parameter_and_no_padding_row(
    architecture: str, masking: str
) -> None:
    torch.manual_seed(1)
    config = ModelConfig(architecture=architecture, masking=masking, d_model=16, n_head=2)
    model = build_model(SCHEMA, config, L).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.loss(sessions([L + 1, L, 3, 2, 1], 2)).backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        changed = not torch.equal(before[name], parameter)
        assert changed == parameter.requires_grad, name
    for table in model.inputs.tables.values():
        assert not bool(table.weight[0].any())  # type: ignore[union-attr, operator, index]


@pytest.mark.parametrize(("architecture", "masking"), ARCHITECTURES)
@pytest.mark.parametrize(("rows", "width"), [(1, L), (1, 1), (7, L), (33, 5)])
def test_torchscript_equals_eager_at_shapes_that_were_not_traced(
    architecture: str, masking: str, rows: int, width: int
) -> None:
    model = make_model(architecture, masking)
    served = ServedModel(model, model.inputs.feature_names, {"device"}, k=10)
    program = trace(served, L)
    lengths = [1 + i % width for i in range(rows)]
    batch = sessions(lengths, rows, width)
    inputs = [batch.features[n] for n in served.names]
    inputs = [v.unsqueeze(1) if v.dim() == 1 else v for v in inputs]
    with torch.no_grad():
        scores, items = program(*inputs)
        wanted = model(batch)
    best, indices = wanted.topk(10)
    assert largest(scores, best) < 1e-4
    # a swap of near ties would be no fault of the program
    assert bool(((items == indices) | ((scores - best).abs() < 1e-4)).all())
    assert largest(wanted.gather(1, items), scores) < 1e-4


@pytest.mark.parametrize(("architecture", "masking"), ARCHITECTURES)
def test_a_model_read_from_disk_gives_the_same_scores(
    architecture: str, masking: str, tmp_path: object
) -> None:
    from pathlib import Path

    directory = Path(str(tmp_path))
    config = ModelConfig(architecture=architecture, masking=masking, d_model=16, n_head=2)
    torch.manual_seed(2)
    model = build_model(SCHEMA, config, L).eval()
    save_model(directory, model, SCHEMA, config, L)
    batch = sessions([5, 2, L], 3)
    assert torch.equal(load_model(directory)(batch), model(batch))


@pytest.mark.parametrize(("architecture", "masking"), ARCHITECTURES)
def test_a_batch_of_sessions_of_one_interaction_trains_without_nan(
    architecture: str, masking: str
) -> None:
    model = make_model(architecture, masking)
    loss = model.loss(sessions([1, 1], 4))
    loss.backward()
    model.zero_grad()
    assert float(loss) == 0
