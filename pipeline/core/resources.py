"""Files that come with the project beside its code."""

from pathlib import Path

from pipeline.core.errors import PipelineError


def find_resource(name: str) -> Path:
    """`configs/...` or `triton_models/...`: inside an installed package, else in the checkout."""
    package = Path(__file__).resolve().parents[1]
    for place in (package / name, package.parent / name):
        if place.exists():
            return place
    raise PipelineError(f"{name} is missing from this installation. Install it again.")
