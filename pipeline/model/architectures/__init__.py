"""Architectures.

A new architecture needs a file in this package, with a subclass of ArchitectureConfig whose `name`
stands in recipes, and a line in `pipeline.recipe.choices.ARCHITECTURES`.
"""

import importlib
import pkgutil

from pipeline.core.errors import ConfigError, closest
from pipeline.model.architectures.config import ArchitectureConfig
from pipeline.recipe.choices import ARCHITECTURES

REGISTERED: dict[str, type[ArchitectureConfig]] = {}
"""Architectures that `pipeline.plugins` has registered, by name."""


def find_architecture(name: str) -> type[ArchitectureConfig]:
    """Config class of an architecture by its name. ConfigError for an unknown name."""
    if name in REGISTERED:
        return REGISTERED[name]
    for module in pkgutil.iter_modules(__path__):
        for member in vars(importlib.import_module(f"{__name__}.{module.name}")).values():
            is_config = isinstance(member, type) and issubclass(member, ArchitectureConfig)
            if is_config and getattr(member, "name", None) == name:
                return member
    raise ConfigError(f"architecture is {name!r}; {closest(name, list(ARCHITECTURES))}")
