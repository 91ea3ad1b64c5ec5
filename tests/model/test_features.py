"""The input block: what each of its arguments does, and what must hold with any of them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.core.errors import ConfigError, DataError
from pipeline.data.batch import newest
from pipeline.data.schema import ColumnSchema, Schema, Tags
from pipeline.model import MLPBlock, SessionBatch, TabularSequenceFeatures
from pipeline.model.inputs.aggregation import StackFeatures
from pipeline.model.inputs.continuous import SoftEmbedding
from pipeline.model.inputs.pretrained import PretrainedEmbeddings, VectorProjection
from pipeline.model.inputs.tables import PretrainedEmbeddingsInitializer
from pipeline.model.inputs.transformations import (
    StochasticSharedEmbeddings,
    StochasticSwapNoise,
    TabularDropout,
    TabularLayerNorm,
)
from pipeline.model.masking import MaskedMasking

V, P = 20, 3
ITEM = ColumnSchema.create_categorical("item_id", V - 3, tags=[Tags.ITEM_ID])
LAST = ColumnSchema.create_categorical("last.bought", V - 3)
WORDS = ColumnSchema.create_categorical("words", 6, values_per_interaction=2)
DEVICE = ColumnSchema.create_categorical("device", 3, is_list=False)
PRICE = ColumnSchema.create_continuous("price")
AGE = ColumnSchema.create_continuous("age", is_list=False)
IMAGE = ColumnSchema.create_embedding("image", P)
USER = ColumnSchema.create_embedding("user", P, is_list=False)
ALL = Schema((ITEM, LAST, WORDS, DEVICE, PRICE, AGE, IMAGE, USER))


def block(schema: Schema, /, **arguments: Any) -> TabularSequenceFeatures:
    torch.manual_seed(0)
    return TabularSequenceFeatures.from_schema(schema, **arguments)


def fixed(rows: list[list[float]]) -> Callable[[Tensor], object]:
    """An initializer that fills in these numbers."""
    return lambda weight: weight.copy_(torch.tensor(rows))


def fill(layer: nn.Module, weight: list[list[float]], bias: list[float]) -> None:
    assert isinstance(layer, nn.Linear)
    layer.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})


def sessions(lengths: list[int], seed: int = 0, width: int | None = None) -> SessionBatch:
    """Sessions with every feature of ALL."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), width or max([*lengths, 1]))
    inside = torch.arange(shape[1]) < torch.tensor(lengths, dtype=torch.int64).unsqueeze(1)

    def drawn(high: int, *size: int) -> Tensor:
        return torch.randint(1, high, size, generator=generator)

    return SessionBatch(
        {
            "item_id": drawn(V, *shape) * inside,
            "last.bought": drawn(V, *shape) * inside,
            "words": (drawn(9, *shape, 2) - 1) * inside.unsqueeze(2),
            "device": drawn(6, shape[0]),
            "price": torch.randn(shape, generator=generator) * inside,
            "age": torch.randn(shape[0], generator=generator),
            "image": torch.randn(*shape, P, generator=generator) * inside.unsqueeze(2),
            "user": torch.randn(shape[0], P, generator=generator),
        },
        torch.tensor(lengths, dtype=torch.int64),
    )


def matrix(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, P, generator=torch.Generator().manual_seed(seed))


EQUAL: dict[str, Any] = {"embedding_dim_default": 4, "pretrained_output_dims": 4}
OPTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "nothing": dict,
    "widths from the schema": lambda: {"infer_embedding_sizes": True},
    "shared": lambda: {"shared_tables": [["item_id", "last.bought"]]},
    "an initializer": lambda: {"embeddings_initializers": {"item_id": nn.init.ones_}},
    "a pretrained table": lambda: {
        "embeddings_initializers": {
            "item_id": PretrainedEmbeddingsInitializer(matrix(V), trainable=True)
        }
    },
    "a frozen table": lambda: {
        "embeddings_initializers": {"words": PretrainedEmbeddingsInitializer(matrix(9))}
    },
    "looked up": lambda: {
        "pretrained_embeddings": {
            "item_id": PretrainedEmbeddings(matrix(V), output_dim=2, normalizer="layer-norm"),
            "words": PretrainedEmbeddings(matrix(9), trainable=True),
        }
    },
    "combined by sum": lambda: {"combiner": "sum"},
    "combined by sqrtn": lambda: {"combiner": "sqrtn"},
    "layers": lambda: {"continuous_projection": [5, 4]},
    "soft": lambda: {"continuous_soft_embeddings": True},
    "vectors": lambda: {"pretrained_output_dims": 5, "normalizer": "layer-norm"},
    "noise": lambda: {"pre": ["ssn", "sse"], "post": [TabularDropout(0.2), "layer-norm"]},
    "stack": lambda: EQUAL | {"aggregation": "stack", "continuous_projection": 4},
    "sum": lambda: EQUAL | {"aggregation": "element-wise-sum", "continuous_projection": 4},
    "item times sum": lambda: (
        EQUAL
        | {
            "aggregation": "element-wise-sum-item-multi",
            "continuous_soft_embeddings": True,
            "soft_embedding_dim_default": 4,
        }
    ),
    "d_output": lambda: {"d_output": 6},
    "a projection": lambda: {"projection": nn.Sequential(nn.LazyLinear(7), nn.Tanh())},
    "an MLP": lambda: {"projection": MLPBlock([8, 6])},
}
every_option = pytest.mark.parametrize("option", OPTIONS)


@every_option
def test_output_size_is_the_width_of_the_output(option: str) -> None:
    inputs = block(ALL, **OPTIONS[option]())
    for lengths in ([3, 1, 0], [1], []):
        batch = sessions(lengths)
        shape = (len(lengths), batch.width, inputs.output_size)
        assert inputs(batch).shape == shape
        narrow = {k: v if v.is_floating_point() else v.int() for k, v in batch.features.items()}
        assert inputs(SessionBatch(narrow, batch.lengths)).shape == shape
    assert inputs.feature_names == ALL.column_names


@every_option
def test_one_step_moves_all_but_what_is_frozen_and_no_padding_row(option: str) -> None:
    inputs = block(ALL, **OPTIONS[option]()).train()
    batch = sessions([6, 5, 4, 3, 2, 1], width=8)
    before = {name: value.clone() for name, value in inputs.state_dict().items()}
    learning = [p for p in inputs.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=0.1)
    inputs(batch).square().sum().backward()  # padded positions too
    optimizer.step()
    frozen = {name for name, p in inputs.named_parameters() if not p.requires_grad}
    unmoved = {n for n, value in inputs.state_dict().items() if torch.equal(value, before[n])}
    assert unmoved == frozen
    looked_up = [m.table for m in inputs.modules() if isinstance(m, PretrainedEmbeddings)]
    for table in [*inputs.tables.values(), *looked_up]:
        assert not bool(table.weight[0].any())


@every_option
def test_reserved_rows_begin_at_zero(option: str) -> None:
    for table in block(ALL, **OPTIONS[option]()).tables.values():
        assert not bool(table.weight[:3].any())
        assert bool(table.weight[3:].any(1).all())


@every_option
@settings(max_examples=8, deadline=None)
@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_real_positions_depend_neither_on_padding_nor_on_batch_mates(
    option: str, lengths: list[int], seed: int
) -> None:
    inputs = block(ALL, **OPTIONS[option]()).eval()
    batch = sessions(lengths, seed, width=7)
    together = inputs(batch)
    for row, length in enumerate(lengths):
        alone = {
            name: values[row : row + 1, :length]
            if name not in ("device", "age", "user")
            else values[row : row + 1]
            for name, values in batch.features.items()
        }
        result = inputs(SessionBatch(alone, batch.lengths[row : row + 1]))
        torch.testing.assert_close(result[0], together[row, :length])


@every_option
def test_weights_of_one_block_make_another_the_same(option: str) -> None:
    inputs, other = block(ALL, **OPTIONS[option]()), block(ALL, **OPTIONS[option]())
    with torch.no_grad():
        for parameter in inputs.parameters():
            parameter.add_(torch.randn_like(parameter))
    batch = sessions([4, 2])
    other.load_state_dict(inputs.state_dict())
    assert torch.equal(inputs.eval()(batch), other.eval()(batch))
    places = [value.data_ptr() for value in inputs.state_dict().values()]
    assert len(set(places)) == len(places), "safetensors refuses one tensor under two names"


@every_option
@pytest.mark.filterwarnings("ignore")
def test_a_traced_block_is_the_block_at_other_shapes(option: str) -> None:
    inputs = block(ALL, **OPTIONS[option]()).eval()

    class Traced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inputs = inputs

        def forward(self, lengths: Tensor, *values: Tensor) -> Tensor:
            features = dict(zip(ALL.column_names, values, strict=True))
            result: Tensor = self.inputs(SessionBatch(features, lengths))
            return result

    def arguments(batch: SessionBatch) -> list[Tensor]:
        return [batch.lengths, *(batch.features[name] for name in ALL.column_names)]

    with torch.no_grad():
        program = torch.jit.trace(Traced(), tuple(arguments(sessions([3, 2]))))
        for lengths in ([5, 1, 2], [1]):
            batch = sessions(lengths)
            torch.testing.assert_close(program(*arguments(batch)), inputs(batch))


@every_option
def test_a_batch_stays_as_it_was(option: str) -> None:
    batch = sessions([6, 5, 4, 3])
    before = {name: values.clone() for name, values in batch.features.items()}
    block(ALL, **OPTIONS[option]()).train()(batch)
    assert list(batch.features) == list(before)
    assert all(torch.equal(batch.features[name], before[name]) for name in before)


def test_parts_stand_in_the_order_of_their_kinds() -> None:
    schema = Schema((IMAGE, PRICE, ITEM, DEVICE))
    inputs = block(
        schema,
        embedding_dims={"device": 1},
        embedding_dim_default=2,
        embeddings_initializers={
            "item_id": fixed([[float(i), i + 0.5] for i in range(V)]),
            "device": fixed([[10.0 * i] for i in range(6)]),
        },
        pretrained_embeddings={"device": PretrainedEmbeddings([[i + 0.25] for i in range(6)])},
    )
    batch = SessionBatch(
        {
            "image": torch.tensor([[[7.0, 8.0, 9.0], [0.0, 0.0, 0.0]]]),
            "price": torch.tensor([[0.125, 0.0]], dtype=torch.float64),
            "item_id": torch.tensor([[4, 0]]),
            "device": torch.tensor([5]),
        },
        torch.tensor([1]),
    )
    assert inputs(batch).tolist() == [
        [[4, 4.5, 50, 0.125, 5.25, 7, 8, 9], [0, 0, 50, 0, 5.25, 0, 0, 0]]
    ]
    assert inputs(batch).dtype == torch.float32, "whatever the numbers came as"


def test_vectors_and_several_indices_may_belong_to_the_session() -> None:
    inputs = block(
        Schema((ITEM, WORDS, USER)),
        embedding_dims={"item_id": 1, "words": 1},
        embeddings_initializers={"words": fixed([[float(i)] for i in range(9)])},
    )
    batch = sessions([3, 2])
    flat = batch.features | {"words": torch.tensor([[[4, 6]], [[8, 0]]])}
    result = inputs(SessionBatch(flat, batch.lengths))
    assert result[:, :, 1].tolist() == [[5, 5, 5], [8, 8, 8]]
    assert torch.equal(result[:, 2, 2:], batch.features["user"])
    spread = flat | {"user": batch.features["user"].unsqueeze(1)}
    assert torch.equal(inputs(SessionBatch(spread, batch.lengths)), result)


def test_features_are_chosen_by_tag_and_the_item_always() -> None:
    target = ColumnSchema.create_continuous("bought", tags=[Tags.TARGET])
    hand = ColumnSchema.create_categorical("hand", 4, tags=["mine"])
    schema = ALL + Schema((target, hand))
    assert block(schema).feature_names == [*ALL.column_names[:4], "hand", *ALL.column_names[4:]]
    only = {"continuous_tags": None, "pretrained_embeddings_tags": None}
    assert block(schema, categorical_tags=None, **only).feature_names == ["item_id"]
    assert block(schema, categorical_tags="mine", **only).feature_names == ["item_id", "hand"]
    tagged = block(schema, categorical_tags=None, continuous_tags=["continuous"])
    assert tagged.feature_names == ["item_id", "price", "age", "image", "user"]
    with pytest.raises(ConfigError, match="No column has the tag 'categoricl'; did you mean"):
        block(schema, categorical_tags="categoricl")


def test_a_merlin_schema_will_do() -> None:
    import pipeline.core.merlin  # noqa: F401, I001

    from merlin.schema import ColumnSchema as Column
    from merlin.schema import Schema as MerlinSchema
    from merlin.schema import Tags as MerlinTags

    item = Column(
        "item_id",
        tags=[MerlinTags.ITEM_ID, MerlinTags.CATEGORICAL],
        dtype="int64",
        dims=(None, (0, 5)),
        properties={"domain": {"min": 0, "max": V - 1}},
    )
    inputs = TabularSequenceFeatures.from_schema(MerlinSchema([item]), embedding_dim_default=4)
    assert tuple(inputs.item_table.weight.shape) == (V, 4)


def test_widths_are_those_asked_for_or_grow_with_the_cardinality() -> None:
    dims = {n: t.embedding_dim for n, t in block(ALL, embedding_dims={"words": 5}).tables.items()}
    assert dims == {"item_id": 64, "last.bought": 64, "words": 5, "device": 64}
    inferred = block(
        ALL,
        embedding_dims={"words": 5},
        infer_embedding_sizes=True,
        infer_embedding_sizes_multiplier=3,
    )
    # 20 ** 0.25 = 2.11, 6 ** 0.25 = 1.57
    dims = {name: table.embedding_dim for name, table in inferred.tables.items()}
    assert dims == {"item_id": 7, "last.bought": 7, "words": 5, "device": 5}


def test_a_shared_table_is_one_parameter_with_the_rows_of_the_largest() -> None:
    brand = ColumnSchema.create_categorical("brand", 4)
    other = ColumnSchema.create_categorical("other", 9)
    inputs = block(
        Schema((brand, ITEM, other)),
        shared_tables=[["other", "brand"]],
        embedding_dims={"brand": 2},
        embedding_dim_default=4,
    )
    assert inputs.table("brand") is inputs.table("other")
    assert tuple(inputs.table("brand").weight.shape) == (12, 2)
    assert list(inputs.state_dict()) == ["_tables.of_brand.weight", "_tables.of_item_id.weight"]
    ids = torch.tensor([[5, 6]])
    batch = SessionBatch({"brand": ids, "item_id": ids, "other": ids}, torch.tensor([2]))
    result = inputs(batch)
    assert torch.equal(result[..., :2], result[..., -2:])
    result[..., -2:].sum().backward()
    gradient = inputs.table("brand").weight.grad
    assert gradient is not None
    assert gradient[5].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("combiner", "two", "one"), [("mean", 6, 8), ("sum", 12, 8), ("sqrtn", 12 / 2**0.5, 8)]
)
def test_several_indices_become_one_vector(combiner: str, two: float, one: float) -> None:
    numbers = [[float(i)] for i in range(9)]
    words = {"words": fixed(numbers)}
    pretrained = {"words": PretrainedEmbeddings(numbers, combiner=combiner)}  # type: ignore[arg-type]
    inputs = block(
        Schema((ITEM, WORDS)),
        embedding_dims={"item_id": 1, "words": 1},
        combiner=combiner,
        embeddings_initializers=words,
        pretrained_embeddings=pretrained,
    )
    batch = SessionBatch(
        {
            "item_id": torch.tensor([[3, 4, 5]]),
            "words": torch.tensor([[[4, 0, 8], [0, 8, 0], [0, 0, 0]]]),
        },
        torch.tensor([3]),
    )
    assert inputs(batch)[0, :, 1].tolist() == pytest.approx([two, one, 0])
    assert inputs(batch)[0, :, 2].tolist() == pytest.approx([two, one, 0])


def test_a_pretrained_table_has_the_matrix_and_its_width() -> None:
    weights = matrix(V)
    for trainable in (False, True):
        initializer = PretrainedEmbeddingsInitializer(weights, trainable=trainable)
        inputs = block(Schema((ITEM,)), embeddings_initializers={"item_id": initializer})
        table = inputs.item_table.weight
        assert torch.equal(table[3:], weights[3:])
        assert table.requires_grad == trainable
        assert bool(weights[:3].all()), "the matrix that was given stays as it was"


def test_pretrained_vectors_are_frozen_unless_trainable() -> None:
    assert not PretrainedEmbeddings(matrix(V)).table.weight.requires_grad
    assert PretrainedEmbeddings(matrix(V), trainable=True).table.weight.requires_grad


def test_vectors_are_projected_and_normalised() -> None:
    inputs = block(
        Schema((ITEM, IMAGE, USER)),
        embedding_dims={"item_id": 1},
        pretrained_output_dims={"user": 5},
        normalizer="layer-norm",
        pretrained_embeddings={"item_id": PretrainedEmbeddings(matrix(V), output_dim=4)},
    )
    assert inputs.output_size == 1 + 4 + 3 + 5
    result = inputs(sessions([2, 2]))
    for part in (result[..., 5:8], result[..., 8:13]):
        torch.testing.assert_close(part.mean(-1), torch.zeros(2, 2), atol=1e-5, rtol=0)
    assert float(result[..., 1:5].detach().mean(-1).abs().min()) > 1e-4, "not asked for"


def test_continuous_features_go_through_layers_together() -> None:
    inputs = block(
        Schema((ITEM, PRICE, AGE)), embedding_dims={"item_id": 1}, continuous_projection=[2, 1]
    )
    assert inputs.continuous_projection is not None
    first, _, second, _ = inputs.continuous_projection
    fill(first, [[1.0, -1.0], [-1.0, 2.0]], [0.0, 0.0])
    fill(second, [[1.0, 10.0]], [0.0])
    batch = SessionBatch(
        {
            "item_id": torch.tensor([[3, 4]]),
            "price": torch.tensor([[3.0, 1.0]]),
            "age": torch.tensor([2.0]),
        },
        torch.tensor([2]),
    )
    # relu(3 - 2), relu(-3 + 4) and relu(1 - 2), relu(-1 + 4)
    assert inputs(batch)[0, :, 1].tolist() == [11, 30]
    fill(second, [[-1.0, -10.0]], [0.0])
    assert inputs(batch)[0, :, 1].tolist() == [0, 0], "a ReLU stands at the end too"


def test_a_soft_embedding_mixes_vectors_by_a_softmax() -> None:
    soft = SoftEmbedding(2, 3, fixed([[1.0, 2.0, 3.0], [5.0, 6.0, 7.0]]))
    soft.projection_layer.weight.data = torch.tensor([[0.0], [1.0]])
    soft.projection_layer.bias.data.zero_()
    result = soft(torch.tensor([[0.0, torch.tensor(3.0).log()]]))
    # shares 1/2 and 1/2, then 1/4 and 3/4
    torch.testing.assert_close(result, torch.tensor([[[3.0, 4.0, 5.0], [4.0, 5.0, 6.0]]]))


def test_soft_embeddings_have_their_sizes_and_a_layer_norm_by_default() -> None:
    arguments = {
        "continuous_soft_embeddings": True,
        "soft_embedding_dims": {"age": 4},
        "soft_embedding_cardinalities": {"age": 6},
        "embedding_dims": {"item_id": 1},
    }
    schema = Schema((ITEM, PRICE, AGE))
    inputs = block(schema, **arguments)
    tables = [m.embedding_table for m in inputs.modules() if isinstance(m, SoftEmbedding)]
    assert [tuple(table.weight.shape) for table in tables] == [(10, 8), (6, 4)]
    result = inputs(sessions([2, 1]))
    assert result.size(-1) == 1 + 8 + 4
    torch.testing.assert_close(result[..., 1:9].mean(-1), torch.zeros(2, 2), atol=1e-5, rtol=0)
    plain = block(schema, layer_norm=False, **arguments)(sessions([2, 1]))
    assert float(plain[..., 1:9].detach().mean(-1).abs().min()) > 1e-4


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("concat", [1, 2, 10, 20, 100, 200]),
        ("stack", [1, 10, 100, 2, 20, 200]),
        ("element-wise-sum", [111, 222]),
        ("element-wise-sum-item-multi", [1 * 110, 2 * 220]),
    ],
)
def test_parts_are_aggregated(aggregation: str, expected: list[float]) -> None:
    schema = Schema((ITEM, ColumnSchema.create_categorical("a", 1), IMAGE))
    filled = {
        "item_id": lambda weight: weight.copy_(torch.tensor([1.0, 2.0])),
        "a": lambda weight: weight.copy_(torch.tensor([10.0, 20.0])),
    }
    inputs = block(
        schema,
        embedding_dim_default=2,
        embeddings_initializers=filled,
        aggregation=aggregation,
        pretrained_output_dims=2,
    )
    projection = inputs.vector_projections["of_image"]
    assert isinstance(projection, VectorProjection)
    fill(projection.projection, [[0.0] * P] * 2, [100.0, 200.0])
    three = torch.tensor([[3]])
    features = {"item_id": three, "a": three, "image": torch.randn(1, 1, P)}
    assert inputs(SessionBatch(features, torch.tensor([1]))).tolist() == [[expected]]
    assert inputs.output_size == len(expected)


def test_an_aggregation_of_ones_own_will_do() -> None:
    inputs = block(Schema((ITEM, LAST)), embedding_dim_default=4, aggregation=StackFeatures())
    assert inputs.output_size == 8


def test_d_output_is_a_linear_layer_without_relu() -> None:
    inputs = block(Schema((ITEM,)), d_output=5)
    assert bool((inputs(sessions([5, 5, 5])) < 0).any())
    assert isinstance(inputs.projection, nn.Linear)
    assert block(Schema((ITEM,)), projection=nn.GLU()).output_size == 32


def test_a_masking_is_made_for_the_width_or_taken_as_it_is() -> None:
    made = block(Schema((ITEM,)), d_output=5, masking="mlm", mlm_probability=0.4).masking
    assert isinstance(made, MaskedMasking)
    assert (made.hidden_item.numel(), made.probability) == (5, 0.4)
    assert block(Schema((ITEM,)), d_output=5, masking=made).masking is made


def test_probing_leaves_modules_in_their_modes() -> None:
    projection = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    block(Schema((ITEM,)), projection=projection)
    assert [module.training for module in projection] == [True, False]


@pytest.mark.parametrize(
    "arguments",
    [
        {"pre": StochasticSwapNoise(0.9)},
        {"pre": "stochastic-swap-noise"},
        {"pre": [StochasticSharedEmbeddings(0.9)]},
        {"post": "dropout"},
    ],
)
def test_noise_is_for_training_alone(arguments: dict[str, Any]) -> None:
    batch = sessions([9] * 9)
    inputs = block(ALL, **arguments)
    clean = block(ALL)
    clean.load_state_dict(inputs.state_dict())
    assert torch.equal(inputs.eval()(batch), clean(batch))
    assert not torch.equal(inputs.train()(batch), clean(batch))


def test_shared_embeddings_noise_stays_within_each_feature() -> None:
    inputs = block(ALL, pre=StochasticSharedEmbeddings(1.0), post=TabularDropout(0.0)).train()
    for seed in range(5):
        assert bool(inputs(sessions([5] * 20, seed)).isfinite().all())


def test_layer_norm_is_for_each_feature_and_leaves_single_numbers_alone() -> None:
    inputs = block(
        Schema((ITEM, DEVICE, PRICE)), embedding_dims={"item_id": 4, "device": 6}, post="layer-norm"
    )
    batch = sessions([3, 2])
    features = batch.features | {"item_id": batch.features["item_id"].clamp(min=3)}
    features["device"] = features["device"].clamp(min=3)
    result = inputs(SessionBatch(features, batch.lengths))
    assert torch.equal(result[..., 10], batch.features["price"])
    for part in (result[..., :4], result[..., 4:10]):
        torch.testing.assert_close(part.mean(-1), torch.zeros(2, 3), atol=1e-5, rtol=0)
        torch.testing.assert_close(part.var(-1, correction=0), torch.ones(2, 3), atol=0.1, rtol=0)


def test_newest_cuts_nested_features_and_leaves_those_of_a_session() -> None:
    batch = sessions([5, 2, 4], width=5)
    wide = batch.features | {"user": torch.rand(3, 5)}
    cut = newest(SessionBatch(wide, batch.lengths), 3, vectors=["image", "user"])
    assert cut.lengths.tolist() == [3, 2, 3]
    for row, (start, stop) in enumerate([(2, 5), (0, 2), (1, 4)]):
        for name in ("item_id", "price", "words", "image"):
            kept = cut.features[name][row]
            assert torch.equal(kept[: stop - start], wide[name][row, start:stop])
            assert not bool(kept[stop - start :].any())
    for name in ("device", "age", "user"):
        assert cut.features[name] is wide[name]
    single = batch.features | {"user": torch.rand(3, 1, P)}
    assert newest(SessionBatch(single, batch.lengths), 3).features["user"].shape == (3, 1, P)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"price": None}, "no feature 'price', which the model reads. It has: item_id"),
        ({"item_id": None}, "no feature 'item_id'"),
        ({"item_id": torch.ones(2, dtype=torch.int64)}, "'item_id' comes with 1 axes, expected 2"),
        ({"price": torch.ones(2, 3, 1)}, "'price' comes with 3 axes, expected 1 or 2"),
        ({"image": torch.ones(2)}, "'image' comes with 1 axes, expected 2 or 3"),
        ({"image": torch.ones(2, 3, 4)}, "Vectors have 4 numbers, the schema says 3"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(change: dict[str, Any], words: str) -> None:
    batch = sessions([3, 2])
    features = {k: v for k, v in (batch.features | change).items() if v is not None}
    with pytest.raises(DataError) as caught:
        block(ALL)(SessionBatch(features, batch.lengths))
    assert words in str(caught.value)


class Wrong(nn.Module):
    def forward(self, parts: object) -> object:
        return [parts]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"embedding_dims": {"brnad": 3}}, "no column 'brnad'"),
    ({"embedding_dims": {"price": 3}}, "embedding_dims names 'price', which is no categorical"),
    ({"embedding_dims": {"item_id": 0}}, "width of 'item_id' is 0, expected a whole number"),
    ({"embedding_dim_default": 2.5}, "is 2.5, expected a whole number"),
    ({"embeddings_initializers": {"price": nn.init.ones_}}, "which is no embedded feature"),
    (
        {"embeddings_initializers": {"item_id": PretrainedEmbeddingsInitializer(matrix(5))}},
        "The pretrained matrix is (5, 3), the table (20, 3)",
    ),
    (
        {
            "embeddings_initializers": {"item_id": PretrainedEmbeddingsInitializer(matrix(V))},
            "embedding_dims": {"item_id": 4},
        },
        "embedding_dims of 'item_id' is 4, but its pretrained vectors have 3 numbers",
    ),
    ({"shared_tables": ["item_id"]}, "shared_tables holds 'item_id', expected lists"),
    ({"shared_tables": [["item_id"]]}, "shared_tables holds ['item_id'], expected lists"),
    ({"shared_tables": [["item_id", "price"]]}, "names 'price', which is no categorical"),
    (
        {"shared_tables": [["item_id", "words"], ["words", "device"]]},
        "shared_tables names 'words' twice",
    ),
    (
        {"shared_tables": [["words", "device"]], "embedding_dims": {"words": 2, "device": 3}},
        "share a table, but embedding_dims gives them 2 different values",
    ),
    ({"combiner": "max"}, "combiner is 'max'. Expected mean, sum, sqrtn"),
    ({"continuous_projection": []}, "continuous_projection is 0"),
    ({"continuous_projection": [4, -1]}, "continuous_projection is -1"),
    (
        {"continuous_projection": 4, "continuous_soft_embeddings": True},
        "Both continuous_projection and continuous_soft_embeddings are given",
    ),
    ({"soft_embedding_dims": {"price": 3}}, "soft_embedding_dims names 'price'"),
    (
        {"continuous_soft_embeddings": True, "soft_embedding_cardinality_default": 0},
        "num_embeddings is 0",
    ),
    ({"pretrained_embeddings": {"x": PretrainedEmbeddings(matrix(V))}}, "names 'x'"),
    (
        {"pretrained_embeddings": {"item_id": PretrainedEmbeddings(matrix(9))}},
        "'item_id' has 9 rows, the feature has 20",
    ),
    (
        {"pretrained_embeddings": {"item_id": matrix(V)}},
        "has a Tensor for 'item_id', expected tr.PretrainedEmbeddings",
    ),
    ({"pretrained_output_dims": {"price": 3}}, "names 'price', which is no embedding feature"),
    ({"pretrained_output_dims": 0}, "width of vectors is 0"),
    ({"normalizer": "batch-norm"}, "normalizer is 'batch-norm'. Expected 'layer-norm'"),
    ({"pre": "snn"}, "pre is 'snn'. Expected stochastic-swap-noise, ssn"),
    ({"pre": "layer-norm"}, "TabularLayerNorm works on embeddings. Give it as `post`"),
    ({"post": StochasticSwapNoise()}, "StochasticSwapNoise works on features before embedding"),
    ({"post": "norm"}, "post is 'norm'. Expected layer-norm, dropout or a module"),
    ({"post": Wrong()}, "Wrong gives list, expected {name: (B, L, d)}"),
    ({"post": nn.Linear(3, 3)}, "Linear does not take {item_id: (B, L, 64)"),
    ({"aggregation": "concatenate"}, "aggregation is 'concatenate'; did you mean `concat`?"),
    ({"aggregation": "stack"}, "stack needs vectors of one width, found: item_id 64"),
    ({"aggregation": Wrong()}, "Wrong gives list, expected (B, L, D)"),
    ({"projection": nn.Linear(3, 3)}, "Linear does not take (B, L, "),
    ({"projection": nn.Identity(), "d_output": 3}, "Both projection and d_output are given"),
    ({"d_output": 0}, "d_output is 0"),
    ({"masking": "plmm"}, "masking is 'plmm'"),
]


@pytest.mark.parametrize(("arguments", "words"), REFUSED, ids=lambda v: "")
def test_arguments_that_cannot_be_are_refused_in_one_line(
    arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        block(ALL, **arguments)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("schema", "arguments", "words"),
    [
        (Schema((PRICE,)), {}, "Expected one column tagged item_id"),
        ([3], {}, "Expected a Schema or a merlin.schema.Schema, found list"),
        (Schema((ITEM,)), {"aggregation": "element-wise-sum-item-multi"}, "and there are none"),
        (
            Schema((ITEM, ColumnSchema.create_categorical("more", 90))),
            {"shared_tables": [["item_id", "more"]]},
            "share a table of 93 rows, but the catalogue has 20",
        ),
        (
            Schema((ITEM, ColumnSchema(name="x", tags=frozenset({"categorical"})))),
            {},
            "does not say how many values 'x' has",
        ),
        (
            Schema((ITEM, ColumnSchema(name="x", tags=frozenset({"categorical", "continuous"})))),
            {},
            "either as indices or as numbers",
        ),
        (
            Schema(
                (
                    ITEM,
                    ColumnSchema(
                        name="x", tags=frozenset({"continuous"}), values_per_interaction=3
                    ),
                )
            ),
            {},
            "several numbers per interaction. Tag it embedding",
        ),
        (
            Schema((ITEM, ColumnSchema(name="x", tags=frozenset({"embedding"})))),
            {},
            "how many numbers the vectors of 'x' have",
        ),
        (
            Schema((ITEM, ColumnSchema.create_categorical("continuous_projection", 3), PRICE)),
            {"continuous_projection": 3},
            "Two parts have the same name",
        ),
    ],
    ids=lambda v: "",
)
def test_schemas_that_cannot_be_are_refused_in_one_line(
    schema: Any, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        block(schema, **arguments)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PretrainedEmbeddings([[1.0]]), "weight_matrix is (1, 1), expected"),
        (lambda: PretrainedEmbeddings("x"), "not a matrix of numbers"),
        (lambda: PretrainedEmbeddings([[float("nan")]] * 4), "not finite"),
        (lambda: StochasticSwapNoise(1.5), "replacement_prob is 1.5, expected 0 to 1"),
        (lambda: TabularDropout(1.0), "dropout_rate is 1.0"),
        (lambda: StochasticSharedEmbeddings().train()(sessions([1])), "works as `pre`"),
        (lambda: twice(StochasticSharedEmbeddings(), "pre"), "belongs to another input block"),
        (lambda: twice(TabularLayerNorm(), "post"), "belongs to another input block"),
    ],
)
def test_parts_that_cannot_be_are_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert words in str(caught.value)


def twice(module: nn.Module, argument: str) -> None:
    for _ in range(2):
        block(ALL, **{argument: module})


def test_unknown_argument_of_from_schema_raises_type_error_that_names_it() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'agregation'"):
        block(ALL, agregation="concat")
