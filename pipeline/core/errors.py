"""What a user did wrong, told in one line: what was found, what was expected, what to do next.

A bug is not one of these: it keeps its own type and its traceback.
"""


class PipelineError(Exception):
    """Root of every error that a user can mend; the command line prints it and exits with 2."""


class InputWarning(UserWarning):
    """Something that a user gave was left out or mended; the command line prints it as a line."""


class ConfigError(PipelineError):
    """A recipe, a setting or an argument is not usable."""


class ArgumentError(ConfigError, TypeError):
    """A call has an argument that the function does not know."""


class DataError(PipelineError):
    """Input data lacks something that the recipe asks for."""


class ArtifactError(PipelineError):
    """A directory that a stage should have written is missing, incomplete or damaged."""


class ServingError(PipelineError):
    """A server did not start, did not answer, or refused a request."""


class ProcessError(PipelineError):
    """Another of the processes that train together is gone."""
