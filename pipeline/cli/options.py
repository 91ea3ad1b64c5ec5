"""Arguments and options that several commands share."""

import stat
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pipeline.cli.console import note
from pipeline.core.artifact import read_manifest
from pipeline.core.errors import ConfigError
from pipeline.core.files import read_small

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from pipeline.serve.proxy.experiment import Experiment
    from pipeline.serve.proxy.limits import Limits
    from pipeline.serve.request_log.options import RequestLogOptions
    from pipeline.serve.triton.access import ClientKey

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout, all else on stderr.")
]
Out = Annotated[Path, typer.Option("--out", help="Path of the output.", show_default=True)]
IfNeeded = Annotated[
    bool,
    typer.Option("--if-needed", help="Do nothing if --out is up to date."),
]
RecipeFile = Annotated[Path, typer.Option("--recipe", metavar="FILE", help="Recipe, in YAML.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a setting of the recipe, as in --set train.epochs=3. Repeatable.",
    ),
]
Plugins = Annotated[
    Path | None,
    typer.Option(
        "--plugins",
        metavar="FILE.py",
        help="Python file that registers losses, architectures and metrics. It is run.",
    ),
]
Operators = Annotated[
    Path | None,
    typer.Option(
        "--operators",
        metavar="FILE.py",
        help="Python file with the NVTabular operators that the recipe names. It is run.",
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option("--key-file", metavar="FILE", help="File with the key of the server."),
]
ClientKeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key-file",
        metavar="FILE",
        help="Answer only clients that send a key of FILE: one key, or lines of NAME KEY [RATE]. "
        "Health checks need no key.",
    ),
]
SignKey = Annotated[
    Path | None,
    typer.Option(
        "--sign",
        metavar="KEY.pem",
        help="Sign the repository with an Ed25519 key, for `serve --trusted-key`.",
    ),
]
RunDirectory = Annotated[Path, typer.Argument(metavar="RUN", help="Directory that train wrote.")]
DataArgument = Annotated[
    Path, typer.Argument(metavar="DATA", help="Directory that preprocess wrote.")
]
DataOption = Annotated[
    Path, typer.Option("--data", metavar="DATA", help="Directory that preprocess wrote.")
]
Exclude = Annotated[
    str | None,
    typer.Option(
        "--exclude",
        metavar="IDS",
        help="Item ids to exclude from all lists: A,B,C, or @FILE with one id per line.",
    ),
]
Candidates = Annotated[
    str | None,
    typer.Option(
        "--candidates",
        metavar="IDS",
        help="Item ids to which lists are limited: A,B,C, or @FILE with one id per line.",
    ),
]


Part = Annotated[
    Literal["train", "valid", "test"], typer.Option("--part", help="Part of the sessions to read.")
]

LogRequests = Annotated[
    Path | None,
    typer.Option(
        "--log-requests",
        metavar="DIR",
        help="Log the item ids of requests and of their lists as Parquet files in DIR.",
    ),
]
LogShare = Annotated[
    float | None,
    typer.Option(
        "--log-share", help="Share of the sessions that are logged, such as 0.1.  [default: 1]"
    ),
]

Ab = Annotated[
    str | None,
    typer.Option(
        "--ab",
        metavar="NAME,ARM=SHARE",
        help="A/B test by the sessions of requests: ARM is another model of the repository, or an "
        "older version such as v4.",
    ),
]


MaxBody = Annotated[
    float | None,
    typer.Option(
        "--max-body-mb",
        metavar="MB",
        help="Largest request body, before and after decompression.  [default: 8]",
    ),
]
MaxConnections = Annotated[
    int | None,
    typer.Option(
        "--max-connections",
        help="Largest number of connections to a port; a further one closes an idle one.  "
        "[default: 1000]",
    ),
]
MaxWaiting = Annotated[
    int | None,
    typer.Option(
        "--max-waiting", help="Largest number of requests that wait for Triton.  [default: 500]"
    ),
]
RequestTimeout = Annotated[
    float | None,
    typer.Option(
        "--request-timeout", metavar="SECONDS", help="Longest time for an answer.  [default: 60]"
    ),
]
RateLimit = Annotated[
    float | None,
    typer.Option(
        "--rate-limit",
        metavar="N",
        help="Largest number of requests a second by key, or by address without keys.",
    ),
]


def read_limits(
    *,
    max_body_mb: float | None,
    max_connections: int | None,
    max_waiting: int | None,
    request_timeout: float | None,
    rate_limit: float | None,
) -> "Limits":
    """Return the limits of the options; None is the default. ConfigError for a wrong value."""
    from pipeline.serve.proxy.limits import DEFAULT_LIMITS, Limits

    if max_body_mb is not None and not 0 < max_body_mb <= 1 << 20:
        raise ConfigError(f"--max-body-mb is {max_body_mb}, expected more than 0 and at most 2^20.")
    values: dict[str, Any] = {
        "max_body_bytes": None if max_body_mb is None else int(max_body_mb * 2**20),
        "max_connections": max_connections,
        "max_waiting": max_waiting,
        "request_seconds": request_timeout,
        "rate": rate_limit,
    }
    limits = Limits(**{name: value for name, value in values.items() if value is not None})
    buffered = max(DEFAULT_LIMITS.max_buffered_bytes, 4 * limits.max_body_bytes)
    return replace(limits, max_buffered_bytes=buffered)


def request_log(directory: Path | None, share: float | None) -> "RequestLogOptions | None":
    """Return the options of `--log-requests`, None without it. ConfigError for a wrong share."""
    from pipeline.serve.request_log.options import RequestLogOptions

    if directory is None:
        if share is not None:
            raise ConfigError("--log-share goes with --log-requests.")
        return None
    return RequestLogOptions(directory=directory, share=1.0 if share is None else share)


def read_ab(text: str, repository: Path) -> "Experiment":
    """Return the experiment of `--ab`. ConfigError for one that does not fit the repository."""
    read_manifest(repository, "repository", check_files=False)
    from pipeline.serve.proxy.experiment import read_experiment

    return read_experiment(text, repository)


def run_plugins(file: Path | None) -> None:
    """Run the file of `--plugins`, if there is one."""
    if file is not None:
        from pipeline.plugins import load_plugins  # imports torch

        load_plugins(file)


def read_ids(text: str | None) -> list[str] | None:
    """Return the item ids of `--exclude` or `--candidates`; None where the option is left out.

    ConfigError for a file that cannot be read or holds no id.
    """
    if text is None:
        return None
    if not text.startswith("@"):
        return [item for item in text.split(",") if item]
    path = Path(text[1:])
    try:
        lines = read_small(path).decode("utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not text in UTF-8, expected one item id a line.") from None
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}. Expected text with one item id a line."
        ) from None
    ids = [line.strip() for line in lines if line.strip()]
    if not ids:
        raise ConfigError(f"{path} is empty, expected one item id a line. Leave the option out.")
    return ids


def unknown_ids_text(option: str, count: int) -> str:
    """Return a sentence about ids of an option that are not in the catalogue."""
    return f"{count:,} ids of --{option} are not in the catalogue."


def check_k(k: int | None) -> None:
    """ConfigError for a list length below 1; the stage checks the upper limit."""
    if k is not None and k < 1:
        raise ConfigError(f"--k is {k}, expected 1 or more.")


def parse_numbers(option: str, text: str) -> tuple[int, ...]:
    """Return the numbers of text such as 5,10,20. ConfigError for anything else."""
    numbers = tuple(int(part) for part in text.split(",") if part.strip().isdecimal())
    if len(numbers) != len(text.split(",")) or min(numbers) < 1:
        raise ConfigError(f"{option} is {text!r}, expected whole numbers from 1, such as 10,20.")
    return numbers


def split_names(option: str, text: str | None) -> tuple[str, ...]:
    """Return the names of text such as a,b, () without the option. ConfigError for empty text."""
    if text is None:
        return ()
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise ConfigError(f"{option} is {text!r}, expected names, such as a,b.")
    return names


def read_sign_key(path: Path | None) -> "Ed25519PrivateKey | None":
    """Return the key of `--sign`, if there is one. ConfigError where it cannot be read."""
    if path is None:
        return None
    from pipeline.core.signature import read_private_key

    return read_private_key(path)


def read_key_file(path: Path | None) -> str | None:
    """Return the key in a client's file, and warn if others on this machine can read it."""
    if path is None:
        return None
    from pipeline.serve.triton.access import read_key

    key = read_key(path)
    _warn_of_readers(path)
    return key


def read_client_keys(path: Path | None) -> "tuple[ClientKey, ...]":
    """Return the keys in a server's file, and warn if others on this machine can read it."""
    if path is None:
        return ()
    from pipeline.serve.triton.access import read_keys

    keys = read_keys(path)
    _warn_of_readers(path)
    return keys


def _warn_of_readers(path: Path) -> None:
    if path.stat().st_mode & stat.S_IROTH:
        note(f"Warning: others on this machine can read {path}; `chmod 600 {path}`.")
