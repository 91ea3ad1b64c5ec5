"""Search for the settings of a recipe: trials of the real trainer, compared on validation.

Optuna proposes (its tree-structured Parzen estimator, Bergstra et al. 2011) and stops what is
worse than the median of the trials before it at the same epoch. Its journal is JSON, a line for
each thing that happened; a search that was killed goes on from it.
"""

import fcntl
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import optuna
import yaml
from optuna.storages import journal as journal_storage
from optuna.trial import FrozenTrial, Trial, TrialState
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipeline.core.artifact import read_manifest
from pipeline.core.columns import SESSIONS_DIRECTORY
from pipeline.core.errors import ArtifactError, ConfigError
from pipeline.core.files import write_text
from pipeline.data.fingerprint import run_fingerprint
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.search_space import Range
from pipeline.training.checkpoint import Abandoned
from pipeline.training.run import train
from pipeline.training.validation import check_metric

JOURNAL_FILE = "journal.jsonl"
TRIALS_FILE = "trials.json"
BEST_FILE = "best.yaml"
RUNS_DIRECTORY = "runs"
_STUDY = "tuning"
_LOCK_FILE = ".lock"
_IMPOSSIBLE = "impossible"
"""Attribute of a trial whose settings contradict each other: why."""
_SECONDS = "seconds"
_SETTINGS = "fingerprint"
_Direction = Literal["minimize", "maximize"]
_DONE = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "impossible",
}


class Pruned(optuna.TrialPruned, Abandoned):
    """A trial that fell behind; its training is not to go on."""


class Pruning(TrainerCallback):
    """Tells Optuna how each epoch did, and ends the training where it says so."""

    def __init__(self, trial: Trial, metric: str) -> None:
        self.trial = trial
        self.metric = f"eval_{metric}"

    def on_evaluate(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **others: Any,
    ) -> None:
        """Pruned if it is worse than the median of earlier trials."""
        self.trial.report(others["metrics"][self.metric], round(state.epoch or 0))
        if self.trial.should_prune():
            raise Pruned


def tune(
    data: Path,
    recipe: dict[str, Any],
    space: dict[str, Range],
    out: Path,
    *,
    num_trials: int,
    seed: int = 0,
) -> dict[str, Any]:
    """Run trials until there are `num_trials` of them; return what `trials.json` holds.

    `recipe` is what a recipe's file says, `space` which of its settings to choose, by
    `section.key`. Trial n is trained with the recipe's seed and proposed with `seed` + n, so that
    a search that was interrupted goes on as if it had not been. Its run lies in `out/runs/n`; one
    that was stopped leaves none. ConfigError if the data have no validation part, or if another
    search was begun in `out`.
    """
    read_manifest(data, "data")
    base = Recipe.from_dict(recipe, "the recipe")
    check_metric(base.train.metric)
    if not (data / SESSIONS_DIRECTORY / "valid").is_dir():
        raise ConfigError(
            f"{data} has no validation sessions, by which trials are compared. Set `split.valid`, "
            "or `split: leave-one-out`, and preprocess again."
        )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with _directory(out) as journal:
        direction: _Direction = "minimize" if base.train.metric == "loss" else "maximize"
        study = _study(journal, _fingerprint(data, base, space, seed), direction)
        begun = _counted(study)
        with tqdm(
            total=num_trials, initial=len(begun), desc="tune", unit="trial", disable=None
        ) as bar:
            for number in range(len(begun), num_trials):
                # seeded anew for each trial: what it proposes depends on the trials before it
                # alone, not on whether they were of this process
                study.sampler = optuna.samplers.TPESampler(seed=seed + number)
                _run_trial(study, data, recipe, space, out / RUNS_DIRECTORY / str(number))
                facts = _write(study, recipe, base.train.metric, out)
                bar.update()
                if facts["best"] is not None:
                    bar.set_postfix({base.train.metric: f"{facts['best']['value']:.4f}"})
        return _write(study, recipe, base.train.metric, out)


def suggest(trial: Trial, space: dict[str, Range]) -> dict[str, Any]:
    """A value for each key."""
    values: dict[str, Any] = {}
    for key, (kind, ends) in space.items():
        match kind:
            case "uniform":
                values[key] = trial.suggest_float(key, *ends)
            case "log":
                values[key] = trial.suggest_float(key, *ends, log=True)
            case "int":
                values[key] = trial.suggest_int(key, *ends)
            case _:
                # by their text: Optuna's choices are simple values, a recipe's may be lists
                texts = [json.dumps(end) for end in ends]
                values[key] = json.loads(str(trial.suggest_categorical(key, texts)))
    return values


def with_values(recipe: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """The recipe with these settings, by `section.key`; the given one stays as it is."""
    changed = {section: dict(content or {}) for section, content in recipe.items()}
    for key, value in values.items():
        section, _, name = key.partition(".")
        changed.setdefault(section, {})[name] = value
    return changed


def _run_trial(
    study: optuna.Study,
    data: Path,
    recipe: dict[str, Any],
    space: dict[str, Range],
    out: Path,
) -> None:
    trial = study.ask()
    begin = time.monotonic()
    try:
        chosen = Recipe.from_dict(with_values(recipe, suggest(trial, space)), "trial")
        metric = chosen.train.metric
        pruning = Pruning(trial, metric)
        # anew: from a checkpoint, Optuna would not hear of the epochs before it
        facts = train(data, chosen.model, chosen.train, out, restart=True, callbacks=[pruning])
    except optuna.TrialPruned:
        trial.set_user_attr(_SECONDS, round(time.monotonic() - begin, 1))
        study.tell(trial, state=TrialState.PRUNED)
    except ConfigError as error:
        # values that do not go together, such as heads that do not divide the width, or a rate at
        # which training diverges
        trial.set_user_attr(_IMPOSSIBLE, str(error))
        trial.set_user_attr(_SECONDS, round(time.monotonic() - begin, 1))
        study.tell(trial, state=TrialState.FAIL)
    else:
        trial.set_user_attr(_SECONDS, facts["seconds"])
        trial.set_user_attr("epoch", facts["best_epoch"])
        study.tell(trial, facts[f"valid_{metric}"])


def _counted(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that ended by themselves; one during which the search was killed is none of them."""
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        or _IMPOSSIBLE in trial.user_attrs
    ]


def _study(journal: Path, fingerprint: str, direction: _Direction) -> optuna.Study:
    """The search in `journal`, begun or taken up. ConfigError if it is another one."""
    _drop_torn_line(journal)
    new = not journal.exists() or not journal.stat().st_size
    lock = journal_storage.JournalFileOpenLock(str(journal))
    backend = journal_storage.JournalFileBackend(str(journal), lock_obj=lock)
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(backend),
        study_name=_STUDY,
        direction=direction,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1),
        load_if_exists=True,
    )
    if new or not study.user_attrs:
        study.set_user_attr(_SETTINGS, fingerprint)
    elif study.user_attrs.get(_SETTINGS) != fingerprint:
        raise ConfigError(
            f"{journal.parent} holds a search over other data, another recipe, another space or "
            "another seed. Choose another --out."
        )
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    return study


def _drop_torn_line(journal: Path) -> None:
    """Whoever was killed while writing left a line without an end."""
    if journal.exists():
        text = journal.read_bytes()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):
            os.truncate(journal, whole)


@contextmanager
def _directory(out: Path) -> Iterator[Path]:
    """The journal in `out`, which nobody else uses meanwhile."""
    journal = out / JOURNAL_FILE
    if out.exists() and not journal.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ArtifactError(
            f"{out} is something that this program did not write; it is left alone. Choose another "
            "--out."
        )
    out.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(out / _LOCK_FILE, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ArtifactError(
                f"{out} is being used by another search. Wait for it, or choose another --out."
            ) from None
        journal.touch()
        # what Optuna's own lock of a killed process left; ours says that nobody holds it
        (out / f"{JOURNAL_FILE}.lock").unlink(missing_ok=True)
        yield journal
    finally:
        os.close(descriptor)


def _fingerprint(data: Path, base: Recipe, space: dict[str, Range], seed: int) -> str:
    settings = {
        "run": run_fingerprint(data, base.model, base.train),
        "space": {key: [found.kind, list(found.ends)] for key, found in space.items()},
        "seed": seed,
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _write(study: optuna.Study, recipe: dict[str, Any], metric: str, out: Path) -> dict[str, Any]:
    """`trials.json`, and `best.yaml` once a trial is complete."""
    trials = [_row(number, trial, metric) for number, trial in enumerate(_counted(study))]
    complete = [row for row in trials if row["state"] == "complete"]
    # of equal ones the first
    best = _better(metric)(complete, key=lambda row: row["value"], default=None)
    facts = {"metric": metric, "trials": trials, "best": best}
    write_text(out / TRIALS_FILE, json.dumps(facts, indent=2, allow_nan=False) + "\n")
    if best is not None:
        settings = with_values(recipe, best["settings"])
        found = f"{metric} {best['value']:.4f} on validation"
        text = f"# Trial {best['trial']} of {len(trials)}: {found}.\n"
        write_text(out / BEST_FILE, text + yaml.safe_dump(settings, sort_keys=False))
    return facts


def _better(metric: str) -> Callable[..., Any]:
    return min if metric == "loss" else max


def _row(number: int, trial: FrozenTrial, metric: str) -> dict[str, Any]:
    values = trial.intermediate_values
    value = (
        trial.value
        if trial.state == TrialState.COMPLETE
        else _better(metric)(values.values(), default=None)
    )
    settings = {
        key: json.loads(found) if isinstance(found, str) else found
        for key, found in trial.params.items()
    }
    return {
        "trial": number,
        "state": _DONE[trial.state],
        "value": value if value is None or math.isfinite(value) else None,
        "epochs": len(values),
        "best_epoch": trial.user_attrs.get("epoch"),
        "seconds": trial.user_attrs.get(_SECONDS),
        "settings": settings,
        "reason": trial.user_attrs.get(_IMPOSSIBLE),
    }
