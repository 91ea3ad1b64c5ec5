"""Checks of Transformers4Rec's arguments that have only one valid value here."""

import contextlib
from collections.abc import Iterator
from typing import Any

from pipeline.core.errors import ConfigError

PAGE = "docs/reference/transformers4rec-arguments.md"
"""Page of the arguments and their refused values."""


def expect(argument: str, value: Any, *allowed: Any, because: str) -> None:
    """ConfigError unless the value of an argument is one of `allowed`."""
    if not any(value is one or value == one for one in allowed):
        raise ConfigError(f"`{argument}` is {value!r}: {because}. See {PAGE}.")


@contextlib.contextmanager
def naming_the_page() -> Iterator[None]:
    """Add the page to a ConfigError, as values of the original may be refused here as leaks."""
    try:
        yield
    except ConfigError as error:
        text = str(error)
        raise (error if PAGE in text else ConfigError(f"{text} See {PAGE}.")) from None
