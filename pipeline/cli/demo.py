"""`pipeline demo`: synthetic clicks through every stage, as a user would run them one by one."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from pipeline.cli.results import data_text, evaluation_text, recommendations_text, run_text
from pipeline.core.errors import ArtifactError
from pipeline.core.resources import find_resource
from pipeline.recipe.preprocess import Recipe

MARKER = ".pipeline-demo"
"""Says that a directory is a demo's own."""
ITEMS = 400
"""Few enough that a minute of training sees each often."""


def run_demo(out: Path, *, sessions: int, keep_serving: bool) -> dict[str, Any]:
    """Write everything below `out`, print what happens on stderr; return what each stage said."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MARKER).exists())):
        raise ArtifactError(f"{out} holds something else; it is left alone. Choose another --out.")
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()
    config = find_resource("configs/demo.yaml")
    recipe = Recipe.from_yaml(config)
    clicks, data = out / "clicks.csv.gz", out / "data"
    run, repository = out / "run", out / "repository"
    facts: dict[str, Any] = {}

    with _stage(f"pipeline synthesize --out {clicks} --sessions {sessions} --items {ITEMS}"):
        from pipeline.preprocessing.synthetic import synthesize

        facts["synthesize"] = synthesize(clicks, sessions=sessions, items=ITEMS, overwrite=True)
        _say(f"{facts['synthesize']['interactions']:,} clicks")
    with _stage(f"pipeline preprocess configs/demo.yaml --input {clicks} --out {data}"):
        from pipeline.preprocessing.run import preprocess

        facts["preprocess"] = preprocess(recipe.preprocess, [clicks], [], data)
        _say(data_text(facts["preprocess"], data))
    with _stage(f"pipeline train {data} --config configs/demo.yaml --out {run}"):
        from pipeline.training.run import train

        facts["train"] = train(data, recipe.model, recipe.train, run)
        _say(run_text(facts["train"], run))
    with _stage(f"pipeline evaluate {run} --data {data} --cutoffs 20"):
        from pipeline.evaluation.run import evaluate

        facts["evaluate"] = evaluate(run, data, cutoffs=(20,))
        _say(evaluation_text(facts["evaluate"]))
    with _stage(f"pipeline export {run} --out {repository}"):
        from pipeline.exporting.run import export

        facts["export"] = export(run, repository)
        _say(f"Scores differ by {facts['export']['largest_score_difference']:.1e} at most.")
    _serve(clicks, repository, facts, keep_serving)
    return facts


def _serve(clicks: Path, repository: Path, facts: dict[str, Any], keep_serving: bool) -> None:
    from pipeline.serve.run import describe, running_server, wait_for_signal
    from pipeline.serve.triton.ports import Ports, free_ports

    ports = Ports() if keep_serving else free_ports()
    begin = time.monotonic()
    _say(f"\n$ pipeline serve {repository}")
    with running_server(repository, ports=ports) as server:
        facts["serve"] = describe(repository, server)
        _say(f"Triton is ready after {time.monotonic() - begin:.1f} s.")
        session = _first_session(clicks)
        for url in (facts["serve"]["http"], facts["serve"]["grpc"]):
            facts[url.split(":")[0]] = _ask(url, session)
        if keep_serving:
            _say(
                f"\nServing at {facts['serve']['http']} and {facts['serve']['grpc']}. "
                "Stop with Ctrl-C."
            )
            wait_for_signal(server)
    _say("\nTriton has stopped. Everything is in " + str(clicks.parent))


def _ask(url: str, session: dict[str, list[Any]]) -> list[dict[str, Any]]:
    from pipeline.serve.client.client import Client

    columns = "".join(
        f' --column "{name}={",".join(map(str, given))}"'
        for name, given in session.items()
        if name != "item_id"
    )
    _say(f"\n$ pipeline recommend {url} --items {','.join(session['item_id'])}{columns} --k 5")
    with Client(url) as client:
        answer = client.recommend([session], 5)
    records = list(answer.records([None]))
    _say(recommendations_text(records))
    entries: list[dict[str, Any]] = records[0]["recommendations"]
    return entries


def _first_session(clicks: Path) -> dict[str, list[Any]]:
    """Three raw interactions of the log, by tensor name."""
    import pyarrow.csv

    table = pyarrow.csv.read_csv(clicks).to_pandas()
    sizes = table.groupby("session", sort=False).size()
    rows = table[table["session"] == sizes.index[int((sizes >= 3).to_numpy().argmax())]].head(3)
    return {
        "item_id": rows["product"].tolist(),
        "timestamp": rows["time"].astype(str).tolist(),
        "category": rows["category"].tolist(),
        "action": rows["action"].tolist(),
        "price": rows["price"].tolist(),
        "device": rows["device"].tolist()[-1:],
    }


@contextmanager
def _stage(command: str) -> Iterator[None]:
    _say(f"\n$ {command}")
    begin = time.monotonic()
    yield
    _say(f"({time.monotonic() - begin:.1f} s)")


def _say(text: str) -> None:
    click.echo(text, err=True)
