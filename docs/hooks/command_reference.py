"""Reference of the command line, made from the commands themselves."""

from collections.abc import Iterator

import click
import typer

from pipeline.cli.main import app

_HEAD = """# Command line

Every command with its arguments and options, as `pipeline COMMAND --help` prints them. `--json`
prints one JSON object on stdout and all else on stderr. Exit codes: 0, 2 after a mistake, 3 where
`update` stays with the served model.
"""


def commands() -> Iterator[tuple[str, click.Command]]:
    """All commands with their full names, such as `recipes show`."""
    root = typer.main.get_command(app)
    yield "pipeline", root
    yield from _below("pipeline", root)


def _below(name: str, group: click.Command) -> Iterator[tuple[str, click.Command]]:
    for part, command in getattr(group, "commands", {}).items():
        yield f"{name} {part}", command
        yield from _below(f"{name} {part}", command)


def command_page() -> str:
    """Return the page in Markdown."""
    lines = [_HEAD]
    for name, command in commands():
        context = click.Context(command, info_name=name)
        usage = command.get_usage(context).removeprefix("Usage: ")
        lines += [f"\n## {name}\n", f"```text\n{usage}\n```\n", _text(command.help), ""]
        if rows := list(_rows(command, context)):
            lines += ["| argument, option | |", "| --- | --- |", *rows]
        if command.epilog:
            lines += ["", f"```bash\n{command.epilog.removeprefix('Example: ')}\n```"]
    return "\n".join(lines) + "\n"


def _rows(command: click.Command, context: click.Context) -> Iterator[str]:
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if record is not None:  # of what the help shows
            names, meaning = (_text(part).replace("|", "\\|") for part in record)
            yield f"| `{names}` | {meaning} |"


def _text(help_text: str | None) -> str:
    return " ".join((help_text or "").split())
