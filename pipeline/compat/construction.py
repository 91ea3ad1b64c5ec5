"""Constructor arguments, from which a saved model is rebuilt."""

from dataclasses import dataclass
from typing import Any, ClassVar, Self


@dataclass(frozen=True)
class Zeros:
    """Placeholder of a matrix whose values are in the weights of the model."""

    shape: tuple[int, ...]


class Rebuildable:
    """Keeps the constructor arguments in `construction`: positional, then by name."""

    construction: tuple[tuple[Any, ...], dict[str, Any]]
    classes: ClassVar[dict[str, Any]] = {}
    """Classes that can be rebuilt from a file, by name."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Register the class in `classes`."""
        super().__init_subclass__(**keywords)
        if cls.__module__.startswith("pipeline.compat."):  # not subclasses of users
            Rebuildable.classes[cls.__name__] = cls

    def __new__(cls, *arguments: Any, **keywords: Any) -> Self:
        """Make the object; `__init__` gets the same arguments."""
        instance = super().__new__(cls)
        # not by setattr, as the arguments are not submodules
        instance.__dict__["construction"] = (arguments, keywords)
        return instance
