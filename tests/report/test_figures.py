"""The plots: what is drawn, and how it leaves."""

import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from resbackbones import report


def figure() -> Figure:
    lines = [
        report.Line("plain", [8, 56], [0.9, 0.2], [0.01, 0.3]),
        report.Line("residual", [8, 56], [0.9, 0.95], [None, None]),
    ]
    panels = [
        report.Panel("accuracy", "depth", "%", lines, {"baseline": 0.8}, x_ticks=[8, 56]),
        report.Panel("loss", "depth", "nats", lines, log=True, y_limits=(0.01, 2)),
    ]
    return report.draw(panels)


def test_a_figure_holds_what_it_was_given() -> None:
    drawn = figure()
    first, second = drawn.axes
    assert [len(axes.get_lines()) > 1 for axes in drawn.axes] == [True, True]
    assert list(first.get_xticks()) == [8, 56] and second.get_yscale() == "log"
    (legend,) = drawn.legends
    assert [text.get_text() for text in legend.texts] == ["plain", "residual", "baseline"]
    # The bar of 0.2 ± 0.3 must not reach zero on a logarithmic axis.
    (bars,) = [line for line in second.collections if len(line.get_segments()) == 2]
    assert min(point[1] for segment in bars.get_segments() for point in segment) > 0


def test_figures_become_files_and_elements(tmp_path: Path) -> None:
    path = report.save_figure(figure(), tmp_path / "new" / "figure.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    svg = report.inline_svg(figure(), 'accuracy "here"')
    assert svg.startswith('<svg role="img" aria-label="accuracy &quot;here&quot;"')
    assert svg.endswith("</svg>") and ">residual</text>" in svg
    assert svg == report.inline_svg(figure(), 'accuracy "here"')


def test_plotting_leaves_pyplot_alone() -> None:
    code = (
        "import sys; from resbackbones import report as r;"
        "r.inline_svg(r.draw([r.Panel('t', 'x', 'y', [r.Line('plain', [1], [1.0])])]), 'd');"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("values", "ticks"),
    [([0.2, 2.0], {"0.2", "0.5", "1", "2"}), ([1.0, 1000.0], {"1", "10", "100"})],
)
def test_a_logarithmic_axis_speaks_in_plain_numbers(values: list[float], ticks: set[str]) -> None:
    panel = report.Panel("loss", "depth", "nats", [report.Line("plain", [8, 56], values)], log=True)
    drawn = report.draw([panel], legend=False)
    drawn.canvas.draw()
    axes = drawn.axes[0]
    assert ticks <= {label.get_text() for label in axes.get_yticklabels()}
    assert not any(label.get_text() for label in axes.get_yticklabels(minor=True))
    assert not drawn.legends
