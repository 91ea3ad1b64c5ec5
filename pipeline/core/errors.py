"""Errors that a user can fix, in one line: the value, what was expected, what to do next.

A bug keeps its own type and its traceback.
"""

import difflib
from collections.abc import Iterable


class PipelineError(Exception):
    """Root of all errors that a user can fix; the command line prints it and exits with 2."""


class InputWarning(UserWarning):
    """Part of the input was dropped or repaired; the command line prints it as one line."""


class ConfigError(PipelineError):
    """A recipe, a setting or an argument is invalid."""


class DataError(PipelineError):
    """Input data lacks something that the recipe needs."""


class ArtifactError(PipelineError):
    """A directory that a stage writes is missing, incomplete or damaged."""


class ServingError(PipelineError):
    """A server did not start, did not answer or refused a request."""


class ProcessError(PipelineError):
    """A process of a distributed training has ended."""


def closest(name: str, names: Iterable[str]) -> str:
    """Return a hint for a misspelt name: the most similar of `names`, or all of them."""
    names = list(names)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(names)}."
