"""Which of Hugging Face's model types work with which masking; this makes
docs/reference/huggingface.md.

    python -m tests.model.test_huggingface > docs/reference/huggingface.md

measures all of them, each in a process of its own. Works means: it is
built by its model type alone, learns from a batch (loss and gradients are finite), and what it
predicts at the end of a session is what its evaluation ranks there.
"""

import multiprocessing
import re
import resource
import sys
from contextlib import suppress
from typing import Any

import pytest
import torch

from pipeline import model as tr
from pipeline.core.errors import PipelineError
from pipeline.model.masking import Stage
from tests.conftest import ROOT

MASKINGS = ("clm", "mlm", "rtd")
L, D = 6, 16
_TOO_SLOW = "they are too large or slow"
_SECONDS, _MAX_BYTES = 40, 8 << 30
"""Limits of a process that tries one model type."""
PAGE = ROOT / "docs" / "reference" / "huggingface.md"
HEAD = (
    "# Hugging Face architectures\n\n"
    "This page lists the `model_type` values that `architecture: huggingface` takes, and the "
    'maskings of each. In Python: `tr.HuggingFaceConfig.build("llama", ...)`.\n\n'
    "The model must read `inputs_embeds`. The direction of its attention is measured when it is "
    "built, so that it sees no target. `yes` means that a model with default settings is built, "
    "learns from a batch, and predicts at the end of a session what its evaluation ranks there. "
    "`python -m tests.model.test_huggingface` tries every causal or masked language model of "
    "transformers {version}. Others may work with `options`. plm works with `xlnet` alone. "
    "[Architectures and maskings](architectures.md) has the types with a name of their own, with "
    "more maskings.\n\n"
    "| model_type | clm | mlm | rtd |\n| --- | --- | --- | --- |\n"
)
FOOT = """
The other {count} model types do not work by their name alone: {reasons}.
"""


def outcome(model_type: str, masking: str) -> str:
    """ "yes", or why the architecture does not work with the masking."""
    torch.manual_seed(0)
    item = tr.ColumnSchema.create_categorical("item_id", 30, tags=["item_id"])
    inputs = tr.TabularSequenceFeatures.from_schema(
        tr.Schema((item,)), max_sequence_length=L, d_output=D, masking=masking
    )
    config = tr.HuggingFaceConfig.build(model_type, D, 2, 1, L + 1)
    try:
        body = tr.SequentialBlock(inputs, tr.TransformerBlock(config, masking=inputs.masking))
        model = tr.Model(tr.Head(body, tr.NextItemPredictionTask()))
    except PipelineError as error:
        return _reason(str(error))
    items = torch.tensor([[4, 5, 6, 7, 8, 9], [10, 11, 12, 0, 0, 0]])
    batch = tr.SessionBatch({"item_id": items}, torch.tensor([6, 3]))
    loss = model.loss(batch)
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    finite = [g.to_dense().isfinite().all() for g in gradients]
    if not bool(loss.isfinite()) or not all(map(bool, finite)):
        return "does not learn"
    model.eval()
    evaluated = model.at_targets(batch)
    shorter = tr.SessionBatch(
        {"item_id": torch.tensor([[4, 5, 6, 7, 8], [10, 11, 0, 0, 0]])}, torch.tensor([5, 2])
    )
    predicted = model.session_embedding(model.encode(shorter, Stage.PREDICT))
    same = torch.allclose(evaluated.hidden[evaluated.is_last], predicted, atol=1e-4)
    return "yes" if same else "predicts otherwise than it is evaluated"


def _reason(message: str) -> str:
    for words, reason in (
        ("does not run on `inputs_embeds`", "they do not run on `inputs_embeds`"),
        ("cannot be made", "their config needs `options`"),
        ("is bidirectional and ignores", "looks both ways"),
        ("is causal and works", "looks back alone"),
        ("padding mask", "they do not heed a padding mask"),
    ):
        if words in message:
            return reason
    return "they have another form"


def model_types() -> list[str]:
    """Model types that transformers has a causal or a masked language model for."""
    import transformers
    from transformers.models.auto import modeling_auto

    types = {*transformers.CONFIG_MAPPING.keys()}
    names = (
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )
    return sorted(types & {name for mapping in names for name in mapping})


def rows() -> dict[str, list[str]]:
    """The cells of the page's table, by model type."""
    matches = re.findall(r"^\| `([^`]+)` \|(.*)\|$", PAGE.read_text("utf-8"), flags=re.MULTILINE)
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in matches}


@pytest.mark.parametrize("model_type", ["llama", "modernbert", "mamba", "distilbert", "gpt_neox"])
def test_table_has_what_a_model_does(model_type: str) -> None:
    cells = ["yes" if outcome(model_type, m) == "yes" else "" for m in MASKINGS]
    assert rows()[model_type] == cells


def test_table_has_model_types_of_transformers() -> None:
    assert {*rows()} <= {*model_types()}
    assert len(rows()) > 50


@pytest.mark.slow
def test_whole_table_is_what_all_models_do() -> None:
    expected = rows()
    for model_type, by_masking in measure().items():
        if _TOO_SLOW not in by_masking.values():  # as another machine may be
            cells = ["yes" if by_masking[m] == "yes" else "" for m in MASKINGS]
            assert expected.get(model_type, ["", "", ""]) == cells, model_type


def measure() -> dict[str, dict[str, str]]:
    """Outcomes by model type and masking, each type in a process of its own.

    One that takes a minute and a half, or that ends its process, does not work.
    """
    torch.set_num_threads(1)
    context = multiprocessing.get_context("fork")  # so that transformers is imported once
    outcomes: dict[str, dict[str, str]] = {}
    types = model_types()
    for pair in zip(types[::2], [*types[1::2], None], strict=False):
        running = []
        for model_type in filter(None, pair):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_send_outcomes, args=(model_type, sender))
            process.start()
            sender.close()
            running.append((model_type, process, receiver))
        for model_type, process, receiver in running:
            outcomes[model_type] = _received(receiver)
            process.kill()
            process.join()
            print(model_type, outcomes[model_type], file=sys.stderr, flush=True)
    return dict(sorted(outcomes.items()))


def _received(receiver: Any) -> dict[str, str]:
    outcomes: dict[str, str] = {}
    with suppress(EOFError):
        if receiver.poll(_SECONDS):
            outcomes = receiver.recv()
    return outcomes or dict.fromkeys(MASKINGS, _TOO_SLOW)


def _send_outcomes(model_type: str, sender: Any) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_BYTES, _MAX_BYTES))
    by_masking: dict[str, str] = {}
    for masking in MASKINGS:
        try:
            by_masking[masking] = outcome(model_type, masking)
        except Exception:
            by_masking[masking] = "their forward pass fails"
        if by_masking[masking] not in ("yes", "looks both ways", "looks back alone"):
            by_masking |= dict.fromkeys(MASKINGS, by_masking[masking])
            break
    sender.send(by_masking)


def page(outcomes: dict[str, dict[str, str]]) -> str:
    import transformers

    table, reasons = [], dict[str, int]()
    for model_type, by_masking in outcomes.items():
        cells = ["yes" if by_masking[m] == "yes" else "" for m in MASKINGS]
        if any(cells):
            table.append(f"| `{model_type}` |" + "".join(f" {c} |" if c else " |" for c in cells))
        else:
            reason = by_masking["clm"]
            reasons[reason] = reasons.get(reason, 0) + 1
    counts = sorted(reasons.items(), key=lambda pair: -pair[1])
    text = "; ".join(f"{reason} ({count})" for reason, count in counts)
    head = HEAD.format(version=transformers.__version__)
    foot = FOOT.format(count=sum(reasons.values()), reasons=text)
    return head + "\n".join(table) + "\n" + foot


if __name__ == "__main__":
    sys.stdout.write(page(measure()))
