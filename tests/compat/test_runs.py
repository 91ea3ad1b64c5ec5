"""A model of these names is a run: evaluated, saved and exported as any other."""

from pathlib import Path

import numpy as np
import pytest
import torch

import pipeline
from pipeline import compat as tr
from pipeline.core.errors import ConfigError
from tests.conftest import Shop

pytestmark = pytest.mark.train


def test_model_of_the_trainer_goes_on_as_a_run(shop: Shop, tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = pipeline.Data.open(shop.data)
    schema = data.schema.select_by_name(["item_id", "category", "price", "device"])
    inputs = tr.TabularSequenceFeatures.from_schema(
        schema, max_sequence_length=12, d_output=16, masking="clm", eval_on_last_item_seq_only=False
    )
    task = tr.NextItemPredictionTask(metrics=[tr.RecallAt([10, 20]), tr.NDCGAt([10])])
    model = tr.GPT2Config.build(16, 2, 1, 12, dropout=0.1).to_torch_model(inputs, task)
    sessions = shop.data / "sessions"
    trainer = tr.Trainer(
        model,
        tr.T4RecTrainingArguments(
            str(tmp_path),
            num_train_epochs=3,
            per_device_train_batch_size=64,
            learning_rate=0.01,
            report_to=[],
            use_cpu=True,
        ),
        schema=schema,
        train_dataset_or_path=sessions / "train",
        eval_dataset_or_path=sessions / "valid",
        compute_metrics=True,
    )
    trainer.train()
    ours = trainer.evaluate()
    result = pipeline.evaluate(model, data, part="valid", positions="all", filter_seen=False)
    for metric, k in (("recall", 10), ("recall", 20), ("ndcg", 10)):
        assert ours[f"eval_/next-item/{metric}_at_{k}"] == pytest.approx(
            result.results["model"][f"{metric}@{k}"], abs=1e-9
        )
    run = pipeline.Run.save(model, data, tmp_path / "run")
    saved = pipeline.evaluate(run, data, part="valid", positions="all", filter_seen=False)
    assert saved.results["run"]["ndcg@10"] == pytest.approx(result.results["model"]["ndcg@10"])
    request = {"item_id": ["sku-00001", "sku-00002"], "price": [3.0, 9.0], "device": ["phone"]}
    lists = run.recommend(request, 5)
    live = pipeline.Run.of(model, data).recommend(request, 5)
    assert lists["item_id"].tolist() == live["item_id"].tolist()
    assert np.allclose(lists["score"], live["score"], atol=1e-5)


def test_model_of_other_column_names_is_refused_with_what_to_do(shop: Shop) -> None:
    data = pipeline.Data.open(shop.data)
    item = tr.ColumnSchema.create_categorical("item_id-list", 9, tags=["item_id"], max_length=12)
    inputs = tr.TabularSequenceFeatures.from_schema(
        tr.Schema((item,)), max_sequence_length=12, d_output=16, masking="clm"
    )
    model = tr.GPT2Config.build(16, 2, 1, 12).to_torch_model(inputs, tr.NextItemPredictionTask())
    with pytest.raises(ConfigError, match=r"reads 'item_id-list'.*It has: item_id.*ops\.Rename"):
        pipeline.Run.of(model, data)
