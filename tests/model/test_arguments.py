"""A misspelt argument of anything public is an error that suggests the right one."""

import inspect
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

import pytest

from pipeline import model as tr
from pipeline.core.errors import ArgumentError
from pipeline.model.encoders.config import EncoderConfig

RECORDS = {"SessionBatch", "TopK"}
"""Named tuples, whose constructor is Python's own."""
METHODS = ("from_schema", "create_categorical", "create_continuous", "create_embedding")
METHODS += ("from_json", "from_merlin", "embedding_sizes", "top_k")


def entries() -> Iterator[tuple[str, Callable[..., Any]]]:
    """What users call: constructors, `build` of configs, and some methods."""
    for name in tr.__all__:
        thing = getattr(tr, name)
        if inspect.ismodule(thing) or name in RECORDS:
            continue
        if not inspect.isclass(thing):
            yield name, thing
        elif not issubclass(thing, Enum):
            is_config = issubclass(thing, EncoderConfig)
            hidden = name in ("TabularSequenceFeatures", "Schema", "ColumnSchema")
            if is_config:
                yield f"{name}.build", thing.build
            elif not hidden:
                yield name, thing
            for method in METHODS:
                if hasattr(thing, method):
                    yield f"{name}.{method}", getattr(thing, method)


def keywords(entry: Callable[..., Any]) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = inspect.signature(entry).parameters.values()
    return [p.name for p in found if p.kind in kinds and p.name not in ("self", "cls")]


ENTRIES = dict(entries())


@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if keywords(entry)])
def test_a_misspelt_argument_suggests_the_right_one(name: str) -> None:
    entry = ENTRIES[name]
    known = keywords(entry)
    for right in known:
        wrong = right[:-2] + right[-1] + "z" if len(right) > 3 else right + "z"
        with pytest.raises(ArgumentError) as error:
            entry(**{wrong: 1})
        assert f"no argument `{wrong}`" in str(error.value)
        assert "did you mean" in str(error.value) or "known here" in str(error.value)
        if len(right) > 5 and "did you mean" in str(error.value):
            near = [other for other in known if f"`{other}`" in str(error.value)]
            assert right in near or any(other[:4] == right[:4] for other in near), right
        assert "\n" not in str(error.value)


def test_the_list_of_what_is_public_is_not_empty() -> None:
    assert {"GPT2Config.build", "MLPBlock", "Model", "Model.top_k", "read_vectors"} <= set(ENTRIES)
