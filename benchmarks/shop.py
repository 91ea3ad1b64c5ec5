"""Model repository with random weights, which serves at the same cost as a trained model."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from pipeline.exporting.options import Device, ExportOptions
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.preprocess import Preprocess
from pipeline.recipe.train import TrainConfig

LONGEST = 20
_SESSION = 5
_CATEGORIES = 500
_FIRST_ITEM = 10_000_000
_MODELS: dict[str, dict[str, Any]] = {
    "xlnet": {"architecture": "xlnet", "masking": "mlm"},
    "gpt2": {"architecture": "gpt2", "masking": "clm"},
    "sasrec": {"architecture": "sasrec", "masking": "clm"},
    "gru": {"architecture": "gru", "masking": "clm"},
}


def write_repository(
    folder: Path, *, architecture: str, items: int, d_model: int, device: Device = "cpu"
) -> Path:
    """Write log, data, run and repository below `folder`; return the repository.

    Each of `items` integer item ids occurs once. The model reads item, category, price, hour and
    weekday.
    """
    from pipeline.core.artifact import new_artifact
    from pipeline.data.directory import Data
    from pipeline.exporting.run import export
    from pipeline.model.build import build_model
    from pipeline.preprocessing.run import preprocess
    from pipeline.training.run_files import write_run

    random = np.random.default_rng(0)
    numbers = random.permutation(items)
    log = pa.table(
        {
            "session_id": np.arange(items) // _SESSION,
            "item_id": numbers + _FIRST_ITEM,
            "timestamp": np.arange(items) * 7 + 1_700_000_000,
            "category": numbers % _CATEGORIES,
            "price": np.round(np.exp(random.normal(3, 1, items)), 2),
        }
    )
    pyarrow.csv.write_csv(log, folder / "log.csv")
    recipe = Preprocess.from_dict(
        {
            "timestamp": {"column": "timestamp", "unit": "s", "features": ["hour", "weekday"]},
            "features": [
                {"name": "category", "kind": "categorical"},
                {"name": "price", "kind": "continuous", "log": True},
            ],
            "max_sequence_length": LONGEST,
            "split": {},
        },
        "benchmark",
    )
    data, run, out = folder / "data", folder / "run", folder / "repository"
    preprocess(recipe, [folder / "log.csv"], [], data)
    config = ModelConfig(**_MODELS[architecture], d_model=d_model, n_head=4, n_layer=2)
    opened = Data.open(data)
    model = build_model(opened.schema, config, LONGEST, TrainConfig())
    with new_artifact(run, "run", {}) as directory:
        write_run(directory, opened, model, config)
    export(run, out, ExportOptions(device=device))
    return out
