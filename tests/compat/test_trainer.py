"""Trainer, its arguments, loaders and time windows under the names of the original."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline import compat as tr
from pipeline.compat.dataloader import session_loader
from pipeline.compat.trainer_arguments import further_arguments, metric_name, training_config
from pipeline.core.errors import ArtifactError, ConfigError, DataError
from pipeline.evaluation.metrics import ranking_metrics
from pipeline.evaluation.targets import rank_targets
from tests.conftest import ROOT

pytestmark = pytest.mark.train
DATA = tr.data.tabular_sequence_testing_data


def small_model(metrics: Any = None, masking: str = "clm", **inputs: Any) -> tr.Model:
    torch.manual_seed(0)
    block = tr.TabularSequenceFeatures.from_schema(
        DATA.schema, max_sequence_length=20, d_output=16, masking=masking, **inputs
    )
    config = tr.GPT2Config if masking == "clm" else tr.XLNetConfig
    task = tr.NextItemPredictionTask(metrics=metrics)
    return config.build(16, 2, 1, 20, dropout=0.0).to_torch_model(block, task)


def arguments(folder: Path, **others: Any) -> tr.T4RecTrainingArguments:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "num_train_epochs": 1,
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 32,
        "learning_rate": 0.01,
        "report_to": [],
        "use_cpu": True,
    }
    return tr.T4RecTrainingArguments(**{**settings, **others})


def trainer_of(model: tr.Model, folder: Path, **others: Any) -> tr.Trainer:
    return tr.Trainer(
        model,
        arguments(folder, **others),
        schema=DATA.schema,
        train_dataset_or_path=DATA.path,
        eval_dataset_or_path=DATA.path,
        compute_metrics=True,
    )


def weights_of(model: tr.Model) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).clone()


def test_training_learns_what_follows_what(tmp_path: Path) -> None:
    trainer = trainer_of(small_model(), tmp_path, num_train_epochs=8)
    before = trainer.evaluate()
    result = trainer.train()
    after = trainer.evaluate()
    assert result.global_step == 8 * 13
    assert before["eval_/next-item/recall_at_10"] < 0.4  # 10 of 50 items by chance
    assert after["eval_/next-item/recall_at_10"] > 0.8
    assert after["eval_/loss"] < before["eval_/loss"] - 1
    metrics = [f"{m}_at_{k}" for m in ("ndcg", "avg_precision", "recall") for k in (10, 20)]
    assert set(after) == {"eval_/loss", *(f"eval_/next-item/{metric}" for metric in metrics)}


@pytest.mark.parametrize("masking", ["clm", "mlm"])
@pytest.mark.parametrize("last", [True, False])
def test_metrics_are_those_of_our_evaluation(tmp_path: Path, masking: str, last: bool) -> None:
    metrics = [tr.NDCGAt(top_ks=[5]), tr.MRRAt(top_ks=[20])]
    model = small_model(metrics, masking, eval_on_last_item_seq_only=last)
    values = trainer_of(model, tmp_path).evaluate(metric_key_prefix="test")
    loader = session_loader(model, DATA.path, 64)
    ranks = rank_targets(model.eval(), loader, "last" if last else "all").ranks
    ours = ranking_metrics(ranks, (5, 20))
    assert values["test_/next-item/ndcg_at_5"] == pytest.approx(ours["ndcg@5"], abs=1e-9)
    assert values["test_/next-item/mean_reciprocal_rank_at_20"] == pytest.approx(
        ours["mrr@20"], abs=1e-9
    )
    computed = {f"test_/{name}": value.item() for name, value in model.compute_metrics().items()}
    assert computed == pytest.approx({k: v for k, v in values.items() if k != "test_/loss"})
    loader = tr.MerlinDataLoader.from_schema(DATA.schema, DATA.path, 50, shuffle=False)
    again = {f"test_/{name}": value for name, value in model.evaluate(loader).items()}
    assert again == pytest.approx(values, abs=1e-6)


def test_loss_of_an_evaluation_is_that_of_the_scores(tmp_path: Path) -> None:
    model = small_model()
    values = trainer_of(model, tmp_path).evaluate()
    batch = next(iter(tr.MerlinDataLoader.from_schema(DATA.schema, DATA.path, 200)))[0]
    with torch.no_grad():
        result = model.eval()(batch, testing=True)
        loss = torch.nn.functional.cross_entropy(result["predictions"], result["labels"])
    assert values["eval_/loss"] == pytest.approx(float(loss), abs=1e-5)


def test_metrics_of_every_nth_batch_and_the_loss_of_all(tmp_path: Path) -> None:
    model = small_model()
    whole = trainer_of(model, tmp_path).evaluate()
    some = trainer_of(model, tmp_path, compute_metrics_each_n_steps=7).evaluate()
    assert some["eval_/loss"] == pytest.approx(whole["eval_/loss"])
    loader = list(session_loader(model, DATA.path, 32))
    ranks = rank_targets(model.eval(), loader[::7], "last").ranks
    assert len(ranks) == 32
    expected = ranking_metrics(ranks, (10,))["ndcg@10"]
    assert some["eval_/next-item/ndcg_at_10"] == pytest.approx(expected)


def test_predictions_are_the_lists_of_the_model(tmp_path: Path) -> None:
    model = small_model()
    trainer = trainer_of(model, tmp_path, predict_top_k=7)
    items, scores = trainer.predict(DATA.path).predictions
    assert items.shape == scores.shape == (200, 7)
    batch = next(iter(tr.MerlinDataLoader.from_schema(DATA.schema, DATA.path, 200, shuffle=False)))
    with torch.no_grad():
        catalogue = model.eval()(batch[0])
        model.top_k = 7
        best, indices = model(batch[0])
    assert np.allclose(scores, best.numpy(), atol=1e-5)
    assert (items == indices.numpy()).mean() > 0.99  # equal scores are in any order
    trainer.args.predict_top_k = None
    assert trainer.predict(DATA.path).predictions[0].shape == (200, 7)
    model.top_k = None
    assert np.allclose(trainer.predict(DATA.path).predictions, catalogue.numpy(), atol=1e-5)


def test_data_in_memory_are_read_too(tmp_path: Path) -> None:
    import pipeline.core.merlin  # noqa: F401, I001
    from merlin.io import Dataset

    trainer = trainer_of(small_model(), tmp_path)
    frame = pd.read_parquet(DATA.path)
    expected = trainer.evaluate()
    for data in (frame, Dataset(frame, cpu=True), Dataset(DATA.path, cpu=True)):
        assert trainer.evaluate(data) == expected
    loader = tr.MerlinDataLoader.from_schema(DATA.merlin_schema, Dataset(frame, cpu=True), 64)
    trainer.test_dataloader = loader
    trainer.args.predict_top_k = 3
    assert trainer.predict().predictions[0].shape == (200, 3)


def test_evaluating_as_train_reads_some_batches(tmp_path: Path) -> None:
    trainer = trainer_of(small_model(), tmp_path, eval_steps_on_train_set=2)
    values = trainer.evaluate(metric_key_prefix="train")
    first = list(session_loader(trainer.model, DATA.path, 32))[:2]
    ranks = rank_targets(trainer.model.eval(), first, "last").ranks
    expected = ranking_metrics(ranks, (10,))["recall@10"]
    assert values["train_/next-item/recall_at_10"] == pytest.approx(expected)
    assert trainer.state.log_history[-1]["train_/loss"] == values["train_/loss"]


def test_loaders_of_the_trainer_have_its_batch_sizes(tmp_path: Path) -> None:
    trainer = trainer_of(small_model(), tmp_path)
    assert trainer.get_train_dataloader().batch_size == 16
    assert len(trainer.get_eval_dataloader()) == 7
    assert trainer.get_test_dataloader(DATA.path).max_sequence_length == 20
    loader = trainer.get_train_dataloader()
    trainer.train_dataloader = loader
    assert trainer.get_train_dataloader() is loader
    trainer.schema = None
    with pytest.raises(ConfigError, match="needs the `schema`"):
        trainer.get_eval_dataloader()


def test_schedule_stays_at_its_end_until_it_is_reset(tmp_path: Path) -> None:
    trainer = trainer_of(small_model(), tmp_path, lr_scheduler_type="linear")
    trainer.train()
    trained = weights_of(trainer.model)
    trainer.train()
    assert torch.equal(weights_of(trainer.model), trained)
    trainer.reset_lr_scheduler()
    trainer.train()
    assert not torch.equal(weights_of(trainer.model), trained)
    assert trainer.state.global_step == 3 * 13


def test_best_weights_of_evaluations_during_training_are_kept(tmp_path: Path) -> None:
    trainer = trainer_of(
        small_model(),
        tmp_path,
        num_train_epochs=3,
        evaluation_strategy="epoch",
        metric_for_best_model="eval_/next-item/recall_at_5",
    )
    trainer.train()
    logged = [
        line["eval_recall@5"] for line in trainer.state.log_history if "eval_recall@5" in line
    ]
    assert len(logged) == 3
    task = trainer.model.prediction_tasks["next-item"]
    task.metrics = [tr.RecallAt(top_ks=[5])]
    assert trainer.evaluate()["eval_/next-item/recall_at_5"] == pytest.approx(max(logged))


def test_checkpoint_brings_weights_and_step_back(tmp_path: Path) -> None:
    trainer = trainer_of(small_model(), tmp_path)
    trainer.train()
    path = trainer._save_model_and_checkpoint(save_model_class=True)
    expected = weights_of(trainer.model)
    other = trainer_of(small_model(), tmp_path)
    other.load_model_trainer_states_from_checkpoint(path)
    assert torch.equal(weights_of(other.model), expected)
    assert other.state.global_step == trainer.state.global_step == 13
    assert torch.equal(weights_of(tr.Model.load(path)), expected)
    with pytest.raises(ConfigError, match="is not a checkpoint of this model"):
        other.load_model_trainer_states_from_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"pytorch_model\.bin is a pickle"):
        other.load_model_trainer_states_from_checkpoint(tmp_path)


def test_arguments_become_settings_of_a_recipe(tmp_path: Path) -> None:
    made = arguments(
        tmp_path,
        num_train_epochs=2,
        learning_rate=5e-4,
        weight_decay=0.1,
        warmup_steps=4,
        seed=7,
        lr_scheduler_type="cosine",
        learning_rate_num_cosine_cycles_by_epoch=1.5,
        adam_beta2=0.98,
        dataloader_drop_last=True,
        no_cuda=True,
    )
    config = training_config(made, 160)
    assert (config.epochs, config.batch_size, config.seed) == (2, 16, 7)
    assert (config.learning_rate, config.weight_decay) == (5e-4, 0.1)
    assert config.warmup_ratio == 4 / 20
    further = further_arguments(made)
    assert further["lr_scheduler_kwargs"] == {"num_cycles": 3.0}
    assert further["adam_beta2"] == 0.98
    assert metric_name("eval_/next-item/avg_precision_at_20") == "map@20"


def test_arguments_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`predict` returns them"):
        arguments(tmp_path, log_predictions=True)
    with pytest.raises(ConfigError, match="the loader is merlin"):
        arguments(tmp_path, data_loader_engine="tfrecord")
    with pytest.raises(ConfigError, match="leave out `deepspeed`"):
        further_arguments(_with(arguments(tmp_path), deepspeed="zero.json"))
    trainer = tr.Trainer(small_model(), arguments(tmp_path))
    with pytest.raises(ConfigError, match="Set `train_dataset_or_path`"):
        trainer.train()
    trainer.train_dataset = str(tmp_path / "*.parquet")
    with pytest.raises(DataError, match="no Parquet file at"):
        trainer.train()


def _with(made: tr.T4RecTrainingArguments, **values: Any) -> tr.T4RecTrainingArguments:
    for name, value in values.items():
        setattr(made, name, value)
    return made


def test_file_without_a_column_is_named(tmp_path: Path) -> None:
    pd.DataFrame({"item_id": [[3, 4]]}).to_parquet(tmp_path / "short.parquet")
    trainer = tr.Trainer(small_model(), arguments(tmp_path))
    with pytest.raises(DataError, match=r"short.parquet has no column category"):
        trainer.evaluate(tmp_path)


def test_loader_pads_to_the_length_and_keeps_the_newest() -> None:
    loader = tr.MerlinDataLoader.from_schema(
        DATA.schema, DATA.path, 64, max_sequence_length=6, shuffle=False, drop_last=True
    )
    frame = pd.read_parquet(DATA.path)
    batches = list(loader)
    assert len(batches) == len(loader) == 3
    features, targets = batches[0]
    assert targets is None
    for row, (item, age) in enumerate(zip(frame["item_id"][:64], frame["user_age"], strict=False)):
        newest = item[-6:].tolist()
        assert features["item_id"][row].tolist() == newest + [0] * (6 - len(newest))
        assert float(features["user_age"][row]) == pytest.approx(age)


def test_loader_separates_targets() -> None:
    data = tr.data.music_streaming_testing_data
    features, targets = next(iter(tr.MerlinDataLoader.from_schema(data.schema, data.path, 8)))
    assert set(targets) == {"click", "play_percentage"}
    assert "click" not in features
    assert tr.T4RecDataLoader.parse("nvtabular") is tr.MerlinDataLoader


def windows(folder: Path) -> Path:
    frame = pd.read_parquet(DATA.path)
    frame["day"] = np.arange(len(frame)) % 3 + 1
    frame["first"] = np.random.default_rng(0).permutation(len(frame))
    tr.save_time_based_splits(
        frame, folder / "days", partition_col="day", timestamp_col="first", val_size=0.2
    )
    return folder / "days"


def test_splits_hold_each_session_once_in_the_order_of_time(tmp_path: Path) -> None:
    folder = windows(tmp_path)
    parts = {path: pd.read_parquet(path) for path in sorted(folder.rglob("*.parquet"))}
    assert len(parts) == 9
    assert sorted(pd.concat(parts.values())["first"]) == list(range(200))
    for path, part in parts.items():
        assert part["first"].is_monotonic_increasing
        assert set(part["day"]) == {int(path.parent.name)}
    sizes = {n: sum(len(p) for f, p in parts.items() if f.stem == n) for n in ("train", "valid")}
    assert 120 < sizes["train"] < 160
    assert 25 < sizes["valid"] < 60
    again = windows(tmp_path)
    assert all(pd.read_parquet(p)["first"].equals(part["first"]) for p, part in parts.items())
    with pytest.raises(ConfigError, match="nothing to train"):
        tr.save_time_based_splits(pd.DataFrame(), again, val_size=0.5, test_size=0.5)
    with pytest.raises(DataError, match="no column 'day_idx'"):
        tr.save_time_based_splits(pd.DataFrame({"ts/first": [1]}), again)


def test_windows_are_trained_on_and_evaluated_on_the_next(tmp_path: Path) -> None:
    folder = windows(tmp_path)
    trainer = tr.Trainer(
        small_model(), arguments(tmp_path, num_train_epochs=6), compute_metrics=True
    )
    over_time = tr.fit_and_evaluate(trainer, 1, 2, folder)
    recalls = over_time["AOT_eval_/next-item/recall@10"]
    assert len(recalls) == 2
    assert recalls[1] > recalls[0]  # it goes on from the weights of the window before
    last = trainer.evaluate(folder / "3" / "valid.parquet")
    assert last["eval_/next-item/recall_at_10"] == pytest.approx(recalls[1])
    with pytest.raises(DataError, match="save_time_based_splits writes"):
        tr.fit_and_evaluate(trainer, 3, 3, folder)


@pytest.mark.slow
def test_two_processes_end_as_one(tmp_path: Path) -> None:
    program = [str(Path(__file__).with_name("two_processes.py")), DATA.path, str(tmp_path)]
    launchers = {1: [sys.executable], 2: [sys.executable, "-m", "torch.distributed.run"]}
    launchers[2] += ["--standalone", "--nproc_per_node=2"]
    metrics = []
    for launcher in launchers.values():
        output = subprocess.run(
            [*launcher, *program],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        metrics.append(json.loads(output.splitlines()[-1]))
    assert metrics[0]["eval_/next-item/recall_at_10"] > 0.8
    assert metrics[1] == pytest.approx(metrics[0], abs=1e-3)
