"""User-defined losses, architectures and metrics, by their names in a recipe.

A Python file registers them; the command line executes it with `--plugins FILE.py`:

    from pipeline.plugins import register_loss

    @register_loss("focal")
    class FocalLoss(nn.Module):
        def forward(self, logits, targets):  # (T, items), (T,) -> (T,)
            ...

The run of a user-defined architecture holds its program, so that later commands on the run need
neither the file nor `--plugins`.
"""

import runpy
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from pipeline.core.errors import ConfigError
from pipeline.evaluation.metrics import GAINS
from pipeline.model.architectures import REGISTERED
from pipeline.model.architectures.config import ArchitectureConfig
from pipeline.model.losses import LOSSES
from pipeline.recipe import choices
from pipeline.recipe.counting import COUNTING

Loss = TypeVar("Loss", bound=type[nn.Module])
Architecture = TypeVar("Architecture", bound=type[ArchitectureConfig])
Gain = TypeVar("Gain", bound=Callable[[Tensor, int], Tensor])
_MASKINGS = ("clm", "mlm", "plm", "rtd")


def register_loss(name: str) -> Callable[[Loss], Loss]:
    """Register a loss by name: a module without arguments, see `pipeline.model.losses`.

    ConfigError for the name of a built-in loss.
    """
    own = choices.FULL_LOSSES, choices.SAMPLED_LOSSES
    _check_name("loss", name, [n for names in own for n in names])

    def register(loss: Loss) -> Loss:
        LOSSES[name] = lambda _options: _built(name, loss)
        choices.PLUGIN_LOSSES.add(name)
        return loss

    return register


def register_architecture(*maskings: str) -> Callable[[Architecture], Architecture]:
    """Register an architecture for `maskings`: a config with `name` and `encoder`.

    ConfigError for an unknown masking and for the name of a built-in architecture.
    """
    unknown = sorted(set(maskings) - set(_MASKINGS))
    if unknown or not maskings:
        raise ConfigError(
            f"register_architecture names {unknown or 'no masking'}, expected some of "
            f"{', '.join(_MASKINGS)}."
        )

    def register(config: Architecture) -> Architecture:
        name = getattr(config, "name", "")
        own = [n for n in choices.ARCHITECTURES if n not in REGISTERED] + [*COUNTING]
        _check_name("architecture", name, own)
        REGISTERED[name] = config
        choices.ARCHITECTURES[name] = maskings
        return config

    return register


def register_metric(name: str) -> Callable[[Gain], Gain]:
    """Register a ranking metric by name: (N,) float64 ranks from 1 and a cutoff -> (N,) gains.

    The metric is the mean of the gains; a rank beyond the cutoff should have gain 0. ConfigError
    for the name of a built-in metric.
    """
    _check_name("metric", name, choices.METRICS)

    def register(gain: Gain) -> Gain:
        def checked(ranks: Tensor, cutoff: int) -> Tensor:
            gains = gain(ranks, cutoff)
            if not isinstance(gains, Tensor) or gains.shape != ranks.shape:
                shape = tuple(gains.shape) if isinstance(gains, Tensor) else type(gains).__name__
                raise ConfigError(
                    f"The metric {name!r} gives {shape} of {tuple(ranks.shape)} ranks, expected a "
                    "gain of each. The mean of the gains is taken afterwards."
                )
            return gains.to(torch.float64)

        GAINS[name] = checked
        choices.PLUGIN_METRICS.add(name)
        return gain

    return register


def load_plugins(file: Path | None) -> None:
    """Execute a file that registers plugins. ConfigError if it is missing or fails."""
    if file is None:
        return
    if not file.is_file():
        raise ConfigError(f"--plugins {file} does not exist. Expected a Python file.")
    if file.suffix != ".py":
        raise ConfigError(f"--plugins {file} is not a Python file: its name does not end in .py.")
    try:
        # runs the source, never bytecode of an earlier version
        runpy.run_path(str(file), run_name="pipeline_plugins")
    except (Exception, SystemExit) as error:
        lines = [
            f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)
        ]
        place = f" at line {lines[-1]}" if lines else ""
        reason = " ".join(str(error).split()).removesuffix(".")
        raise ConfigError(f"{file} failed{place}: {type(error).__name__}: {reason}.") from error


def _built(name: str, loss: type[nn.Module]) -> nn.Module:
    try:
        return loss()
    except TypeError as error:
        raise ConfigError(
            f"The loss {name!r} cannot be made without arguments: {error}. Give them defaults."
        ) from None


def _check_name(kind: str, name: str, taken: object) -> None:
    if not isinstance(name, str) or not name or not name.replace("-", "_").isidentifier():
        raise ConfigError(f"The {kind} has the name {name!r}, expected letters, digits and dashes.")
    if name in taken:  # type: ignore[operator]
        raise ConfigError(f"The project has a {kind} {name!r}; choose another name.")
