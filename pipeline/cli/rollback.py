"""`pipeline rollback`."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.console import check_input, print_result
from pipeline.cli.options import Json, SignKey, read_sign_key


def rollback(
    repository: Annotated[
        Path, typer.Argument(metavar="REPOSITORY", help="Directory that export wrote.")
    ],
    name: Annotated[
        str | None,
        typer.Option(help="Name of the model for clients.  [default: the only one]"),
    ] = None,
    sign: SignKey = None,
    as_json: Json = False,
) -> None:
    """Serve the version again that was served before.

    A server with --reload takes it up while it answers. The next export has a new number.
    """
    check_input(repository, "repository")
    from pipeline.exporting.versions import rollback as run_rollback

    result = run_rollback(repository, name, key=read_sign_key(sign))
    text = (
        f"{repository}: version {result.version} of {result.name} ({result.run}) is served again "
        f"in place of version {result.withdrawn}."
    )
    print_result(result.to_dict(), as_json, text)
