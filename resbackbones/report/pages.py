"""One report, told as Markdown, as one HTML file that needs nothing else, and in a terminal."""

import html
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from resbackbones.report.figures import COLOURS, Panel, draw, inline_svg
from resbackbones.report.tables import format_metric, markdown_table


@dataclass(frozen=True)
class Verdict:
    """What a card says at a glance: "depth 56", "the skip helped", and the accuracies behind it.

    `sides` goes from a side's name (its colour is that of the plots) to its share of one; `detail`
    is for those who want to know more.
    """

    about: str
    says: str
    kind: Literal["good", "bad", "none"]
    sides: Mapping[str, float]
    detail: str = ""


@dataclass(frozen=True)
class Card:
    """One finding: its verdicts, and the sentence that says it whole."""

    title: str
    subtitle: str
    verdicts: Sequence[Verdict]
    sentence: str


@dataclass(frozen=True)
class Plot:
    """Panels that belong together; on a narrow page they stand one under the other."""

    heading: str
    caption: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Page:
    """A report. `flags` are what a reader must know before anything else; the first column of
    `rows` names a group of rows; `notes` go from a heading to a text."""

    title: str
    lead: str
    cards: Sequence[Card]
    plots: Sequence[Plot]
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Mapping[str, str]
    flags: Sequence[str] = field(default_factory=tuple)
    left: int = 2  # columns of text, which go left

    def table(self) -> str:
        return markdown_table(self.header, self.rows, self.left)

    def text(self, width: int = 100) -> str:
        """For a terminal: the table and the sentences."""
        parts = [self.table()]
        for sentence in (*self.flags, *(card.sentence for card in self.cards)):
            together = sentence.replace(" %", "\xa0%")  # no line starts with a percent sign
            parts.append(textwrap.fill(together, width).replace("\xa0", " "))
        return "\n\n".join(parts)

    def markdown(self) -> str:
        parts = [f"# {self.title}", *(f"**{flag}**" for flag in self.flags)]
        parts += ["\n".join(f"- {card.sentence}" for card in self.cards), self.table()]
        parts += [f"**{heading}.** {text}" for heading, text in self.notes.items()]
        return "\n\n".join(parts) + "\n"

    def html(self) -> str:
        rows, last = [], None
        for row in self.rows:
            cells = "".join(
                f"<td>{_dot(cell) if 0 < i < self.left else ''}"
                f"{html.escape(cell) if i or cell != last else ''}</td>"
                for i, cell in enumerate(row)
            )
            rows.append(f"<tr{' class=first' if row[0] != last else ''}>{cells}</tr>")
            last = row[0]
        return _PAGE.format(
            title=html.escape(self.title),
            lead=html.escape(self.lead),
            style=_STYLE,
            flags="".join(f'<p class="flag">{html.escape(flag)}</p>' for flag in self.flags),
            cards="".join(map(_card, self.cards)),
            plots="".join(map(_plot, self.plots)),
            head="".join(f"<th>{html.escape(name)}</th>" for name in self.header),
            body="".join(rows),
            notes="".join(
                f"<dt>{html.escape(heading)}</dt><dd>{html.escape(text.replace('`', ''))}</dd>"
                for heading, text in self.notes.items()
            ),
        )


def _card(card: Card) -> str:
    verdicts = "".join(map(_verdict, card.verdicts))
    details = "".join(
        f"<li>{html.escape(f'{v.about}: {v.detail}')}</li>" for v in card.verdicts if v.detail
    )
    return (
        f"<article><h2>{html.escape(card.title)}</h2>"
        f'<p class="soft">{html.escape(card.subtitle)}</p>{verdicts}'
        f"<details><summary>In full</summary><ul>{details}</ul>"
        f"<p>{html.escape(card.sentence)}</p></details></article>"
    )


def _verdict(verdict: Verdict) -> str:
    sides = "".join(
        f'<div class="side"><span>{html.escape(name)}</span>'
        f'<i><b style="width:{100 * share:.1f}%;background:{_colour(name)}"></b></i>'
        f"<strong>{format_metric('accuracy', share)}</strong></div>"
        for name, share in verdict.sides.items()
    )
    return (
        f'<section><h3><span class="soft">{html.escape(verdict.about)}</span>'
        f'<em class="{verdict.kind}">{html.escape(verdict.says)}</em></h3>{sides}</section>'
    )


def _plot(plot: Plot) -> str:
    panels = "".join(
        inline_svg(
            draw([panel], width=3.2, height=2.6, legend=False), f"{plot.heading}: {panel.title}"
        )
        for panel in plot.panels
    )
    names = dict.fromkeys(
        name for panel in plot.panels for name in [*(x.name for x in panel.lines), *panel.across]
    )
    legend = "".join(f"<span>{_dot(name)}{html.escape(name)}</span>" for name in names)
    return (
        f'<figure><h2>{html.escape(plot.heading)}</h2><p class="legend">{legend}</p>'
        f'<div class="panels">{panels}</div>'
        f"<figcaption>{html.escape(plot.caption)}</figcaption></figure>"
    )


def _dot(name: str) -> str:
    return f'<i class="dot" style="background:{_colour(name)}"></i>'


def _colour(name: str) -> str:
    """A side's colour in bars, dots and plots; "residual, depth 56" has that of "residual"."""
    return COLOURS.get(name.split(",")[0], COLOURS["baseline"])


_STYLE = """
:root { --ink: #1f2937; --soft: #6b7280; --line: #e5e7eb; --paper: #fbfbfa; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 20px 56px; }
h1 { font-size: 2rem; letter-spacing: -.02em; margin: 0 0 4px; }
h2 { font-size: 1.1rem; margin: 0; }
.soft, figcaption, .lead { color: var(--soft); font-size: .86rem; margin: 0; }
.lead { font-size: 1rem; margin-bottom: 24px; }
.flag { background: #fef3c7; border-radius: 8px; padding: 10px 16px; font-weight: 600; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(280px, 1fr)); gap: 16px; }
article, figure, .table { background: #fff; border: 1px solid var(--line); border-radius: 12px;
  padding: 18px 20px; margin: 0; }
section { border-top: 1px solid var(--line); padding: 12px 0 10px; }
article > .soft { margin-bottom: 12px; }
h3 { display: flex; flex-wrap: wrap; gap: 2px 10px; align-items: baseline;
  justify-content: space-between; margin: 0 0 6px; font-size: 1rem; font-weight: 400; }
em { font-style: normal; font-size: .88rem; font-weight: 700; padding: 1px 9px;
  border-radius: 99px; }
.good { background: #dcf5e7; color: #14633a; }
.bad { background: #fde4e1; color: #98261b; }
.none { background: #eef0f3; color: #4b5563; }
.side { display: grid; grid-template-columns: 7.4em 1fr 4.2em; gap: 8px; align-items: center;
  font-size: .82rem; font-variant-numeric: tabular-nums; }
.side i { background: #f3f4f6; border-radius: 4px; height: 9px; overflow: hidden; }
.side b { display: block; height: 100%; }
.side strong { text-align: right; }
details { border-top: 1px solid var(--line); padding-top: 10px; font-size: .84rem; }
summary { cursor: pointer; color: var(--soft); }
details ul { margin: 8px 0; padding-left: 18px; }
figure, .table { margin-top: 16px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 4px 0 8px; font-size: .86rem; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(290px, 1fr)); gap: 12px; }
.panels svg { display: block; width: 100%; max-width: 480px; height: auto; margin: 0 auto; }
.table { overflow-x: auto; padding: 12px 14px; }
table { border-collapse: collapse; width: 100%; font-size: .84rem;
  font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 600; font-size: .78rem; vertical-align: bottom; }
th, td { padding: 6px 7px; text-align: right; }
td { white-space: nowrap; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; }
td:nth-child(2) { white-space: normal; min-width: 8.5em; }
td:first-child { font-weight: 600; }
tr.first td { border-top: 1px solid var(--line); }
.dot { display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 7px; }
dl { color: var(--soft); font-size: .86rem; margin: 28px 0 0; }
dt { color: var(--ink); font-weight: 600; margin-top: 12px; }
dd { margin: 2px 0 0; overflow-wrap: anywhere; }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p class="lead">{lead}</p>
{flags}
<div class="cards">{cards}</div>
{plots}
<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>
<dl>{notes}</dl>
</main>
</body>
</html>
"""
