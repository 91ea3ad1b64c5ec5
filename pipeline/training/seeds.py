"""`pipeline train --seeds`: runs that differ only in the seed."""

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.artifact import current_facts
from pipeline.core.errors import ConfigError
from pipeline.core.outputs import SEED_RUN
from pipeline.data.fingerprint import run_fingerprint
from pipeline.recipe.recipe import Recipe
from pipeline.training.run import train


def train_seeds(
    data: Path,
    recipe: Recipe,
    out: Path,
    seeds: int,
    *,
    restart: bool = False,
    start: Path | None = None,
    plugins: Path | None = None,
) -> dict[str, Any]:
    """Train with the recipe's seed and the following ones; a run that is up to date is kept.

    Runs are written to `out/seed-N`. Return the facts of each run by its name, and mean and
    standard deviation of the loss and, if there is one, of the validation metric. ConfigError for a
    counting model.
    """
    if recipe.model.counting is not None:
        raise ConfigError(
            f"{recipe.model.architecture} has no random part: runs of other seeds would be the "
            "same. Leave out --seeds."
        )
    runs: dict[str, dict[str, Any]] = {}
    for seed in range(recipe.train.seed, recipe.train.seed + seeds):
        config = recipe.train.model_copy(update={"seed": seed})
        folder = out / f"{SEED_RUN}{seed}"
        fingerprint = run_fingerprint(data, recipe.model, config, start=start, plugins=plugins)
        facts = None if restart else current_facts(folder, "run", fingerprint)
        if facts is None:
            folder.parent.mkdir(parents=True, exist_ok=True)
            facts = train(
                data, recipe.model, config, folder, restart=restart, start=start, plugins=plugins
            )
        runs[folder.name] = facts
    first = next(iter(runs.values()))
    names = [name for name in first if name.startswith("valid_")] + ["train_loss"]
    values = {name: [facts[name] for facts in runs.values()] for name in names}
    return {
        "runs": runs,
        "mean": {name: float(np.mean(each)) for name, each in values.items()},
        "deviation": {name: float(np.std(each, ddof=1)) for name, each in values.items()},
    }
