"""What an output was made from, so that a stage that is done is not done again.

The command line asks before it imports a stage, and the stage writes the same into its manifest.
All of it is text of 64 hexadecimal digits; OSError where a log or a manifest cannot be read.
"""

from pathlib import Path

from pipeline.core.artifact import fingerprint
from pipeline.recipe.preprocess import ModelConfig, Preprocess, TrainConfig


def of_data(
    recipe: Preprocess,
    inputs: list[Path],
    test_inputs: list[Path],
    base: Path | None = None,
    operators: Path | None = None,
) -> str:
    """Of a data directory: the recipe and the content of the logs, in their order.

    `base` is the data directory whose indices it goes on with, `operators` the file of those that
    make features.
    """
    settings = {"recipe": recipe.model_dump(mode="json"), "inputs": len(inputs)}
    others = [Path(table.file) for table in recipe.tables]
    others += [] if operators is None else [operators]
    return fingerprint(settings, [*inputs, *test_inputs, *others], [] if base is None else [base])


def of_run(
    data: Path,
    model: ModelConfig,
    train: TrainConfig,
    *,
    windows: float | None = None,
    start: Path | None = None,
) -> str:
    """Of a run: the data directory, files of vectors, the settings of model and training.

    `windows` is the width of those that it is trained in, in seconds; `start` the run it began
    from.
    """
    settings: dict[str, object] = {
        "model": model.model_dump(mode="json"),
        "train": train.model_dump(mode="json"),
    }
    if windows is not None:
        settings["windows"] = windows
    begun = [] if start is None else [start]
    files = [Path(vectors.file) for vectors in model.pretrained]
    return fingerprint(settings, files, [data, *begun])


def of_repository(
    run: Path,
    *,
    name: str,
    default_k: int,
    max_k: int,
    max_batch: int,
    device: str,
    scoring: str,
) -> str:
    """Of a model repository: the run and the settings of the export."""
    settings = {"name": name, "k": default_k, "max_k": max_k, "max_batch": max_batch}
    return fingerprint(settings | {"device": device, "scoring": scoring}, [], [run])
