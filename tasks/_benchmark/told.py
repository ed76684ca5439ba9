"""What the figures of `tasks.benchmark` say: the rule, a sentence per domain, the page.

Everything here is computed from the lines of `records.jsonl`, so that an interrupted run, a resumed
one and a finished one are told by the same code.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from resbackbones import report
from resbackbones.report import Comparison, Line, Panel, compare, format_metric, mean_sd
from tasks._benchmark.arms import Settings
from tasks._benchmark.data import PACKAGES

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

# What a verdict is called: on a card, and in the sentence.
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


def page(records: Sequence[Arm], settings: Settings, missing: str) -> report.Page:
    """The report; `missing` says what is not done yet."""
    about = {record["domain"]: record["about_data"] for record in records}
    flags = [QUICK] if settings.quick else []
    if missing:
        flags.append(f"Unfinished: {missing}")
    return report.Page(
        title="What the skip did here",
        lead="Plain against residual nets of the same parameters in vision, speech and text.",
        cards=[judge(records, domain) for domain in about],
        plots=plots(records),
        header=HEADER,
        rows=table_rows(records),
        notes={
            "The rule": RULE,
            "The nets": NETS,
            "The data": " ".join(f"{name.capitalize()}: {text}." for name, text in about.items()),
            "Measured": _measured_on(settings),
        },
        flags=flags,
    )


def _measured_on(settings: Settings) -> str:
    machine = report.hardware()
    gpu = "" if settings.device == "cpu" else f"{machine['gpu']}, "
    made = [name for d in settings.domains if not getattr(settings, d) for name in PACKAGES[d]]
    found = report.versions(dict.fromkeys([*report.PACKAGES, *made]))
    versions = ", ".join(f"{name} {version}" for name, version in found.items())
    return (
        f"On {gpu}{machine['cores']} x {machine['cpu']}; {versions}; commit {report.commit()}; "
        f"`{report.command()}`."
    )


def judge(records: Sequence[Arm], domain: str) -> report.Card:
    """Apply the rule to one domain's records: verdicts at a glance, and the one sentence."""
    ours = [record for record in records if record["domain"] == domain]
    nets = {(arm, depth): seeds for (_, arm, depth), seeds in groups(ours).items() if depth}
    depths = sorted({depth for _, depth in nets}, reverse=True)
    verdicts, clauses = [], []

    def values(arm: str, depth: int, key: str = "value") -> dict[int, float]:
        return {record["seed"]: record[key] for record in nets.get((arm, depth), [])}

    def claim(kind: str, about: str, sides: Mapping[str, Any]) -> tuple[Comparison | None, str]:
        """Put a verdict on the card, ours against theirs; what the sentence says of it."""
        one, other = sides.values()
        found = compare(one, other, ours[0]["test_rows"])
        if found is None:  # they share no seed
            return None, ""
        short, long = SAYS[kind][found.verdict]
        shares = dict(zip(sides, (found.ours, found.theirs), strict=True))
        verdicts.append(report.Verdict(about, short, KINDS[found.verdict], shares, found.points))
        return found, long

    for depth in depths:
        sides = {"residual": values("residual", depth), "plain": values("plain", depth)}
        found, says = claim("skip", f"depth {depth}", sides)
        if found is not None:
            with_it, without = (format_metric("accuracy", x) for x in (found.ours, found.theirs))
            clauses.append(
                f"at depth {depth} {says}: {with_it} with it, {without} without ({found.points})"
            )
            if found.verdict == "better":
                losses = (values(arm, depth, "train_loss") for arm in ("residual", "plain"))
                clauses[-1] += _lower(*losses)
    if len(depths) > 1:
        deep, *_, shallow = depths
        sides = {f"residual, {depth}": values("residual", depth) for depth in (deep, shallow)}
        found, says = claim("depth", "depth itself", sides)
        if found is not None:
            points = f"{100 * found.difference:+.1f} points"
            clauses.append(f"{says} (residual, {deep} against {shallow}: {points})")
    simple = next((record for record in ours if record["arm"] == "baseline"), None)
    if simple is not None and nets:

        def rank(net: tuple[str, int]) -> tuple[float, int, str]:
            # Fewer layers first among equals, residual before plain: the order must not be chance.
            return statistics.fmean(values(*net, "validation").values()), -net[1], net[0]

        arm, depth = max(nets, key=rank)
        sides = {f"{arm}, {depth}": values(arm, depth), "baseline": simple["value"]}
        found, says = claim("baseline", "best net", sides)
        assert found is not None
        best, bar = (format_metric("accuracy", x) for x in (found.ours, found.theirs))
        net = f"the best net ({arm}, depth {depth}: {best})"
        clauses.append(says.format(net=net, simple=f"the baseline ({simple['name']}: {bar})"))
    text = ("; ".join(clauses) or "too few arms finished to say") + "."
    if clauses and ours[0]["split"] == "validation":
        text += " [scored on the validation split: there is no test split]"
    title, dataset = domain.capitalize(), ours[0]["dataset"]
    sentence = f"{title} ({dataset}): {text}"
    return report.Card(title, f"{dataset}, {_seeds(ours)}", verdicts, sentence)


def _lower(residual: Mapping[int, float], plain: Mapping[int, float]) -> str:
    """The training losses, where the residual net's is surely lower."""
    seeds = plain.keys() & residual.keys()
    if not report.surely_positive([plain[seed] - residual[seed] for seed in seeds]):
        return ""
    means = (statistics.fmean(loss[seed] for seed in seeds) for loss in (residual, plain))
    return ", and the training loss is lower too ({:.2g} against {:.2g})".format(*means)


def _seeds(ours: Sequence[Arm]) -> str:
    """How many seeds stand behind a domain's nets: "3 seeds", or "1 to 3 seeds" in half a run."""
    counts = sorted(len(group) for (*_, depth), group in groups(ours).items() if depth)
    if not counts:
        return "no net yet"
    few = "" if counts[0] == counts[-1] else f"{counts[0]} to "
    return f"{few}{counts[-1]} seed{'s' * (counts[-1] > 1)}"


def groups(records: Sequence[Arm]) -> dict[tuple[str, str, int], list[Arm]]:
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
    for (domain, arm, depth), group in groups(records).items():
        first = group[0]
        accuracy = format_metric(first["metric"], *mean_sd([r["value"] for r in group]))
        seconds = f"{statistics.fmean(r['seconds'] for r in group):.1f}"
        if not depth:
            rows.append([domain, first["name"], *"----", accuracy, "-", seconds, "-"])
            continue
        size, macs = (report.format_count(first[name]) for name in ("parameters", "macs"))
        loss = f"{statistics.fmean(r['train_loss'] for r in group):.3f}"
        ratios = [r["gradient_ratio"] for r in group]
        ratio = f"{math.inf if None in ratios else statistics.median(ratios):.2g}"
        about = [domain, arm, str(depth), str(len(group)), size, macs]
        rows.append([*about, accuracy, loss, seconds, ratio])
    return rows


PLOTS = {
    "Accuracy against depth": "Mean over seeds, bars one standard deviation; dashed, the "
    "scikit-learn baseline.",
    "Training loss against depth": "Of the last epoch, on a logarithmic axis: what a net cannot "
    "even fit, it cannot overfit.",
    "Gradient that reaches each block, before training": "Relative to the last block, geometric "
    "mean over seeds, on a logarithmic axis.",
}


def plots(records: Sequence[Arm]) -> list[report.Plot]:
    """Accuracy, training loss and gradient profile, a panel per domain."""
    panels = []
    for domain in dict.fromkeys(record["domain"] for record in records if record["depth"]):
        ours = [record for record in records if record["domain"] == domain]
        nets = {key[1:]: group for key, group in groups(ours).items() if key[2]}
        ticks = sorted({depth for _, depth in nets})
        name, unit = domain.capitalize(), f"{ours[0]['split']} accuracy, %"
        title, end = f"{name}, {_seeds(ours)}", f"{name}, depth {ticks[-1]}"
        across = {record["arm"]: 100 * record["value"] for record in ours if not record["depth"]}
        accuracy, loss = _lines(nets, "value", 100), _lines(nets, "train_loss")
        profiles = _profiles({arm: group for (arm, d), group in nets.items() if d == ticks[-1]})
        block, size = "block, shallow to deep", "gradient, last block = 1"
        panels.append(
            [
                Panel(title, "depth", unit, accuracy, across, x_ticks=ticks, y_limits=(0, 103)),
                Panel(title, "depth", "training loss", loss, x_ticks=ticks, log=True),
                Panel(end, block, size, profiles, log=True, markers=False),
            ]
        )
    plots = zip(PLOTS.items(), zip(*panels, strict=True), strict=False)  # of none, if no panels
    return [report.Plot(heading, caption, of_domains) for (heading, caption), of_domains in plots]


def _lines(nets: Mapping[tuple[str, int], list[Arm]], key: str, scale: float = 1) -> list[Line]:
    lines = []
    for arm in dict.fromkeys(arm for arm, _ in nets):
        of_arm = {d: [scale * r[key] for r in g] for (a, d), g in nets.items() if a == arm}
        means, spread = zip(*map(mean_sd, of_arm.values()), strict=True)
        lines.append(Line(arm, list(of_arm), means, spread))
    return lines


def _profiles(nets: Mapping[str, list[Arm]]) -> list[Line]:
    lines = []
    for arm, group in nets.items():
        # A profile with a zero in it has no place on a logarithmic axis; the table says 0.
        profiles = [p for r in group if min(p := r["gradient_profile"]) > 0]
        blocks = list(zip(*([norm / p[-1] for norm in p] for p in profiles), strict=True))
        if blocks:
            y = list(map(statistics.geometric_mean, blocks))
            lines.append(Line(arm, range(1, len(y) + 1), y))
    return lines


def result_records(records: Sequence[Arm]) -> list[report.Record]:
    """A result record for every net, beside its domain's baseline."""
    baselines = {record["domain"]: record for record in records if record["arm"] == "baseline"}
    return [
        report.result_record(
            task="benchmark",
            dataset=group[0]["dataset"],
            protocol=group[0]["about_data"],
            split=group[0]["split"],
            arm=f"{arm}-{depth}",
            metric=group[0]["metric"],
            seeds=[record["seed"] for record in group],
            values=[record["value"] for record in group],
            seconds=[record["seconds"] for record in group],
            parameters=group[0]["parameters"],
            macs=group[0]["macs"],
            baseline=(baselines[domain]["name"], baselines[domain]["value"]),
            held_out=baselines[domain]["held_out"],
        )
        for (domain, arm, depth), group in groups(records).items()
        if depth
    ]
