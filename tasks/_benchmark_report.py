"""What the figures of `tasks.benchmark` say: the rule, a sentence a domain, the table, the pages.

Everything here is computed from the lines of `records.jsonl`, so that an interrupted run, a resumed
one and a finished one are told by the same code.
"""

import html
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from resbackbones.report import (
    COLOURS,
    Line,
    Panel,
    draw,
    format_count,
    format_metric,
    inline_svg,
    markdown_table,
    mean_sd,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Arm = Mapping[str, Any]  # one line of records.jsonl

MARGIN = 0.01
RULE = (
    "Two arms are compared seed by seed. A difference counts when the 95 % interval of its mean "
    "over the seeds (Student's t) excludes zero and the mean is at least the margin: one "
    "percentage point, or two standard errors of an accuracy measured on this many test rows, "
    "whichever is larger. Otherwise it is nothing measurable; with one seed nothing is claimed. "
    "The skip is judged by residual against plain at the same depth, depth by the deepest "
    "residual net against the shallowest, the baseline against the net that does best on the "
    "validation split."
)


@dataclass(frozen=True)
class Comparison:
    """One side against another, seed by seed. Accuracies are shares of one.

    Attributes:
        ours, theirs: means over the shared seeds.
        low, high: 95 % interval of the mean difference, or None with one seed.
        margin: the smallest difference that counts.
    """

    ours: float
    theirs: float
    low: float | None
    high: float | None
    margin: float

    @property
    def difference(self) -> float:
        return self.ours - self.theirs

    @property
    def verdict(self) -> str:
        """ "better", "worse", "nothing" or, with one seed, "unknown"."""
        if self.low is None or self.high is None:
            return "unknown"
        if abs(self.difference) < self.margin or self.low <= 0 <= self.high:
            return "nothing"
        return "better" if self.difference > 0 else "worse"

    @property
    def points(self) -> str:
        """The difference in percentage points, with its interval where there is one."""
        text = f"{100 * self.difference:+.1f} points"
        if self.low is None or self.high is None:
            return text
        return f"{text}, 95 % interval {100 * self.low:+.1f} to {100 * self.high:+.1f}"


def compare(
    ours: Mapping[int, float], theirs: Mapping[int, float] | float, rows: int
) -> Comparison | None:
    """Compare two arms (seed -> accuracy on `rows` rows), or an arm with one figure.

    None when the two share no seed.
    """
    if isinstance(theirs, float | int):
        theirs = dict.fromkeys(ours, float(theirs))
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    a, b = ([side[seed] for seed in seeds] for side in (ours, theirs))
    share = statistics.fmean(a + b)
    margin = max(MARGIN, 2 * math.sqrt(max(share * (1 - share), 0.0) / rows))
    low, high = _interval([x - y for x, y in zip(a, b, strict=True)])
    return Comparison(statistics.fmean(a), statistics.fmean(b), low, high, margin)


def _interval(differences: Sequence[float]) -> tuple[float | None, float | None]:
    """95 % interval of a mean (Student's t); None for a single value."""
    if len(differences) < 2:
        return None, None
    from scipy.stats import t

    mean, sd = mean_sd(differences)
    half = t.ppf(0.975, len(differences) - 1) * (sd or 0.0) / math.sqrt(len(differences))
    return mean - half, mean + half


@dataclass(frozen=True)
class Finding:
    """What one domain's figures say; `skip` goes from a depth to its comparison."""

    domain: str
    dataset: str
    skip: dict[int, Comparison]
    losses: dict[int, tuple[float, float]]  # depth -> plain, residual, where plain's is higher
    depth: Comparison | None
    depths: tuple[int, int] | None
    baseline: Comparison | None
    baseline_name: str
    best: tuple[str, int] | None
    only_validation: bool

    @property
    def sentence(self) -> str:
        """The domain's one sentence, by the rule and nothing else."""
        parts = [self._skip(depth) for depth in sorted(self.skip, reverse=True)]
        if self.depth is not None and self.depths is not None:
            shallow, deep = self.depths
            verdict = {
                "better": "depth itself paid",
                "worse": "depth itself cost accuracy",
                "nothing": "depth itself paid nothing measurable",
                "unknown": "one seed cannot say whether depth itself pays",
            }[self.depth.verdict]
            points = f"{100 * self.depth.difference:+.1f} points"
            parts.append(f"{verdict} (residual, {deep} against {shallow}: {points})")
        if self.baseline is not None and self.best is not None:
            net = f"the best net ({self.best[0]}, depth {self.best[1]}: "
            net += format_metric("accuracy", self.baseline.ours) + ")"
            simple = f"the baseline ({self.baseline_name}: "
            simple += format_metric("accuracy", self.baseline.theirs) + ")"
            parts.append(
                {
                    "better": f"{net} beat {simple}",
                    "worse": f"{simple} won against {net}",
                    "nothing": f"{simple} and {net} are level",
                    "unknown": f"one seed cannot rank {net} and {simple}",
                }[self.baseline.verdict]
            )
        if not parts:
            return f"{self.domain.capitalize()} ({self.dataset}): too few arms finished to say."
        note = " [scored on the validation split: there is no test split]"
        return (
            f"{self.domain.capitalize()} ({self.dataset}): {'; '.join(parts)}."
            f"{note if self.only_validation else ''}"
        )

    def _skip(self, depth: int) -> str:
        found = self.skip[depth]
        verdict = {
            "better": "the skip helped",
            "worse": "the skip harmed",
            "nothing": "the skip did nothing measurable",
            "unknown": "one seed cannot say what the skip did",
        }[found.verdict]
        text = (
            f"at depth {depth} {verdict}: {format_metric('accuracy', found.ours)} with it, "
            f"{format_metric('accuracy', found.theirs)} without ({found.points})"
        )
        if found.verdict == "better" and depth in self.losses:
            plain, residual = self.losses[depth]
            text += f", and the training loss is lower too ({residual:.2g} against {plain:.2g})"
        return text


def judge(records: Sequence[Arm], domain: str) -> Finding:
    """Apply the rule to one domain's records."""
    ours = [record for record in records if record["domain"] == domain]
    nets = [record for record in ours if record["arm"] != "baseline"]
    depths = sorted({record["depth"] for record in nets})
    rows = ours[0]["test_rows"] if ours else 1

    def by_seed(arm: str, depth: int, key: str = "value") -> dict[int, float]:
        return {r["seed"]: r[key] for r in nets if r["arm"] == arm and r["depth"] == depth}

    skip, losses = {}, {}
    for depth in depths:
        found = compare(by_seed("residual", depth), by_seed("plain", depth), rows)
        if found is None:
            continue
        skip[depth] = found
        residual, plain = (by_seed(arm, depth, "train_loss") for arm in ("residual", "plain"))
        shared = sorted(residual.keys() & plain.keys())
        low, _ = _interval([plain[seed] - residual[seed] for seed in shared])
        if low is not None and low > 0:
            losses[depth] = (
                statistics.fmean(plain[seed] for seed in shared),
                statistics.fmean(residual[seed] for seed in shared),
            )
    of_depth = None
    if len(depths) > 1:
        of_depth = compare(by_seed("residual", depths[-1]), by_seed("residual", depths[0]), rows)
    best = max(
        {(record["arm"], record["depth"]) for record in nets},
        # Fewer layers first among equals, residual before plain: the order must not be chance.
        key=lambda arm: (
            statistics.fmean(by_seed(arm[0], arm[1], "validation").values()),
            -arm[1],
            arm[0],
        ),
        default=None,
    )
    simple = next((record for record in ours if record["arm"] == "baseline"), None)
    of_baseline = None
    if simple is not None and best is not None:
        of_baseline = compare(by_seed(*best), simple["value"], rows)
    return Finding(
        domain=domain,
        dataset=ours[0]["dataset"] if ours else "no data",
        skip=skip,
        losses=losses,
        depth=of_depth,
        depths=(depths[0], depths[-1]) if len(depths) > 1 else None,
        baseline=of_baseline,
        baseline_name=simple["name"] if simple else "",
        best=best,
        only_validation=bool(ours) and ours[0]["split"] == "validation",
    )


HEADER = (
    "domain", "arm", "depth", "parameters", "MACs", "test accuracy", "train loss", "seconds",
    "first/last gradient",
)  # fmt: skip


def table_rows(records: Sequence[Arm]) -> list[list[str]]:
    """One row an arm, the domain's baseline first; several seeds as mean ± sd."""
    groups: dict[tuple[str, str, int], list[Arm]] = {}
    for record in records:
        key = (record["domain"], record["arm"], record["depth"] or 0)
        groups.setdefault(key, []).append(record)
    domains = list(dict.fromkeys(record["domain"] for record in records))

    def order(key: tuple[str, str, int]) -> tuple[int, int, str]:
        return domains.index(key[0]), key[2], key[1]

    rows = []
    for domain, arm, depth in sorted(groups, key=order):
        group = groups[domain, arm, depth]
        first = group[0]
        accuracy = format_metric(first["metric"], *mean_sd([r["value"] for r in group]))
        seconds = f"{statistics.fmean(r['seconds'] for r in group):.1f}"
        if arm == "baseline":
            rows.append([domain, first["name"], "-", "-", "-", accuracy, "-", seconds, "-"])
            continue
        ratios = [r["gradient_ratio"] for r in group]
        ratio = math.inf if None in ratios else statistics.median(ratios)
        rows.append(
            [
                domain,
                arm,
                str(depth),
                format_count(first["parameters"]),
                format_count(first["macs"]),
                accuracy,
                f"{statistics.fmean(r['train_loss'] for r in group):.3f}",
                seconds,
                f"{ratio:.2g}",
            ]
        )
    return rows


def measured_on(about: Mapping[str, Any]) -> str:
    """Hardware, versions and command, for the foot of a report."""
    machine = about["hardware"]
    processor = f"{machine['cores']} x {machine['cpu']}"
    device = f"{machine['gpu']}, {processor}" if about["device"] != "cpu" else processor
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return f"On {device}; {versions}; commit {about['commit']}; `{about['command']}`."


def nets_text(records: Sequence[Arm]) -> str:
    """What was trained on what, a sentence a domain."""
    parts = []
    for domain in dict.fromkeys(record["domain"] for record in records):
        one = next(record for record in records if record["domain"] == domain)
        parts.append(f"{domain.capitalize()}: {one['about_data']}.")
    return " ".join(parts)


NETS = (
    "Plain and residual nets have the same branches, the same initial weights for the same seed "
    "and exactly the same parameters (shortcuts that pad with zeros), trained by the same recipe; "
    "depth counts weighted layers. Training loss is the mean over the last epoch; seconds are the "
    "training time of one seed on one core; the last column is the gradient's size in the first "
    "block over that in the last one, before training (1 is even, far above explodes, far below "
    "vanishes; median over seeds)."
)
TITLE = "What the skip did here"


def markdown(records: Sequence[Arm], about: Mapping[str, Any]) -> str:
    """`report.md`."""
    domains = list(dict.fromkeys(record["domain"] for record in records))
    lines = [f"# {TITLE}", ""]
    if about["missing"]:
        lines += [f"**Unfinished: {about['missing']}**", ""]
    lines += [f"- {judge(records, domain).sentence}" for domain in domains]
    lines += ["", markdown_table(HEADER, table_rows(records), left=2), ""]
    lines += ["**The rule.** " + RULE, "", "**The nets.** " + NETS, ""]
    lines += ["**The data.** " + nets_text(records), "", measured_on(about), ""]
    return "\n".join(lines)


def figures(records: Sequence[Arm]) -> list[tuple[str, str, "Figure"]]:
    """(heading, caption, figure): accuracy, training loss, gradient profile."""
    nets = [record for record in records if record["arm"] != "baseline"]
    domains = list(dict.fromkeys(record["domain"] for record in nets))
    accuracy, loss, gradient = [], [], []
    for domain in domains:
        ours = [record for record in nets if record["domain"] == domain]
        depths = sorted({record["depth"] for record in ours})
        simple = {
            record["arm"]: 100 * record["value"]
            for record in records
            if record["domain"] == domain and record["arm"] == "baseline"
        }
        title = domain.capitalize()
        accuracy.append(
            Panel(
                title,
                "depth",
                f"{ours[0]['split']} accuracy, %",
                _lines(ours, "value", 100),
                simple,
                x_ticks=depths,
                y_limits=(0, 103),
            )
        )
        loss.append(
            Panel(
                title,
                "depth",
                "training loss",
                _lines(ours, "train_loss"),
                x_ticks=depths,
                log=True,
            )
        )
        gradient.append(
            Panel(
                f"{title}, depth {depths[-1]}",
                "block, shallow to deep",
                "gradient, last block = 1",
                _profiles([record for record in ours if record["depth"] == depths[-1]]),
                log=True,
                markers=False,
            )
        )
    if not domains:
        return []
    return [
        (
            "Accuracy against depth",
            "Mean over seeds, bars one standard deviation; dashed, the scikit-learn baseline.",
            draw(accuracy),
        ),
        (
            "Training loss against depth",
            "Of the last epoch, on a logarithmic axis: what a net cannot even fit, it cannot "
            "overfit.",
            draw(loss),
        ),
        (
            "Gradient that reaches each block, before training",
            "Relative to the last block, geometric mean over seeds, on a logarithmic axis.",
            draw(gradient),
        ),
    ]


def _lines(records: Sequence[Arm], key: str, scale: float = 1) -> list[Line]:
    lines = []
    for arm in ("plain", "residual"):
        depths = sorted({record["depth"] for record in records if record["arm"] == arm})
        spread = [
            mean_sd([scale * r[key] for r in records if (r["arm"], r["depth"]) == (arm, depth)])
            for depth in depths
        ]
        if depths:
            lines.append(Line(arm, depths, [m for m, _ in spread], [s for _, s in spread]))
    return lines


def _profiles(records: Sequence[Arm]) -> list[Line]:
    lines = []
    for arm in ("plain", "residual"):
        profiles = [
            [norm / record["gradient_profile"][-1] for norm in record["gradient_profile"]]
            for record in records
            # A profile with a zero in it has no place on a logarithmic axis; the table says 0.
            if record["arm"] == arm and min(record["gradient_profile"]) > 0
        ]
        if profiles:
            y = [statistics.geometric_mean(block) for block in zip(*profiles, strict=True)]
            lines.append(Line(arm, range(1, len(y) + 1), y))
    return lines


def page(records: Sequence[Arm], about: Mapping[str, Any]) -> str:
    """`report.html`: one file that needs nothing else."""
    domains = list(dict.fromkeys(record["domain"] for record in records))
    escape = html.escape
    cards = []
    for domain in domains:
        found = judge(records, domain)
        heading, text = found.sentence.split(": ", 1)
        chips = "".join(f'<li class="{kind}">{escape(label)}</li>' for label, kind in _chips(found))
        text = text[0].upper() + text[1:]
        cards.append(
            f"<article><h2>{escape(heading)}</h2><ul>{chips}</ul><p>{escape(text)}</p></article>"
        )
    drawn = "".join(
        f"<figure><h2>{escape(heading)}</h2>{inline_svg(figure, heading)}"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for heading, caption, figure in figures(records)
    )
    head = "".join(f"<th>{escape(name)}</th>" for name in HEADER)
    body, last = [], ""
    for row in table_rows(records):
        first = ' class="first"' if row[0] != last else ""
        cells = [row[0] if row[0] != last else "", *row[1:]]
        last = row[0]
        mark = f'<i style="background:{COLOURS.get(row[1], COLOURS["baseline"])}"></i>'
        columns = "".join(
            f"<td>{mark if i == 1 else ''}{escape(cell)}</td>" for i, cell in enumerate(cells)
        )
        body.append(f"<tr{first}>{columns}</tr>")
    missing = f'<p class="missing">Unfinished: {escape(about["missing"])}</p>'
    notes = "".join(
        f"<dt>{name}</dt><dd>{escape(text)}</dd>"
        for name, text in (
            ("The rule", RULE),
            ("The nets", NETS),
            ("The data", nets_text(records)),
            ("Measured", measured_on(about).replace("`", "")),
        )
    )
    return _PAGE.format(
        title=escape(TITLE),
        missing=missing if about["missing"] else "",
        cards="".join(cards),
        figures=drawn,
        head=head,
        body="".join(body),
        notes=notes,
    )


def _chips(found: Finding) -> list[tuple[str, str]]:
    """Short verdicts with their colour class: good, bad, or none."""
    kinds = {"better": "good", "worse": "bad", "nothing": "none", "unknown": "none"}
    chips = []
    for depth in sorted(found.skip, reverse=True):
        verdict = found.skip[depth].verdict
        words = {
            "better": "skip helped",
            "worse": "skip harmed",
            "nothing": "skip: nothing measurable",
            "unknown": "skip: one seed",
        }
        chips.append((f"depth {depth}: {words[verdict]}", kinds[verdict]))
    if found.depth is not None:
        words = {
            "better": "depth paid",
            "worse": "depth cost",
            "nothing": "depth: nothing measurable",
            "unknown": "depth: one seed",
        }
        chips.append((words[found.depth.verdict], kinds[found.depth.verdict]))
    if found.baseline is not None:
        words = {
            "better": "net beat baseline",
            "worse": "baseline won",
            "nothing": "level with baseline",
            "unknown": "baseline: one seed",
        }
        chips.append((words[found.baseline.verdict], kinds[found.baseline.verdict]))
    return chips


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ --ink: #1f2937; --soft: #6b7280; --line: #e5e7eb; --paper: #fbfbfa; }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }}
main {{ max-width: 1080px; margin: 0 auto; padding: 48px 24px 64px; }}
h1 {{ font-size: 2.1rem; letter-spacing: -.02em; margin: 0 0 4px; }}
.lead {{ color: var(--soft); margin: 0 0 32px; }}
.missing {{ background: #fef3c7; border-radius: 8px; padding: 10px 16px; }}
h2 {{ font-size: 1.05rem; margin: 0 0 10px; }}
.cards {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(290px, 1fr)); gap: 18px; }}
article, figure, .table {{ background: #fff; border: 1px solid var(--line); border-radius: 12px;
  padding: 20px 22px; margin: 0; }}
article p {{ margin: 12px 0 0; font-size: .93rem; }}
article ul {{ list-style: none; display: flex; flex-wrap: wrap; gap: 6px; margin: 0; padding: 0; }}
article li {{ font-size: .78rem; font-weight: 600; padding: 2px 10px; border-radius: 99px; }}
.good {{ background: #dcf5e7; color: #14633a; }}
.bad {{ background: #fde4e1; color: #98261b; }}
.none {{ background: #eef0f3; color: #4b5563; }}
figure {{ margin-top: 18px; }}
figure svg {{ display: block; width: 100%; height: auto; }}
figcaption {{ color: var(--soft); font-size: .86rem; margin-top: 6px; }}
.table {{ margin-top: 18px; overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-size: .88rem;
  font-variant-numeric: tabular-nums; white-space: nowrap; }}
th {{ color: var(--soft); font-weight: 600; font-size: .8rem; }}
th, td {{ padding: 7px 10px; text-align: right; }}
th:nth-child(-n+2), td:nth-child(-n+2) {{ text-align: left; }}
td:first-child {{ font-weight: 600; }}
tr.first td {{ border-top: 1px solid var(--line); }}
td i {{ display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 8px; }}
dl {{ color: var(--soft); font-size: .86rem; margin: 32px 0 0; }}
dt {{ color: var(--ink); font-weight: 600; margin-top: 12px; }}
dd {{ margin: 2px 0 0; overflow-wrap: anywhere; }}
</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p class="lead">Plain against residual nets of the same parameters in vision, speech and text.</p>
{missing}
<section class="cards">{cards}</section>
{figures}
<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>
<dl>{notes}</dl>
</main>
</body>
</html>
"""
