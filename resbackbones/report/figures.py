"""The few plots this project draws.

They use matplotlib's object interface and the Agg and SVG writers: no window, no global state.
"""

import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"residual": "#1d5fbf", "plain": "#d9622b", "baseline": "#6b7280"}


@dataclass(frozen=True)
class Line:
    """One line of a panel: y over x, with an optional spread (drawn as error bars)."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float | None] | None = None
    colour: str | None = None
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """One set of axes. `across` are dashed horizontal lines, name -> value."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    across: Mapping[str, float] = field(default_factory=dict)
    log: bool = False
    x_ticks: Sequence[float] | None = None
    markers: bool = True
    y_limits: tuple[float, float] | None = None


def draw(
    panels: Sequence[Panel], width: float = 3.6, height: float = 2.9, legend: bool = True
) -> "Figure":
    """Panels side by side (sizes in inches, per panel), over one legend."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(width * len(panels), height + 0.4 * legend), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    handles: dict[str, Any] = {}
    for panel, axes in zip(panels, grid, strict=True):
        for line in panel.lines:
            style = {
                "color": line.colour or COLOURS.get(line.name),
                "linestyle": "--" if line.dashed else "-",
                "marker": "o" if panel.markers else "",
                "markersize": 4.5,
                "linewidth": 1.8,
            }
            spread = [value or 0.0 for value in line.spread or [0.0] * len(line.y)]
            if any(spread):
                if panel.log:  # a bar that reaches zero has no place on a logarithmic axis
                    below = [min(s, 0.9 * y) for s, y in zip(spread, line.y, strict=True)]
                    bars: Any = [below, spread]
                else:
                    bars = spread
                drawn: Any = axes.errorbar(line.x, line.y, yerr=bars, capsize=3, **style)
            else:
                (drawn,) = axes.plot(line.x, line.y, **style)
            handles.setdefault(line.name, drawn)
        for name, value in panel.across.items():
            drawn = axes.axhline(value, color=COLOURS["baseline"], linestyle="--", linewidth=1.2)
            handles.setdefault(name, drawn)
        axes.set_title(panel.title, fontsize=11, loc="left", fontweight="bold")
        axes.set_xlabel(panel.x_label, fontsize=9)
        axes.set_ylabel(panel.y_label, fontsize=9)
        axes.tick_params(labelsize=8.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
        axes.set_axisbelow(True)
        if panel.log:
            axes.set_yscale("log")
            low, high = axes.get_ylim()
            subs = (1.0, 2.0, 5.0) if high < 100 * low else (1.0,)
            axes.yaxis.set_major_locator(LogLocator(subs=subs))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        if panel.y_limits is not None:
            axes.set_ylim(*panel.y_limits)
        if panel.x_ticks is not None:
            axes.set_xticks(list(panel.x_ticks))
    if handles and legend:
        figure.legend(
            handles.values(),
            handles.keys(),
            loc="outside lower center",
            ncols=len(handles),
            frameon=False,
            fontsize=9,
        )
    return figure


def save_figure(figure: "Figure", path: str | Path) -> Path:
    """Write a figure as PNG (or whatever the suffix says)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def inline_svg(figure: "Figure", description: str) -> str:
    """The figure as an `<svg>` element for an HTML page, with a text for those who cannot see it.

    Text stays text (the reader's fonts), and ids are the same in every run.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": description}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    label = html.escape(description, quote=True)
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1).strip()
