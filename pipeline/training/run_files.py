"""The files that every run has, and conditions on them."""

from pathlib import Path

import numpy as np

from pipeline.core.columns import SCHEMA_FILE
from pipeline.data.directory import Data
from pipeline.data.sessions import read_interactions
from pipeline.model.architectures import REGISTERED
from pipeline.model.model import Model
from pipeline.model.model_files import save_model
from pipeline.model.run import write_program_run
from pipeline.recipe.model import ModelConfig

LOG_FILE = "metrics.jsonl"
EVALUATION_SESSIONS = 1024


def uses_plugins(model: ModelConfig) -> bool:
    """Whether the model cannot be built without a file of plugins."""
    members = model.each_member
    names = {m.architecture for m in members} | {t.architecture for m in members for t in m.towers}
    return not names.isdisjoint(REGISTERED)


def write_run(directory: Path, data: Data, model: Model, model_config: ModelConfig) -> None:
    """Write the model with all inputs of serving and evaluation, which then need no training data.

    A model that needs a file of plugins is written as a program.
    """
    if uses_plugins(model_config):
        write_program_run(directory, data, model)
        return
    save_model(directory, model, data.schema, model_config, data.recipe.max_sequence_length)
    data.fitted.write(directory)
    (directory / SCHEMA_FILE).write_bytes((data.path / SCHEMA_FILE).read_bytes())


def has_targets(data: Data, part: str) -> bool:
    """Whether a part exists and has a session of two interactions."""
    if part not in data.parts:
        return False
    return bool((np.diff(read_interactions(data.path, part).offsets) > 1).any())
