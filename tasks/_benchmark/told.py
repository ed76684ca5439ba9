"""What the figures of `tasks.benchmark` say: the rule, a sentence per domain, the page.

Everything here is computed from the lines of `records.jsonl`, so that an interrupted run, a resumed
one and a finished one are told by the same code.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from resbackbones import report
from resbackbones.report import Comparison, Line, Panel, compare, format_metric, mean_sd

Arm = Mapping[str, Any]  # one line of records.jsonl

RULE = (
    f"{report.RULE} The skip is judged by residual against plain at the same depth, depth by the "
    "deepest residual net against the shallowest, the baseline against the net that does best on "
    "the validation split."
)
NETS = (
    "Plain and residual nets have the same branches, the same initial weights for the same seed "
    "and exactly the same parameters (shortcuts that pad with zeros), trained by the same recipe; "
    "depth counts weighted layers. Training loss is the mean over the last epoch; seconds are the "
    "training time of one seed on one core; the last column is the gradient's size in the first "
    "block over that in the last one, before training (1 is even, far above explodes, far below "
    "vanishes; median over seeds)."
)
QUICK = "A quick run, with fewer seeds and less data: a look, not a claim."


# What a verdict is called: on a card (the colour it has there), and in the sentence.
SAYS: dict[str, dict[str, tuple[str, str]]] = {
    "skip": {
        "better": ("skip helped", "the skip helped"),
        "worse": ("skip harmed", "the skip harmed"),
        "nothing": ("nothing measurable", "the skip did nothing measurable"),
        "unknown": ("one seed", "one seed cannot say what the skip did"),
    },
    "depth": {
        "better": ("paid", "depth itself paid"),
        "worse": ("cost accuracy", "depth itself cost accuracy"),
        "nothing": ("nothing measurable", "depth itself paid nothing measurable"),
        "unknown": ("one seed", "one seed cannot say whether depth itself pays"),
    },
    "baseline": {
        "better": ("net won", "{net} beat {simple}"),
        "worse": ("baseline won", "{simple} won against {net}"),
        "nothing": ("level", "{simple} and {net} are level"),
        "unknown": ("one seed", "one seed cannot rank {net} and {simple}"),
    },
}
KINDS: dict[str, Literal["good", "bad", "none"]]
KINDS = {"better": "good", "worse": "bad", "nothing": "none", "unknown": "none"}


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
            says = SAYS["depth"][self.depth.verdict][1]
            points = f"{100 * self.depth.difference:+.1f} points"
            parts.append(f"{says} (residual, {self.depths[1]} against {self.depths[0]}: {points})")
        if self.baseline is not None and self.best is not None:
            ours, theirs = (
                format_metric("accuracy", x) for x in (self.baseline.ours, self.baseline.theirs)
            )
            net = f"the best net ({self.best[0]}, depth {self.best[1]}: {ours})"
            simple = f"the baseline ({self.baseline_name}: {theirs})"
            says = SAYS["baseline"][self.baseline.verdict][1]
            parts.append(says.format(net=net, simple=simple))
        text = "; ".join(parts) if parts else "too few arms finished to say"
        note = " [scored on the validation split: there is no test split]"
        note = note if parts and self.only_validation else ""
        return f"{self.domain.capitalize()} ({self.dataset}): {text}.{note}"

    def _skip(self, depth: int) -> str:
        found = self.skip[depth]
        text = (
            f"at depth {depth} {SAYS['skip'][found.verdict][1]}: "
            f"{format_metric('accuracy', found.ours)} with it, "
            f"{format_metric('accuracy', found.theirs)} without ({found.points})"
        )
        if found.verdict == "better" and depth in self.losses:
            plain, residual = self.losses[depth]
            text += f", and the training loss is lower too ({residual:.2g} against {plain:.2g})"
        return text

    def card(self, subtitle: str) -> report.Card:
        """The same at a glance."""

        def verdict(
            about: str, kind: str, found: Comparison, ours: str, theirs: str
        ) -> report.Verdict:
            says, colour = SAYS[kind][found.verdict][0], KINDS[found.verdict]
            sides = {ours: found.ours, theirs: found.theirs}
            return report.Verdict(about, says, colour, sides, found.points)

        verdicts = [
            verdict(f"depth {depth}", "skip", self.skip[depth], "residual", "plain")
            for depth in sorted(self.skip, reverse=True)
        ]
        if self.depth is not None and self.depths is not None:
            shallow, deep = (f"residual, {depth}" for depth in self.depths)
            verdicts.append(verdict("depth itself", "depth", self.depth, deep, shallow))
        if self.baseline is not None and self.best is not None:
            net = f"{self.best[0]}, {self.best[1]}"
            verdicts.append(verdict("best net", "baseline", self.baseline, net, "baseline"))
        return report.Card(self.domain.capitalize(), subtitle, verdicts, self.sentence)


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
        if report.surely_positive([plain[seed] - residual[seed] for seed in shared]):
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


def page(records: Sequence[Arm], about: Mapping[str, Any]) -> report.Page:
    """The report: `about` holds hardware, versions, commit, command, device, quick and missing."""
    domains = list(dict.fromkeys(record["domain"] for record in records))
    firsts = {domain: next(r for r in records if r["domain"] == domain) for domain in domains}
    flags = [QUICK] if about["quick"] else []
    if about["missing"]:
        flags.append(f"Unfinished: {about['missing']}")
    return report.Page(
        title="What the skip did here",
        lead="Plain against residual nets of the same parameters in vision, speech and text.",
        cards=[
            judge(records, domain).card(f"{firsts[domain]['dataset']}, {_seeds(records, domain)}")
            for domain in domains
        ],
        plots=plots(records),
        header=HEADER,
        rows=table_rows(records),
        notes={
            "The rule": RULE,
            "The nets": NETS,
            "The data": " ".join(
                f"{domain.capitalize()}: {first['about_data']}." for domain, first in firsts.items()
            ),
            "Measured": _measured_on(about),
        },
        flags=flags,
    )


def _measured_on(about: Mapping[str, Any]) -> str:
    machine = about["hardware"]
    processor = f"{machine['cores']} x {machine['cpu']}"
    device = f"{machine['gpu']}, {processor}" if about["device"] != "cpu" else processor
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return f"On {device}; {versions}; commit {about['commit']}; `{about['command']}`."


def _seeds(records: Sequence[Arm], domain: str) -> str:
    """How many seeds stand behind a domain's nets: "3 seeds", or "1 to 3 seeds" in half a run."""
    counts = {len(group) for key, group in _groups(records).items() if key[0] == domain and key[2]}
    if not counts:
        return "no net yet"
    low, high = min(counts), max(counts)
    return f"{high} seed{'s' * (high > 1)}" if low == high else f"{low} to {high} seeds"


def _groups(records: Sequence[Arm]) -> dict[tuple[str, str, int], list[Arm]]:
    """(domain, arm, depth) -> its seeds; domains as they come, each with its baseline first."""
    groups: dict[tuple[str, str, int], list[Arm]] = {}
    for record in records:
        key = (record["domain"], record["arm"], record["depth"] or 0)
        groups.setdefault(key, []).append(record)
    domains = list(dict.fromkeys(record["domain"] for record in records))
    order = sorted(groups, key=lambda key: (domains.index(key[0]), key[2], key[1]))
    return {key: groups[key] for key in order}


HEADER = (
    "domain", "arm", "depth", "seeds", "parameters", "MACs", "test accuracy", "train loss",
    "seconds", "first/last gradient",
)  # fmt: skip


def table_rows(records: Sequence[Arm]) -> list[list[str]]:
    """One row per arm, the domain's baseline first; several seeds as mean ± sd."""
    rows = []
    for (domain, arm, depth), group in _groups(records).items():
        first = group[0]
        accuracy = format_metric(first["metric"], *mean_sd([r["value"] for r in group]))
        seconds = f"{statistics.fmean(r['seconds'] for r in group):.1f}"
        if arm == "baseline":
            rows.append([domain, first["name"], *"----", accuracy, "-", seconds, "-"])
            continue
        ratios = [r["gradient_ratio"] for r in group]
        ratio = math.inf if None in ratios else statistics.median(ratios)
        rows.append(
            [
                domain,
                arm,
                str(depth),
                str(len(group)),
                report.format_count(first["parameters"]),
                report.format_count(first["macs"]),
                accuracy,
                f"{statistics.fmean(r['train_loss'] for r in group):.3f}",
                seconds,
                f"{ratio:.2g}",
            ]
        )
    return rows


def plots(records: Sequence[Arm]) -> list[report.Plot]:
    """Accuracy, training loss and gradient profile, a panel per domain."""
    nets = [record for record in records if record["arm"] != "baseline"]
    panels: list[list[Panel]] = []
    for domain in dict.fromkeys(record["domain"] for record in nets):
        ours = [record for record in nets if record["domain"] == domain]
        ticks = sorted({record["depth"] for record in ours})
        accuracy, loss = _lines(ours, "value", 100), _lines(ours, "train_loss")
        profiles = _profiles([record for record in ours if record["depth"] == ticks[-1]])
        across = {
            record["arm"]: 100 * record["value"]
            for record in records
            if record["domain"] == domain and record["arm"] == "baseline"
        }
        name, unit = domain.capitalize(), f"{ours[0]['split']} accuracy, %"
        title, end = f"{name}, {_seeds(records, domain)}", f"{name}, depth {ticks[-1]}"
        block, size = "block, shallow to deep", "gradient, last block = 1"
        panels.append(
            [
                Panel(title, "depth", unit, accuracy, across, x_ticks=ticks, y_limits=(0, 103)),
                Panel(title, "depth", "training loss", loss, x_ticks=ticks, log=True),
                Panel(end, block, size, profiles, log=True, markers=False),
            ]
        )
    return [
        report.Plot(heading, caption, of_domains)
        for (heading, caption), of_domains in zip(PLOTS, zip(*panels, strict=True), strict=False)
    ]


PLOTS = (
    (
        "Accuracy against depth",
        "Mean over seeds, bars one standard deviation; dashed, the scikit-learn baseline.",
    ),
    (
        "Training loss against depth",
        "Of the last epoch, on a logarithmic axis: what a net cannot even fit, it cannot overfit.",
    ),
    (
        "Gradient that reaches each block, before training",
        "Relative to the last block, geometric mean over seeds, on a logarithmic axis.",
    ),
)


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
