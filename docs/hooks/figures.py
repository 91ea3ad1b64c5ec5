"""Figures of the pages as SVG, from tensors of a small model and files of a small export."""

import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from drawing import MASK, Drawing
from panels import MASKINGS, SESSION, STAGES, Panel, panel, small_model

from pipeline.core.columns import FIRST_ITEM
from pipeline.data.loader import RaggedBatch
from pipeline.exporting.run import export
from pipeline.exporting.triton_config import read_config, type_name
from pipeline.model.masking import CausalMasking, Stage
from pipeline.preprocessing.run import preprocess
from pipeline.preprocessing.synthetic import synthesize
from pipeline.recipe.recipe import Recipe
from pipeline.training.run import train

ROOT = Path(__file__).parents[2]


def visibility_figure(panels: dict[str, list[Panel]]) -> str:
    """Draw which interactions the output of each position depends on."""
    drawing = Drawing(716, 716, "Interactions that the output of each position depends on")
    _stage_heads(drawing, 66, 224, 24)
    for row, (masking, of_stages) in enumerate(panels.items()):
        top = 44 + 158 * row
        drawing.text(16, top + 32, masking, "head")
        for column, each in enumerate(of_stages):
            _matrix(drawing, 66 + 224 * column, top, each)
        if of_stages[0].masked is not None:
            drawing.text(66, top + 138, "detection; masked items as under mlm", "small dim")
    keys = [
        ("strong", "sees, and predicts", 16),
        ("sees", "sees, predicts nothing", 176),
        ("", "does not see", 358),
        ("dashed", "not an input", 480),
    ]
    for style, meaning, x in keys:
        drawing.box(x, 688, 14, 14, style)
        drawing.text(x + 20, 700, meaning, "small")
    drawing.box(602, 691, 8, 8)
    drawing.text(616, 700, "mask vector", "small")
    return drawing.svg()


def _stage_heads(drawing: Drawing, left: int, pitch: int, y: int) -> None:
    for column, stage in enumerate(STAGES.values()):
        drawing.text(left + pitch * column, y, stage, "head")


def _matrix(drawing: Drawing, left: int, top: int, each: Panel) -> None:
    """Rows are positions, columns interactions."""
    size, results = 16, each.detects or each.predicts
    columns = each.reads if each.detects else list(SESSION)
    for j, letter in enumerate(columns):
        is_input = j < len(each.reads)
        style = "middle small" if is_input else "middle small dim"
        drawing.text(left + 22 + size * (j + 0.5), top + 10, letter, style)
    for i, (token, result) in enumerate(zip(each.reads, results, strict=True)):
        y = top + 15 + size * i
        if token == MASK:
            drawing.box(left + 6, y + 4, 8, 8)
        else:
            drawing.text(left + 10, y + 12, token, "middle small")
        for j, is_seen in enumerate(each.sees[i]):
            style = ("strong" if result else "sees") if is_seen else ""
            style = style if j < len(each.reads) else "dashed"
            drawing.box(left + 22 + size * j, y, size, size, style)
        if result:
            x = left + 28 + size * len(each.sees[i])
            drawing.text(x, y + 12, f"→ {result}", "target small")


def targets_figure(panels: dict[str, list[Panel]]) -> str:
    """Draw what each position reads and predicts."""
    drawing = Drawing(820, 556, "Inputs and targets of a session under each masking")
    drawing.text(16, 24, f"session {' '.join(SESSION)}", "small")
    _stage_heads(drawing, 150, 226, 24)
    y = 44
    for masking, of_stages in panels.items():
        drawing.text(16, y + 18, masking, "head")
        first = of_stages[0]
        _rows(drawing, y, [first.masked or first, *of_stages[1:]])
        y += 92
        if first.masked is not None:
            for x, letter, label in _columns(150, first.reads, first.detects):
                is_replaced = label == "replaced"
                drawing.cell(x, y, 24, letter, "ring" if is_replaced else "")
                drawing.cell(x, y + 30, 24, "1" if is_replaced else "0", "pale")
            drawing.text(70, y + 17, "reads", "small")
            drawing.text(70, y + 47, "detects", "small")
            y += 92
    drawing.cell(16, y, 20, MASK)
    drawing.text(44, y + 14, "mask vector, or an empty position", "small")
    drawing.cell(262, y, 20, "b", "ring")
    drawing.text(290, y + 14, "target, or a replaced item", "small")
    drawing.cell(470, y, 20, "c", "dashed")
    drawing.text(498, y + 14, "content that its own position does not see", "small")
    drawing.text(
        16,
        y + 42,
        "1st, 2nd: order of the targets under plm; a target sees those before "
        "it.   ?: the next item.   1: replaced, 0: original.",
        "small",
    )
    return drawing.svg()


def _rows(drawing: Drawing, y: int, of_stages: list[Panel]) -> None:
    drawing.text(70, y + 17, "reads", "small")
    drawing.text(70, y + 47, "predicts", "small")
    for column, each in enumerate(of_stages):
        for i, (x, token, target) in enumerate(
            _columns(150 + 226 * column, each.reads, each.predicts)
        ):
            drawing.cell(x, y, 24, token, "dashed" if each.order[i] >= 0 else "")
            if target:
                drawing.cell(x, y + 30, 24, target, "ring")
            if each.order[i] >= 0 and max(each.order) > 0:
                place = ("1st", "2nd", "3rd")[each.order[i]]
                drawing.text(x + 12, y + 68, place, "middle small dim")


def _columns(left: int, tokens: list[str], values: list[str]) -> Iterable[tuple[int, str, str]]:
    for i, (token, value) in enumerate(zip(tokens, values, strict=True)):
        yield left + 28 * i, token, value


def batch_figure() -> str:
    """Draw three sessions, their batch and the targets of clm."""
    sessions = [["tea", "cup", "pot", "tea", "mug"], ["cup", "tea"], ["tea", "cup", "pot"]]
    counts = Counter(item for session in sessions for item in session)
    index = {item: FIRST_ITEM + i for i, (item, _) in enumerate(counts.most_common())}
    values = torch.tensor([index[item] for session in sessions for item in session])
    offsets = torch.tensor([0, *(len(session) for session in sessions)]).cumsum(0)
    ragged = RaggedBatch({"item_id": values}, {}, offsets)
    rows = torch.arange(len(sessions))
    batch = ragged.window(rows, torch.zeros_like(rows), ragged.lengths)
    items = batch.features["item_id"]
    masked = CausalMasking().apply_to(items.unsqueeze(-1), items, batch.lengths, Stage.TRAIN)
    drawing = Drawing(812, 226, "From sessions to a batch")
    for x, head, values in (
        (250, "item_id (B, L)", items),
        (560, "targets of clm (B, L - 1)", masked.targets),
    ):
        drawing.text(x, 26, f"{head} = {tuple(values.shape)}", "head")
    drawing.text(16, 26, "sessions", "head")
    drawing.text(440, 26, "lengths (B,)", "head")
    for row, session in enumerate(sessions):
        y = 42 + 34 * row
        for j, item in enumerate(session):
            drawing.text(16 + 40 * j, y + 19, item)
        drawing.cell(470, y, 28, str(int(batch.lengths[row])))
        for left, table in ((250, items), (560, masked.targets)):
            for j, value in enumerate(table[row].tolist()):
                drawing.cell(left + 30 * j, y, 28, str(value), "" if value else "pale")
    drawing.arrow(218, 90, 240, 90)
    names = ", ".join(f"{item} {number}" for item, number in index.items())
    drawing.text(16, 170, f"Item indices, by falling frequency: {names}.", "small")
    drawing.text(
        16,
        190,
        "0 is padding, always on the right; in targets, a position without a "
        "target. 1 is a missing item, 2 an unknown one.",
        "small",
    )
    drawing.text(
        16,
        210,
        "The target of a position is the item after it; the last item is a target only.",
        "small",
    )
    return drawing.svg()


def ensemble_figure(repository: Path) -> str:
    """Draw the models and tensors of an exported repository, from their configurations."""
    configs = {
        path.name: read_config(path)
        for path in sorted(repository.iterdir())
        if (path / "config.pbtxt").is_file()
    }
    entry = configs["recommender"]
    (step,) = entry.ensemble_scheduling.step
    requests = configs[step.model_name]
    (program,) = (c for c in configs.values() if c.backend == "pytorch")
    aliases = [n for n, c in configs.items() if c.platform == "ensemble" and n != entry.name]
    height = 106 + 18 * len(entry.input)
    drawing = Drawing(880, height, "Models and tensors of an exported repository")
    drawing.text(16, 26, "request", "head")
    drawing.text(688, 26, "answer", "head")
    for left, tensors in ((16, entry.input), (688, entry.output)):
        for row, each in enumerate(tensors):
            drawing.text(left, 58 + 18 * row, each.name, "small")
            drawing.text(left + 84, 58 + 18 * row, _type(each), "small dim")
    drawing.arrow(184, 100, 204, 100)
    drawing.arrow(660, 100, 680, 100)
    drawing.box(208, 12, 448, height - 58)
    drawing.text(222, 34, f"{entry.name}: {entry.platform} of one step", "head")
    _model_box(drawing, 224, 48, requests, "encodes sessions, merges requests, decodes ids")
    _model_box(drawing, 224, 196, program, "scores the catalogue, best K")
    drawing.arrow(300, 116, 300, 192)
    drawing.arrow(560, 196, 560, 120)
    drawing.text(310, 134, "calls", "small")
    for x, (each,) in ((310, program.input), (438, program.output)):
        drawing.text(x, 152, each.name, "small")
        drawing.text(x, 168, _type(each), "small dim")
    note = f"{', '.join(aliases)}: the same for clients that ask one version. "
    note += f"B ≤ {entry.max_batch_size}; n: any length. All inputs are optional."
    drawing.text(16, height - 26, note, "small dim")
    return drawing.svg()


def _model_box(drawing: Drawing, x: int, y: int, model: Any, purpose: str) -> None:
    drawing.box(x, y, 416, 66, "pale")
    drawing.text(x + 12, y + 20, model.name, "head")
    places = ", ".join(
        f"{g.count} instance on {type(g).Kind.Name(g.kind)[5:]}" for g in model.instance_group
    )
    parts = [f"backend {model.backend}", places]
    if model.HasField("dynamic_batching"):
        parts.append("dynamic batching")
    if model.model_warmup:
        parts.append("warm-up")
    drawing.text(x + 12, y + 38, ", ".join(parts), "small")
    drawing.text(x + 12, y + 55, purpose, "small")


def _type(each: Any) -> str:
    """Type as in a request, and shape."""
    kind = type_name(each).removeprefix("TYPE_").replace("STRING", "BYTES")
    return f"{kind} (B, {'n' if each.dims[0] < 0 else each.dims[0]})"


def small_repository(directory: Path) -> Path:
    """Run the stages on a small synthetic log, with the features of the demo."""
    small = ("model.d_model=16", "model.n_head=2", "model.n_layer=1", "train.epochs=1")
    recipe = Recipe.load(ROOT / "configs" / "demo.yaml", small)
    synthesize(directory / "clicks.csv", sessions=300, items=30, seed=1)
    preprocess(recipe.preprocess, [directory / "clicks.csv"], [], directory / "data")
    train(directory / "data", recipe.model, recipe.train, directory / "run")
    export(directory / "run", directory / "repository")
    return directory / "repository"


def figures(repository: Path) -> dict[str, str]:
    """Return every figure by its file name, with that of an exported `repository`."""
    panels = {}
    for masking in MASKINGS:
        model = small_model(masking)
        panels[masking] = [panel(model, stage) for stage in STAGES]
    return {
        "visibility.svg": visibility_figure(panels),
        "targets.svg": targets_figure(panels),
        "batch.svg": batch_figure(),
        "ensemble.svg": ensemble_figure(repository),
    }


def figures_of_small_log() -> dict[str, str]:
    """Return every figure, of an export that is made for it."""
    with tempfile.TemporaryDirectory() as directory:
        return figures(small_repository(Path(directory)))


def main() -> None:
    """Write the figures to docs/figures."""
    for name, content in figures_of_small_log().items():
        (ROOT / "docs" / "figures" / name).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
