"""A report as HTML: one file, nothing from outside, no script."""

import math
from importlib import resources
from typing import Any

import jinja2

from pipeline.reports.charts import number


def rendered(package: str, values: dict[str, Any]) -> str:
    """The page of `package`, its `page.html.jinja`, with `values`; all text is escaped.

    It may include and import the templates that lie beside this file. jinja2.UndefinedError for a
    value that the page needs and was not given.
    """
    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.FunctionLoader(_shared),
        undefined=jinja2.StrictUndefined,
        optimized=False,  # a page is rendered once: what that saves is less than it takes
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    source = resources.files(package).joinpath("page.html.jinja").read_text(encoding="utf-8")
    page: str = environment.from_string(source).render(values)
    return page


def finite(value: Any) -> Any:
    """The same with None for what is no number: JSON has no NaN."""
    match value:
        case dict():
            return {key: finite(item) for key, item in value.items()}
        case list():
            return [finite(item) for item in value]
        case float() if not math.isfinite(value):
            return None
    return value


def _shared(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
