"""`pipeline demo`: run every stage on synthetic clicks."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli.console import note, print_result
from pipeline.cli.options import Json
from pipeline.cli.preprocess import data_text
from pipeline.cli.recommend import recommendations_text
from pipeline.cli.train import run_text
from pipeline.core.errors import ArtifactError

MARKER = ".pipeline-demo"
"""File that marks a directory that the demo wrote."""
NUM_ITEMS = 400
"""Size of the catalogue, small enough that a minute of training sees each item often."""


def demo(
    out: Annotated[Path, typer.Option(help="Directory to write everything to.")] = Path("demo"),
    sessions: Annotated[int, typer.Option(help="Number of synthetic sessions.")] = 8_000,
    keep_serving: Annotated[
        bool, typer.Option("--keep-serving", help="Leave Triton running until Ctrl-C.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run every stage on synthetic clicks, up to a running Triton.

    At the end it recommends once over HTTP and once over gRPC.
    """
    facts = run_demo(out, sessions=sessions, keep_serving=keep_serving)
    print_result(facts, as_json, f"Everything is in {out}.")


def run_demo(out: Path, *, sessions: int, keep_serving: bool) -> dict[str, Any]:
    """Write everything below `out`, print each stage on stderr; return the facts of each stage."""
    from pipeline.core.files import find_resource
    from pipeline.recipe.recipe import Recipe

    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MARKER).exists())):
        raise ArtifactError(f"{out} holds something else; it is left alone. Choose another --out.")
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()
    recipe = Recipe.load(find_resource("configs/demo.yaml"))
    clicks, data = out / "clicks.csv.gz", out / "data"
    run, repository = out / "run", out / "repository"
    facts: dict[str, Any] = {}

    with _stage(f"pipeline synthesize --out {clicks} --sessions {sessions} --items {NUM_ITEMS}"):
        from pipeline.preprocessing.synthetic import synthesize

        facts["synthesize"] = synthesize(clicks, sessions=sessions, items=NUM_ITEMS, overwrite=True)
        note(f"{facts['synthesize']['interactions']:,} clicks")
    with _stage(f"pipeline preprocess {clicks} --recipe configs/demo.yaml --out {data}"):
        from pipeline.preprocessing.run import preprocess

        facts["preprocess"] = preprocess(recipe.preprocess, [clicks], [], data)
        note(data_text(facts["preprocess"], data))
    with _stage(f"pipeline train {data} --recipe configs/demo.yaml --out {run}"):
        from pipeline.training.run import train

        facts["train"] = train(data, recipe.model, recipe.train, run)
        note(run_text(facts["train"], run))
    with _stage(f"pipeline evaluate {run} --data {data} --cutoffs 20"):
        from pipeline.evaluation.run import evaluate

        evaluation = evaluate(run, data, cutoffs=(20,))
        facts["evaluate"] = evaluation.to_dict()
        note(str(evaluation))
    with _stage(f"pipeline export {run} --out {repository}"):
        from pipeline.exporting.run import export

        facts["export"] = export(run, repository).to_dict()
        note(f"Scores differ by {facts['export']['largest_score_difference']:.1e} at most.")
    _serve(clicks, repository, facts, keep_serving)
    return facts


def _serve(clicks: Path, repository: Path, facts: dict[str, Any], keep_serving: bool) -> None:
    from pipeline.serve.run import describe, running_server, wait_for_signal
    from pipeline.serve.triton.ports import Ports, free_ports

    ports = Ports() if keep_serving else free_ports()
    start = time.monotonic()
    note(f"\n$ pipeline serve {repository}")
    with running_server(repository, ports=ports) as server:
        facts["serve"] = describe(repository, server)
        note(f"Triton is ready after {time.monotonic() - start:.1f} s.")
        session = _first_session(clicks)
        for url in (facts["serve"]["http"], facts["serve"]["grpc"]):
            facts[url.split(":")[0]] = _recommend(url, session)
        if keep_serving:
            urls = f"{facts['serve']['http']} and {facts['serve']['grpc']}"
            note(f"\nServing at {urls}. Stop with Ctrl-C.")
            wait_for_signal(server)
    note("\nTriton has stopped.")


def _recommend(url: str, session: dict[str, list[Any]]) -> list[dict[str, Any]]:
    from pipeline.serve.client.client import Client

    columns = "".join(
        f' --column "{name}={",".join(map(str, values))}"'
        for name, values in session.items()
        if name != "item_id"
    )
    note(f"\n$ pipeline recommend {url} --items {','.join(session['item_id'])}{columns} --k 5")
    with Client(url) as client:
        answer = client.recommend([session], 5)
    records = list(answer.records([None]))
    note(recommendations_text(records))
    recommendations: list[dict[str, Any]] = records[0]["recommendations"]
    return recommendations


def _first_session(clicks: Path) -> dict[str, list[Any]]:
    """Return the first three raw interactions of a session of the log, by tensor name."""
    import pyarrow.csv

    table = pyarrow.csv.read_csv(clicks).to_pandas()
    sizes = table.groupby("session", sort=False).size()
    rows = table[table["session"] == sizes.index[int((sizes >= 3).to_numpy().argmax())]].head(3)
    session = rows[["product", "time", "category", "action", "price", "device"]].astype(
        {"time": str}
    )
    session = session.rename(columns={"product": "item_id", "time": "timestamp"})
    return session.to_dict("list") | {"device": rows["device"].tolist()[-1:]}


@contextmanager
def _stage(command: str) -> Iterator[None]:
    note(f"\n$ {command}")
    start = time.monotonic()
    yield
    note(f"({time.monotonic() - start:.1f} s)")
