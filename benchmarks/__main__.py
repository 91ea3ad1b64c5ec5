"""Command line of the benchmarks: `python -m benchmarks`.

`train`, `evaluate` and `accuracy` compare with Transformers4Rec 23.12 on one core; uv installs it
into its own environment at the first use (a few gigabytes).
"""

import json
import logging
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pipeline.cli.console import check_input, print_result, run_app, set_up_logging
from pipeline.cli.options import Json, parse_numbers
from pipeline.core.errors import ConfigError

MAX_SECONDS = 3_600
Environment = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Environment of Transformers4Rec.  [default: in the user's cache folder]",
    ),
]
Core = Annotated[
    int | None, typer.Option(min=0, help="Core of all processes.  [default: the last]")
]
Turns = Annotated[int, typer.Option(min=1, help="Turns of each side.")]
OutFolder = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder for the figures as JSON.")
]

app = typer.Typer(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)


@app.callback()
def benchmarks() -> None:
    """Measure this project and others that do the same work."""
    set_up_logging(verbose=False)
    logger, product = logging.getLogger("benchmarks"), logging.getLogger("pipeline")
    logger.handlers, logger.propagate = product.handlers, False
    logger.setLevel(product.level)


@app.command(epilog="Example: python -m benchmarks train --models gpt2-clm --items 10000")
def train(
    models: Annotated[
        str | None, typer.Option(metavar="A,B", help="xlnet-mlm, gpt2-clm, bert-mlm.")
    ] = None,
    items: Annotated[str | None, typer.Option(metavar="N,N", help="10000, 200000.")] = None,
    forms: Annotated[
        str | None, typer.Option(metavar="A,B", help="Ours: exact, bf16, recompute, sampled.")
    ] = None,
    original: Annotated[
        Literal["shipped", "patient", "both"],
        typer.Option(help="Transformers4Rec as shipped, or without the busy wait of its loader."),
    ] = "both",
    allocator: Annotated[
        Literal["default", "kept", "both"],
        typer.Option(help="glibc's own settings or a kept heap, on both sides."),
    ] = "both",
    turns: Turns = 8,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of a turn.  [default: 16 or 4]")
    ] = None,
    comparison: Annotated[
        bool, typer.Option(help="Compare loss and gradients from equal weights first.")
    ] = True,
    environment: Environment = None,
    core: Core = None,
    as_json: Json = False,
) -> None:
    """Compare training: sessions a second, peak memory, and their ratios."""
    from benchmarks.settings import BATCH_SIZE, FORMS, LONGEST, choose

    settings = choose(_names(models), tuple(_number(text) for text in _names(items)))
    form_names = [form.name for form in FORMS]
    for name in _names(forms):
        if name not in form_names:
            expected = ", ".join(form_names)
            raise ConfigError(f"There is no form {name!r}, expected one of {expected}.")
    from benchmarks.machine import machine
    from benchmarks.training import Plan, measure_training, training_text

    plan = Plan(
        allocators=("default", "kept") if allocator == "both" else (allocator,),
        originals=("shipped", "patient") if original == "both" else (original,),
        forms=_names(forms),
        turns=turns,
        steps=steps,
        comparison=comparison,
    )
    with _sides(environment, core) as sides:
        measured = measure_training(sides, settings, plan)
    result = {
        "machine": machine(),
        "versions": next(iter(measured[0]["speed"].values()))["versions"],
        "batch_size": BATCH_SIZE,
        "longest": LONGEST,
        "settings": measured,
    }
    print_result(result, as_json, training_text(result))


@app.command(epilog="Example: python -m benchmarks accuracy data/rsc15 --epochs 10 --seeds 3")
def accuracy(
    data: Annotated[Path, typer.Argument(help="Directory that preprocess wrote.")],
    model: Annotated[str, typer.Option(help="As in `train --models`.")] = "xlnet-mlm",
    d_model: Annotated[int, typer.Option(min=1, help="D: width of the model.")] = 64,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of both sides.")] = 10,
    learning_rate: Annotated[float, typer.Option(help="Learning rate of both sides.")] = 1e-3,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each side.")] = 1,
    part: Annotated[Literal["valid", "test"], typer.Option(help="Sessions to rank.")] = "test",
    positions: Annotated[
        Literal["all", "last"],
        typer.Option(help="Targets: every interaction but the first, or the last."),
    ] = "all",
    environment: Environment = None,
    core: Core = None,
    as_json: Json = False,
) -> None:
    """Compare accuracy on the same targets after the same training on DATA."""
    check_input(data, "data")
    from benchmarks.accuracy import Plan, accuracy_text, compare_accuracy
    from benchmarks.machine import machine
    from benchmarks.settings import choose

    plan = Plan(
        data=data.absolute(),
        setting=choose((model,), ())[0].with_width(d_model),
        epochs=epochs,
        learning_rate=learning_rate,
        seeds=seeds,
        part=part,
        positions=positions,
    )
    with _sides(environment, core) as sides:
        result = {"machine": machine()} | compare_accuracy(sides, plan)
    print_result(result, as_json, accuracy_text(result))


@app.command(epilog="Example: python -m benchmarks evaluate --sessions 1024")
def evaluate(
    model: Annotated[str, typer.Option(help="As in `train --models`.")] = "gpt2-clm",
    items: Annotated[int, typer.Option(help="10000 or 200000.")] = 200_000,
    sessions: Annotated[int, typer.Option(min=1, help="Sessions to rank.")] = 1_024,
    turns: Turns = 3,
    allocator: Annotated[
        Literal["default", "kept"], typer.Option(help="As in `train`.")
    ] = "default",
    environment: Environment = None,
    core: Core = None,
    as_json: Json = False,
) -> None:
    """Compare speed and metrics of an evaluation over the whole catalogue."""
    from benchmarks.settings import choose

    setting = choose((model,), (items,))[0]
    from benchmarks.evaluation import evaluation_text, measure_evaluation
    from benchmarks.machine import machine

    with _sides(environment, core) as sides:
        result = {"machine": machine()} | measure_evaluation(
            sides, setting, sessions=sessions, turns=turns, allocator=allocator
        )
    print_result(result, as_json, evaluation_text(result))


@app.command(epilog="Example: python -m benchmarks serve --items 40000 --out serving")
def serve(
    repository: Annotated[Path | None, typer.Argument(help="Directory that export wrote.")] = None,
    architecture: Annotated[
        Literal["xlnet", "gpt2"],
        typer.Option(help="Architecture of the random model, without REPOSITORY."),
    ] = "xlnet",
    items: Annotated[int, typer.Option(min=100, help="Size of its catalogue.")] = 40_000,
    d_model: Annotated[int, typer.Option(min=8, help="D: its width.")] = 64,
    clients: Annotated[
        str, typer.Option(metavar="N,N", help="Concurrent clients.")
    ] = "1,2,4,8,16,32",
    seconds: Annotated[float, typer.Option(min=0.2, help="Seconds of each load.")] = 4.0,
    protocol: Annotated[Literal["grpc", "http"], typer.Option(help="Protocol.")] = "grpc",
    against: Annotated[
        str | None, typer.Option(metavar="URL", help="Another server: grpc://HOST:PORT.")
    ] = None,
    out: OutFolder = None,
    core: Core = None,
    as_json: Json = False,
) -> None:
    """Start a server and measure its latency and rate under rising load.

    Without REPOSITORY a model with random weights is exported first, whose requests cost as much.
    """
    if not seconds <= MAX_SECONDS:
        raise ConfigError(f"--seconds is {seconds:g}, expected 0.2 to {MAX_SECONDS}.")
    numbers = tuple(_number(text, "--clients") for text in _names(clients))
    if not numbers or min(numbers) < 1:
        raise ConfigError(f"--clients is {clients!r}, expected whole numbers from 1 such as 1,16.")
    if repository is not None:
        check_input(repository, "repository")
    from benchmarks.machine import machine
    from benchmarks.processes import choose_core
    from benchmarks.serving import Plan, measure_serving, serving_plot, serving_text
    from benchmarks.shop import write_repository

    server_core = choose_core(core)
    with tempfile.TemporaryDirectory(prefix="pipeline-serving-") as scratch:
        folder = Path(scratch)
        served = repository or write_repository(
            folder, architecture=architecture, items=items, d_model=d_model
        )
        (folder / "server").mkdir()
        plan = Plan(clients=numbers, seconds=seconds, protocol=protocol)
        figures = measure_serving(
            served, folder / "server", plan, core=server_core, against=against
        )
    model = str(repository) if repository else f"{architecture}, D {d_model}, random weights"
    result = {"machine": machine(), "model": model} | figures
    _write(result, out, "serving.json")
    if out is not None:
        (out / "serving.svg").write_text(serving_plot(result), encoding="utf-8")
    print_result(result, as_json, serving_text(result))


@app.command(epilog="Example: python -m benchmarks proxy repository --clients 1,16")
def proxy(
    repository: Annotated[Path | None, typer.Argument(help="Directory that export wrote.")] = None,
    items: Annotated[
        int, typer.Option(min=100, help="Catalogue of a random model, without REPOSITORY.")
    ] = 200,
    clients: Annotated[str, typer.Option(metavar="N,N", help="Concurrent clients.")] = "1,16",
    seconds: Annotated[float, typer.Option(min=0.2, help="Seconds of each load.")] = 3.0,
    turns: Turns = 4,
    out: OutFolder = None,
    as_json: Json = False,
) -> None:
    """Measure the cost of the proxy of `pipeline serve`: loads with and without it, in turn."""
    if not seconds <= MAX_SECONDS:
        raise ConfigError(f"--seconds is {seconds:g}, expected 0.2 to {MAX_SECONDS}.")
    numbers = parse_numbers("--clients", clients)
    if repository is not None:
        check_input(repository, "repository")
    from benchmarks.machine import machine
    from benchmarks.proxy import Plan, measure_proxy, proxy_text
    from benchmarks.shop import write_repository

    before = machine()
    with tempfile.TemporaryDirectory(prefix="pipeline-proxy-") as scratch:
        served = repository or write_repository(
            Path(scratch), architecture="xlnet", items=items, d_model=32
        )
        figures = measure_proxy(served, Plan(clients=numbers, seconds=seconds, turns=turns))
    model = str(repository) if repository else "xlnet, D 32, random weights"
    result = {"machine": before, "model": model} | figures
    _write(result, out, "proxy.json")
    print_result(result, as_json, proxy_text(result))


@app.command(epilog="Example: python -m benchmarks attackers repository --seconds 20")
def attackers(
    repository: Annotated[Path | None, typer.Argument(help="Directory that export wrote.")] = None,
    items: Annotated[
        int, typer.Option(min=100, help="Catalogue of a random model, without REPOSITORY.")
    ] = 200,
    clients: Annotated[int, typer.Option(min=2, help="Honest clients.")] = 16,
    count: Annotated[int, typer.Option("--attackers", min=1, help="Attackers.")] = 4,
    seconds: Annotated[float, typer.Option(min=1, help="Seconds of each load.")] = 10.0,
    turns: Turns = 3,
    out: OutFolder = None,
    as_json: Json = False,
) -> None:
    """Measure the effect of hostile requests on honest clients, health checks and memory.

    Loads without attackers and with them, in turn. Attackers have the lowest priority (nice 19) and
    send a bounded number of requests a second, since all share the cores of this machine.
    """
    if not seconds <= MAX_SECONDS:
        raise ConfigError(f"--seconds is {seconds:g}, expected 1 to {MAX_SECONDS}.")
    if repository is not None:
        check_input(repository, "repository")
    from benchmarks.attackers import Plan, attackers_text, measure_attackers
    from benchmarks.machine import machine
    from benchmarks.shop import write_repository

    before = machine()
    plan = Plan(clients=clients, attackers=count, seconds=seconds, turns=turns)
    with tempfile.TemporaryDirectory(prefix="pipeline-attackers-") as scratch:
        served = repository or write_repository(
            Path(scratch), architecture="xlnet", items=items, d_model=32
        )
        figures = measure_attackers(served, plan)
    model = str(repository) if repository else "xlnet, D 32, random weights"
    result = {"machine": before, "model": model} | figures
    _write(result, out, "attackers.json")
    print_result(result, as_json, attackers_text(result))


@app.command(epilog="Example: python -m benchmarks soak --minutes 30")
def soak(
    minutes: Annotated[float, typer.Option(min=0.5, help="Minutes of the load.")] = 30.0,
    clients: Annotated[int, typer.Option(min=2, help="Honest clients.")] = 16,
    count: Annotated[int, typer.Option("--attackers", min=1, help="Attackers.")] = 4,
    out: OutFolder = None,
    as_json: Json = False,
) -> None:
    """Measure a server under concurrent load, attacks, new exports and kills.

    At the end the launcher is killed, and the remaining processes and files are counted.
    """
    if not minutes * 60 <= MAX_SECONDS:
        raise ConfigError(f"--minutes is {minutes:g}, expected 0.5 to {MAX_SECONDS // 60}.")
    from benchmarks.machine import machine
    from benchmarks.soak import Plan, measure_soak, soak_text

    before = machine()
    with tempfile.TemporaryDirectory(prefix="pipeline-soak-") as scratch:
        plan = Plan(minutes=minutes, clients=clients, attackers=count)
        figures = measure_soak(Path(scratch), plan)
    result = {"machine": before} | figures
    _write(result, out, "soak.json")
    print_result(result, as_json, soak_text(result))


@app.command(epilog="Example: python -m benchmarks preprocess --rows 500000")
def preprocess(
    rows: Annotated[int, typer.Option(min=1_000, help="Interactions of the log.")] = 5_000_000,
    items: Annotated[int, typer.Option(min=1, help="Size of the catalogue.")] = 200_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the log.")] = 0,
    sides: Annotated[
        str,
        typer.Option(
            metavar="A,B",
            help="ours, polars, nvtabular (minutes for 5,000,000 rows), cudf (ours on a GPU).",
        ),
    ] = "ours,polars,nvtabular",
    turns: Turns = 1,
    cores: Annotated[int | None, typer.Option(min=1, help="Cores to use.  [default: all]")] = None,
    polars_python: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Python that has Polars.  [default: this one]"),
    ] = None,
    out: OutFolder = None,
    as_json: Json = False,
) -> None:
    """Compare preprocessing: ours, hand-written Polars and stock NVTabular.

    Each side runs in a process of its own, one after the other, and writes the same sessions from
    the same log; the outputs are compared.
    """
    from benchmarks.machine import machine
    from benchmarks.preprocessing import measure_preprocessing, preprocessing_text
    from benchmarks.runner import Plan

    plan = Plan(
        rows=rows,
        items=items,
        seed=seed,
        turns=turns,
        sides=_names(sides),
        num_cores=cores,
        polars_python=polars_python or Path(sys.executable),
    )
    plan.check()
    before = machine()  # before the load of the measurement itself
    with tempfile.TemporaryDirectory(prefix="pipeline-preprocess-") as scratch:
        result = {"machine": before} | measure_preprocessing(plan, Path(scratch))
    _write(result, out, "preprocess.json")
    print_result(result, as_json, preprocessing_text(result))


@app.command(epilog="Example: python -m benchmarks sharding --items 100000 --targets 4096")
def sharding(
    items: Annotated[
        str, typer.Option(metavar="N,N", help="Items of each table.")
    ] = "100000,1000000",
    targets: Annotated[int, typer.Option(min=2, help="Targets of a step, even.")] = 2_048,
    d_model: Annotated[int, typer.Option(min=4, help="D: width of the table.")] = 128,
    negatives: Annotated[int, typer.Option(min=1, help="Negatives of the sampled loss.")] = 256,
    turns: Turns = 3,
    steps: Annotated[int, typer.Option(min=1, help="Steps of a turn with the exact loss.")] = 2,
    out: OutFolder = None,
    as_json: Json = False,
) -> None:
    """Compare a table over two processes: this project, torch's DTensor, TorchRec, a whole table.

    TorchRec is measured if it is installed: docs/reference/sharding.md has the packages.
    """
    if targets % 2:
        raise ConfigError(f"--targets is {targets}, expected an even number for two processes.")
    numbers = parse_numbers("--items", items)
    from benchmarks.machine import machine
    from benchmarks.sharding import Plan, measure_sharding, sharding_text

    plan = Plan(
        items=numbers,
        targets=targets,
        d_model=d_model,
        negatives=negatives,
        turns=turns,
        steps=steps,
    )
    result = {"machine": machine()} | measure_sharding(plan)
    _write(result, out, "sharding.json")
    print_result(result, as_json, sharding_text(result))


@app.command(epilog="Example: python -m benchmarks results logs/ --only rsc15 --out results")
def results(
    logs: Annotated[
        Path,
        typer.Argument(metavar="LOGS", help="Folder of the public logs, which are not shipped."),
    ],
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Folder of data and runs; existing ones are reused."),
    ],
    only: Annotated[
        str | None, typer.Option(metavar="A,B", help="Names of tables.  [default: all]")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Seeds of every row.  [default: by table]")
    ] = None,
    write: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE.md", help="Replace the tables of a document. Repeatable."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compute the accuracy tables of the documents from raw logs: preprocess, train, compare."""
    from benchmarks.results import check_names, measure_results, write_tables

    names = _names(only)
    check_names(names)
    tables, written = {}, set()
    for name, table in measure_results(logs, out, names, seeds):
        tables[name] = table
        if not as_json:
            typer.echo(f"{name}\n\n{table}\n")
        for document in write or ():
            written.update(write_tables(document, {name: table}))
    if write and not written:
        files = ", ".join(map(str, write))
        raise ConfigError(f"{files} has no line `<!-- results: NAME -->` for any of these tables.")
    if as_json:
        print_result(tables, as_json, "")


@app.command(epilog="Example: python -m benchmarks sizing --out sizing")
def sizing(out: OutFolder = None, as_json: Json = False) -> None:
    """Measure the coefficients of `pipeline size` on one core: takes about half an hour.

    The folder of --out gets coefficients.json, the file of pipeline/sizing, and sizing.md, the
    tables of docs/how-to/sizing.md.
    """
    from benchmarks.sizing import measure_sizing, sizing_markdown

    table = measure_sizing()
    _write(table, out, "coefficients.json")
    text = sizing_markdown(table)
    if out is not None:
        (out / "sizing.md").write_text(text, encoding="utf-8")
    print_result(table, as_json, text)


@app.command(epilog="Example: python -m benchmarks gpu --out gpu")
def gpu(
    seconds: Annotated[
        float, typer.Option(min=10, help="Total time; parts that do not fit are not run.")
    ] = 240.0,
    device: Annotated[
        Literal["cuda", "cpu"],
        typer.Option(help="cpu runs the parts that need no GPU, with pandas instead of cuDF."),
    ] = "cuda",
    tiny: Annotated[
        bool, typer.Option("--tiny", help="Small sizes, to check that all parts run.")
    ] = False,
    parts: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Prefixes of part names, such as train.  [default: all]"),
    ] = None,
    out: OutFolder = None,
    as_json: Json = False,
) -> None:
    """Test the GPU stack of this machine and measure all stages on it.

    Each part runs in a process of its own with a time limit: the stack and the tests marked gpu,
    training and hand-written loops, preprocessing on cuDF, on the CPU, by hand and with stock
    NVTabular, evaluation over a million items, the exported model. Exit code 1 if a part fails, 2
    without a CUDA device.
    """
    from benchmarks.gpu.measure import check_device, gpu_text, measure_gpu, scratch_plan

    check_device(device)
    with tempfile.TemporaryDirectory(prefix="pipeline-gpu-") as scratch:
        plan = scratch_plan(Path(scratch), device, seconds, tiny=tiny)
        result = measure_gpu(plan, _names(parts))
    _write(result, out, "gpu.json")
    print_result(result, as_json, gpu_text(result))
    if any(part["failed"] for part in result["parts"]):
        raise typer.Exit(1)


def _write(result: dict[str, Any], out: Path | None, name: str) -> None:
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(json.dumps(result, indent=1), encoding="utf-8")


@contextmanager
def _sides(environment: Path | None, core: int | None) -> Iterator[Any]:
    """Context of the `Sides` of a measurement, with a temporary folder."""
    from benchmarks.environment import original_program, our_program
    from benchmarks.processes import choose_core
    from benchmarks.sides import Sides

    side_core = choose_core(core)
    original = original_program(environment)
    with tempfile.TemporaryDirectory(prefix="pipeline-benchmark-") as scratch:
        yield Sides(ours=our_program(), original=original, core=side_core, scratch=Path(scratch))


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
    run_app(app, "python -m benchmarks")
