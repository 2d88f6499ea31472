"""A `Comparison` -> heatmap.png: kinds x modes, coloured by F1; failed cells are hatched, cells without a score are grey."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.atomic import atomic_open

if TYPE_CHECKING:
    from orchestrator.report import Cell, Comparison

_COLOURS = "viridis"
_UNSCORED = "#e4e4e4"
_FAILED_EDGE = "#b3261e"
_LIGHT_FROM = 0.55  # from this F1 on viridis is light, and black text reads better than white


def draw_heatmap(path: Path, comparison: Comparison, *, title: str) -> None:
    """Draw the comparison with matplotlib's Agg canvas; the colours run from F1 = 0 to 1, so pictures of two runs compare."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    rows, columns = len(comparison.rows), len(comparison.modes)
    figure = Figure(figsize=(3.4 + 1.9 * columns, 1.6 + 0.8 * rows), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colours = matplotlib.colormaps[_COLOURS]
    for row, (_, cells) in enumerate(comparison.rows):
        for column, cell in enumerate(cells):
            _draw_cell(axes, row, column, cell, colours, best=cell is comparison.best)
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5), xlabel="supervision mode", ylabel="foundation")
    axes.set_xticks(range(columns), comparison.modes)
    axes.set_yticks(range(rows), [label for label, _ in comparison.rows])
    axes.tick_params(length=0)
    axes.set_title(title, fontsize=11)
    figure.colorbar(ScalarMappable(Normalize(0, 1), colours), ax=axes, label="partial-match F1")
    with atomic_open(path, "wb") as stream:
        figure.savefig(stream, format="png")


def _draw_cell(axes: Any, row: int, column: int, cell: Cell, colours: Any, *, best: bool) -> None:
    from matplotlib.patches import Rectangle

    failed = cell.state == "failed"
    face = _UNSCORED if cell.mean is None else colours(cell.mean)
    square = Rectangle(
        (column - 0.5, row - 0.5),
        1,
        1,
        facecolor=face if cell.states else "white",
        edgecolor=_FAILED_EDGE if failed else "white",
        hatch="///" if failed else None,
        linewidth=1.5,
    )
    axes.add_patch(square)
    ink = "white" if cell.mean is not None and cell.mean < _LIGHT_FROM else "black"
    text = cell.text.replace(" (", "\n(").replace(" seeds, ", " seeds,\n")
    weight = "bold" if best else "normal"
    backing = {"facecolor": face, "edgecolor": "none", "pad": 2} if failed else None
    axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=10, fontweight=weight, bbox=backing)
