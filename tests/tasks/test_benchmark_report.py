"""The stated rule and what is written by it."""

import json
import re

import pytest

from resbackbones import report
from tasks import _benchmark_report as told

ABOUT = {
    "hardware": {"cpu": "chip", "cores": 2, "memory_gib": 8, "gpu": None},
    "versions": {"python": "3.11"},
    "commit": "abc",
    "command": "python -m tasks.benchmark",
    "device": "cpu",
    "missing": "",
}


def arm(name, depth=None, seed=None, value=0.5, loss=1.0, **changes):
    """One line of records.jsonl."""
    net = name != "baseline"
    return {
        "domain": "vision",
        "dataset": "digits",
        "about_data": "digits, 100 rows",
        "split": "test",
        "test_rows": 10_000,
        "arm": name,
        "name": "plain pixels",
        "depth": depth,
        "seed": seed,
        "parameters": 1000 if net else None,
        "macs": 2_000_000 if net else None,
        "metric": "accuracy",
        "value": value,
        "validation": value,
        "train_loss": loss if net else None,
        "seconds": 1.5,
        "gradient_ratio": 4.0 if net else None,
        "gradient_profile": [4.0, 2.0, 1.0] if net else None,
    } | changes


def domain(plain, residual, depth=56, losses=(1.0, 1.0), **changes):
    """Plain and residual arms of one depth, a value a seed."""
    return [
        arm(name, depth, seed, value, loss * (1 + 0.01 * seed), **changes)
        for name, values, loss in (("plain", plain, losses[0]), ("residual", residual, losses[1]))
        for seed, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("plain", "residual", "verdict", "words"),
    [
        ([0.2, 0.25, 0.15], [0.9, 0.92, 0.91], "better", "the skip helped"),
        ([0.9, 0.92, 0.91], [0.2, 0.25, 0.15], "worse", "the skip harmed"),
        # The mean differs by ten points, but the seeds disagree about the sign.
        ([0.5, 0.9, 0.7], [0.9, 0.6, 0.9], "nothing", "the skip did nothing measurable"),
        # The seeds agree to the last digit, but on less than one point.
        ([0.9, 0.9, 0.9], [0.905, 0.905, 0.905], "nothing", "the skip did nothing measurable"),
        ([0.2], [0.9], "unknown", "one seed cannot say what the skip did"),
    ],
)
def test_the_rule_on_the_skip(plain, residual, verdict, words):
    found = told.judge(domain(plain, residual), "vision")
    assert found.skip[56].verdict == verdict
    assert f"at depth 56 {words}:" in found.sentence


def test_two_seeds_are_held_to_a_wider_interval_than_three():
    two = told.compare({0: 0.60, 1: 0.66}, {0: 0.50, 1: 0.53}, 10_000)
    three = told.compare({0: 0.60, 1: 0.66, 2: 0.63}, {0: 0.50, 1: 0.53, 2: 0.515}, 10_000)
    assert two.difference == pytest.approx(three.difference)
    assert two.verdict == "nothing" and three.verdict == "better"
    # Student's t with two degrees of freedom: 4.303 standard errors to each side.
    assert three.high - three.difference == pytest.approx(4.3027 * 0.015 / 3**0.5, rel=1e-3)


def test_seeds_are_paired():
    # Seeds differ by far more than the arms do; only pairing shows that one is always ahead.
    ours, theirs = {0: 0.52, 1: 0.72, 2: 0.93}, {0: 0.49, 1: 0.69, 2: 0.90}
    assert told.compare(ours, theirs, 10_000).verdict == "better"
    assert told.compare(ours, {2: 0.49, 0: 0.69, 1: 0.90}, 10_000).verdict == "nothing"
    assert told.compare({0: 0.5, 5: 0.9}, {0: 0.4, 7: 0.1}, 100).ours == 0.5  # shared seeds only
    assert told.compare({0: 0.5}, {1: 0.5}, 100) is None


def test_a_small_test_split_cannot_carry_a_small_difference():
    ours, theirs = dict.fromkeys(range(3), 0.92), dict.fromkeys(range(3), 0.88)
    assert told.compare(ours, theirs, 10_000).verdict == "better"
    few = told.compare(ours, theirs, 50)
    assert few.verdict == "nothing" and few.margin == pytest.approx(2 * (0.9 * 0.1 / 50) ** 0.5)
    assert told.compare(ours, theirs, 10_000).margin == told.MARGIN


@pytest.mark.parametrize(
    ("deep", "words"),
    [
        ([0.95, 0.96, 0.97], "depth itself paid (residual, 56 against 8: +16.0 points)"),
        (
            [0.80, 0.81, 0.80],
            "depth itself paid nothing measurable (residual, 56 against 8: +0.3 points)",
        ),
        ([0.60, 0.61, 0.62], "depth itself cost accuracy (residual, 56 against 8: -19.0 points)"),
    ],
)
def test_the_rule_on_depth(deep, words):
    records = domain([0.8] * 3, [0.79, 0.80, 0.81], 8) + domain([0.2] * 3, deep)
    assert words in told.judge(records, "vision").sentence


def test_one_seed_says_nothing_about_depth_or_the_baseline():
    records = [*domain([0.8], [0.8], 8), *domain([0.2], [0.9]), arm("baseline", value=0.1)]
    sentence = told.judge(records, "vision").sentence
    assert "one seed cannot say whether depth itself pays" in sentence
    assert "one seed cannot rank the best net (residual, depth 56: 90.0 %)" in sentence


def test_with_one_depth_nothing_is_said_about_depth():
    assert "depth itself" not in told.judge(domain([0.5] * 3, [0.9] * 3), "vision").sentence


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.95, "the baseline (plain pixels: 95.0 %) won against the best net (residual, depth 56"),
        (0.80, "the best net (residual, depth 56: 91.0 %) beat the baseline (plain pixels: 80.0"),
        (0.91, "the baseline (plain pixels: 91.0 %) and the best net (residual, depth 56: 91.0"),
    ],
)
def test_the_rule_on_the_baseline(value, words):
    records = [*domain([0.5] * 3, [0.905, 0.91, 0.915]), arm("baseline", value=value)]
    assert words in told.judge(records, "vision").sentence


def test_the_best_net_is_chosen_on_the_validation_split():
    records = domain([0.80, 0.81, 0.82], [0.90, 0.91, 0.92])
    for record in records:
        record["validation"] = 0.99 if record["arm"] == "plain" else 0.5
    found = told.judge([*records, arm("baseline", value=0.7)], "vision")
    assert found.best == ("plain", 56) and found.baseline.ours == pytest.approx(0.81)


def test_a_higher_training_loss_is_told_only_where_it_is_one():
    helped = told.judge(domain([0.2] * 3, [0.9] * 3, losses=(2.0, 0.01)), "vision").sentence
    assert "the training loss is lower too (0.01 against 2)" in helped
    assert "training loss" not in told.judge(domain([0.2] * 3, [0.9] * 3), "vision").sentence
    harmed = told.judge(domain([0.9] * 3, [0.2] * 3, losses=(2.0, 0.01)), "vision").sentence
    assert "training loss" not in harmed


def test_half_a_run_is_told_as_far_as_it_goes():
    records = [arm("baseline", value=0.7), arm("plain", 56, 0, 0.2), arm("residual", 8, 0, 0.9)]
    found = told.judge(records, "vision")
    assert found.skip == {} and "depth itself" not in found.sentence
    only = told.judge([arm("baseline", value=0.7)], "vision")
    assert only.sentence == "Vision (digits): too few arms finished to say."
    assert told.figures([arm("baseline")]) == []


def test_a_score_on_the_validation_split_is_called_so():
    records = domain([0.5] * 3, [0.9] * 3, split="validation")
    assert "scored on the validation split" in told.judge(records, "vision").sentence


def run():
    records = [arm("baseline", value=0.91)]
    records += domain([0.9, 0.91, 0.92], [0.9, 0.91, 0.92], 8)
    records += domain([0.2, 0.21, 0.22], [0.9, 0.91, 0.92], losses=(2.0, 0.01))
    for record in domain([0.5] * 3, [0.6] * 3, dataset="synthesised speech"):
        records.append(record | {"domain": "speech"})
    return records


def test_the_table_has_every_figure_asked_for():
    rows = told.table_rows(run())
    assert len(told.HEADER) == 9 and {len(row) for row in rows} == {9}
    assert rows[0][:2] == ["vision", "plain pixels"]
    assert [row[1:3] for row in rows[1:5]] == [
        ["plain", "8"],
        ["residual", "8"],
        ["plain", "56"],
        ["residual", "56"],
    ]
    assert rows[3] == ["vision", "plain", "56", "1e+03".replace("1e+03", "1 k"), "2 M",
                       "21.0 ± 1.0 %", "2.020", "1.5", "4"]  # fmt: skip


def test_an_exploding_and_a_vanishing_ratio_are_shown():
    records = domain([0.5] * 2, [0.6] * 2)
    for record in records:
        record["gradient_ratio"] = None if record["arm"] == "plain" else 0.0  # None: infinite
        record["gradient_profile"] = [1.0, 0.0] if record["arm"] == "plain" else [0.0, 1.0]
    assert [row[-1] for row in told.table_rows(records)] == ["inf", "0"]
    assert len(told.figures(records)) == 3  # and a profile with a zero breaks no logarithm


def test_the_markdown_report_holds_sentence_table_and_rule():
    text = told.markdown(run(), ABOUT)
    assert "- Vision (digits): at depth 56 the skip helped" in text
    assert report.markdown_table(told.HEADER, told.table_rows(run()), left=2) in text
    assert told.RULE in text and "Unfinished" not in text
    assert "Unfinished: 3 of 9" in told.markdown(run(), ABOUT | {"missing": "3 of 9"})


def test_the_page_is_one_file_that_needs_no_other():
    text = told.page(run(), ABOUT | {"missing": "<b> of 9"})
    assert text.count("<svg") == text.count("</svg>") == 3
    assert text.count("<article>") == 2 and "Unfinished: &lt;b&gt; of 9" in text
    # Nothing is fetched: every address stands in a namespace or a metadata field.
    assert not re.findall(r'(?:src|href)="(?!#)(?!http://www.w3.org)[^"]+"', text)
    assert "<script" not in text and "@import" not in text
    assert "synthesised speech" in text


def test_records_survive_json():
    assert told.table_rows(json.loads(json.dumps(run()))) == told.table_rows(run())
