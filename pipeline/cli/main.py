"""The `pipeline` command: one command a stage. Imports stand inside, so that help is instant."""

import atexit
import gc
import sys
from pathlib import Path
from typing import Any

import click

from pipeline import __version__
from pipeline.cli.console import (
    check_in,
    check_out,
    if_needed_option,
    is_current,
    json_option,
    out_option,
    path_type,
    print_json,
    print_result,
    run_command_line,
    set_option,
)
from pipeline.cli.offline import evaluate, predict, report
from pipeline.cli.online import recommend, serve
from pipeline.cli.tune import tune

_OBJECTS = 50_000
"""Made before Python looks for cycles: 700, its own, is half a second of imports."""
_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(context_settings=_CONTEXT)
@click.version_option(__version__)
def cli() -> None:
    """Session-based recommendation: raw click logs to a Triton server.

    \b
    preprocess -> train -> evaluate -> export -> serve -> recommend
               -> tune  -> predict, report, without a server

    Start with `pipeline demo`, which does all of it on synthetic clicks.
    """


@cli.command(epilog="Example: pipeline demo --out demo")
@out_option("demo")
@click.option("--sessions", default=8_000, show_default=True, help="Synthetic sessions.")
@click.option("--keep-serving", is_flag=True, help="Leave Triton running until Ctrl-C.")
@json_option
def demo(out: Path, sessions: int, keep_serving: bool, as_json: bool) -> None:
    """Synthetic clicks through every stage, then one recommendation over HTTP and one over gRPC."""
    from pipeline.cli.demo import run_demo

    facts = run_demo(out, sessions=sessions, keep_serving=keep_serving)
    if as_json:
        print_json(facts)


@cli.command(epilog="Example: pipeline synthesize --out clicks.csv.gz --sessions 20000")
@out_option()
@click.option("--sessions", default=8_000, show_default=True, help="Number of sessions.")
@click.option("--items", default=1_000, show_default=True, help="Size of the catalogue.")
@click.option("--days", default=14, show_default=True, help="Days that the log spans.")
@click.option("--seed", default=0, show_default=True, help="Same seed, same clicks.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
@click.option("--if-needed", is_flag=True, help="Do nothing where --out is there.")
@json_option
def synthesize(
    out: Path,
    sessions: int,
    items: int,
    days: int,
    seed: int,
    overwrite: bool,
    if_needed: bool,
    as_json: bool,
) -> None:
    """Write synthetic shop clicks with structure worth learning (.csv, .csv.gz or .parquet)."""
    if if_needed and out.is_file() and not overwrite:
        print_result({}, as_json, f"{out} is there.")
        return
    from pipeline.preprocessing.synthetic import synthesize as run

    facts = run(out, sessions=sessions, items=items, days=days, seed=seed, overwrite=overwrite)
    print_result(facts, as_json, f"Wrote {facts['interactions']:,} clicks to {out}.")


@cli.command(
    epilog="Example: pipeline preprocess configs/rsc15.yaml --input train.tsv.gz --test test.tsv.gz"
    " --out data/rsc15"
)
@click.argument("config", type=path_type)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    required=True,
    type=path_type,
    metavar="FILE",
    help="Log to learn from: CSV, TSV or Parquet, also .gz, or a folder of such. Repeatable.",
)
@click.option(
    "--test",
    "tests",
    multiple=True,
    type=path_type,
    metavar="FILE",
    help="Log of test sessions, in place of `split.test`. Repeatable.",
)
@out_option()
@click.option(
    "--from",
    "base",
    type=path_type,
    metavar="DATA",
    help="Go on from an earlier data directory: known ids keep their indices, new ones get the "
    "next, numbers keep their scale.",
)
@click.option(
    "--cluster",
    envvar="PIPELINE_CLUSTER",
    metavar="ADDRESS",
    help="Dask scheduler whose workers do the work, such as tcp://HOST:8786; --out is in a folder "
    "that they share. Or local, a process a core, or local-cuda, a process a GPU.  "
    "[env: PIPELINE_CLUSTER]",
)
@click.option(
    "--operators",
    type=path_type,
    metavar="FILE.py",
    help="Python file, which is run, with the NVTabular operators that the recipe names.",
)
@if_needed_option
@set_option
@json_option
def preprocess(
    config: Path,
    inputs: tuple[Path, ...],
    tests: tuple[Path, ...],
    out: Path,
    base: Path | None,
    cluster: str | None,
    operators: Path | None,
    if_needed: bool,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Turn raw interactions into sessions, by the recipe CONFIG."""
    from pipeline.recipe.preprocess import Recipe

    recipe = Recipe.from_yaml(config, overrides).preprocess
    check_out(out, "data")
    if base is not None:
        check_in(base, "data")
    from pipeline.data import fingerprint as identity
    from pipeline.logs.files import check_tables, find_logs

    check_tables(recipe)
    logs, test_logs = find_logs(recipe, inputs), find_logs(recipe, tests)
    if operators is not None and not operators.is_file():
        from pipeline.core.errors import ConfigError

        raise ConfigError(f"--operators {operators} does not exist. Expected a Python file.")
    made_from = identity.of_data(recipe, logs, test_logs, base, operators)
    if if_needed and is_current(out, "data", made_from, as_json):
        return
    from pipeline.cli.results import data_text
    from pipeline.preprocessing.run import preprocess as run

    facts = run(recipe, logs, test_logs, out, cluster=cluster, base=base, operators=operators)
    print_result(facts, as_json, data_text(facts, out))


@cli.command(
    epilog="Example: pipeline train data/rsc15 --config configs/rsc15.yaml --out runs/rsc15"
)
@click.argument("data", type=path_type)
@click.option("--config", required=True, type=path_type, help="Recipe with `model` and `train`.")
@out_option()
@click.option(
    "--restart", is_flag=True, help="Begin anew where a training of this was interrupted."
)
@click.option(
    "--from",
    "start",
    type=path_type,
    metavar="RUN",
    help="Begin from the weights of an earlier run, whose catalogue may be another.",
)
@click.option(
    "--windows",
    metavar="WIDTH",
    help="Train day by day (1d) or by hours (6h), each window evaluated before it is trained on; "
    "valid and test sessions are among them.",
)
@if_needed_option
@set_option
@json_option
def train(
    data: Path,
    config: Path,
    out: Path,
    restart: bool,
    start: Path | None,
    windows: str | None,
    if_needed: bool,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Train the recipe's model on the directory DATA that preprocess wrote.

    When it was interrupted, the same command goes on from its last checkpoint. With several
    processes: torchrun --nproc-per-node 2 -m pipeline train ...
    """
    from pipeline.recipe.preprocess import Recipe

    recipe = Recipe.from_yaml(config, overrides)
    check_out(out, "run")
    check_in(data, "data")
    if start is not None:
        check_in(start, "run")
    from pipeline.data import fingerprint as identity
    from pipeline.recipe.durations import span_seconds

    seconds = None if windows is None else span_seconds(windows)
    made_from = identity.of_run(data, recipe.model, recipe.train, windows=seconds, start=start)
    if if_needed and is_current(out, "run", made_from, as_json):
        return
    from pipeline.cli.results import run_text
    from pipeline.data.fitted import other_settings

    # a recipe for training alone need not have that section
    if "preprocess" in recipe.model_fields_set:
        others = [f"`{name}`" for name in other_settings(recipe.preprocess, data)]
        if others:
            click.echo(
                f"Note: {data} was made with other {', '.join(others)} than {config} has now. "
                "Preprocess again to train with those.",
                err=True,
            )
    if seconds is None:
        from pipeline.training.run import train as run

        facts = run(data, recipe.model, recipe.train, out, restart=restart, start=start)
    else:
        from pipeline.training.incremental.run import train_windows

        facts = train_windows(data, recipe.model, recipe.train, out, seconds=seconds, start=start)
    print_result(facts, as_json, run_text(facts, out))


@cli.command(epilog="Example: pipeline export runs/rsc15 --out repository")
@click.argument("run", type=path_type)
@out_option()
@click.option("--name", default="recommender", show_default=True, help="Model that clients ask.")
@click.option(
    "--k",
    "default_k",
    default=10,
    show_default=True,
    help="Items of an answer where a request names none.",
)
@click.option("--max-k", default=100, show_default=True, help="Most items of an answer.")
@click.option("--max-batch", default=256, show_default=True, help="Most sessions of a batch.")
@click.option(
    "--device",
    type=click.Choice(["cpu", "gpu"]),
    default="cpu",
    show_default=True,
    help="Where the server runs the model; gpu needs one here too.",
)
@click.option(
    "--scoring",
    type=click.Choice(["fp32", "int8"]),
    default="fp32",
    show_default=True,
    help="int8: the same lists of a large catalogue in less time, on a CPU.",
)
@if_needed_option
@json_option
def export(run: Path, out: Path, if_needed: bool, as_json: bool, **settings: Any) -> None:
    """Write RUN as a Triton model repository: raw columns in, raw item ids out.

    Over an older repository it writes the next version, which a server with --reload takes up.
    """
    check_out(out, "repository")
    check_in(run, "run")
    from pipeline.data import fingerprint as identity

    if if_needed and is_current(
        out, "repository", identity.of_repository(run, **settings), as_json
    ):
        return
    from pipeline.exporting.run import export as run_export

    facts = run_export(run, out, **settings)
    text = (
        f"Wrote {out}, version {facts['version']}: {facts['catalogue_items']:,} items, lists of up "
        f"to {facts['max_k']}.\n"
        f"The program's scores differ from the model's by at most "
        f"{facts['largest_score_difference']:.1e}.\n"
        f"Next: pipeline serve {out}"
    )
    print_result(facts, as_json, text)


cli.add_command(serve)
cli.add_command(recommend)
cli.add_command(evaluate)
cli.add_command(predict)
cli.add_command(report)
cli.add_command(tune)


def main() -> None:
    """Run the command; a user's mistake ends it with one line on stderr and the status 2."""
    # the collector would go through everything twice as the interpreter ends: half a second
    atexit.register(gc.freeze)
    if sys.argv[1:2] == ["preprocess"]:
        gc.set_threshold(_OBJECTS)
        # a user's operators may need what Merlin does not
        if not any(word.startswith("--operators") for word in sys.argv):
            from pipeline.core.merlin import leave_out_unused

            leave_out_unused()
    run_command_line(cli)


if __name__ == "__main__":
    main()
