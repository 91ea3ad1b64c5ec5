"""What must hold for every architecture with every masking it allows."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.errors import ConfigError
from pipeline.exporting.torchscript import InferenceModel, pack_request, trace, unpack_answer
from pipeline.model import ColumnSchema, Model, Schema, SessionBatch, Stage
from pipeline.model.build import build_model
from pipeline.model.model_files import load_model, save_model
from pipeline.recipe.choices import ARCHITECTURES
from pipeline.recipe.model import ModelConfig

L, V = 8, 40
OTHERS = {"llama": ("clm",), "modernbert": ("clm", "mlm", "rtd"), "mamba": ("clm",)}
"""Any architecture of Hugging Face goes by `model_type`; these stand for all."""
CASES = [
    *(
        (name, m)
        for name, maskings in ARCHITECTURES.items()
        if name != "huggingface"
        for m in maskings
    ),
    *((name, masking) for name, maskings in OTHERS.items() for masking in maskings),
]
every_case = pytest.mark.parametrize(("architecture", "masking"), CASES)
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


def config_of(architecture: str, masking: str, **others: Any) -> ModelConfig:
    shape: dict[str, Any] = {"masking": masking, "d_model": 16, "n_head": 2, **others}
    if architecture in OTHERS:
        return ModelConfig(architecture="huggingface", model_type=architecture, **shape)
    return ModelConfig(architecture=architecture, **shape)


def make_model(architecture: str, masking: str) -> Model:
    """Random weights, large enough that an effect shows."""
    if (architecture, masking) not in _MODELS:
        torch.manual_seed(0)
        model = build_model(SCHEMA, config_of(architecture, masking), L)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(3)
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
    """Largest difference; of scores beyond 1, such as those over a temperature, as a share."""
    assert torch.equal(a.isinf(), b.isinf())
    a, b = a.nan_to_num(neginf=0), b.nan_to_num(neginf=0)
    return float((a - b).abs().max() / b.abs().max().clamp(min=1))


@every_case
@settings(max_examples=8, deadline=None)
@given(lengths=st.lists(st.integers(1, 2 * L), min_size=1, max_size=5), seed=st.integers(0, 999))
def test_evaluating_a_session_is_predicting_it_without_its_last_item(
    architecture: str, masking: str, lengths: list[int], seed: int
) -> None:
    model, batch = make_model(architecture, masking), sessions(lengths, seed)
    with torch.no_grad():
        result = model.at_targets(batch)
        scores = model.scores(result.hidden)
        last = {int(r): i for i, r in enumerate(result.rows) if result.is_last[i]}
        for row, length in enumerate(lengths):
            target = int(batch.features["item_id"][row, length - 1])
            assert (row in last) == (length > 1 and target > 1)
            if row in last:
                predicted = model(cut(batch, row, 0, length - 1))
                assert largest(predicted[0], scores[last[row]]) < 1e-5
                assert int(result.targets[last[row]]) == target


@every_case
@settings(max_examples=8, deadline=None)
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


@pytest.mark.parametrize("architecture", [name for name, m in CASES if m == "clm"])
@settings(max_examples=8, deadline=None)
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


@every_case
def test_sessions_beyond_the_longest_are_read_by_their_newest_interactions(
    architecture: str, masking: str
) -> None:
    model, batch = make_model(architecture, masking), sessions([3 * L, 2, L + 1], 5)
    with torch.no_grad():
        together = model(batch)
        assert largest(model(cut(batch, 0, 2 * L, 3 * L))[0], together[0]) < 1e-5
        assert largest(model(cut(batch, 1, 0, 2))[0], together[1]) < 1e-5
        assert largest(model(cut(batch, 2, 1, L + 1))[0], together[2]) < 1e-5


@every_case
def test_reserved_indices_are_never_recommended(architecture: str, masking: str) -> None:
    scores = make_model(architecture, masking)(sessions([4, 1], 1))
    assert scores.shape == (2, V)
    assert bool(scores[:, :3].isneginf().all())
    assert bool(scores[:, 3:].isfinite().all())


@every_case
def test_one_step_changes_every_parameter_and_no_padding_row(
    architecture: str, masking: str
) -> None:
    torch.manual_seed(1)
    config = config_of(architecture, masking)
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


@every_case
def test_torchscript_equals_eager_at_shapes_that_were_not_traced(
    architecture: str, masking: str
) -> None:
    model = make_model(architecture, masking)
    served = InferenceModel(model, model.inputs.feature_names, {"device"})
    program = trace(served, L)
    for rows, width in ((1, L), (1, 1), (7, L), (33, 5)):
        batch = sessions([1 + i % width for i in range(rows)], rows, width)
        inputs = [batch.features[n] for n in served.names]
        inputs = [v.unsqueeze(1) if v.dim() == 1 else v for v in inputs]
        none = torch.zeros(rows, 1, dtype=torch.int64)
        with torch.no_grad():
            result = unpack_answer(
                program(pack_request(served, inputs, 10, none, none)), served.width
            )
            expected = model(batch)
        scores, items = result.scores, result.items
        best, indices = expected.topk(10)
        assert largest(scores, best) < 1e-4
        # a swap of near ties would be no fault of the program
        assert bool(((items == indices) | ((scores - best).abs() < 1e-4)).all())
        assert largest(expected.gather(1, items), scores) < 1e-4


@every_case
def test_a_model_read_from_disk_gives_the_same_scores(
    architecture: str, masking: str, tmp_path: Path
) -> None:
    config = config_of(architecture, masking)
    torch.manual_seed(2)
    model = build_model(SCHEMA, config, L).eval()
    save_model(tmp_path, model, SCHEMA, config, L)
    batch = sessions([5, 2, L], 3)
    assert torch.equal(load_model(tmp_path)(batch), model(batch))


def test_a_model_made_in_inference_mode_can_be_trained() -> None:
    with torch.inference_mode():
        model = make_model("xlnet", "mlm")
    model.train().loss(sessions([5, 2, L], 3)).backward()


@every_case
def test_a_batch_of_sessions_of_one_interaction_trains_without_nan(
    architecture: str, masking: str
) -> None:
    model = make_model(architecture, masking)
    loss = model.loss(sessions([1, 1], 4))
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    model.zero_grad()
    # there is no next item to learn; rtd still learns that nothing was replaced
    assert float(loss.detach()) >= 0 if masking == "rtd" else float(loss.detach()) == 0


@every_case
def test_an_empty_batch_gives_empty_scores_and_no_loss(architecture: str, masking: str) -> None:
    model = make_model(architecture, masking)
    features = {n: v[:0] for n, v in sessions([3], 0).features.items()}
    empty = SessionBatch(features, torch.zeros(0, dtype=torch.int64))
    assert model(empty).shape == (0, V)
    assert model.top_k(empty, 5).items.shape == (0, 5)
    assert len(model.at_targets(empty).targets) == 0
    loss = model.train().loss(empty)
    loss.backward()
    model.zero_grad()
    assert float(loss) == 0


@every_case
def test_a_session_without_interactions_gets_one_answer(architecture: str, masking: str) -> None:
    model = make_model(architecture, masking)
    result = []
    for width in (1, L):
        empty = {n: torch.zeros_like(v) for n, v in sessions([1], 0, width).features.items()}
        with torch.no_grad():
            result.append(model(SessionBatch(empty, torch.tensor([0]))))
    assert bool(result[0][:, 3:].isfinite().all())
    assert largest(result[0], result[1]) < 1e-5


@pytest.mark.parametrize(
    ("architecture", "masking"), [c for c in CASES if c[0] not in ("gru", "lstm", "mamba")]
)
def test_attention_weights_tell_who_looks_at_whom(architecture: str, masking: str) -> None:
    model, batch = make_model(architecture, masking), sessions([5, 2, L], 3)
    with torch.no_grad():
        before = model(batch)
        layers = model.attention_weights(batch)
        assert torch.equal(model(batch), before), "asking changes nothing"
    # the mean that CORE ends in has weights of its own
    assert [weights.size(1) for weights in layers] == [
        2,
        2,
        *([1] if architecture == "core" else []),
    ]
    width = L + (masking != "clm")
    for weights in layers:
        heads = weights.size(1)
        assert weights.shape == (3, heads, width, width)
        for row, length in enumerate([5, 2, L]):
            seen = length + (masking != "clm")
            looking = weights[row, :, :seen]
            assert not bool(looking[:, :, seen:].any()), "padding is not looked at"
            if masking == "clm":
                assert not bool(looking[:, :, :seen].triu(1).any()), "nor what comes later"
            if architecture != "hstu":  # its weights are no shares
                assert torch.allclose(looking.sum(-1), torch.ones(heads, seen), atol=1e-5)
            if masking == "plm":
                assert float(looking[:, -1, seen - 1].abs().max()) == 0, "nor the unknown itself"


@pytest.mark.parametrize("architecture", ["gru", "lstm", "mamba"])
def test_what_has_no_attention_says_so(architecture: str) -> None:
    with pytest.raises(ConfigError, match="no attention weights"):
        make_model(architecture, "clm").attention_weights(sessions([2], 0))


@pytest.mark.parametrize(
    ("architecture", "masking"),
    [
        (name, masking)
        for name, maskings in {**ARCHITECTURES, **OTHERS}.items()
        for masking in ("clm", "mlm", "plm", "rtd")
        if masking not in maskings and name != "huggingface"
    ],
)
def test_a_masking_that_an_architecture_cannot_work_with_is_refused(
    architecture: str, masking: str
) -> None:
    settings = {
        "architecture": "huggingface" if architecture in OTHERS else architecture,
        "model_type": architecture if architecture in OTHERS else None,
        "masking": masking,
    }
    with pytest.raises(ConfigError, match=r"works with") as error:
        build_model(SCHEMA, ModelConfig.from_dict(settings, "recipe"), L)
    assert "\n" not in str(error.value)


def test_an_untied_generator_learns_beside_the_model() -> None:
    torch.manual_seed(0)
    model = build_model(SCHEMA, config_of("bert", "rtd", tied_generator=False), L).train()
    model.loss(sessions([L + 1, L, 3, 2, 1], 2)).backward()
    generator = model.head.body.generator
    assert generator is not None
    for name, parameter in [*generator.named_parameters(), *model.head.body.named_parameters()]:
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert bool(parameter.grad.any()), name


@every_case
@pytest.mark.parametrize("longest", [1, 2])
def test_sessions_may_be_very_short(architecture: str, masking: str, longest: int) -> None:
    """So short that there is hardly anything to find out which way an architecture looks."""
    torch.manual_seed(0)
    model = build_model(SCHEMA, config_of(architecture, masking, n_layer=1), longest).eval()
    batch = sessions([longest + 1, 1], 0)
    with torch.no_grad():
        result = model.at_targets(batch)
        scores = model.scores(result.hidden)[result.is_last]
        predicted = model(cut(batch, 0, 0, longest))
    assert largest(predicted[0], scores[0]) < 1e-5


@every_case
def test_dropout_is_what_was_asked_for(architecture: str, masking: str) -> None:
    """BERT, RoBERTa and Longformer ignore it in Transformers4Rec."""
    for dropout in (0.0, 0.5):
        torch.manual_seed(0)
        config = config_of(architecture, masking, dropout=dropout, feature_dropout=0.0)
        model = build_model(SCHEMA, config, L).train()
        batch = sessions([5, 3], 0)
        with torch.no_grad():
            same = torch.equal(model(batch), model(batch))
        assert same == (dropout == 0)


def test_losses_of_rtd_are_weighted_and_the_model_learns_both() -> None:
    batch = sessions([L + 1, L, 3, 2], 2)
    result = {}
    for tied in (True, False):
        for generator, discriminator in ((1.0, 0.0), (0.0, 1.0), (2.0, 3.0)):
            torch.manual_seed(0)
            config = config_of(
                "bert",
                "rtd",
                dropout=0.0,
                tied_generator=tied,
                generator_loss_weight=generator,
                discriminator_loss_weight=discriminator,
            )
            model = build_model(SCHEMA, config, L).eval()
            torch.manual_seed(1)  # the same masks and draws
            loss = model.loss(batch)
            result[tied, generator, discriminator] = float(loss.detach())
            loss.backward()
            body, hidden = model.head.body, model.head.body.blocks[-1]
            learned = any(p.grad is not None and bool(p.grad.any()) for p in hidden.parameters())
            assert learned, "the encoder that recommends learns from either loss"
            if body.generator is not None:
                drawn = [p.grad for p in body.generator.parameters() if p.grad is not None]
                assert any(bool(g.any()) for g in drawn) == (generator > 0)
        both = 2 * result[tied, 1.0, 0.0] + 3 * result[tied, 0.0, 1.0]
        assert result[tied, 2.0, 3.0] == pytest.approx(both, rel=1e-5)
    # untied, the encoder's own loss of hidden items stands beside the generator's
    assert result[False, 1.0, 0.0] > 1.5 * result[True, 1.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("architecture", "masking"),
    [("gpt2", "clm"), ("bert", "mlm"), ("sasrec", "clm"), ("gru", "clm")],
)
def test_a_model_works_in_other_precisions(
    architecture: str, masking: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    model = build_model(SCHEMA, config_of(architecture, masking), L).to(dtype)
    batch = sessions([5, 3], 0)
    model.loss(batch).backward()
    assert model.eval()(batch).dtype == dtype


def test_ids_may_be_int32() -> None:
    model = make_model("gpt2", "clm")
    batch = sessions([5, 3], 0)
    narrow = {n: v.int() if not v.is_floating_point() else v for n, v in batch.features.items()}
    small = SessionBatch(narrow, batch.lengths.int())
    assert torch.equal(model(small), model(batch))
    assert float(model.loss(small).detach()) == float(model.loss(batch).detach())
    assert torch.equal(
        model.top_k(small, 3, filter_seen=True).items, model.top_k(batch, 3, filter_seen=True).items
    )
