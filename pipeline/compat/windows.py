"""Training by time windows: files per window, and the loop over windows."""

import gc
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.core.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

SEED = 1
PARTS = ("train", "valid", "test")


def save_time_based_splits(
    data: Any,
    output_dir: str | Path,
    partition_col: str | list[str] = "day_idx",
    timestamp_col: str = "ts/first",
    test_size: float = 0.1,
    val_size: float = 0.1,
    overwrite: bool = True,
    cpu: bool = False,  # noqa: ARG001  (pandas makes the parts)
) -> None:
    """Write `WINDOW/train.parquet`, `valid.parquet` and `test.parquet` for each time window.

    `data` is a pandas DataFrame or a `merlin.io.Dataset` of sessions, `partition_col` the column of
    their windows. Sessions of a window are sorted by `timestamp_col`, and `val_size` and
    `test_size` of them are drawn at random with a fixed seed.

    ConfigError for sizes of 1 or more together; DataError for a missing column.
    """
    if min(val_size, test_size) < 0 or val_size + test_size >= 1:
        raise ConfigError(f"val_size {val_size} and test_size {test_size} leave nothing to train.")
    frame = data.to_ddf().compute() if hasattr(data, "to_ddf") else data
    frame = frame.to_pandas() if hasattr(frame, "to_pandas") else frame
    columns = partition_col if isinstance(partition_col, list) else [partition_col]
    for column in (*columns, timestamp_col):
        if column not in frame.columns:
            raise DataError(f"There is no column {column!r}, only: {', '.join(frame.columns)}.")
    directory = Path(output_dir)
    if overwrite and directory.exists():
        shutil.rmtree(directory)
    shares = [1 - val_size - test_size, 1 - test_size]
    for window, sessions in frame.groupby(columns[0], sort=True):
        folder = directory / str(window)
        folder.mkdir(parents=True, exist_ok=True)
        ordered = sessions.sort_values(timestamp_col, kind="stable").reset_index(drop=True)
        draws = np.random.default_rng(SEED).random(len(ordered))
        parts = np.digitize(draws, shares)
        for number, part in enumerate(PARTS):
            ordered[parts == number].to_parquet(folder / f"{part}.parquet", index=False)


def fit_and_evaluate(
    trainer: Any, start_time_index: int, end_time_index: int, input_dir: str | Path
) -> dict[str, list[float]]:
    """Train on each window from start to end, and evaluate on the valid sessions of the next.

    `trainer` is a Trainer of this package. Return the values of each metric in the order of the
    windows, by `AOT_` and its name with `@` for `_at_`; their mean is the average over time.
    """
    over_time: dict[str, list[float]] = {}
    for window in range(start_time_index, end_time_index + 1):
        trainer.train_dataset_or_path = _file(input_dir, window, "train")
        trainer.reset_lr_scheduler()
        trainer.train()
        trainer.eval_dataset_or_path = _file(input_dir, window + 1, "valid")
        metrics = trainer.evaluate(metric_key_prefix="eval")
        logger.info("window %d, evaluated on %d: %s", window, window + 1, metrics)
        for name, value in metrics.items():
            if "_at_" in name:
                over_time.setdefault(f"AOT_{name.replace('_at_', '@')}", []).append(value)
        trainer.wipe_memory()
    return over_time


def _file(directory: str | Path, window: int, part: str) -> Path:
    path = Path(directory) / str(window) / f"{part}.parquet"
    if not path.exists():
        raise DataError(f"{path} does not exist. save_time_based_splits writes the windows.")
    return path


def wipe_memory() -> None:
    """Release unused memory, including that of the GPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
