"""Description of a served model, which the exporter wrote into the ensemble's configuration."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pipeline.core.errors import ServingError
from pipeline.recipe.preprocess import Preprocess

_PARAMETER = "pipeline"


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """Inputs and limits of the model."""

    recipe: Preprocess
    types: dict[str, str]
    """Type of each column but the timestamp, by tensor name."""
    scopes: dict[str, str]
    timestamp_type: str | None
    default_k: int
    max_k: int
    ranks_items: bool
    """Whether the model recommends items; otherwise it predicts only `targets`."""
    targets: list[str]
    """Names of the predictions besides the next item."""
    item_targets: list[str]
    """Names of the predictions for each item of a list."""
    max_batch: int
    """Maximum number of sessions of a request."""
    version: int
    """Number of the export; the next export to the same repository has the next number."""

    @classmethod
    def from_facts(cls, facts: dict[str, Any], source: str) -> Self:
        """Read the exporter's facts for clients. KeyError or TypeError for anything else."""
        facts = facts | {"recipe": Preprocess.from_dict(facts["recipe"], source)}
        return cls(**{field: facts[field] for field in cls.__dataclass_fields__})

    @classmethod
    def from_config(cls, config: dict[str, Any], name: str) -> Self:
        """Read the parameters of the ensemble's configuration."""
        try:
            facts = json.loads(config["parameters"][_PARAMETER]["string_value"])
            policy = config.get("version_policy", {}).get("specific", {})
            facts["max_batch"] = int(config["max_batch_size"])
            facts["version"] = int(policy.get("versions", [1])[0])
            return cls.from_facts(facts, name)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError):
            raise ServingError(
                f"The server's model {name!r} was not exported by this version of `pipeline "
                "export`. Export its run again."
            ) from None


def request_tables(repository: Path, name: str, version: int) -> Path:
    """Return the directory of the request runtime's tables in an exported repository."""
    return repository / f"{name}_requests_v{version}" / "1"
