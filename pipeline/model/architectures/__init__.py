"""Architectures, one a file; `pipeline.recipe.choices.ARCHITECTURES` has a line for each.

A file `<name>.py` holds a subclass of ArchitectureConfig and calls it `CONFIG`.
"""

import importlib

from pipeline.core.errors import ConfigError, closest
from pipeline.model.architectures.config import ArchitectureConfig
from pipeline.recipe.choices import ARCHITECTURES


def find_architecture(name: str) -> type[ArchitectureConfig]:
    """Config class of an architecture by its name. ConfigError for an unknown name."""
    if name not in ARCHITECTURES:
        raise ConfigError(f"architecture is {name!r}; {closest(name, list(ARCHITECTURES))}")
    config: type[ArchitectureConfig] = importlib.import_module(f"{__name__}.{name}").CONFIG
    return config
