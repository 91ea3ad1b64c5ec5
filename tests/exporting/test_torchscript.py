"""The served program: exact lists at any shape, and XLNet inference."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline import model as tr
from pipeline.core.program_check import checked_program
from pipeline.exporting.topk import (
    best_items,
    best_items_int8,
    lower_excluded,
    mask_excluded,
    quantize,
)
from pipeline.exporting.torchscript import InferenceModel, prove_parity, trace
from pipeline.exporting.xlnet_inference import XLNetInference, optimize_xlnet
from pipeline.model.program import save_program
from tests.conftest import ROOT
from tests.model.test_invariants import CASES, make_model
from tests.model.test_invariants import L as LENGTH

L, V, D = 7, 60, 16
FAST = {("gpt2", "clm"), ("xlnet", "mlm"), ("longformer", "mlm"), ("reformer", "clm"),
        ("gru", "clm"), ("hstu", "clm"), ("core", "clm"), ("ligr", "clm")}  # fmt: skip
"""One of each family; the others are slow."""
SCHEMA = tr.Schema((tr.ColumnSchema.create_categorical("item_id", V - 1, tags=["item_id"]),))


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 7),
    num_items=st.sampled_from([1, 63, 64, 5_000, 4_096, 16_411]),
    k=st.integers(1, 30),
    excluded=st.integers(0, 4),
    candidates=st.integers(0, 40),
)
def test_lists_are_those_of_a_sort_of_all_scores(
    seed: int, rows: int, num_items: int, k: int, excluded: int, candidates: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    # whole numbers, exact in every order of summing; few of them, so that many scores are equal
    queries = torch.randint(-3, 4, (rows, 4), generator=generator).float()
    items = torch.randint(-3, 4, (num_items, 4), generator=generator).float()
    hidden = torch.randint(0, num_items + 3, (rows, excluded), generator=generator)
    allowed = torch.randint(0, num_items + 3, (rows, candidates), generator=generator)
    if candidates:
        allowed[0] = 0  # a row without candidates beside rows with some
    of = torch.tensor(k), hidden, allowed
    first = best_items(queries, items, items.t().contiguous(), *of)
    second = best_items_int8(queries, items, *quantize(items), *of)
    scores = queries @ items.t()
    for row in range(rows):
        if bool((allowed[row] > 0).any()):
            among = torch.zeros(num_items, dtype=torch.bool)
            among[allowed[row][allowed[row] >= 3] - 3] = True
            scores[row, ~among] = -torch.inf
        scores[row, hidden[row][hidden[row] >= 3] - 3] = -torch.inf
    best = scores.sort(1, descending=True).values[:, :k]
    for top, indices in (first, second):
        assert torch.equal(top, best)
        assert torch.equal(scores.gather(1, indices - 3), top), (
            "each item has the score of its position"
        )
        assert all(len(set(row)) == len(row) for row in indices.tolist()), "no item twice"


@pytest.mark.gpu
def test_lists_of_a_gpu_are_those_of_a_cpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    generator = torch.Generator().manual_seed(0)
    queries = torch.randint(-9, 10, (16, 8), generator=generator).float()
    items = torch.randint(-9, 10, (20_000, 8), generator=generator).float()
    excluded = torch.randint(0, 20_003, (16, 30), generator=generator)
    candidates = torch.randint(0, 20_003, (16, 500), generator=generator) * (
        torch.arange(16).unsqueeze(1) % 2
    )
    inputs = queries, items, items.t().contiguous(), torch.tensor(20), excluded, candidates
    expected, _ = best_items(*inputs)
    scores, _ = best_items(*(part.cuda() for part in inputs))
    assert torch.equal(scores.cpu(), expected)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 5), excluded=st.integers(1, 40))
def test_excluded_items_are_lowered_on_a_gpu_as_on_a_cpu(
    seed: int, rows: int, excluded: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, 20, generator=generator)
    indices = torch.randint(0, 23, (rows, excluded), generator=generator)
    none = torch.zeros(rows, 0, dtype=torch.int64)
    lowest = float("-inf")
    expected = mask_excluded(scores.clone(), indices, none, lowest)
    assert torch.equal(lower_excluded(scores.clone(), indices, lowest), expected)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 9),
    spread=st.floats(0, 3),
    k=st.sampled_from([1, 10, 100]),
)
def test_int8_preselection_loses_no_item(seed: int, rows: int, spread: float, k: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # vectors of very different lengths, as of popular and of rare items
    items = torch.randn(20_000, 32, generator=generator)
    items = items * torch.exp(spread * torch.randn(20_000, 1, generator=generator))
    queries = torch.randn(rows, 32, generator=generator)
    none = torch.zeros(rows, 0, dtype=torch.int64)
    of = torch.tensor(k), none, none
    exact, expected = best_items(queries, items, items.t().contiguous(), *of)
    scores, indices = best_items_int8(queries, items, *quantize(items), *of)
    assert torch.allclose(scores, exact, rtol=1e-5, atol=1e-4)
    # the loss of recall is 0; ties of float32 apart, which stand at the end
    lost = [len(set(a) - set(b)) for a, b in zip(expected.tolist(), indices.tolist(), strict=True)]
    assert max(lost) <= 1


SKEWED = """
import torch
from pipeline.exporting.topk import best_items, best_items_int8, quantize
generator = torch.Generator().manual_seed(0)
items, queries = (torch.randn(n, 64, generator=generator) for n in (20_000, 4))
for vectors in (items, queries):  # directions that all of them share make sums of products large
    vectors[:, :8] = vectors[:, :8].abs() * 5
none = torch.zeros(4, 0, dtype=torch.int64)
of = torch.tensor(20), none, none
_, expected = best_items(queries, items, items.t().contiguous(), *of)
_, indices = best_items_int8(queries, items, *quantize(items), *of)
print([len(set(a) - set(b)) for a, b in zip(expected.tolist(), indices.tolist())])
"""


@pytest.mark.parametrize("widest", ["AVX2", "AVX512_CORE", "ALL"])
def test_int8_preselection_loses_no_item_on_any_instruction_set(widest: str) -> None:
    # those without VNNI add two products in 16 bits, silently cut
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": widest}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SKEWED],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.strip() == "[0, 0, 0, 0]", done.stderr[-500:]


class Behind(nn.Module):
    """A block that mixes positions: what stands at all of them matters to it."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.GRU(D, D, batch_first=True)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.recurrent(embeddings)[0]
        return hidden


def build(masking: str, layers: list[int], *behind: nn.Module) -> tr.Model:
    torch.manual_seed(1)
    inputs = tr.TabularSequenceFeatures.from_schema(
        SCHEMA, max_sequence_length=L, masking=masking, d_output=D
    )
    blocks = [
        tr.TransformerBlock(tr.XLNetConfig.build(D, 2, n, L + 1), masking=inputs.masking)
        for n in layers
    ]
    body = tr.SequentialBlock(inputs, *blocks, *behind)
    model = tr.Model(tr.Head(body, tr.NextItemPredictionTask()))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    return model.eval()


@pytest.mark.parametrize("masking", ["clm", "mlm", "rtd"])
@pytest.mark.parametrize("layers", [[1], [3], [2, 1]])
def test_xlnet_inference_scores_as_hugging_face(masking: str, layers: list[int]) -> None:
    served = InferenceModel(build(masking, layers), ["item_id"], set())
    assert sum(isinstance(m, XLNetInference) for m in served.optimized.modules()) == len(layers)
    assert prove_parity(served, trace(served, L), L, 1e-5) < 1e-5


def test_only_the_last_block_of_a_body_may_skip_positions() -> None:
    for behind, expected in (((), [False, True]), ((Behind(),), [False, False])):
        model = build("clm", [1, 1], *behind)
        indices = [m for m in optimize_xlnet(model).modules() if isinstance(m, XLNetInference)]
        assert [m.newest_only for m in indices] == expected
        served = InferenceModel(model, ["item_id"], set())
        assert prove_parity(served, trace(served, L), L, 1e-5) < 1e-5


def test_block_used_twice_computes_all_positions() -> None:
    inputs = tr.TabularSequenceFeatures.from_schema(
        SCHEMA, max_sequence_length=L, masking="clm", d_output=D
    )
    block = tr.TransformerBlock(tr.XLNetConfig.build(D, 2, 1, L + 1), masking=inputs.masking)
    body = tr.SequentialBlock(inputs, block, block)
    model = tr.Model(tr.Head(body, tr.NextItemPredictionTask())).eval()
    served = InferenceModel(model, ["item_id"], set())
    assert prove_parity(served, trace(served, L), L, 1e-5) < 1e-5


@pytest.mark.parametrize(
    ("architecture", "masking"),
    [case if case in FAST else pytest.param(*case, marks=pytest.mark.slow) for case in CASES],
)
def test_a_server_loads_the_programs_of_all_architectures(
    architecture: str, masking: str, tmp_path: Path
) -> None:
    model = make_model(architecture, masking)
    for scoring in ("fp32", "int8"):
        served = InferenceModel(model, model.inputs.feature_names, {"device"}, scoring)
        program = trace(served, LENGTH)
        save_program(program, tmp_path / f"{scoring}.pt")
        with checked_program(tmp_path / f"{scoring}.pt") as copy:
            torch.jit.load(copy)
