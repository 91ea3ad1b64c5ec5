"""A recipe: one YAML file that configures preprocessing, the model and its training.

Defaults stand beside the fields in preprocess.py, features.py, model.py and train.py.
"""

from pathlib import Path
from typing import Any, Self

from pydantic import field_validator, model_validator

from pipeline.core.config import Config
from pipeline.core.errors import ConfigError
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.preprocess import Preprocess
from pipeline.recipe.published import recipe_values
from pipeline.recipe.train import TrainConfig


class Recipe(Config):
    """Configuration of all stages for one data set. Every section has defaults."""

    preprocess: Preprocess = Preprocess()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()

    @field_validator("model", "train", mode="before")
    @classmethod
    def _fill_empty(cls, section: Any) -> Any:
        return {} if section is None else section  # a section without keys is None in YAML

    @model_validator(mode="after")
    def _fit_metric(self) -> Self:
        try:
            train = self.train.for_model(self.model)
        except ConfigError as error:  # pydantic adds the location to a ValueError
            raise ValueError(str(error)) from None
        return self if train is self.train else self.model_copy(update={"train": train})

    @classmethod
    def load(cls, path: str | Path | None, overrides: tuple[str, ...] = ()) -> Self:
        """Read a YAML file, or begin with the defaults, and apply `section.key=value` overrides.

        `path` may also be the name of a published recipe, such as gru4rec.
        ConfigError if the file cannot be read or a key or value is wrong.
        """
        path = None if path is None else Path(path)
        return cls.from_dict(recipe_values(path, overrides), "--set" if path is None else str(path))
