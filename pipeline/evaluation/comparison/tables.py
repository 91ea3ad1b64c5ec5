"""A comparison as Markdown and LaTeX tables."""

from collections.abc import Callable

from pipeline.evaluation.comparison.result import Comparison, headline, row_label, tables
from pipeline.evaluation.result import decimals, with_margin


def markdown(comparison: Comparison) -> str:
    """One table per cutoff and target task, the best cells in bold."""

    def cell(value: str, best: bool) -> str:
        return f"**{value}**" if best else value

    parts = [headline(comparison)]
    for table in tables(comparison):
        heads = table.heads
        lines = [f"| | {' | '.join(heads)} |", f"| --- |{' --- |' * len(heads)}"]
        lines += [
            f"| {_markdown_text(row_label(comparison, name))} | "
            f"{' | '.join(_cells(comparison, name, heads, cell))} |"
            for name in table.rows
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def latex(comparison: Comparison) -> str:
    r"""One booktabs tabular per cutoff and target task, the best cells in \textbf."""

    def cell(value: str, best: bool) -> str:
        value = value.replace("±", r"\pm ")
        return rf"$\mathbf{{{value}}}$" if best else f"${value}$" if value != "-" else "--"

    parts = []
    for table in tables(comparison):
        heads = table.heads
        lines = [
            rf"% {headline(comparison)}",
            rf"\begin{{tabular}}{{l{'r' * len(heads)}}}",
            r"\toprule",
            rf" & {' & '.join(map(_latex_text, heads))} \\",
            r"\midrule",
        ]
        lines += [
            rf"{_latex_text(row_label(comparison, name))} & "
            rf"{' & '.join(_cells(comparison, name, heads, cell))} \\"
            for name in table.rows
        ]
        parts.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}"]))
    return "\n\n".join(parts) + "\n"


def _cells(
    comparison: Comparison, name: str, heads: list[str], form: Callable[[str, bool], str]
) -> list[str]:
    row = comparison.rows[name]
    cells = []
    for head in heads:
        value = row.results.get(head)
        text = "-" if value is None else with_margin(value, row.margins.get(head), decimals(head))
        cells.append(form(text, comparison.is_best(head, name)))
    return cells


def _markdown_text(name: str) -> str:
    return name.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*")


_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


def _latex_text(name: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in name)
