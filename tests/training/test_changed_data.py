"""Data that are removed or changed while a training reads them."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from pipeline.core.errors import ArtifactError
from pipeline.data.directory import ChangedDataError
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.train import TrainConfig
from pipeline.training.run import train
from tests.training.small_data import small_data

MODEL = ModelConfig(d_model=8, n_head=2, n_layer=1)
CONFIG = TrainConfig(epochs=3, batch_size=24, checkpoint_steps=1)


class Change(TrainerCallback):
    """Calls a function with the data in the middle of the second epoch."""

    def __init__(self, change: Any, data: Path) -> None:
        self.change, self.data = change, data

    def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        if state.epoch is not None and 1.4 < state.epoch < 1.9 and self.change is not None:
            self.change(self.data)
            self.change = None


def flip(data: Path) -> None:
    file = data / "sessions" / "train" / "part-0.parquet"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def replace(data: Path) -> None:
    """Put other data in their place."""
    shutil.rmtree(data)
    (data.parent / "clicks.csv.gz").unlink()
    small_data(data.parent, max_sequence_length=7)


def copy_again(data: Path) -> None:
    """Put the same data in their place, as a second run of preprocess does."""
    shutil.copytree(data, data.with_name("copy"))
    shutil.rmtree(data)
    data.with_name("copy").rename(data)


def remove(data: Path) -> None:
    shutil.rmtree(data)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return small_data(tmp_path)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (flip, ChangedDataError, r"Changed while it was read.*sessions/train/part-0\.parquet"),
        (replace, ChangedDataError, "was replaced by other data while it was read"),
        (remove, ArtifactError, "was removed while it was read: .* is missing"),
    ],
)
def test_training_on_data_that_change_ends_without_a_run(
    data: Path, tmp_path: Path, change: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        train(data, MODEL, CONFIG, tmp_path / "run", callbacks=[Change(change, data)])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    # steps after the change are in the checkpoints, which are kept where nothing could be read
    assert (tmp_path / ".run.checkpoints").exists() == (change is remove)


def test_training_goes_on_where_the_same_data_are_written_again(data: Path, tmp_path: Path) -> None:
    train(data, MODEL, CONFIG, tmp_path / "run", callbacks=[Change(copy_again, data)])
    train(data, MODEL, CONFIG, tmp_path / "undisturbed")
    weights = [tmp_path / run / "model.safetensors" for run in ("run", "undisturbed")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
