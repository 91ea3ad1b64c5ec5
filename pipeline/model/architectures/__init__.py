"""Sequence encoders, one a file; `pipeline.recipe.choices.ARCHITECTURES` has a line for each.

A file `<name>.py` holds a subclass of EncoderConfig and calls it `CONFIG`.
"""

import importlib

from pipeline.core.arguments import closest
from pipeline.core.errors import ConfigError
from pipeline.model.encoders.config import EncoderConfig
from pipeline.recipe.choices import ARCHITECTURES


def find_architecture(name: str) -> type[EncoderConfig]:
    """The config class of an architecture by its name. ConfigError for an unknown one."""
    if name not in ARCHITECTURES:
        raise ConfigError(f"architecture is {name!r}; {closest(name, list(ARCHITECTURES))}")
    config: type[EncoderConfig] = importlib.import_module(f"{__name__}.{name}").CONFIG
    return config
