"""Towers of rows, which have no sessions and no item."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from pipeline import compat as tr
from pipeline.core.errors import ConfigError

pytestmark = pytest.mark.train
DATA = tr.data.tabular_testing_data
ROWS = DATA.torch_synthetic_data(30)


def test_widths_are_those_of_the_parts() -> None:
    tower = tr.TabularFeatures.from_schema(
        DATA.schema, aggregation="concat", embedding_dims={"genre": 3}, embedding_dim_default=5
    )
    assert tower.output_size == tower(ROWS).size(1) == 3 + 5 + 1
    parts = tr.TabularFeatures.from_schema(DATA.schema, embedding_dim_default=5)(ROWS)
    assert {name: tuple(part.shape) for name, part in parts.items()} == {
        "user_country": (30, 5),
        "genre": (30, 5),
        "user_age": (30, 1),
    }
    assert torch.equal(parts["user_age"].squeeze(1), ROWS["user_age"])
    assert set(tr.EmbeddingFeatures.from_schema(DATA.schema)(ROWS)) == {"user_country", "genre"}
    assert set(tr.ContinuousFeatures.from_schema(DATA.schema)(ROWS)) == {"user_age"}
    soft = tr.SoftEmbeddingFeatures.from_schema(DATA.schema, soft_embedding_dim_default=6)
    assert soft(ROWS)["user_age"].shape == (30, 6)


def test_vector_of_a_category_is_its_row_of_the_table() -> None:
    tower = tr.EmbeddingFeatures.from_schema(DATA.schema)
    vectors = tower(ROWS)["genre"]
    assert torch.equal(vectors, tower.table("genre").weight[ROWS["genre"]])


def test_several_values_of_a_row_are_combined() -> None:
    schema = tr.Schema((tr.ColumnSchema.create_categorical("tags", 9),))
    tower = tr.EmbeddingFeatures.from_schema(schema, combiner="sum", embedding_dim_default=4)
    vectors = tower({"tags": torch.tensor([[3, 5], [4, 0]])})["tags"]
    table = tower.table("tags").weight
    assert torch.allclose(vectors[0], table[3] + table[5])
    assert torch.allclose(vectors[1], table[4])


def tower_model(**options: Any) -> tr.Model:
    torch.manual_seed(0)
    tower = tr.TabularFeatures.from_schema(DATA.schema, embedding_dim_default=8, **options)
    body = tr.SequentialBlock(tower, tr.MLPBlock([16]))
    tasks = [tr.BinaryClassificationTask("click"), tr.RegressionTask("play_percentage")]
    return body.to_model(tasks)


def test_rows_do_not_see_each_other() -> None:
    model = tower_model().eval()
    whole = model(ROWS)
    alone = model({name: values[4:5] for name, values in ROWS.items()})
    for name, values in whole.items():
        assert torch.allclose(values[4:5], alone[name], atol=1e-6)


def learnable(folder: Path) -> Path:
    """Rows whose click is the parity of the genre, and whose play time is the age."""
    random = np.random.default_rng(0)
    genre = random.integers(3, 11, 400)
    age = random.random(400).astype(np.float32)
    frame = pd.DataFrame(
        {
            "user_country": random.integers(3, 23, 400),
            "genre": genre,
            "user_age": age,
            "click": genre % 2,
            "play_percentage": age,
        }
    )
    frame.to_parquet(folder / "rows.parquet")
    return folder / "rows.parquet"


def test_trainer_learns_targets_of_rows(tmp_path: Path) -> None:
    path = learnable(tmp_path)
    trainer = tr.Trainer(
        tower_model(),
        tr.T4RecTrainingArguments(
            str(tmp_path),
            num_train_epochs=12,
            per_device_train_batch_size=32,
            learning_rate=0.02,
            report_to=[],
            use_cpu=True,
            eval_strategy="epoch",
        ),
        train_dataset_or_path=path,
        eval_dataset_or_path=path,
        compute_metrics=True,
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    click = "eval_/click/binary_classification_task"
    assert before[f"{click}/binary_accuracy"] < 0.8
    for metric in ("binary_accuracy", "binary_precision", "binary_recall", "auc"):
        assert after[f"{click}/{metric}"] == 1
    squared = "eval_/play_percentage/regression_task/mean_squared_error"
    assert after[squared] < 0.01 < before[squared]
    predictions = trainer.predict(path).predictions
    truth = pd.read_parquet(path)["click"].to_numpy()
    assert ((predictions["click/binary_classification_task"] > 0.5) == truth).all()


def test_loader_of_rows_fits_a_model(tmp_path: Path) -> None:
    loader = tr.MerlinDataLoader.from_schema(DATA.schema, learnable(tmp_path), 50)
    features, targets = next(iter(loader))
    assert features["genre"].shape == targets["click"].shape == (50,)
    losses = tower_model().fit(loader, lambda p: torch.optim.Adam(p, 0.02), num_epochs=4)
    assert losses[-1] < 0.5 * losses[0]


@torch.no_grad()
def test_saved_tower_predicts_the_same(tmp_path: Path) -> None:
    model = tower_model(aggregation="concat", continuous_projection=4).eval()
    model.save(tmp_path)
    loaded = tr.Model.load(tmp_path)
    for name, values in model(ROWS).items():
        assert torch.equal(values, loaded(ROWS)[name])
    assert loaded.input_schema.column_names == ["user_country", "genre", "user_age"]


def test_what_belongs_to_sessions_is_refused() -> None:
    with pytest.raises(ConfigError, match="a row is no session"):
        tr.TabularFeatures.from_schema(DATA.schema, masking="clm")
    tower = tr.TabularFeatures.from_schema(DATA.schema, max_sequence_length=20)
    body = tr.SequentialBlock(tower, nn.Tanh())
    with pytest.raises(ConfigError, match="has no masking"):
        tr.Head(body, tr.NextItemPredictionTask())
