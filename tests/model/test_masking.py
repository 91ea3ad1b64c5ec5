"""plm and rtd in detail; clm and mlm stand in test_parts.py."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import model as tr
from pipeline.core.errors import ConfigError
from pipeline.model.masking import build_masking
from pipeline.model.ops.slots import Slots

WIDTH = 12


def rows(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embeddings (B, L, 1), item ids and lengths."""
    width = max(lengths)
    inside = torch.arange(width) < torch.tensor(lengths).unsqueeze(1)
    ids = (torch.arange(width) + 3).expand(len(lengths), -1) * inside
    return torch.ones(*ids.shape, 1), ids, torch.tensor(lengths)


@given(
    lengths=st.lists(st.integers(1, WIDTH), min_size=1, max_size=8),
    probability=st.floats(0.05, 0.9),
    span=st.integers(1, 6),
    permute_all=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_plm_orders_at_least_one_target_and_never_all(
    lengths: list[int], probability: float, span: int, permute_all: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    masking = tr.PermutationMasking(probability, span, permute_all)
    embeddings, ids, given_lengths = rows(lengths)
    masked = masking.apply_to(embeddings, ids, given_lengths, tr.Stage.TRAIN)
    assert masked.order is not None
    assert torch.equal(masked.embeddings, embeddings), "content is seen, not hidden"
    for row, length in enumerate(lengths):
        asked = masked.targets[row] > 0
        count = int(asked.sum())
        assert count == 0 if length == 1 else 1 <= count < length
        assert torch.equal(masked.targets[row][asked], ids[row][asked])
        assert not bool(asked[length:].any())
        places = sorted(masked.order[row][asked].tolist())
        assert places == list(range(permute_all, count + permute_all))
        others = masked.order[row, :length][~asked[:length]].tolist()
        assert others == ([0] if permute_all else [-1] * (length - count))
        assert bool((masked.order[row, length:] == -1).all())


def test_plm_predicts_about_the_share_that_was_asked_for_in_spans() -> None:
    torch.manual_seed(0)
    embeddings, ids, lengths = rows([120] * 400)
    masked = tr.PermutationMasking(1 / 6, 5).apply_to(embeddings, ids, lengths, tr.Stage.TRAIN)
    asked = (masked.targets > 0).int()
    assert float(asked.float().mean()) == pytest.approx(1 / 6, rel=0.05)
    begins = int((asked.diff(dim=1) == 1).sum() + asked[:, 0].sum())
    assert int(asked.sum()) / begins == pytest.approx(3, rel=0.1)  # spans of 1 to 5


def xlnet(masking: str) -> tr.Model:
    torch.manual_seed(0)
    schema = tr.Schema((tr.ColumnSchema.create_categorical("item_id", 37, tags=["item_id"]),))
    inputs = tr.TabularSequenceFeatures.from_schema(
        schema, max_sequence_length=6, embedding_dim_default=8, masking=masking
    )
    config = tr.XLNetConfig.build(8, 2, 2, 7, initializer_range=0.3)
    return config.to_torch_model(inputs, tr.NextItemPredictionTask()).eval()


def test_a_target_of_plm_sees_those_before_it_in_the_order_and_not_itself() -> None:
    model = xlnet("plm")
    body = model.head.body
    order = torch.tensor([[-1, 1, 0, -1, 2, -1]])
    lengths = torch.tensor([6])
    embeddings = torch.randn(1, 6, 8, requires_grad=True)
    empty = torch.zeros(1, 6, dtype=torch.int64)
    from pipeline.model.masking import MaskedSequence

    hidden = body.through(MaskedSequence(embeddings, empty, lengths, lengths - 1, order)).hidden
    sees = {1: {0, 2, 3, 5}, 2: {0, 3, 5}, 4: {0, 1, 2, 3, 5}}
    for position, seen in sees.items():
        weights = torch.randn(8)
        (by,) = torch.autograd.grad(
            (hidden[0, position] * weights).sum(), embeddings, retain_graph=True
        )
        assert {i for i in range(6) if bool(by[0, i].any())} == seen


def test_rtd_replaces_hidden_interactions_whole_and_leaves_the_batch_alone() -> None:
    torch.manual_seed(0)
    masking = tr.ReplacementMasking(4, sample_from_batch=True)
    ids = torch.tensor([[5, 6, 7], [8, 9, 0]])
    batch = tr.SessionBatch(
        {"item_id": ids, "price": ids * 0.1, "device": torch.tensor([1, 2])},
        torch.tensor([3, 2]),
    )
    before = {name: values.clone() for name, values in batch.features.items()}
    targets = torch.tensor([[0, 6, 0], [0, 9, 0]])
    replaced = masking.replace(batch, "item_id", Slots.of(targets > 0, None), torch.zeros(2, 20))
    assert all(torch.equal(batch.features[n], v) for n, v in before.items())
    new = replaced.batch.features
    assert torch.allclose(new["price"], new["item_id"] * 0.1), "whole interactions are drawn"
    assert torch.equal(new["device"], before["device"])
    kept = targets == 0
    assert torch.equal(new["item_id"][kept], ids[kept])
    assert torch.equal(replaced.is_replaced, new["item_id"] != ids)


@pytest.mark.parametrize("from_batch", [True, False])
def test_rtd_draws_items_by_what_the_generator_gives_them(from_batch: bool) -> None:
    torch.manual_seed(0)
    masking = tr.ReplacementMasking(4, sample_from_batch=from_batch)
    # item 3 stands twice in each row, which must not make it likelier
    ids = torch.tensor([[3, 3, 4, 5]]).repeat(3000, 1)
    batch = tr.SessionBatch({"item_id": ids}, torch.full((3000,), 4))
    targets = torch.tensor([[0, 0, 0, 5]]).repeat(3000, 1)
    chances = torch.tensor([0.2, 0.5, 0.3])
    slots = Slots.of(targets > 0, None)
    replaced = masking.replace(batch, "item_id", slots, chances.log().expand(3000, -1))
    drawn = replaced.batch.features["item_id"][:, 3]
    result = torch.bincount(drawn, minlength=6)[3:] / 3000
    assert torch.allclose(result, chances, atol=4 * math.sqrt(0.25 / 3000))
    assert float(replaced.is_replaced[:, 3].float().mean()) == pytest.approx(0.7, abs=0.04)


def test_detection_is_binary_cross_entropy_over_real_interactions() -> None:
    masking = tr.ReplacementMasking(4)
    masking.build(2)
    assert masking.discriminator is not None
    with torch.no_grad():
        masking.discriminator.weight[:] = torch.tensor([[1.0, 0.0]])
        masking.discriminator.bias[:] = 0.5
    hidden = torch.tensor([[[0.5, 9], [-2.5, 9], [100, 9]], [[1.5, 9], [50, 9], [50, 9]]])
    replaced = torch.tensor([[True, False, True], [False, True, True]])
    result = masking.detection_loss(hidden, replaced, tr.SessionBatch({}, torch.tensor([2, 1])))
    terms = [math.log(1 + math.exp(-1.0)), math.log(1 + math.exp(-2.0)), math.log(1 + math.exp(2))]
    assert float(result) == pytest.approx(sum(terms) / 3, rel=1e-6)


def test_a_discriminator_learns_to_tell_what_was_replaced() -> None:
    """A session is one item again and again, so that a replaced one stands out."""
    torch.manual_seed(0)
    schema = tr.Schema((tr.ColumnSchema.create_categorical("item_id", 27, tags=["item_id"]),))
    inputs = tr.TabularSequenceFeatures.from_schema(
        schema,
        max_sequence_length=6,
        embedding_dim_default=64,
        masking="rtd",
        generator_loss_weight=0.0,  # it stays as it was born, and draws at random
        embeddings_initializers={"item_id": torch.nn.init.normal_},
    )
    config = tr.BertConfig.build(
        64, 4, 2, 7, layer_norm_eps=1e-5, dropout=0.0, initializer_range=0.1
    )
    model = config.to_torch_model(inputs, tr.NextItemPredictionTask(weight_tying=False)).train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(110):
        items = torch.randint(3, 30, (32, 1)).expand(-1, 6)
        loss = model.loss(tr.SessionBatch({"item_id": items}, torch.full((32,), 6)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) / 10 < 0.5 * sum(losses[:5]) / 5


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("plmm", {}, "did you mean `plm`"),
        ("clm", {"mlm_probability": 0.2}, "`mlm_probability` is for mlm and rtd; the masking"),
        ("mlm", {"train_on_last_item_seq_only": True}, "is for clm"),
        ("mlm", {"mlm_probability": 1.5}, "expected above 0 and below 1"),
        ("plm", {"max_span_length": 0}, "expected 1 or more"),
        ("rtd", {"permute_all": True}, "is for plm"),
    ],
)
def test_arguments_of_another_masking_are_refused(
    name: str, arguments: dict[str, float], words: str
) -> None:
    with pytest.raises(ConfigError) as error:
        build_masking(name, 4, arguments)
    assert words in str(error.value)


def test_rtd_does_not_draw_single_items_where_other_features_would_tell() -> None:
    with pytest.raises(ConfigError, match="give the drawn ones away"):
        build_masking("rtd", 4, {"sample_from_batch": False}, item_alone=False)
    chosen = build_masking("rtd", 4, item_alone=False)
    assert isinstance(chosen, tr.ReplacementMasking)
    assert chosen.sample_from_batch


def test_clm_trains_on_the_last_item_alone_where_asked_to() -> None:
    masking = tr.CausalMasking(train_on_last_item_seq_only=True)
    embeddings, ids, lengths = rows([4, 2, 1])
    trained = masking.apply_to(embeddings, ids, lengths, tr.Stage.TRAIN)
    assert trained.targets.tolist() == [[0, 0, 6], [4, 0, 0], [0, 0, 0]]
    evaluated = masking.apply_to(embeddings, ids, lengths, tr.Stage.EVALUATE)
    assert evaluated.targets.tolist() == [[4, 5, 6], [4, 0, 0], [0, 0, 0]]
