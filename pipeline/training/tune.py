"""Search for the settings of a recipe: trials of full trainings, compared on validation.

Optuna proposes settings (tree-structured Parzen estimator, Bergstra et al. 2011) and prunes trials
worse than the median of earlier ones at the same epoch. It stores trials in an SQLite file, from
which an interrupted search continues.
"""

import copy
import errno
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import optuna
import yaml
from filelock import FileLock, Timeout
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError
from tqdm import tqdm
from transformers import TrainerCallback, TrainerState

from pipeline.core.errors import ArtifactError, ConfigError
from pipeline.core.files import write_text
from pipeline.core.outputs import LOCK_FILE, STUDY_FILE, check_search
from pipeline.data.directory import Data
from pipeline.data.fingerprint import run_fingerprint
from pipeline.evaluation.metrics import lower_is_better
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.search_space import Range
from pipeline.training.checkpoint import TrainingAbandoned
from pipeline.training.run import train

TRIALS_FILE = "trials.json"
BEST_FILE = "best.yaml"
RUNS_DIRECTORY = "runs"
_STUDY = "tuning"
_FINGERPRINT = "fingerprint"
_REASON = "reason"
"""Attribute with the reason why the settings of a trial are impossible."""
_SECONDS = "seconds"
_EPOCH = "epoch"
_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "impossible",
}


class TrialPruned(optuna.TrialPruned, TrainingAbandoned):
    """The trial is worse than earlier ones; its training will not be continued."""


class Pruning(TrainerCallback):
    """Reports the metric of each epoch to Optuna, and ends the training if Optuna prunes it."""

    def __init__(self, trial: Trial, metric: str) -> None:
        self.trial = trial
        self.metric = f"eval_{metric}"

    def on_evaluate(self, args: Any, state: TrainerState, *_: Any, **others: Any) -> None:  # noqa: ARG002
        """TrialPruned if the metric is worse than the median of earlier trials."""
        self.trial.report(others["metrics"][self.metric], round(state.epoch or 0))
        if self.trial.should_prune():
            raise TrialPruned


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """An entry of `trials.json`."""

    trial: int
    state: str
    """complete, pruned or impossible."""
    value: float | None
    """Best value of the metric."""
    epochs: int
    best_epoch: float | None
    seconds: float | None
    settings: dict[str, Any]
    """By `section.key`."""
    reason: str | None
    """Why the settings are impossible."""

    @classmethod
    def of(cls, number: int, trial: FrozenTrial, best: Callable[..., Any]) -> Self:
        """Result of an Optuna trial."""
        values = trial.intermediate_values
        value = trial.value
        if trial.state != TrialState.COMPLETE:
            value = best(values.values(), default=None)
        return cls(
            trial=number,
            state=_STATES[trial.state],
            value=value if value is None or math.isfinite(value) else None,
            epochs=len(values),
            best_epoch=trial.user_attrs.get(_EPOCH),
            seconds=trial.user_attrs.get(_SECONDS),
            settings={
                key: json.loads(value) if isinstance(value, str) else value
                for key, value in trial.params.items()
            },
            reason=trial.user_attrs.get(_REASON),
        )


@dataclass(frozen=True)
class Search:
    """Recipe, search space, data and output of a search."""

    data: Data
    recipe: dict[str, Any]
    """Content of a recipe file."""
    base: Recipe
    """Checked recipe."""
    space: dict[str, Range]
    """Ranges by `section.key`."""
    out: Path
    seed: int

    @property
    def metric(self) -> str:
        """Metric by which trials are compared."""
        return self.base.train.metric

    @property
    def best(self) -> Callable[..., Any]:
        """`min` or `max`, whichever is better for the metric."""
        return min if lower_is_better(self.metric) else max

    def fingerprint(self) -> str:
        """Fingerprint of data, recipe, space and seed."""
        settings = {
            "run": run_fingerprint(self.data.path, self.base.model, self.base.train),
            "space": {key: [each.kind, list(each.ends)] for key, each in self.space.items()},
            "seed": self.seed,
        }
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def tune(
    data: Data | Path,
    recipe: dict[str, Any],
    space: dict[str, Range],
    out: Path,
    *,
    num_trials: int,
    seed: int = 0,
) -> dict[str, Any]:
    """Run trials up to `num_trials`; return the content of `trials.json`.

    `recipe` is the content of a recipe file, `space` has the ranges of settings by `section.key`.
    Trial n is trained with the recipe's seed and proposed with `seed` + n, so that an interrupted
    search continues like an uninterrupted one. Its run is `out/runs/n`; a pruned trial has none.
    ConfigError if the data have no validation part, or `out` holds another search.
    """
    data = Data.open(data)
    search = Search(data, recipe, Recipe.from_dict(recipe, "the recipe"), space, out, seed)
    if "valid" not in data.parts:
        raise ConfigError(
            f"{data.path} has no validation sessions, by which trials are compared. Set "
            "`split.valid`, or `split: leave-one-out`, and preprocess again."
        )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    with _locked(out), _storage_errors(out):
        study = _open_study(search)
        first = len(_ended_trials(study))
        progress = tqdm(
            range(first, num_trials), total=num_trials, initial=first,
            desc="tune", unit="trial", disable=None,
        )  # fmt: skip
        for number in progress:
            # one sampler per trial: a proposal depends only on earlier trials, not on the process
            # that ran them
            study.sampler = optuna.samplers.TPESampler(seed=seed + number)
            _run_trial(study, search, number)
            facts = _write(study, search)
            if facts["best"] is not None:
                progress.set_postfix({search.metric: f"{facts['best']['value']:.4f}"})
        return _write(study, search)


def suggest(trial: Trial, space: dict[str, Range]) -> dict[str, Any]:
    """Value for each key of the space."""
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
                # JSON, as choices of Optuna are scalars and those of a recipe may be lists
                texts = [json.dumps(end) for end in ends]
                values[key] = json.loads(str(trial.suggest_categorical(key, texts)))
    return values


def with_values(recipe: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Copy of the recipe with these settings, by `section.key` or `model.options.key`."""
    changed = copy.deepcopy(recipe)
    for key, value in values.items():
        *sections, name = key.split(".")
        content = changed
        for section in sections:
            if content.get(section) is None:  # the section may be missing or empty
                content[section] = {}
            content = content[section]
        content[name] = value
    return changed


def _run_trial(study: optuna.Study, search: Search, number: int) -> None:
    trial = study.ask()
    begin = time.monotonic()
    try:
        values = suggest(trial, search.space)
        recipe = Recipe.from_dict(with_values(search.recipe, values), "trial")
        facts = train(
            search.data,
            recipe.model,
            recipe.train,
            search.out / RUNS_DIRECTORY / str(number),
            restart=True,  # a resumed training would not report its earlier epochs
            callbacks=[Pruning(trial, recipe.train.metric)],
        )
    except (TrialPruned, ConfigError) as error:
        trial.set_user_attr(_SECONDS, round(time.monotonic() - begin, 1))
        if isinstance(error, TrialPruned):
            study.tell(trial, state=TrialState.PRUNED)
            return
        # settings that contradict each other, such as heads that do not divide the width, or a
        # learning rate at which training diverges
        trial.set_user_attr(_REASON, str(error))
        study.tell(trial, state=TrialState.FAIL)
    else:
        trial.set_user_attr(_SECONDS, facts["seconds"])
        trial.set_user_attr(_EPOCH, facts.get("best_epoch"))
        study.tell(trial, facts[f"valid_{recipe.train.metric}"])


def _ended_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that ended regularly, without those during which the search was killed."""
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) or _REASON in trial.user_attrs
    ]


def _open_study(search: Search) -> optuna.Study:
    """Create or open the study in `out`. ConfigError for the study of another search."""
    fingerprint = search.fingerprint()
    study = optuna.create_study(
        storage=f"sqlite:///{search.out.resolve() / STUDY_FILE}",
        study_name=_STUDY,
        direction="minimize" if lower_is_better(search.metric) else "maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1),
        load_if_exists=True,
    )
    if study.user_attrs.get(_FINGERPRINT, fingerprint) != fingerprint:
        raise ConfigError(
            f"{search.out} holds a search over other data, another recipe, another space or "
            "another seed. Choose another --out."
        )
    study.set_user_attr(_FINGERPRINT, fingerprint)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)  # the search was killed
    return study


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Create and lock `out`. ArtifactError if it is in use or holds something else."""
    check_search(out)
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / LOCK_FILE, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ArtifactError(
            f"{out} is being used by another search. Wait for it, or choose another --out."
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        raise ArtifactError(
            f"{out} is on a file system without locks, which the database of trials needs. Choose "
            "another --out."
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _storage_errors(out: Path) -> Iterator[None]:
    """Convert errors of the database of trials to an ArtifactError with its file name."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        cause = getattr(error, "__cause__", None)
        reason = getattr(cause, "orig", None) or getattr(error, "orig", None) or cause or error
        raise ArtifactError(
            f"{out / STUDY_FILE} was not written or not read: {' '.join(str(reason).split())}."
        ) from error


def _write(study: optuna.Study, search: Search) -> dict[str, Any]:
    """Write `trials.json`, and `best.yaml` once a trial is complete."""
    trials = [
        TrialResult.of(number, trial, search.best)
        for number, trial in enumerate(_ended_trials(study))
    ]
    complete = [trial for trial in trials if trial.state == "complete" and trial.value is not None]
    # ties: the first trial
    best: TrialResult | None = search.best(complete, key=lambda trial: trial.value, default=None)
    facts = {
        "metric": search.metric,
        "trials": [asdict(trial) for trial in trials],
        "best": None if best is None else asdict(best),
    }
    write_text(search.out / TRIALS_FILE, json.dumps(facts, indent=2, allow_nan=False) + "\n")
    if best is not None:
        recipe = with_values(search.recipe, best.settings)
        value = f"{search.metric} {best.value:.4f} on validation"
        comment = f"# Trial {best.trial} of {len(trials)}: {value}.\n"
        write_text(search.out / BEST_FILE, comment + yaml.safe_dump(recipe, sort_keys=False))
    return facts
