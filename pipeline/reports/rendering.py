"""Reports as one HTML file without scripts or external resources."""

import math
from importlib import resources
from typing import Any

import jinja2

from pipeline.reports.charts import format_number


def render_page(package: str, values: dict[str, Any]) -> str:
    """Render `page.html.jinja` of a package; all text is escaped.

    The template may include and import the templates of this package. jinja2.UndefinedError if it
    uses a name that `values` lacks.
    """
    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.FunctionLoader(
            lambda name: resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
        ),
        undefined=jinja2.StrictUndefined,
        optimized=False,  # a page is rendered once, so optimizing costs more than it saves
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = format_number
    source = resources.files(package).joinpath("page.html.jinja").read_text(encoding="utf-8")
    page: str = environment.from_string(source).render(values)
    return page


def finite(value: Any) -> Any:
    """JSON value with None in place of NaN and infinities, which JSON lacks."""
    match value:
        case dict():
            return {key: finite(item) for key, item in value.items()}
        case list():
            return [finite(item) for item in value]
        case float() if not math.isfinite(value):
            return None
    return value
