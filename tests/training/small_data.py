"""A small log, preprocessed: 120 sessions over 40 items."""

from pathlib import Path
from typing import Any

from pipeline.preprocessing.run import preprocess
from pipeline.preprocessing.synthetic import synthesize
from pipeline.recipe.preprocess import Preprocess


def small_data(folder: Path, **settings: Any) -> Path:
    """Write it below `folder`, by a recipe with further `settings`."""
    log, data = folder / "clicks.csv.gz", folder / "data"
    synthesize(log, sessions=120, items=40, seed=2)
    times: Any = {"column": "time", "unit": "iso"}
    split: Any = {"valid": 0.2}
    recipe = Preprocess(session="session", item="product", timestamp=times, split=split, **settings)
    preprocess(recipe, [log], [], data)
    return data
