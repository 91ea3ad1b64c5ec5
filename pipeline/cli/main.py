"""The `pipeline` command. Stages are imported inside the commands, so that help is instant."""

import atexit
import gc
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from pipeline import __version__
from pipeline.cli.compare import compare
from pipeline.cli.console import run_app, set_up_logging
from pipeline.cli.demo import demo
from pipeline.cli.evaluate import evaluate
from pipeline.cli.export import export
from pipeline.cli.load_test import load_test
from pipeline.cli.monitor import monitor
from pipeline.cli.predict import predict
from pipeline.cli.preprocess import preprocess
from pipeline.cli.proxy import proxy
from pipeline.cli.recipes import recipes
from pipeline.cli.recommend import recommend
from pipeline.cli.report import report
from pipeline.cli.rollback import rollback
from pipeline.cli.serve import serve
from pipeline.cli.size import size
from pipeline.cli.synthesize import synthesize
from pipeline.cli.train import train
from pipeline.cli.tune import tune
from pipeline.cli.update import update

EXAMPLES: dict[Callable[..., None], str] = {
    demo: "pipeline demo --out demo",
    synthesize: "pipeline synthesize --out clicks.csv.gz --sessions 20000",
    preprocess: "pipeline preprocess logs/ --recipe shop.yaml --out data/shop",
    train: "pipeline train data/shop --recipe shop.yaml --out runs/shop",
    evaluate: "pipeline evaluate runs/shop --data data/shop --cutoffs 10,20",
    compare: "pipeline compare runs/gru runs/sasrec --data data/shop --out comparison.html",
    tune: "pipeline tune data/shop --recipe shop.yaml --space space.yaml --trials 20 --out tuning",
    predict: "pipeline predict runs/shop --data data/shop --k 20 --out lists.parquet",
    report: "pipeline report runs/shop --data data/shop --out shop.html",
    export: "pipeline export runs/shop --out repository",
    serve: "pipeline serve repository --http-port 8000",
    monitor: "pipeline monitor log --data data/shop --clicks clicks.csv --out monitor.html",
    update: "pipeline update --from shop --input logs/day8 --recipe shop.yaml "
    "--unless-worse ndcg@20:0.005",
    rollback: "pipeline rollback shop/repository",
    proxy: "pipeline proxy triton.example --http-port 8000",
    recommend: "pipeline recommend http://127.0.0.1:8000 --items 214716935,214832672",
    load_test: "pipeline load-test http://127.0.0.1:8000 --clients 1,4,16",
    size: "pipeline size --items 1e6 --d-model 128 --rate 500",
}
"""Commands in the order in which they are used, each with the example of its help."""

app = typer.Typer(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for _command, _example in EXAMPLES.items():
    app.command(epilog=f"Example: {_example}")(_command)
app.add_typer(recipes, name="recipes", help="List and show recipes of published models.")

_COLLECTOR_THRESHOLD = 50_000
"""Allocations between collections of reference cycles; Python's default of 700 adds half a second
to the imports."""


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"pipeline {__version__}")
        raise typer.Exit


@app.callback()
def pipeline(
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Print debug log lines, and tracebacks.")
    ] = False,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Session-based recommendation: from raw interactions to a Triton server.

    \b
    preprocess -> train -> evaluate -> export -> serve -> recommend
               -> compare, tune, predict, report (without a server)
    update: preprocess, train, compare and export with the logs of a new day, for cron
    monitor: compare requests of a server with training and later clicks

    Start with `pipeline demo`, which runs all stages on synthetic clicks.
    """
    set_up_logging(verbose)


def main() -> None:
    """Run the command line; see `run_app` for the exit codes."""
    # at exit the collector would visit every object twice, which takes half a second
    atexit.register(gc.freeze)
    gc.set_threshold(_COLLECTOR_THRESHOLD)
    has_operators = any(word.startswith("--operators") for word in sys.argv)
    if "preprocess" in sys.argv[1:3] and not has_operators:
        # a user's operators may import packages that Merlin does not need
        from pipeline.core.merlin import leave_out_unused

        leave_out_unused()
    run_app(app)
