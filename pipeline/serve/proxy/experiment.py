"""A/B test: a hash assigns sessions to arms, which are models of one repository.

The arm of a session depends only on its id, the experiment's name and the shares, so it is equal
over HTTP and gRPC, in each of several servers, and after a restart.
"""

import logging
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from pipeline.core.columns import version_alias
from pipeline.core.errors import ConfigError
from pipeline.serve.proxy.ranking_models import RankingModels, model_configs
from pipeline.serve.proxy.session_names import CONTROL, session_fraction

logger = logging.getLogger(__name__)
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_VERSION = re.compile(r"v([0-9]+)")
_FORM = (
    "expected NAME,ARM=SHARE with an arm that is another model of the repository or a version, such"
    " as spring,v4=0.3 or spring,challenger=0.3"
)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Sessions whose requests another model answers."""

    name: str
    """Name of the other model, or a version of the same one, such as v4."""
    model: str
    """Name of the model in Triton."""
    share: float
    """Share of the sessions."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Arms besides the control, which has all other sessions and requests without a session."""

    name: str
    control: str
    """Name of the model that clients call."""
    arms: tuple[Arm, ...]

    def arm_of(self, session: str) -> Arm | None:
        """Return the arm of a session, None for the control."""
        fraction = session_fraction(self.name, session)
        for arm in self.arms:
            fraction -= arm.share
            if fraction < 0:
                return arm
        return None

    def shares(self) -> dict[str, float]:
        """Return the share of each arm by its name, the control's first."""
        shares = {arm.name: arm.share for arm in self.arms}
        return {CONTROL: 1 - sum(shares.values()), **shares}

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


class Route(NamedTuple):
    """Model of a request, and its entries in the request log."""

    model: str | None = None
    """Model that answers instead of the requested one."""
    experiment: str | None = None
    arm: str | None = None
    """None for a request outside the experiment."""
    logged_model: str | None = None
    """Name of the model in the log, None for the one in the answer."""


class Router:
    """Routes requests by an experiment, if there is one."""

    def __init__(self, models: RankingModels, experiment: Experiment | None) -> None:
        self._models = models
        self._experiment = experiment
        self._missing: set[str] = set()
        """Arms that were logged as missing in the repository."""

    def route(self, model: str, version: str, session: str | None) -> Route:
        """Return the route of a request for `model`; one for a version is not routed."""
        experiment = self._experiment
        if experiment is None or model != experiment.control or version or session is None:
            return Route()
        arm = experiment.arm_of(session)
        if arm is None:
            return Route(experiment=experiment.name, arm=CONTROL)
        if arm.model not in self._models:
            if arm.name not in self._missing:
                self._missing.add(arm.name)
                logger.warning(
                    "Warning: the repository has no %s any more, the arm %s of %s; %s answers its "
                    "sessions.", arm.model, arm.name, experiment.name, model,
                )  # fmt: skip
            return Route()
        logged = None if arm.name == arm.model else model
        return Route(arm.model, experiment.name, arm.name, logged)


def read_experiment(text: str, repository: Path) -> Experiment:
    """Return the experiment of `--ab`. ConfigError for one that does not fit `repository`.

    The form is NAME,ARM=SHARE,..., with `control=MODEL` if the repository has several models that
    are not an arm.
    """
    name, *fields = text.split(",")
    shares: dict[str, str] = {}
    for field in fields:
        key, equals, value = field.partition("=")
        if not equals or not key or key in shares:
            raise ConfigError(f"--ab {text!r}: {_FORM}.")
        shares[key] = value
    control = shares.pop(CONTROL, None)
    if not _NAME.fullmatch(name) or not shares:
        raise ConfigError(f"--ab {text!r}: {_FORM}.")
    control = _control(control, shares, sorted(model_configs(repository)))
    arms = tuple(
        Arm(name=arm, model=_model_of(arm, control, repository), share=_share(arm, value))
        for arm, value in shares.items()
    )
    experiment = Experiment(name=name, control=control, arms=arms)
    if experiment.shares()[CONTROL] <= 0:
        raise ConfigError("--ab: the shares of the arms add up to 1 or more, expected less.")
    for arm in arms:
        _check_tensors(repository, control, arm)
    return experiment


def _control(control: str | None, arms: dict[str, str], models: list[str]) -> str:
    if control is not None:
        if control not in models:
            raise ConfigError(f"--ab: there is no model {control}, expected {', '.join(models)}.")
        return control
    others = [model for model in models if model not in arms]
    if len(others) != 1:
        raise ConfigError(
            f"--ab: the models that are no arm are {', '.join(others) or 'none'}. Name the one "
            f"that clients call by control=MODEL, such as control={models[0]}."
        )
    return others[0]


def _model_of(arm: str, control: str, repository: Path) -> str:
    """Return the name in Triton of the model of an arm."""
    if arm != control and arm in model_configs(repository):
        return arm
    version = _VERSION.fullmatch(arm)
    if version is not None:
        alias = version_alias(control, version[1])
        if (repository / alias).is_dir():
            return alias
    prefix = version_alias(control, "")
    versions = sorted(path.name.removeprefix(prefix) for path in repository.glob(f"{prefix}*"))
    text = ", ".join(f"v{version}" for version in versions)
    raise ConfigError(
        f"--ab: {arm} is no other model of the repository than {control}, and none of its versions"
        f" ({text or 'none: export again'})."
    )


def _share(arm: str, text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise ConfigError(f"--ab: the share of {arm} is {text!r}, expected a number in (0, 1).")
    return share


def _check_tensors(repository: Path, control: str, arm: Arm) -> None:
    """ConfigError for an arm without a tensor that requests to the control may hold."""
    tensors = []
    for model in (control, arm.model):
        text = (repository / model / "config.pbtxt").read_text("utf-8")
        config = text_format.Parse(text, model_config_pb2.ModelConfig())
        tensors.append({(t.name, t.data_type) for t in (*config.input, *config.output)})
    missing = sorted(name for name, _ in tensors[0] - tensors[1])
    if missing:
        raise ConfigError(
            f"--ab: {arm.name} has no tensor {missing[0]} as {control} has it, so requests to "
            f"{control} may not fit it. Compare models with the same columns."
        )
