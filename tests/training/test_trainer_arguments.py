"""Arguments, callbacks and optimizers of Hugging Face's Trainer."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback, TrainingArguments

from pipeline.core.errors import ConfigError
from pipeline.data.loader import SessionLoader
from pipeline.data.schema import Schema
from pipeline.model.build import build_model
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.train import TrainConfig
from pipeline.training.run import train
from pipeline.training.trainer import Trainer
from pipeline.training.trainer_arguments import training_arguments
from tests.conftest import ROOT, Shop

SMALL = ModelConfig(d_model=8, n_head=2, n_layer=1, dropout=0.0, feature_dropout=0.0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_train_epochs": 3}, "`num_train_epochs` is `train.epochs` here"),
        ({"output_dir": "x"}, "leave out `output_dir`: --out says"),
        ({"load_best_model_at_end": True}, "the best weights are kept"),
    ],
)
def test_unsupported_argument_is_refused_in_one_line(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Recipe.from_dict({"train": {"arguments": arguments}}, "shop.yaml")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"leave out|set that"):
        training_arguments(TrainConfig(), "x", validate=True, arguments=arguments)


def test_misspelt_argument_suggests_the_right_one() -> None:
    config = TrainConfig(arguments={"lr_scheduler_typ": "linear"})
    with pytest.raises(ConfigError, match=r"did you mean `lr_scheduler_type`\?"):
        training_arguments(config, "x", validate=True)


def test_value_refused_by_hugging_face_is_one_line() -> None:
    config = TrainConfig(arguments={"lr_scheduler_type": "zigzag"})
    with pytest.raises(ConfigError, match=r"`train\.arguments`: .*zigzag"):
        training_arguments(config, "x", validate=True)


def test_arguments_reach_the_trainer() -> None:
    config = TrainConfig(
        metric="mrr@7",
        gradient_accumulation_steps=3,
        validate_every=7,
        arguments={"lr_scheduler_type": "polynomial", "logging_steps": 5, "adam_beta2": 0.98},
    )
    made = training_arguments(config, "x", validate=True, arguments=TrainingArguments(max_steps=9))
    assert made.lr_scheduler_type == "polynomial"
    assert (made.logging_steps, made.adam_beta2, made.max_steps) == (5, 0.98, 9)
    assert (made.gradient_accumulation_steps, made.eval_steps) == (3, 7)
    assert (made.metric_for_best_model, made.greater_is_better) == ("mrr@7", True)


class LearningRates(TrainerCallback):
    """Learning rate of each step."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_optimizer_step(self, *_arguments: Any, **others: Any) -> None:
        self.rates.append(others["optimizer"].param_groups[0]["lr"])


def test_trainer_takes_callbacks_and_an_optimizer(shop: Shop, tmp_path: Path) -> None:
    schema = Schema.from_json(shop.data / "schema.pbtxt")
    model = build_model(schema, SMALL, 20)
    features = model.inputs.feature_names
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    steady = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _step: 0.5)
    learning_rates = LearningRates()
    trainer = Trainer(
        model,
        TrainConfig(metric="recall@3"),
        train_loader=SessionLoader(
            shop.data, "train", item="item_id", features=features, batch_size=256, shuffle=True
        ),
        valid_loader=SessionLoader(
            shop.data, "valid", item="item_id", features=features, batch_size=256
        ),
        log_path=tmp_path / "log",
        arguments=TrainingArguments(max_steps=3, eval_on_start=True),
        callbacks=[learning_rates],
        optimizers=(optimizer, steady),
    )
    trainer.train()
    assert learning_rates.rates == [0.25] * 3
    assert trainer.best is not None
    assert trainer.best.metric == "eval_recall@3"
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert "eval_recall@3" in lines[0]


def test_accumulated_gradients_equal_those_of_one_large_batch(shop: Shop, tmp_path: Path) -> None:
    weights = []
    for size, steps in ((128, 1), (32, 4)):
        config = TrainConfig(
            epochs=1,
            batch_size=size,
            gradient_accumulation_steps=steps,
            metric="loss",
            arguments={"max_steps": 4},
        )
        facts = train(shop.data, SMALL, config, tmp_path / str(size))
        weights.append(facts["valid_loss"])
    assert weights[0] == pytest.approx(weights[1], rel=1e-5)


def test_log_has_speed_and_memory_and_tensorboard_the_same_losses(
    shop: Shop, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = TrainConfig(epochs=2, tensorboard=True, batch_size=256)
    train(shop.data, SMALL, config, tmp_path / "run")
    lines = [json.loads(s) for s in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    of_epochs = [line for line in lines if "loss" in line]
    assert [line["epoch"] for line in of_epochs] == [1, 2]
    for line in of_epochs:
        assert line["sessions_per_second"] > 0
        assert line["peak_memory_mb"] > 50
        assert {"step", "learning_rate", "grad_norm", "seconds"} <= set(line)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    assert losses == pytest.approx([line["loss"] for line in of_epochs])
    assert "eval/ndcg@20" in events.Tags()["scalars"]


def test_program_of_the_documentation_runs(shop: Shop, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "how-to" / "train.md").read_text(encoding="utf-8")
    [program] = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "shop.yaml").write_text("train: {epochs: 1, batch_size: 256}")
    program = program.replace("data/shop", str(shop.data))
    program = program.replace("shop.yaml", str(tmp_path / "shop.yaml"))
    model = build_model(Schema.from_json(shop.data / "schema.pbtxt"), SMALL, 20)
    names: dict[str, Any] = {"model": model}
    exec(compile(program, "docs", "exec"), names)  # noqa: S102
    assert names["trainer"].state.epoch == 1


@pytest.mark.gpu
@pytest.mark.parametrize("arguments", [{}, {"fp16": True}, {"torch_compile": True}], ids=str)
def test_gpu_training_equals_cpu_training(
    shop: Shop, tmp_path: Path, arguments: dict[str, Any]
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    losses = []
    for name, more in (("gpu", arguments), ("cpu", {"use_cpu": True})):
        config = TrainConfig(epochs=1, metric="loss", arguments={"max_steps": 20, **more})
        facts = train(shop.data, SMALL, config, tmp_path / name)
        losses.append(facts["valid_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
