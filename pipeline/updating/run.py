"""`pipeline update`: trains on new logs and exports the next version of a served model.

An update is a generation N: data-N continues the data of the served model, run-N starts from its
weights. Both models are then evaluated on the test part of data-N, the newest sessions, on which
neither was trained, and the gate decides whether run-N is exported. The evaluated weights are the
served ones, so the test part is trained on only when it lies in the train part of a later call.

Each step writes one artifact atomically, or nothing, and the state file lists the finished steps. A
step that finished just before the process was killed runs again, with the same result.
"""

import logging
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.artifact import current_facts, read_manifest
from pipeline.core.errors import ConfigError
from pipeline.data.directory import Data
from pipeline.data.fingerprint import data_fingerprint, fingerprint_of, run_fingerprint
from pipeline.data.index_mapping import TRAINED_ON
from pipeline.evaluation.comparison.run import compare
from pipeline.evaluation.metrics import DEFAULT_CUTOFFS
from pipeline.exporting.options import ExportOptions
from pipeline.exporting.run import MIN_KEEP, export
from pipeline.exporting.served_models import current_model, read_models
from pipeline.exporting.versions import OlderVersions
from pipeline.logs.files import check_tables, find_logs
from pipeline.preprocessing.run import preprocess
from pipeline.recipe.recipe import Recipe
from pipeline.training.run import train
from pipeline.training.run_files import uses_plugins
from pipeline.updating.gate import Gate
from pipeline.updating.state import (
    REPOSITORY,
    Generation,
    Step,
    UpdateState,
    locked,
    read_state,
    remove_generations,
    write_state,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

logger = logging.getLogger(__name__)
_RUN = re.compile(r"run-([0-9]+)")


@dataclass(frozen=True, kw_only=True)
class UpdateJob:
    """Arguments of an update, and its directory."""

    folder: Path
    recipe: Recipe
    logs: list[Path]
    options: ExportOptions = field(default_factory=ExportOptions)
    """How the model is served, and its name."""
    gate: Gate | None = None
    """Without a gate the newer model is served in any case."""
    keep: int = 3
    """Number of versions that the repository keeps, each with its data and run."""
    operators: Path | None = None
    """Python file with the NVTabular operators of the recipe, as `preprocess` takes it."""
    plugins: Path | None = None
    """Python file that has registered losses and architectures, as `train` takes it."""
    key: "Ed25519PrivateKey | None" = None
    """Key that signs the repository."""

    @property
    def repository(self) -> Path:
        """Model repository."""
        return self.folder / REPOSITORY

    @property
    def name(self) -> str:
        """Name of the model for clients."""
        return self.options.name

    def fingerprint(self) -> str:
        """Return the fingerprint of the inputs of a generation, besides the previous one."""
        recipe = self.recipe
        settings = {
            "logs": data_fingerprint(recipe.preprocess, self.logs, [], None, self.operators),
            "model": recipe.model.model_dump(mode="json"),
            "train": recipe.train.model_dump(mode="json"),
        }
        files = [Path(vectors.file) for vectors in recipe.model.pretrained]
        if self.plugins is not None:
            files.append(self.plugins)
        return fingerprint_of(settings, files, [])

    def base(self, generation: Generation, kind: str) -> Path | None:
        """Return the data or run of the previous generation; `kind` is data or run."""
        return None if generation.before is None else self.folder / f"{kind}-{generation.before}"


def update_model(job: UpdateJob) -> Generation:
    """Run or continue the update that `job` describes; return the generation.

    A finished update is not repeated, but a refused generation is decided again by the gate of this
    call. ConfigError for a recipe without a test part and for arguments that do not fit the
    directory; ArtifactError for a directory of another program or one in use.
    """
    _check(job)
    logs = find_logs(job.recipe.preprocess, job.logs)
    job = replace(job, logs=logs)
    with locked(job.folder):
        state = read_state(job.folder, job.name)
        if state.name != job.name:
            raise ConfigError(
                f"{job.folder} is that of the model {state.name}, --name is {job.name}. Choose "
                "another --from."
            )
        state = _finished(state, job)
        generation = _generation(state, job)
        # first, as a directory without a state file counts as one of another program
        write_state(job.folder, state)
        for step, do in STEPS.items():
            if step not in generation.done:
                generation = do(job, generation)
                generation = generation.changed(done=(*generation.done, step))
                state = state.replaced(generation)
                if step == "remove":
                    state = state.only(_kept_generations(job, generation))
                write_state(job.folder, state)
    return generation


def _check(job: UpdateJob) -> None:
    split = job.recipe.preprocess.split
    if split.test is None and not split.held_out:
        raise ConfigError(
            "An update ranks the newest sessions by both models, and the recipe keeps none: set "
            "`preprocess.split`, such as {valid: 0.1, test: 0.1}."
        )
    if job.keep < MIN_KEEP:
        raise ConfigError(f"--keep is {job.keep}, expected {MIN_KEEP} or more.")
    if uses_plugins(job.recipe.model):
        raise ConfigError(
            f"{job.recipe.model.architecture} is an architecture of plugins, whose runs hold "
            "programs: no training starts from one. Losses and metrics of plugins can be updated."
        )
    check_tables(job.recipe.preprocess)


def _served(job: UpdateJob) -> int | None:
    """Return the number of the generation that the repository serves, None for an empty one."""
    facts = read_models(job.repository).models.get(job.name)
    if facts is None:
        return None
    match = _RUN.fullmatch(facts["run"])
    if match is None or not (job.folder / facts["run"]).is_dir():
        raise ConfigError(
            f"{job.repository} serves {facts['run']}, which is no run of {job.folder}. Export one "
            f"of its runs again, by `pipeline export {job.folder}/run-N --out {job.repository}`."
        )
    return int(match[1])


def _finished(state: UpdateState, job: UpdateJob) -> UpdateState:
    """Return the state with the last export of the repository recorded.

    Without it, an update with other logs would treat a generation that was killed after its export
    as never served.
    """
    last = state.last
    if last is None or not last.accepted or "export" in last.done:
        return state
    facts = current_model(job.repository, job.name, _export_fingerprint(job, last))
    if facts is None:
        return state
    return state.replaced(last.changed(done=(*last.done, "export"), version=facts["version"]))


def _generation(state: UpdateState, job: UpdateJob) -> Generation:
    """Return the generation to continue, or a new one."""
    last, fingerprint, served = state.last, job.fingerprint(), _served(job)
    if last is not None and last.fingerprint == fingerprint:
        if "export" in last.done and last.accepted and served is not None:
            return last
        if last.before == served:  # interrupted, or refused by a gate that may have changed
            done = tuple(step for step in last.done if step in ("preprocess", "train", "compare"))
            return last.changed(done=done, accepted=None, reason="")
    number = 1
    if last is not None:
        is_over = "export" in last.done
        number = last.number + is_over
        if not is_over:
            logger.info(
                "Generation %d starts again: the logs or the served model have changed.", number
            )
    return Generation(
        number=number,
        fingerprint=fingerprint,
        logs=tuple(str(path) for path in job.logs),
        before=served,
    )


def _preprocess(job: UpdateJob, generation: Generation) -> Generation:
    base, out = job.base(generation, "data"), job.folder / generation.data
    config = job.recipe.preprocess
    fingerprint = data_fingerprint(config, job.logs, [], base, job.operators)
    if current_facts(out, "data", fingerprint) is None:
        preprocess(
            config,
            job.logs,
            [],
            out,
            base=base,
            operators=job.operators,
            fingerprint=fingerprint,
        )
    return generation


def _train(job: UpdateJob, generation: Generation) -> Generation:
    data, out = job.folder / generation.data, job.folder / generation.run
    start, recipe = job.base(generation, "run"), job.recipe
    if start is not None:
        _check_news(job, generation, start)
    fingerprint = run_fingerprint(
        data, recipe.model, recipe.train, start=start, plugins=job.plugins
    )
    if current_facts(out, "run", fingerprint) is None:
        train(data, recipe.model, recipe.train, out, start=start, plugins=job.plugins)
    return generation


def _check_news(job: UpdateJob, generation: Generation, start: Path) -> None:
    """ConfigError if the base model was trained on these sessions; a warning if some are older."""
    data = Data.open(job.folder / generation.data)
    if read_manifest(start, "run", check_files=False)[TRAINED_ON] == data.training_fingerprint:
        raise ConfigError(
            f"{start} was trained on the sessions of these logs. Give newer logs as --input."
        )
    base = job.base(generation, "data")
    assert base is not None  # noqa: S101  a run has data
    last = read_manifest(base, "data", check_files=False)["sessions"]["train"]["last"]
    first = data.facts["sessions"].get("test", {}).get("first")
    if last and first and first <= last and not job.recipe.preprocess.split.held_out:
        logger.warning(
            "Note: the test part begins at %s, and %s was trained on sessions up to %s, which "
            "favours it in the comparison.", first, start.name, last,
        )  # fmt: skip


def _compare(job: UpdateJob, generation: Generation) -> Generation:
    before = job.base(generation, "run")
    if before is None:
        return generation
    data = job.folder / generation.data
    cutoffs = {*DEFAULT_CUTOFFS, *([] if job.gate is None else [job.gate.cutoff])}
    comparison = compare(
        [before, job.folder / generation.run],
        data,
        cutoffs=tuple(sorted(cutoffs)),
        baselines=False,
    )
    return generation.changed(comparison=comparison.to_dict())


def _decide(job: UpdateJob, generation: Generation) -> Generation:
    if generation.comparison is None:
        accepted, reason = True, "The first model."
    elif job.gate is None:
        accepted, reason = True, "There is no gate (--unless-worse)."
    else:
        if job.gate.metric not in generation.comparison["tests"]:  # an earlier call compared
            generation = _compare(job, generation)
        assert generation.comparison is not None  # noqa: S101
        decision = job.gate.decide(
            generation.comparison, f"run-{generation.before}", generation.run
        )
        accepted, reason = decision.accepted, decision.reason
    return generation.changed(accepted=accepted, reason=reason)


def _export(job: UpdateJob, generation: Generation) -> Generation:
    if not generation.accepted:
        return generation
    result = export(
        job.folder / generation.run, job.repository, job.options, keep=job.keep, key=job.key
    )
    return generation.changed(version=result.version)


def _export_fingerprint(job: UpdateJob, generation: Generation) -> str:
    return fingerprint_of(asdict(job.options), [], [job.folder / generation.run])


def _remove(job: UpdateJob, generation: Generation) -> Generation:
    remove_generations(job.folder, _kept_generations(job, generation))
    return generation


def _kept_generations(job: UpdateJob, generation: Generation) -> set[int]:
    """Return this generation and those of which the repository has a version."""
    facts = read_models(job.repository).models[job.name]
    runs = [facts["run"], *(each["run"] for each in OlderVersions.of(facts).earlier.values())]
    matches = [match for run in runs if (match := _RUN.fullmatch(run))]
    return {generation.number, *(int(match[1]) for match in matches)}


STEPS: dict[Step, Callable[[UpdateJob, Generation], Generation]] = {
    "preprocess": _preprocess,
    "train": _train,
    "compare": _compare,
    "decide": _decide,
    "export": _export,
    "remove": _remove,
}
"""Steps in their order; each returns the generation with its results."""
