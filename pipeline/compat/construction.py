"""Arguments of a construction, from which a saved model is built again."""

from dataclasses import dataclass
from typing import Any, ClassVar, Self


@dataclass(frozen=True)
class Zeros:
    """Stands for a matrix whose values are among the weights of the model."""

    shape: tuple[int, ...]


class Rebuildable:
    """Keeps the arguments of its construction in `construction`: positional, then by name."""

    construction: tuple[tuple[Any, ...], dict[str, Any]]
    classes: ClassVar[dict[str, Any]] = {}
    """Every class that is built again from a file, by its name."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Enter the class into `classes`."""
        super().__init_subclass__(**keywords)
        if cls.__module__.startswith("pipeline.compat."):  # a subclass of a user is no part
            Rebuildable.classes[cls.__name__] = cls

    def __new__(cls, *arguments: Any, **keywords: Any) -> Self:
        """Make the object; `__init__` gets the same arguments."""
        instance = super().__new__(cls)
        # not by setattr: the arguments are no parts of a module
        instance.__dict__["construction"] = (arguments, keywords)
        return instance
