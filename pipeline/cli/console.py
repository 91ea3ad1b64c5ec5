"""What all commands share: options, what they look at first, how they report and how they end."""

import json
import os
import signal
import sys
import warnings
from pathlib import Path
from types import FrameType
from typing import Any

import click

from pipeline.core.errors import InputWarning, PipelineError

path_type = click.Path(path_type=Path)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout."
)
if_needed_option = click.option(
    "--if-needed",
    is_flag=True,
    help="Do nothing where --out holds just what this command would write.",
)
set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a setting of the recipe, as in --set train.epochs=3. Repeatable.",
)


def out_option(default: str | None = None) -> Any:
    help_text = "Where to write."
    if default is None:
        # to click a default of None is a default: the option would never be missing
        return click.option("--out", required=True, type=path_type, help=help_text)
    return click.option("--out", default=default, type=path_type, help=help_text)


def file_option(name: str, help_text: str) -> Any:
    """One file to read, which may be left out."""
    return click.option(name, type=path_type, metavar="FILE", help=help_text)


def is_current(path: Path, kind: str, made_from: str, as_json: bool) -> bool:
    """Whether the artifact at `path` is what the command would write; says so."""
    from pipeline.core.artifact import current_facts

    facts = current_facts(path, kind, made_from)
    if facts is not None:
        print_result(facts, as_json, f"{path} is up to date.")
    return facts is not None


def check_in(path: Path, kind: str) -> None:
    """Say at once what the stage would say after seconds of imports."""
    from pipeline.core.artifact import read_manifest

    read_manifest(path, kind, check_files=False)


def check_out(path: Path, kind: str) -> None:
    from pipeline.core.artifact import check_replaceable

    check_replaceable(path, kind)


def print_result(facts: dict[str, Any], as_json: bool, text: str) -> None:
    if os.environ.get("RANK", "0") != "0":
        return  # of several processes that torchrun started the first one reports
    if as_json:
        print_json(facts)
    else:
        click.echo(text)


def print_json(facts: dict[str, Any]) -> None:
    click.echo(json.dumps(facts, allow_nan=False))


class _Terminated(BaseException):
    """SIGTERM arrived; what is open is closed and removed on the way out."""


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise _Terminated


def run_command_line(command_line: click.Command) -> None:
    """Run it and exit: 0, or 2 with one line on stderr for a user's mistake, 130 or 143 when told
    to stop, 1 where nobody reads on."""
    # torch's threads wait for each other by spinning, which on a busy machine costs a factor
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    plain = warnings.showwarning

    def show(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, InputWarning):
            click.echo(f"Warning: {message}", err=True)
        else:
            plain(message, category, *where, **more)

    warnings.showwarning = show
    # a container's first process dies of no signal that it does not handle
    signal.signal(signal.SIGTERM, _terminate)
    try:
        status = command_line.main(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(2)
    except click.ClickException as error:
        command = getattr(getattr(error, "ctx", None), "command_path", "pipeline")
        message = " ".join(error.format_message().split())
        click.echo(f"Error: {message} See `{command} --help`.", err=True)
        sys.exit(2)
    except PipelineError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        click.echo("Stopped.", err=True)
        sys.exit(130)
    except _Terminated:
        click.echo("Stopped.", err=True)
        sys.exit(143)
    except BrokenPipeError:
        # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        # a full disk, a name that is too long, a directory where a file should be
        click.echo(f"Error: {error.filename or 'A file'}: {error.strerror or error}.", err=True)
        sys.exit(2)
    except UnicodeError as error:
        click.echo(f"Error: an argument is not text in UTF-8: {error}.", err=True)
        sys.exit(2)
    sys.exit(status if isinstance(status, int) else 0)
