"""Methods of the original's model: dictionaries, fit, evaluate, schemas, save and load."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline import compat as tr
from pipeline.core.errors import ArtifactError, ConfigError, DataError

DATA = tr.data.music_streaming_testing_data
FEATURES = tr.data.tabular_sequence_testing_data.schema
BATCH = tr.data.tabular_sequence_testing_data.torch_synthetic_data(40)


def features(masking: str | None = "clm", **options: Any) -> tr.TabularSequenceFeatures:
    return tr.TabularSequenceFeatures.from_schema(
        FEATURES, max_sequence_length=20, d_output=16, masking=masking, **options
    )


def model_of(config: Any = tr.GPT2Config, masking: str = "clm", **options: Any) -> tr.Model:
    torch.manual_seed(0)
    built = config.build(16, 2, 1, 20, dropout=0.0)
    return built.to_torch_model(features(masking), tr.NextItemPredictionTask(**options)).eval()


def same(one: Any, other: Any) -> bool:
    return torch.equal(torch.nan_to_num(one), torch.nan_to_num(other))


@torch.no_grad()
def test_padded_ragged_and_session_batches_have_the_same_scores() -> None:
    model = model_of()
    ragged = tr.data.tabular_sequence_testing_data.torch_synthetic_data(40, ragged=True)
    lengths = (BATCH["item_id"] != 0).sum(1)
    scores = model(tr.SessionBatch(BATCH, lengths))
    assert scores.shape == (40, 53)
    assert scores[:, :3].isneginf().all()
    assert torch.allclose(scores[:, 3:], model(BATCH)[:, 3:], atol=1e-6)
    assert torch.allclose(scores[:, 3:], model(ragged)[:, 3:], atol=1e-5)
    columns = {name: v.unsqueeze(1) if v.dim() == 1 else v for name, v in BATCH.items()}
    assert torch.allclose(scores[:, 3:], model(columns)[:, 3:], atol=1e-6)


def test_padding_on_the_left_is_refused() -> None:
    flipped = {name: v.flip(1) if v.dim() == 2 else v for name, v in BATCH.items()}
    with pytest.raises(DataError, match="padding on the right"):
        model_of()(flipped)


@torch.no_grad()
def test_top_k_makes_a_call_return_lists() -> None:
    model = model_of()
    scores = model(BATCH)
    model.top_k = 5
    best, items = model(BATCH)
    expected = scores.topk(5)
    assert torch.allclose(best, expected.values)
    assert (items == expected.indices).float().mean() > 0.99
    assert model.output_schema.column_names == ["item_id_scores", "item_ids"]
    batch = tr.SessionBatch(BATCH, (BATCH["item_id"] != 0).sum(1))
    unseen = model.top_k(batch, 5, filter_seen=True).items
    assert not (unseen[:, :, None] == BATCH["item_id"][:, None, :]).any()
    model.top_k = None
    assert same(model(BATCH), scores)
    with pytest.raises(ConfigError, match="top_k is 0"):
        model.top_k = 0


def test_testing_hides_the_last_item_and_training_has_a_loss() -> None:
    model = model_of()
    result = model(BATCH, testing=True)
    lengths = (BATCH["item_id"] != 0).sum(1)
    last = lengths - 1
    assert torch.equal(result["labels"], BATCH["item_id"][torch.arange(40), last])
    earlier = {
        name: v * (torch.arange(20) < last[:, None]) if v.dim() == 2 else v
        for name, v in BATCH.items()
    }
    assert torch.allclose(result["predictions"][:, 3:], model(earlier)[:, 3:], atol=1e-5)
    computed = model.calculate_metrics(result["predictions"], result["labels"])
    evaluated = model.evaluate([BATCH])
    assert computed["next-item/ndcg_at"].tolist() == pytest.approx(
        [evaluated["next-item/ndcg_at_10"], evaluated["next-item/ndcg_at_20"]]
    )
    assert result["loss"].item() == pytest.approx(evaluated["loss"], abs=1e-6)
    loss = model(BATCH, training=True)["loss"]
    loss.backward()
    again = model.loss(tr.SessionBatch(BATCH, lengths))
    assert loss.item() == pytest.approx(again.item())


def test_fit_lowers_the_loss_of_every_task() -> None:
    torch.manual_seed(0)
    gru = tr.Block(nn.GRU(16, 16, batch_first=True), [None, 20, 16])
    body = tr.SequentialBlock(features("clm"), tr.MLPBlock([16]), gru)
    head = tr.Head(
        body,
        [
            tr.NextItemPredictionTask(),
            tr.BinaryClassificationTask("click"),
            tr.RegressionTask("play_percentage"),
        ],
        task_weights=[1.0, 0.5, 2.0],
    )
    model = head.to_model(optimizer=torch.optim.Adam)
    loader = tr.MerlinDataLoader.from_schema(DATA.schema, DATA.path, 20)
    before = model.evaluate(loader)
    losses = model.fit(loader, lambda p: torch.optim.Adam(p, 0.01), loader, num_epochs=6)
    assert losses.tolist() == sorted(losses, reverse=True)
    after = model.evaluate(loader)
    squared = "play_percentage/regression_task/mean_squared_error"
    assert after["loss"] < before["loss"]
    assert after[squared] < before[squared]
    assert after["next-item/recall_at_10"] > before["next-item/recall_at_10"] + 0.2
    computed = model.compute_metrics(mode="eval")
    assert computed["eval_next-item/recall_at_10"].item() == pytest.approx(
        after["next-item/recall_at_10"]
    )


def test_fit_takes_the_batches_of_a_torch_data_set() -> None:
    model = model_of()
    data = torch.utils.data.DataLoader([(BATCH, None), (BATCH, {})], batch_size=7)
    losses = model.fit(data, num_epochs=3)
    assert losses.shape == (3,)
    assert losses[2] < losses[0]
    assert model.evaluate(data)["loss"] == pytest.approx(model.evaluate([BATCH])["loss"])


def test_metrics_of_targets_are_those_of_the_predictions() -> None:
    torch.manual_seed(0)
    body = tr.SequentialBlock(features("clm"), nn.Tanh())
    tasks = [tr.BinaryClassificationTask("click"), tr.RegressionTask("play_percentage")]
    model = body.to_model(tasks).eval()
    data = DATA.torch_synthetic_data(60)
    targets = {name: data.pop(name) for name in ("click", "play_percentage")}
    with torch.no_grad():
        click, played = model(data).values()
    values = model.evaluate([(data, targets)], mode="test")
    name = "click/binary_classification_task"
    hits = ((click >= 0.5) & (targets["click"] == 1)).sum() / (click >= 0.5).sum().clamp(min=1)
    assert values[f"{name}/binary_precision"] == pytest.approx(float(hits))
    accuracy = ((click >= 0.5) == (targets["click"] == 1)).float().mean()
    assert values[f"{name}/binary_accuracy"] == pytest.approx(float(accuracy))
    error = (played - targets["play_percentage"]).square().mean()
    assert values["play_percentage/regression_task/mean_squared_error"] == pytest.approx(
        float(error), rel=1e-5
    )
    logits = nn.functional.binary_cross_entropy(click, targets["click"].float())
    assert values["loss"] == pytest.approx(float(logits + error) / 2, rel=1e-5)


def test_target_of_the_only_task_may_be_a_tensor() -> None:
    torch.manual_seed(0)
    config = tr.XLNetConfig.build(16, 2, 1, 20, dropout=0.0)
    encoder = tr.TransformerBlock(config)  # gets the masking of the input block
    body = tr.SequentialBlock(features("clm"), encoder)
    one = tr.Head(body, tr.NextItemPredictionTask())
    model = tr.Model(one, tr.BinaryClassificationTask("click", summary_type="mean").to_head(body))
    clicks = torch.randint(0, 2, (40,))
    result = model.eval()(BATCH, targets=clicks, testing=True)
    assert set(result["labels"]) == {"next-item", "click/binary_classification_task"}
    losses = [
        nn.functional.cross_entropy(
            result["predictions"]["next-item"], result["labels"]["next-item"]
        ),
        nn.functional.binary_cross_entropy(
            result["predictions"]["click/binary_classification_task"], clicks.float()
        ),
    ]
    assert result["loss"].item() == pytest.approx(sum(loss.item() for loss in losses) / 2, abs=1e-5)
    alone = model(BATCH, targets={"click": clicks}, training=True)["loss"]
    assert alone.item() == pytest.approx(model(BATCH, clicks, training=True)["loss"].item())


def gru_model() -> tr.Model:
    inputs = features(
        "clm",
        pre=[tr.StochasticSwapNoise(FEATURES, replacement_prob=0.2)],
        post=["layer-norm", tr.TabularDropout(0.1)],
        embeddings_initializers={"category": nn.init.normal_},
        infer_embedding_sizes=True,
    )
    gru = tr.Block(nn.GRU(16, 24, batch_first=True), [None, 20, 24])
    body = tr.SequentialBlock(inputs, tr.MLPBlock([16], activation=nn.Tanh), gru)
    return body.to_model(tr.NextItemPredictionTask(loss=nn.CrossEntropyLoss(label_smoothing=0.1)))


def two_towers() -> tr.Model:
    inputs = features("mlm", continuous_projection=[8, 4], aggregation="concat")
    config = tr.XLNetConfig.build(16, 2, 1, 20)
    body = tr.SequentialBlock(
        inputs,
        tr.ParallelBlock([tr.TransformerBlock(config, masking=inputs.masking)], [tr.MLPBlock([8])]),
    )
    tasks = [
        tr.NextItemPredictionTask(sampled_softmax=True, max_n_samples=20, weight_tying=False),
        tr.BinaryClassificationTask("click", task_block=tr.MLPBlock([4])),
    ]
    return tr.Head(body, tasks, task_weights=[1.0, 0.5]).to_model(top_k=4)


def with_vectors() -> tr.Model:
    torch.manual_seed(1)
    initializer = tr.PretrainedEmbeddingsInitializer(torch.randn(53, 6), trainable=True)
    inputs = features(
        "plm",
        embeddings_initializers={"item_id": initializer},
        pretrained_embeddings={"category": tr.PretrainedEmbeddings(torch.randn(13, 5))},
        plm_probability=0.3,
    )
    config = tr.XLNetConfig.build(16, 2, 1, 20)
    return config.to_torch_model(inputs, tr.NextItemPredictionTask())


@pytest.mark.parametrize(
    "make",
    [
        gru_model,
        two_towers,
        with_vectors,
        *(lambda c=c: model_of(c) for c in (tr.GPT2Config, tr.AlbertConfig, tr.SASRecConfig)),
        lambda: model_of(tr.ElectraConfig, "rtd"),
    ],
)
@torch.no_grad()
def test_saved_model_has_the_same_predictions(make: Callable[[], tr.Model], tmp_path: Path) -> None:
    model = make().eval()
    model.save(tmp_path / "model")
    loaded = tr.Model.load(tmp_path / "model")
    one, other = model(BATCH), loaded(BATCH)
    if isinstance(one, dict):
        assert list(one) == list(other) == ["next-item", "click/binary_classification_task"]
        assert torch.equal(one["next-item"][1], other["next-item"][1])
        assert torch.equal(*(p["click/binary_classification_task"] for p in (one, other)))
    else:
        assert same(one, other)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert loaded.input_schema == model.input_schema
    assert [file.suffix for file in sorted((tmp_path / "model").iterdir())] == [
        ".json",
        ".safetensors",
    ]
    loss = loaded.train().loss  # it trains on
    with torch.enable_grad():
        batch = tr.SessionBatch({**BATCH, "click": torch.ones(40)}, (BATCH["item_id"] != 0).sum(1))
        loss(batch).backward()


class Mean(nn.Module):
    """Mean of the present and the past of each session."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(B, L, D) -> (B, L, D)."""
        count = torch.arange(1, hidden.size(1) + 1, device=hidden.device)
        return hidden.cumsum(1) / count[:, None]


def test_matrix_is_a_pretrained_table_with_its_own_width(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(53, 6))
    inputs = features(
        "clm",
        pretrained_embeddings={"item_id": vectors},
        pretrained_output_dims={"item_id": 4},
        normalizer="layer-norm",
    )
    table = next(part for part in inputs.modules() if isinstance(part, tr.PretrainedEmbeddings))
    assert torch.equal(table.table.weight[3:], torch.tensor(vectors[3:]).float())
    assert table.output_size == 4
    assert isinstance(table.projection.normalizer, nn.LayerNorm)
    config = tr.GPT2Config.build(16, 2, 1, 20)
    model = config.to_torch_model(inputs, tr.NextItemPredictionTask()).eval()
    model.save(tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(model(BATCH), tr.Model.load(tmp_path / "model")(BATCH))
    with pytest.raises(ConfigError, match="has 9 rows, the feature has 53"):
        features("clm", pretrained_embeddings={"item_id": vectors[:9]})


@pytest.mark.parametrize("name", ["t4rec_model_class.pkl", "pytorch_model.bin"])
def test_model_of_transformers4rec_is_refused_with_what_to_do(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(ArtifactError, match=f"{name} is a pickle.*train it: docs/tutorials/"):
            tr.Model.load(path)


def test_model_with_a_module_of_ones_own_says_that_it_cannot_be_saved(tmp_path: Path) -> None:
    model = tr.SequentialBlock(features(), Mean()).to_model(tr.NextItemPredictionTask())
    with pytest.raises(ConfigError, match=r"SequentialBlock holds a Mean.*state_dict"):
        model.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_damaged_or_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        tr.Model.load(tmp_path)
    model_of().save(tmp_path)
    description = json.loads((tmp_path / "model.json").read_text())
    for damage in (
        {"format": "other"},
        {"model": {"class": "os.system", "arguments": [], "keywords": {}}},
        {"model": {"surprise": 1}},
    ):
        (tmp_path / "model.json").write_text(json.dumps({**description, **damage}))
        with pytest.raises(ArtifactError, match=r"holds no model|does not hold a model"):
            tr.Model.load(tmp_path)
    model_of(tr.GPT2Config).save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match="is missing or damaged"):
        tr.Model.load(tmp_path)


def test_schemas_of_a_model_are_its_columns() -> None:
    model = model_of()
    assert model.input_schema == FEATURES
    assert model.input_schema["item_id"].num_rows == 53
    assert model.output_schema.column_names == ["next-item"]
    config = tr.GPT2Config.build(16, 2, 1, 20)
    plain = tr.TabularSequenceFeatures.mro()[2].from_schema(  # of pipeline.model
        FEATURES, max_sequence_length=20, d_output=16, masking="clm"
    )
    with pytest.raises(ConfigError, match="keeps no schema"):
        config.to_torch_model(plain, tr.NextItemPredictionTask()).input_schema  # noqa: B018


@pytest.mark.parametrize(
    ("config", "maskings"),
    [
        (tr.GPT2Config, ["clm"]),
        (tr.XLNetConfig, ["clm", "mlm", "plm", "rtd"]),
        (tr.AlbertConfig, ["clm", "mlm", "rtd"]),
        (tr.ElectraConfig, ["clm", "mlm", "rtd"]),
        (tr.BertConfig, ["clm", "mlm", "rtd"]),
        (tr.RobertaConfig, ["clm", "mlm", "rtd"]),
        (tr.LongformerConfig, ["mlm", "rtd"]),
        (tr.ReformerConfig, ["clm", "mlm", "rtd"]),
    ],
)
@torch.no_grad()
def test_total_length_is_the_length_of_sessions_for_every_masking(
    config: Any, maskings: list[str]
) -> None:
    full = {n: torch.full_like(v, 5) if v.dtype == torch.int64 else v for n, v in BATCH.items()}
    for masking in maskings:
        scores = model_of(config, masking)(full)
        assert scores[:, 3:].isfinite().all()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("config", [tr.XLNetConfig, tr.GPT2Config, tr.BertConfig])
def test_model_traced_with_a_ragged_batch_takes_other_batches(config: Any) -> None:
    masking = "clm" if config is tr.GPT2Config else "mlm"
    model = tr.Model(model_of(config, masking).heads[0], top_k=10).eval()
    data = tr.data.tabular_sequence_testing_data
    short = data.torch_synthetic_data(30, 3, 4, ragged=True)
    longer = data.torch_synthetic_data(17, 10, 26, ragged=True)
    with torch.no_grad():
        traced = torch.jit.trace(model, short, strict=True)
        for batch in (short, longer):
            scores, items = model(batch)
            traced_scores, traced_items = traced(batch)
            assert torch.allclose(scores, traced_scores, atol=1e-5)
            assert (items == traced_items).float().mean() > 0.99


def test_length_may_be_an_argument_of_the_model_or_the_trainer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    inputs = tr.TabularSequenceFeatures.from_schema(FEATURES, d_output=16, masking="clm")
    body = tr.SequentialBlock(inputs, nn.Tanh())
    model = body.to_model(tr.NextItemPredictionTask(), max_sequence_length=4)
    assert model.inputs.max_sequence_length == 4
    assert not caplog.records
    tr.Model(model.heads[0], max_sequence_length=9)
    assert "the input block reads 4 interactions. See docs/ref" in caplog.text


def bidirectional(masking: str) -> tr.Model:
    config = tr.XLNetConfig.build(16, 2, 1, 20, attn_type="bi", summary_type="first")
    return config.to_torch_model(features(masking), tr.NextItemPredictionTask())


def test_arguments_with_one_value_here_say_why() -> None:
    for make, reason in (
        (lambda: bidirectional("clm"), "follows the masking, which is uni"),
        (lambda: tr.XLNetConfig.build(16, 2, 1, 20, mem_len=9), "nothing is carried"),
        (lambda: tr.NextItemPredictionTask(target_dim=4), "the size of the catalogue"),
        (lambda: tr.BinaryClassificationTask("click", loss=nn.MSELoss()), "binary cross-entropy"),
        (lambda: tr.RegressionTask("click", summary_type="attn"), "last, mean, first"),
        (lambda: tr.MLPBlock([4], filter_features=["a"]), "tags of the schema"),
        (lambda: features(automatic_build=False), "sizes follow from the schema"),
        (lambda: tr.TransformerBlock(None, prepare_module=Mean), "follows the masking"),
        (lambda: features(padding_idx=1), "padding is index 0"),
    ):
        with pytest.raises(
            ConfigError, match=rf"{reason}.*docs/reference/transformers4rec-arguments.md"
        ):
            make()
    assert bidirectional("mlm")(BATCH).shape == (40, 53)
    assert tr.XLNetConfig.build(16, 2, 1, 20, mem_len=1, pad_token=0, d_inner=7).options == {
        "d_inner": 7
    }


def test_leaks_of_the_original_are_refused_in_a_line_that_names_the_page() -> None:
    for make, reason in (
        (lambda: model_of(tr.LongformerConfig, "clm"), "longformer works with mlm, rtd"),
        (lambda: tr.SequentialBlock(features(), tr.Block(nn.GRU(16, 16))), "batch_first=True"),
        (lambda: tr.MLPBlock([16], normalization="batch_norm"), "mix sessions"),
        (
            lambda: tr.SequentialBlock(features(), nn.Tanh()).to_model(
                tr.BinaryClassificationTask("click", summary_type="first")
            ),
            "sees only one interaction",
        ),
    ):
        with pytest.raises(
            ConfigError, match=rf"{reason}.*docs/reference/transformers4rec-arguments.md"
        ):
            make()


def test_misspelt_argument_is_pythons_type_error() -> None:
    for make in (
        tr.NextItemPredictionTask,
        tr.MLPBlock,
        tr.Head,
        tr.Model,
        tr.BinaryClassificationTask,
        tr.NDCGAt,
        lambda **o: tr.TabularSequenceFeatures.from_schema(FEATURES, **o),
        lambda **o: tr.MerlinDataLoader.from_schema(DATA.schema, DATA.path, 2, **o),
        lambda **o: tr.T4RecTrainingArguments("out", **o),
        lambda **o: tr.Trainer(None, None, **o),
    ):
        with pytest.raises(TypeError, match="'maskng'"):
            make(maskng="clm")


def test_parts_fit_together_as_in_the_original() -> None:
    inputs = features("clm", item_id="category")
    assert inputs.item_id == "category"
    encoder = tr.TransformerBlock.from_registry("gpt2", 16, 2, 1, 20, inputs.masking)
    task = tr.NextItemPredictionTask()
    model = task.to_model(tr.SequentialBlock(inputs, encoder, output_size=[None, 20, 16]), inputs)
    assert isinstance(task, tr.PredictionTask)
    assert isinstance(tr.GPT2Config.build(16, 2, 1, 20), tr.T4RecConfig)
    assert model(BATCH).shape == (40, 13)
    head = tr.Head.from_schema(
        DATA.schema,
        tr.SequentialBlock(features("clm"), nn.Tanh()),
        task_weight_dict={"click/binary_classification_task": 3.0},
    )
    assert head.task_weights == [3.0, 1.0]
