"""Names of features and sizes, as arguments give them."""

from collections.abc import Collection

from pipeline.core.errors import ConfigError


def child_name(feature: str) -> str:
    """Name of a feature's module: none may be called `type` or `keys`, nor hold a point."""
    return "of_" + feature.replace("%", "%25").replace(".", "%2E")


def check_positive(what: str, number: object) -> None:
    """ConfigError for what is no whole number above 0."""
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ConfigError(f"{what} is {number!r}, expected a whole number above 0.")


def check_names(argument: str, names: Collection[str], known: Collection[str], kind: str) -> None:
    """ConfigError if an argument names a feature that is none of its kind."""
    for name in names:
        if name not in known:
            raise ConfigError(
                f"{argument} names {name!r}, which is no {kind} feature. Those are: "
                f"{', '.join(known) or 'none'}."
            )
