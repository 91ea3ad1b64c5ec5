"""A misspelt keyword argument is an error that suggests the right one."""

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar

from pipeline.core.errors import ArgumentError

P = ParamSpec("P")
R = TypeVar("R")


def checked_arguments(
    instead: Mapping[str, str] | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator: ArgumentError for a keyword that the function does not have.

    `instead` says of arguments that other libraries have under this name what to do here.
    """
    advice = dict(instead or {})

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        known = [
            name for name in inspect.signature(function).parameters if name not in ("self", "cls")
        ]
        owner = function.__qualname__.removesuffix(".__init__")

        @functools.wraps(function)
        def checked(*arguments: P.args, **keywords: P.kwargs) -> R:
            for name in keywords:
                if name not in known:
                    # a class method is told by the class that it was called on
                    first = arguments[0] if arguments else None
                    called = (
                        f"{first.__name__}.{function.__name__}"
                        if isinstance(first, type)
                        else owner
                    )
                    raise ArgumentError(_explain(called, name, known, advice))
            return function(*arguments, **keywords)

        return checked

    return decorate


def closest(name: str, known: list[str]) -> str:
    """The hint for a name that is not known: the nearest one, or all of them."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(known)}."


def _explain(owner: str, name: str, known: list[str], advice: dict[str, str]) -> str:
    if name in advice:
        return f"{owner} has no argument `{name}`: {advice[name]}"
    return f"{owner} has no argument `{name}`; {closest(name, known)}"
