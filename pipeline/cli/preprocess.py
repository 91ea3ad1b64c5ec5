"""`pipeline preprocess`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli.console import check_input, is_current, print_result
from pipeline.cli.options import IfNeeded, Json, Operators, Out, Settings
from pipeline.core.artifact import check_replaceable
from pipeline.core.errors import ConfigError

_NUM_DRIFTING = 3
"""Number of drifting columns that the output names; the report names all."""


# Long: every option is declared here with its help.
def preprocess(
    logs: Annotated[
        list[str],
        typer.Argument(
            metavar="LOGS...",
            help="Logs: CSV, TSV, .inter, JSON lines (.jsonl) or Parquet, text also compressed "
            "(.gz, .zst, .bz2, .xz, .zip); folders of them; globs in quotes; s3://, gs:// and "
            "https:// addresses; - for the standard input.",
        ),
    ],
    out: Out,
    recipe: Annotated[
        Path | None,
        typer.Option(
            "--recipe", metavar="FILE", help="Recipe, in YAML. Required without --workflow."
        ),
    ] = None,
    test: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Log of test sessions instead of `split.test`."),
    ] = None,
    valid: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Log of validation sessions instead of `split.valid`."),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="DATA",
            help="Continue an earlier data directory: its ids keep their indices, new ids get the "
            "next ones, numbers keep their scale.",
        ),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            envvar="PIPELINE_CLUSTER",
            metavar="ADDRESS",
            help="Dask scheduler such as tcp://HOST:8786, with --out in a folder that its workers "
            "share; local: a process per core; local-cuda: a process per GPU.",
        ),
    ] = None,
    operators: Operators = None,
    workflow: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.py",
            help="Python file whose function workflow() returns an NVTabular graph from the log "
            "to sessions. A --recipe then configures only how the log is read and split. The file "
            "is run.",
        ),
    ] = None,
    if_needed: IfNeeded = False,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Turn raw interactions into sessions with a schema."""
    from pipeline.recipe.published import recipe_values
    from pipeline.recipe.recipe import Recipe

    if recipe is None and workflow is None:
        raise ConfigError("Missing option '--recipe'. Give a recipe, or --workflow FILE.py.")
    if workflow is not None and (base or cluster or operators or valid):
        raise ConfigError("--from, --cluster, --operators and --valid do not go with --workflow.")
    values = recipe_values(recipe, tuple(settings or ()))
    config = Recipe.from_dict(values, str(recipe or "--set")).preprocess
    check_replaceable(out, "data")
    if base is not None:
        check_input(base, "data")
    from pipeline.data.fingerprint import data_fingerprint
    from pipeline.logs.files import check_tables, find_logs
    from pipeline.logs.sources import local_logs

    check_tables(config)
    for option, file in (("--operators", operators), ("--workflow", workflow)):
        if file is not None and not file.is_file():
            raise ConfigError(f"{option} {file} does not exist. Expected a Python file.")
    with (
        local_logs(logs, out) as log_paths,
        local_logs(valid or [], out) as valid_paths,
        local_logs(test or [], out) as test_paths,
    ):
        inputs, tests = find_logs(config, log_paths), find_logs(config, test_paths)
        valids = find_logs(config, valid_paths)
        fingerprint = data_fingerprint(
            config, inputs, tests, base, operators, workflow, valid_logs=valids
        )
        if if_needed and is_current(out, "data", fingerprint, as_json):
            return
        if workflow is not None:
            from pipeline.preprocessing.workflows.run import preprocess_workflow

            facts = preprocess_workflow(
                config, workflow, inputs, tests, out, fingerprint=fingerprint
            )
        else:
            from pipeline.preprocessing.run import preprocess as run

            facts = run(
                config,
                inputs,
                tests,
                out,
                valid_logs=valids,
                cluster=cluster,
                base=base,
                operators=operators,
                fingerprint=fingerprint,
            )
    print_result(facts, as_json, data_text(facts, out))


def data_text(facts: dict[str, Any], out: Path) -> str:
    """Return rows, notes, sessions and drift of a data directory as lines."""
    from pipeline.logs.row_counts import describe
    from pipeline.reports import PAGE_FILE

    lines = []
    for source, rows in facts["rows"].items():
        lines.append(f"{source:>6}  {rows['kept']:,} of {rows['read']:,} rows kept")
        for group in ("dropped", "repaired", "counted"):
            if reasons := rows.get(group):
                examples = rows.get("examples", {})
                counts = "; ".join(describe(n, reason, examples) for reason, n in reasons.items())
                lines.append(f"        {group}: {counts}")
    lines += [f"  note  {note}" for note in facts["notes"]]
    for part, counts in facts["sessions"].items():
        span = f", {counts['first']} to {counts['last']}" if counts["first"] else ""
        lines.append(
            f"{part:>6}  {counts['sessions']:,} sessions, {counts['interactions']:,} interactions"
            f"{span}"
        )
    if facts["left_out"]["sessions"]:
        sessions, interactions = facts["left_out"]["sessions"], facts["left_out"]["interactions"]
        lines.append(
            f"  none  {sessions:,} sessions, {interactions:,} interactions: too short to train on"
        )
    for part, columns in facts.get("drift", {}).items():
        if columns:
            names = ", ".join(columns[:_NUM_DRIFTING])
            others = len(columns) - _NUM_DRIFTING
            more = f" and {others} more" if others > 0 else ""
            lines.append(f" drift  much between train and {part}: {names}{more}")
    new = f", {facts['new_items']:,} of them new" if "new_items" in facts else ""
    lines.append(f"Wrote {out}: {facts['catalogue_items']:,} items{new}, on {facts['engine']}.")
    if (out / PAGE_FILE).exists():
        lines.append(f"Its report is {out / PAGE_FILE}.")
    return "\n".join(lines)
