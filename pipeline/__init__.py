"""Session-based recommendation from raw interactions to a live service.

    from pipeline import Recipe, preprocess, train, evaluate, export

    recipe = Recipe.load("shop.yaml")
    data = preprocess(recipe, ["logs/"], out="data/shop")
    run = train(recipe, data, out="runs/shop")
    print(evaluate(run, data).to_frame())
    export(run, out="repository")

Names are imported at first use, so that `import pipeline` is fast.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.api import (
        Data,
        Run,
        compare,
        evaluate,
        export,
        predict,
        preprocess,
        rollback,
        train,
        update,
    )
    from pipeline.recipe.recipe import Recipe
    from pipeline.serve.client.client import Client

# Merlin builds dask graphs by hand, which dask's query planner does not support, and compares
# dtypes with pandas' object strings. dask reads both settings at its first import.
os.environ["DASK_DATAFRAME__QUERY_PLANNING"] = "False"
os.environ["DASK_DATAFRAME__CONVERT_STRING"] = "False"

__version__ = "0.2.0"

_MODULES = {
    "Recipe": "pipeline.recipe.recipe",
    "Client": "pipeline.serve.client.client",
    **dict.fromkeys(
        (
            *("Data", "Run", "preprocess", "train", "evaluate", "compare", "predict", "export"),
            *("update", "rollback"),
        ),
        "pipeline.api",
    ),
}
"""Module of each public name."""

__all__ = [
    "Client",
    "Data",
    "Recipe",
    "Run",
    "__version__",
    "compare",
    "evaluate",
    "export",
    "predict",
    "preprocess",
    "rollback",
    "train",
    "update",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
