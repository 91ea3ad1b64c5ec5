"""Shapes of a figure, written as SVG that is readable in light and dark schemes."""

from xml.sax.saxutils import escape

MASK = "mask"
"""Token of a position that holds the mask vector in place of an interaction."""
_STYLE = """
svg { --ink: #1f2328; --paper: #ffffff; --pale: #dfe4ea; --line: #8c959f; --dim: #59636e;
  --sees: #8fc3bc; --strong: #00796b; --target: #c2410c }
@media (prefers-color-scheme: dark) { svg { --ink: #e6edf3; --paper: #10151c; --pale: #2b323b;
  --line: #7d8590; --dim: #9198a1; --sees: #2f6f68; --strong: #4db6ac; --target: #ff9a5c } }
text { font: 13px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: var(--ink) }
rect, path { stroke: var(--line); fill: none }
.paper { fill: var(--paper); stroke: none }
.pale { fill: var(--pale) }
.sees { fill: var(--sees) }
.strong { fill: var(--strong) }
.dashed { stroke-dasharray: 3 3 }
.ring { stroke: var(--target); stroke-width: 2 }
.head { font-weight: 600 }
.small { font-size: 12px }
.dim { fill: var(--dim) }
.target { fill: var(--target); font-weight: 600 }
.middle { text-anchor: middle }
.end { text-anchor: end }
"""


class Drawing:
    """Shapes of one SVG."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}</style>",
            f'<rect class="paper" width="{width}" height="{height}" rx="6"/>',
        ]

    def text(self, x: float, y: float, content: object, style: str = "") -> None:
        """Write one line, its baseline at `y`."""
        self._parts.append(f'<text x="{x}" y="{y}" class="{style}">{escape(str(content))}</text>')

    def box(self, x: float, y: float, width: float, height: float, style: str = "") -> None:
        """Draw a rectangle by its upper left corner."""
        self._parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" class="{style}"/>'
        )

    def arrow(self, x: float, y: float, to_x: float, to_y: float) -> None:
        """Draw a horizontal or vertical arrow."""
        dx, dy = (to_x > x) - (to_x < x), (to_y > y) - (to_y < y)
        wings = f"M{to_x - 6 * dx - 4 * dy} {to_y - 6 * dy - 4 * dx} L{to_x} {to_y} "
        wings += f"L{to_x - 6 * dx + 4 * dy} {to_y - 6 * dy + 4 * dx}"
        self._parts.append(f'<path d="M{x} {y} L{to_x} {to_y} {wings}"/>')

    def cell(self, x: float, y: float, size: int, content: str, style: str = "") -> None:
        """Draw a square with a letter, or with a smaller square for the mask vector."""
        self.box(x, y, size, size, style)
        if content == MASK:
            self.box(x + size / 2 - 4, y + size / 2 - 4, 8, 8)
        else:
            self.text(x + size / 2, y + size / 2 + 4.5, content, "middle")

    def svg(self) -> str:
        """Return the document."""
        return "\n".join([*self._parts, "</svg>"]) + "\n"
