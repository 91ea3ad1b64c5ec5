"""Sizes and settings of `python -m benchmarks gpu`."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.settings import LONGEST, Form, Setting

Device = Literal["cuda", "cpu"]


@dataclass(frozen=True, kw_only=True)
class TrainingSetting:
    """A model on a catalogue, in batches of one size."""

    setting: Setting
    batch_size: int
    """B: mean number of sessions of a step."""
    bf16: bool = False
    """Compute under bf16 autocast, else in float32."""
    train: tuple[tuple[str, Any], ...] = ()
    """Values of TrainConfig besides those of the setting."""

    @property
    def title(self) -> str:
        """Name of the setting in a table."""
        words = [self.setting.title, f"B {self.batch_size:,}", "bf16" if self.bf16 else "fp32"]
        return ", ".join([*words, *(str(value) for key, value in self.train if key == "loss")])

    @property
    def form(self) -> Form:
        """Form with the values of TrainConfig."""
        return Form(name="gpu", train=dict(self.train))

    @property
    def has_hand_written(self) -> bool:
        """Whether a hand-written loop is measured, whose scores take 80 GB for 1,000,000 items."""
        return self.setting.name == "gpt2-clm" and self.setting.items <= 200_000


def _gpt2(items: int, d_model: int) -> Setting:
    return Setting(architecture="gpt2", masking="clm", items=items, d_model=d_model, steps=0)


_SAMPLED = (("loss", "sampled-softmax"), ("table_optimizer", "lazy-adamw"))
TRAINING = (
    TrainingSetting(setting=_gpt2(200_000, 128), batch_size=1_024, bf16=True),
    TrainingSetting(setting=_gpt2(10_000, 64), batch_size=1_024),
    TrainingSetting(setting=_gpt2(1_000_000, 128), batch_size=1_024, bf16=True),
    TrainingSetting(
        setting=Setting(architecture="xlnet", masking="mlm", items=10_000, d_model=64, steps=0),
        batch_size=1_024,
    ),
    TrainingSetting(
        setting=Setting(architecture="sasrec", masking="clm", items=200_000, d_model=128, steps=0),
        batch_size=1_024,
        train=_SAMPLED,
    ),
    TrainingSetting(setting=_gpt2(10_000, 64), batch_size=128),
    TrainingSetting(setting=_gpt2(200_000, 128), batch_size=1_024),
)
"""Settings by importance; the last ones are left out first if time is short."""
COMPILED = 2
"""Number of first settings that are also trained with `torch_compile: true`."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Measurements, their device and total time."""

    scratch: Path
    """Folder of logs, data and outputs."""
    device: Device = "cuda"
    seconds: float = 240.0
    """Total time; parts that do not fit are reported as not run."""
    rows: int = 5_000_000
    """Interactions of the log to preprocess."""
    training: tuple[TrainingSetting, ...] = TRAINING
    training_sessions: int = 40_000
    """Sessions of an epoch; one epoch is a warm-up."""
    training_seconds: float = 2.0
    """Smallest time for which a loop is measured."""
    evaluation_sessions: int = 100_000
    catalogue: int = 1_000_000
    """Items of the catalogue of evaluation and export."""
    d_model: int = 128
    """D: width of the model of evaluation and export."""
    calls: int = 200
    """Calls of the exported program for each batch size."""
    longest: int = LONGEST
    """L: maximum number of interactions of a session."""

    def tiny(self) -> "Plan":
        """Return the plan with sizes that take seconds on a CPU."""
        training = tuple(
            replace(
                each,
                setting=replace(each.setting, items=each.setting.items // 400, d_model=16),
                batch_size=each.batch_size // 32,
            )
            for each in self.training
        )
        return replace(
            self,
            rows=3_000,
            training=training,
            training_sessions=160,
            training_seconds=0.05,
            evaluation_sessions=200,
            catalogue=2_000,
            d_model=16,
            calls=3,
        )

    def to_json(self) -> str:
        """Return the plan as text for the process of a part."""
        return json.dumps(asdict(self) | {"scratch": str(self.scratch)})

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Return the plan of a text of `to_json`."""
        values = json.loads(text)
        training = tuple(
            TrainingSetting(
                **each
                | {
                    "setting": Setting(
                        **each["setting"] | {"forms": tuple(each["setting"]["forms"])}
                    ),
                    "train": tuple(map(tuple, each["train"])),
                }
            )
            for each in values["training"]
        )
        return cls(**values | {"scratch": Path(values["scratch"]), "training": training})
