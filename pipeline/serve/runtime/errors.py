"""What a client is told."""


class RequestError(ValueError):
    """A request that cannot be answered, with what was found and what was expected."""
