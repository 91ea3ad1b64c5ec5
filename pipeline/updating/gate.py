"""The gate: a newer model is served if its metric is close to that of the served one or better."""

import re
from dataclasses import dataclass
from typing import Any

from pipeline.core.errors import ConfigError

_GATE = re.compile(r"((?:recall|ndcg|mrr)@([1-9][0-9]{0,3})):(0|0?\.[0-9]+|1|1\.0+)")


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Largest decrease of a metric with which a newer model is served."""

    metric: str
    """recall@K, ndcg@K or mrr@K."""
    cutoff: int
    """K of the metric."""
    tolerance: float
    """Largest allowed decrease of the metric, from 0 to 1."""

    @classmethod
    def parse(cls, text: str) -> "Gate":
        """Read METRIC@K:TOLERANCE. ConfigError for anything else."""
        match = _GATE.fullmatch(text)
        if match is None:
            raise ConfigError(
                f"--unless-worse is {text!r}, expected recall, ndcg or mrr at a length of lists "
                "and the loss that is allowed, such as ndcg@20:0.005."
            )
        return cls(metric=match[1], cutoff=int(match[2]), tolerance=float(match[3]))

    def decide(self, comparison: dict[str, Any], old: str, new: str) -> "Decision":
        """Decide by the `Comparison.to_dict` of the runs `old` and `new`."""
        [(name, test)] = comparison["tests"][self.metric].items()
        difference = test["difference"] if name == new else -test["difference"]
        margin = "" if test["margin"] is None else f" ±{test['margin']:.4f}"
        reason = (
            f"{self.metric} of {new} minus that of {old} is {difference:+.4f}{margin}; "
            f"-{self.tolerance:g} is allowed."
        )
        return Decision(accepted=difference >= -self.tolerance, reason=reason)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Whether the newer model is served, and why."""

    accepted: bool
    reason: str
