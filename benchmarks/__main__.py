"""`python -m benchmarks`: this project beside others, the same work in turn."""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from pipeline.cli.console import (
    check_in,
    file_option,
    json_option,
    path_type,
    print_result,
    run_command_line,
)
from pipeline.core.errors import ConfigError

_environment_option = click.option(
    "--environment",
    type=path_type,
    metavar="DIR",
    help="Where Transformers4Rec is, or is installed by uv.  [default: in the user's cache folder]",
)
_core_option = click.option(
    "--core", type=click.IntRange(0), help="The core to run on.  [default: the last]"
)
MOST_SECONDS = 3_600
_allocators = ["default", "kept", "both"]


@click.group()
def benchmark() -> None:
    """Measure this project beside others, the same work in turn.

    train, evaluate and accuracy, on one core: beside Transformers4Rec 23.12, which is installed
    from its package by uv, into an environment of its own, at the first use: a few gigabytes.
    """


@benchmark.command(epilog="Example: python -m benchmarks train --models gpt2-clm --items 10000")
@click.option("--models", metavar="A,B", help="xlnet-mlm, gpt2-clm, bert-mlm.  [default: all]")
@click.option("--items", metavar="N,N", help="10000, 200000.  [default: both]")
@click.option(
    "--forms", metavar="A,B", help="exact, bf16, recompute, sampled, of ours.  [default: all]"
)
@click.option(
    "--original",
    type=click.Choice(["shipped", "patient", "both"]),
    default="both",
    show_default=True,
    help="As shipped, or without its loader's busy wait.",
)
@click.option(
    "--allocator",
    type=click.Choice(_allocators),
    default="both",
    show_default=True,
    help="glibc's own settings or a heap that is kept, on both sides.",
)
@click.option("--turns", type=click.IntRange(1), default=8, show_default=True, help="Of each side.")
@click.option("--steps", type=click.IntRange(1), help="Of a turn.  [default: 16 or 4]")
@click.option(
    "--comparison/--no-comparison",
    default=True,
    show_default=True,
    help="First compare loss and gradients from equal weights.",
)
@_environment_option
@_core_option
@json_option
def train(
    models: str | None,
    items: str | None,
    forms: str | None,
    original: str,
    allocator: str,
    turns: int,
    steps: int | None,
    comparison: bool,
    environment: Path | None,
    core: int | None,
    as_json: bool,
) -> None:
    """Sessions a second and peak memory of training, and their ratios."""
    from benchmarks.settings import BATCH_SIZE, FORMS, LONGEST, choose

    chosen = choose(_names(models), tuple(_number(text) for text in _names(items)))
    known = [form.name for form in FORMS]
    for name in _names(forms):
        if name not in known:
            raise ConfigError(f"There is no form {name!r}, expected one of {', '.join(known)}.")
    from benchmarks.machine import machine
    from benchmarks.speed import measure
    from benchmarks.text import speed_text

    with _sides(environment, core) as sides:
        settings = measure(
            sides,
            chosen,
            allocators=("default", "kept") if allocator == "both" else (allocator,),  # type: ignore[arg-type]
            originals=("shipped", "patient") if original == "both" else (original,),
            forms=_names(forms),
            turns=turns,
            steps=steps,
            comparison=comparison,
        )
    versions = next(iter(settings[0]["speed"].values()))["versions"]
    result = {
        "machine": machine(),
        "versions": versions,
        "batch_size": BATCH_SIZE,
        "longest": LONGEST,
        "settings": settings,
    }
    print_result(result, as_json, speed_text(result))


@benchmark.command(epilog="Example: python -m benchmarks accuracy data/rsc15 --epochs 10 --seeds 3")
@click.argument("data", type=path_type)
@click.option("--model", default="xlnet-mlm", show_default=True, help="As in benchmark train.")
@click.option("--d-model", type=click.IntRange(1), default=64, show_default=True, help="D.")
@click.option("--epochs", type=click.IntRange(1), default=10, show_default=True)
@click.option("--learning-rate", type=float, default=1e-3, show_default=True, help="Of both.")
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Runs of each.")
@click.option(
    "--part",
    type=click.Choice(["valid", "test"]),
    default="test",
    show_default=True,
    help="Which sessions.",
)
@click.option(
    "--positions",
    type=click.Choice(["all", "last"]),
    default="all",
    show_default=True,
    help="Every interaction but the first is a target, or the last.",
)
@_environment_option
@_core_option
@json_option
def accuracy(
    data: Path,
    model: str,
    d_model: int,
    epochs: int,
    learning_rate: float,
    seeds: int,
    part: str,
    positions: str,
    environment: Path | None,
    core: int | None,
    as_json: bool,
) -> None:
    """Train the same model on DATA with both, and rank the same targets by the same code."""
    check_in(data, "data")
    from benchmarks.accuracy import compare_accuracy
    from benchmarks.machine import machine
    from benchmarks.settings import choose
    from benchmarks.text import accuracy_text

    setting = choose((model,), ())[0].with_width(d_model)
    with _sides(environment, core) as sides:
        found = compare_accuracy(
            sides,
            data.absolute(),
            setting,
            epochs=epochs,
            learning_rate=learning_rate,
            seeds=seeds,
            part=part,
            positions=positions,
        )
    result = {"machine": machine()} | found
    print_result(result, as_json, accuracy_text(result))


@benchmark.command(epilog="Example: python -m benchmarks evaluate --sessions 1024")
@click.option("--model", default="gpt2-clm", show_default=True, help="As in benchmark train.")
@click.option("--items", type=int, default=200_000, show_default=True, help="10000 or 200000.")
@click.option("--sessions", type=click.IntRange(1), default=1_024, show_default=True)
@click.option("--turns", type=click.IntRange(1), default=3, show_default=True, help="Of each side.")
@click.option(
    "--allocator",
    type=click.Choice(_allocators[:2]),
    default="default",
    show_default=True,
    help="As in benchmark train.",
)
@_environment_option
@_core_option
@json_option
def evaluate(
    model: str,
    items: int,
    sessions: int,
    turns: int,
    allocator: Any,
    environment: Path | None,
    core: int | None,
    as_json: bool,
) -> None:
    """Sessions a second of evaluation over the whole catalogue, and that the numbers agree."""
    from benchmarks.settings import choose

    setting = choose((model,), (items,))[0]
    from benchmarks.evaluation_speed import measure_evaluation
    from benchmarks.machine import machine
    from benchmarks.text import evaluation_text

    with _sides(environment, core) as sides:
        found = measure_evaluation(
            sides, setting, sessions=sessions, turns=turns, allocator=allocator
        )
    result = {"machine": machine()} | found
    print_result(result, as_json, evaluation_text(result))


@benchmark.command(epilog="Example: python -m benchmarks serve --items 40000 --out serving")
@click.argument("repository", type=path_type, required=False)
@click.option(
    "--architecture",
    type=click.Choice(["xlnet", "gpt2"]),
    default="xlnet",
    show_default=True,
    help="Of a model with random weights, where no REPOSITORY is given.",
)
@click.option("--items", type=click.IntRange(100), default=40_000, show_default=True)
@click.option("--d-model", type=click.IntRange(8), default=64, show_default=True, help="D.")
@click.option("--clients", default="1,2,4,8,16,32", show_default=True, help="At once.")
@click.option(
    "--seconds", type=click.FloatRange(0.2), default=4.0, show_default=True, help="Of each load."
)
@click.option("--protocol", type=click.Choice(["grpc", "http"]), default="grpc", show_default=True)
@click.option("--against", metavar="URL", help="Another server, asked the same: grpc://HOST:PORT.")
@click.option("--out", type=path_type, metavar="DIR", help="Write serving.json and serving.svg.")
@_core_option
@json_option
def serve(
    repository: Path | None,
    architecture: str,
    items: int,
    d_model: int,
    clients: str,
    seconds: float,
    protocol: str,
    against: str | None,
    out: Path | None,
    core: int | None,
    as_json: bool,
) -> None:
    """Latency and rate of a server of REPOSITORY, which this starts, under rising load.

    Without REPOSITORY a model with random weights is made and exported first: it costs as much.
    """
    if not seconds <= MOST_SECONDS:  # not so either where it is no number
        raise ConfigError(f"--seconds is {seconds:g}, expected 0.2 to {MOST_SECONDS}.")
    numbers = tuple(_number(text, "--clients") for text in _names(clients))
    if not numbers or min(numbers) < 1:
        raise ConfigError(f"--clients is {clients!r}, expected whole numbers from 1 such as 1,16.")
    if repository is not None:
        check_in(repository, "repository")
    import json

    from benchmarks.machine import machine
    from benchmarks.processes import choose_core
    from benchmarks.serving import Plan, measure_serving
    from benchmarks.serving_text import serving_plot, serving_text
    from benchmarks.shop import write_repository

    chosen = choose_core(core)
    with tempfile.TemporaryDirectory(prefix="pipeline-serving-") as scratch:
        folder = Path(scratch)
        made = repository or write_repository(
            folder, architecture=architecture, items=items, d_model=d_model
        )
        (folder / "server").mkdir()
        plan = Plan(clients=numbers, seconds=seconds, protocol=protocol)
        found = measure_serving(made, folder / "server", plan, core=chosen, against=against)
    model = str(repository) if repository else f"{architecture}, D {d_model}, random weights"
    result = {"machine": machine(), "model": model} | found
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "serving.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
        (out / "serving.svg").write_text(serving_plot(result), encoding="utf-8")
    print_result(result, as_json, serving_text(result))


@benchmark.command(epilog="Example: python -m benchmarks preprocess --rows 500000")
@click.option(
    "--rows",
    type=click.IntRange(1_000),
    default=5_000_000,
    show_default=True,
    help="Interactions of the log.",
)
@click.option("--items", type=click.IntRange(1), default=200_000, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the log.")
@click.option(
    "--sides",
    default="ours,polars,nvtabular",
    show_default=True,
    metavar="A,B",
    help="At 5,000,000 rows nvtabular takes minutes.",
)
@click.option("--turns", type=click.IntRange(1), default=1, show_default=True, help="Of each side.")
@click.option(
    "--cores", type=click.IntRange(1), help="How many to use.  [default: all that may be used]"
)
@file_option("--polars-python", "A Python that has Polars.  [default: this one]")
@click.option("--out", type=path_type, metavar="DIR", help="Write preprocess.json.")
@json_option
def preprocess(
    rows: int,
    items: int,
    seed: int,
    sides: str,
    turns: int,
    cores: int | None,
    polars_python: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Seconds and peak memory of preprocessing: ours, hand-written Polars and stock NVTabular.

    All read the same log, learn the same vocabularies and write the same sessions, each in a
    process of its own, one after the other; what they wrote is compared.
    """
    import json

    from benchmarks.machine import machine
    from benchmarks.preprocessing import Plan, measure_preprocessing
    from benchmarks.preprocessing_text import preprocessing_text

    plan = Plan(
        rows=rows,
        items=items,
        seed=seed,
        turns=turns,
        sides=_names(sides),
        cores=cores,
        polars_python=polars_python or Path(sys.executable),
    )
    plan.check()
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    before = machine()  # its load is that of others
    with tempfile.TemporaryDirectory(prefix="pipeline-preprocess-") as scratch:
        result = {"machine": before} | measure_preprocessing(plan, Path(scratch))
    if out is not None:
        (out / "preprocess.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    print_result(result, as_json, preprocessing_text(result))


@contextmanager
def _sides(environment: Path | None, core: int | None) -> Iterator[Any]:
    """The `Sides` of a measurement: both programs, and a folder that is gone afterwards."""
    from benchmarks.environment import original_program, our_program
    from benchmarks.processes import choose_core
    from benchmarks.speed import Sides

    chosen = choose_core(core)
    original = original_program(environment)
    with tempfile.TemporaryDirectory(prefix="pipeline-benchmark-") as scratch:
        yield Sides(ours=our_program(), original=original, core=chosen, scratch=Path(scratch))


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def _number(text: str, option: str = "--items") -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(
            f"{option} holds {text!r}, expected whole numbers, as in 16,32."
        ) from None


if __name__ == "__main__":
    run_command_line(benchmark)
