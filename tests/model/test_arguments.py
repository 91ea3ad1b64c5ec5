"""An unknown keyword argument of the public building blocks is Python's own TypeError."""

import functools
import inspect
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

import pytest

from pipeline import model as tr
from pipeline.model.encoders.config import EncoderConfig

RECORDS = {"Schema", "ColumnSchema", "SessionBatch", "TopK", "TabularSequenceFeatures"}
"""Classes that users build with a class method, or only read."""


def entries() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Public callables: constructors, `build` of configs, functions and `from_schema`."""
    for name, member in vars(tr).items():
        if name.startswith("_") or inspect.ismodule(member) or name in RECORDS:
            continue
        if not inspect.isclass(member):
            yield name, member
        elif issubclass(member, EncoderConfig):
            yield f"{name}.build", member.build
        elif not issubclass(member, Enum):
            yield name, member
    yield "Head.from_schema", tr.Head.from_schema
    inputs = functools.partial(tr.TabularSequenceFeatures.from_schema, tr.Schema(()))
    yield "TabularSequenceFeatures.from_schema", inputs


ENTRIES = dict(entries())


@pytest.mark.parametrize("name", ENTRIES)
def test_unknown_keyword_argument_raises_type_error_that_names_it(name: str) -> None:
    with pytest.raises(TypeError, match="'unknown_keyword'"):
        ENTRIES[name](unknown_keyword=1)
