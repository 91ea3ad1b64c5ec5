"""Run cases with the pipeline of one checkout, in one process.

    PYTHONPATH=CHECKOUT python -P worker.py JOBS.json

It imports nothing of this folder, and of pipeline only the imports of the adapter at the top.
"""

import base64
import http.client
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

# --- adapter: code that depends on the version of the checkout ------------------------------------
# A recipe is a YAML file; `data` and `run` are what preprocess and train of that version return.


@dataclass(frozen=True)
class Adapter:
    """The stages of one version of pipeline."""

    preprocess: Callable[[Path, dict[str, Any], Path], Any]
    """(recipe, job, out) -> data."""
    train: Callable[[Path, Any, Path], Any]
    """(recipe, data, out) -> run."""
    evaluate: Callable[[Any, Any], dict[str, Any]]
    """(run, data) -> figures on the test part, with the keys of the old version."""
    export: Callable[[Any, Path], None]
    """(run, out)."""
    serve: Callable[[Path], AbstractContextManager[str]]
    """repository -> HOST:PORT of HTTP while the server runs."""
    recipe_values: Callable[[dict[str, Any]], dict[str, Any]]
    """Recipe in the format of the old version -> recipe in the format of this version."""


def old_preprocess(recipe: Path, job: dict[str, Any], out: Path) -> Path:
    """`pipeline.preprocess.run.preprocess`."""
    from pipeline.core.recipe import Recipe
    from pipeline.preprocess.run import preprocess

    preprocess(
        Recipe.from_yaml(recipe).preprocess,
        [Path(path) for path in job["logs"]],
        [Path(path) for path in job["tests"]],
        out,
        base=None if job["base"] is None else Path(job["base"]),
        operators=None if job["operators"] is None else Path(job["operators"]),
    )
    return out


def old_train(recipe: Path, data: Path, out: Path) -> Path:
    """`pipeline.train.run.train`."""
    from pipeline.core.recipe import Recipe
    from pipeline.train.run import train

    values = Recipe.from_yaml(recipe)
    train(data, values.model, values.train, out)
    return out


def old_evaluate(run: Path, data: Path) -> dict[str, Any]:
    """`pipeline.train.comparison.evaluate`."""
    from pipeline.train.comparison import evaluate

    return evaluate(run, data)


def old_export(run: Path, out: Path) -> None:
    """`pipeline.export.run.export`."""
    from pipeline.export.run import export

    export(run, out)


@contextmanager
def old_serve(repository: Path) -> Iterator[str]:
    """`pipeline.serve.run.running_server`."""
    from pipeline.serve.ports import free_ports

    from pipeline.serve.run import running_server

    log = repository.with_name("server.log")
    with running_server(repository, ports=free_ports(), log_path=log) as server:
        yield server.http_url


def new_preprocess(recipe: Path, job: dict[str, Any], out: Path) -> Any:
    """`pipeline.preprocess`."""
    from pipeline import Recipe, preprocess

    optional = {key: job[key] for key in ("base", "operators") if job[key] is not None}
    return preprocess(Recipe.load(recipe), job["logs"], test=job["tests"], out=out, **optional)


def new_train(recipe: Path, data: Any, out: Path) -> Any:
    """`pipeline.train`."""
    from pipeline import Recipe, train

    return train(Recipe.load(recipe), data, out=out)


def new_evaluate(run: Any, data: Any) -> dict[str, Any]:
    """`pipeline.evaluate`."""
    from pipeline import evaluate

    figures: Any = evaluate(run, data)
    return dict(figures) if isinstance(figures, dict) else figures.to_dict()


def new_export(run: Any, out: Path) -> None:
    """`pipeline.export`."""
    from pipeline import export

    export(run, out=out)


@contextmanager
def new_serve(repository: Path) -> Iterator[str]:
    """`pipeline.serve.run.running_server`."""
    from pipeline.serve.run import running_server
    from pipeline.serve.triton.ports import free_ports

    log = repository.with_name("server.log")
    with running_server(repository, ports=free_ports(), log_path=log) as server:
        yield server.http_url


def adapter() -> Adapter:
    """Return the adapter of the checkout: new if the package has the function `preprocess`."""
    import pipeline

    if callable(getattr(pipeline, "preprocess", None)):
        return Adapter(
            new_preprocess, new_train, new_evaluate, new_export, new_serve, recipe_values=dict
        )
    return Adapter(
        old_preprocess, old_train, old_evaluate, old_export, old_serve, recipe_values=dict
    )


# --- cases ----------------------------------------------------------------------------------------


def main() -> None:
    """Run all cases; results go to results.jsonl beside the outputs, one line per case."""
    import pipeline

    jobs = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    origin = Path(str(pipeline.__file__)).resolve()
    if not origin.is_relative_to(Path(jobs["checkout"]).resolve()):
        raise SystemExit(f"pipeline is imported from {origin}, expected {jobs['checkout']}.")
    stages = adapter()
    with Path("results.jsonl").open("w", encoding="utf-8") as results:
        for job in jobs["cases"]:
            begin = time.monotonic()
            error = None
            try:
                run_case(stages, job)
            except Exception as exception:
                error = f"{type(exception).__name__}: {' '.join(str(exception).split())[:300]}"
                traceback.print_exc()
            seconds = round(time.monotonic() - begin, 2)
            line = {"name": job["name"], "error": error, "seconds": seconds}
            results.write(json.dumps(line) + "\n")
            results.flush()


def run_case(stages: Adapter, job: dict[str, Any]) -> None:
    """Preprocess, then train, evaluate, export and serve, by the parts of the case."""
    folder = Path(job["name"])
    folder.mkdir()
    recipe = write_recipe(stages, job, folder)
    if job["base"] is not None:
        job = {**job, "base": str(Path(job["base"]) / "data")}
    data = stages.preprocess(recipe, job, folder / "data")
    if not job["parts"]:
        return
    run = stages.train(recipe, data, folder / "run")
    figures = json.dumps(stages.evaluate(run, data), indent=1, sort_keys=True)
    (folder / "evaluation.json").write_text(figures, encoding="utf-8")
    if "serve" not in job["parts"]:
        return
    repository = folder / "repository"
    stages.export(run, repository)
    begin = time.monotonic()
    with stages.serve(repository) as address:
        ask(address, Path(job["requests"]), folder / "answers.jsonl")
    print(f"{job['name']}: served for {time.monotonic() - begin:.1f} s", flush=True)  # noqa: T201


def write_recipe(stages: Adapter, job: dict[str, Any], folder: Path) -> Path:
    """Write the recipe with the case's settings; a recipe of the checkout needs no conversion."""
    values = yaml.safe_load(Path(job["recipe"]).read_text(encoding="utf-8"))
    if job["converted"]:
        values = stages.recipe_values(values)
    for name, value in job["settings"].items():
        *sections, key = name.split(".")
        section = values
        for part in sections:
            section = section.setdefault(part, {})
        section[key] = value
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def ask(address: str, requests: Path, answers: Path) -> None:
    """Send the requests one after the other; write status and body of each answer."""
    connection = http.client.HTTPConnection(address, timeout=60)
    with requests.open(encoding="utf-8") as lines, answers.open("w", encoding="utf-8") as out:
        for line in lines:
            request = json.loads(line)
            header = {"Inference-Header-Content-Length": str(request["header_bytes"])}
            body = base64.b64decode(request["body"])
            connection.request("POST", "/v2/models/recommender/infer", body, header)
            response = connection.getresponse()
            answer = {
                "status": response.status,
                "header_bytes": response.getheader("Inference-Header-Content-Length"),
                "body": base64.b64encode(response.read()).decode(),
            }
            out.write(json.dumps(answer) + "\n")
    connection.close()


if __name__ == "__main__":
    main()
