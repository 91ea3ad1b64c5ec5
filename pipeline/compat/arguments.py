"""Arguments of Transformers4Rec that only have one value here."""

import contextlib
from collections.abc import Iterator
from typing import Any

from pipeline.core.errors import ConfigError

PAGE = "docs/reference/transformers4rec-arguments.md"
"""Page of the arguments and of what is refused."""


def expect(argument: str, value: Any, *allowed: Any, because: str) -> None:
    """ConfigError if an argument has another value than those `allowed`."""
    if not any(value is one or value == one for one in allowed):
        raise ConfigError(f"`{argument}` is {value!r}: {because}. See {PAGE}.")


@contextlib.contextmanager
def naming_the_page() -> Iterator[None]:
    """Add the page to a ConfigError: what the original allows may be refused here, as a leak."""
    try:
        yield
    except ConfigError as error:
        text = str(error)
        raise (error if PAGE in text else ConfigError(f"{text} See {PAGE}.")) from None
