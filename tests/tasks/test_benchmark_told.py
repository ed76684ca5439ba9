"""The stated rule and what is written by it."""

import json
from dataclasses import replace

import pytest

from resbackbones import report
from tasks._benchmark import told
from tasks._benchmark.arms import Settings

SETTINGS = Settings(domains=("vision", "speech"), speech="spoken", device="cpu")


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
    ("plain", "residual", "short", "words"),
    [
        ([0.2, 0.25, 0.15], [0.9, 0.92, 0.91], "skip helped", "the skip helped"),
        ([0.9, 0.92, 0.91], [0.2, 0.25, 0.15], "skip harmed", "the skip harmed"),
        # The mean differs by ten points, but the seeds disagree about the sign.
        ([0.5, 0.9, 0.7], [0.9, 0.6, 0.9], "nothing measurable", "the skip did nothing measurable"),
        # The seeds agree to the last digit, but on less than one point.
        (
            [0.9, 0.9, 0.9],
            [0.905, 0.905, 0.905],
            "nothing measurable",
            "the skip did nothing measurable",
        ),
        ([0.2], [0.9], "one seed", "one seed cannot say what the skip did"),
    ],
)
def test_the_rule_on_the_skip(plain, residual, short, words):
    found = told.judge(domain(plain, residual), "vision")
    assert found.verdicts[0].says == short
    assert f"at depth 56 {words}:" in found.sentence


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
    assert found.verdicts[-1].sides == pytest.approx({"plain, 56": 0.81, "baseline": 0.7})


def test_a_higher_training_loss_is_told_only_where_it_is_one():
    helped = told.judge(domain([0.2] * 3, [0.9] * 3, losses=(2.0, 0.01)), "vision").sentence
    assert "the training loss is lower too (0.01 against 2)" in helped
    assert "training loss" not in told.judge(domain([0.2] * 3, [0.9] * 3), "vision").sentence
    harmed = told.judge(domain([0.9] * 3, [0.2] * 3, losses=(2.0, 0.01)), "vision").sentence
    assert "training loss" not in harmed


def test_half_a_run_is_told_as_far_as_it_goes():
    records = [arm("baseline", value=0.7), arm("plain", 56, 0, 0.2), arm("residual", 8, 0, 0.9)]
    found = told.judge(records, "vision")
    assert [verdict.about for verdict in found.verdicts] == ["best net"]
    assert "depth itself" not in found.sentence
    only = told.judge([arm("baseline", value=0.7)], "vision")
    assert only.sentence == "Vision (digits): too few arms finished to say."
    assert told.plots([arm("baseline")]) == []


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
    assert len(told.HEADER) == 10 and {len(row) for row in rows} == {10}
    assert rows[0][:2] == ["vision", "plain pixels"]
    assert [row[1:3] for row in rows[1:5]] == [
        ["plain", "8"],
        ["residual", "8"],
        ["plain", "56"],
        ["residual", "56"],
    ]
    assert rows[3] == ["vision", "plain", "56", "3", "1 k", "2 M", "21.0 ± 1.0 %", "2.020", "1.5",
                       "4"]  # fmt: skip


def test_an_exploding_and_a_vanishing_ratio_are_shown():
    records = domain([0.5] * 2, [0.6] * 2)
    for record in records:
        record["gradient_ratio"] = None if record["arm"] == "plain" else 0.0  # None: infinite
        record["gradient_profile"] = [1.0, 0.0] if record["arm"] == "plain" else [0.0, 1.0]
    assert [row[-1] for row in told.table_rows(records)] == ["inf", "0"]
    assert len(told.plots(records)) == 3  # and a profile with a zero breaks no logarithm
    assert told.page(records, SETTINGS, "").html().count("<svg") == 3


def test_the_cards_say_the_verdicts_of_the_sentence_with_their_figures():
    vision, speech = told.page(run(), SETTINGS, "").cards
    assert (vision.title, vision.subtitle) == ("Vision", "digits, 3 seeds")
    assert [(v.about, v.says, v.kind) for v in vision.verdicts] == [
        ("depth 56", "skip helped", "good"),
        ("depth 8", "nothing measurable", "none"),
        ("depth itself", "nothing measurable", "none"),
        ("best net", "level", "none"),
    ]
    assert vision.verdicts[0].sides == pytest.approx({"residual": 0.91, "plain": 0.21})
    assert (
        vision.verdicts[0].detail.endswith(", 3 seeds") and "interval" in vision.verdicts[0].detail
    )
    assert "at depth 56 the skip helped" in vision.sentence
    assert speech.subtitle == "synthesised speech, 3 seeds" and len(speech.verdicts) == 1
    harmed = told.judge(domain([0.9, 0.91, 0.92], [0.2, 0.21, 0.22]), "vision")
    assert [(v.says, v.kind) for v in harmed.verdicts] == [("skip harmed", "bad")]
    single = told.judge(domain([0.9], [0.2]), "vision")
    assert [(v.says, v.kind) for v in single.verdicts] == [("one seed", "none")]


def test_how_many_seeds_stands_in_sentence_table_cards_and_plots():
    page = told.page(run(), SETTINGS, "")
    assert "points, 95 % interval +70.0 to +70.0, 3 seeds)" in page.cards[0].sentence
    assert page.header[3] == "seeds" and {row[3] for row in page.rows} == {"-", "3"}
    assert {panel.title for panel in page.plots[0].panels} == {"Vision, 3 seeds", "Speech, 3 seeds"}
    uneven = [r for r in run() if (r["arm"], r["depth"], r["seed"]) != ("plain", 56, 2)]
    assert told.page(uneven, SETTINGS, "").cards[0].subtitle == "digits, 2 to 3 seeds"
    assert told.page([arm("baseline")], SETTINGS, "").cards[0].subtitle == "digits, no net yet"


def test_a_quick_and_an_unfinished_run_are_flagged_wherever_they_are_told():
    page = told.page(run(), replace(SETTINGS, quick=True), "<b> of 9")
    for text in (page.text(200), page.markdown(), page.html()):
        assert "a look, not a claim" in text and "Unfinished: " in text
    assert "Unfinished: &lt;b&gt; of 9" in page.html()
    whole = told.page(run(), SETTINGS, "")
    assert "not a claim" not in whole.text() + whole.markdown() + whole.html()


def test_the_report_holds_sentence_table_rule_and_data(monkeypatch):
    machine = {"cpu": "chip", "cores": 2, "memory_gib": 8, "gpu": "board"}
    monkeypatch.setattr(report, "hardware", lambda: machine)
    monkeypatch.setattr(report, "versions", lambda names: dict.fromkeys(names, "1"))
    monkeypatch.setattr(report, "commit", lambda: "abc")
    monkeypatch.setattr(report, "command", lambda: "python -m tasks.benchmark")
    monkeypatch.setattr(report, "PACKAGES", ("torch",))
    page = told.page(run(), SETTINGS, "")
    assert "- Vision (digits): at depth 56 the skip helped" in page.markdown()
    assert told.RULE in page.markdown() and page.table() in page.markdown()
    assert page.html().count("<svg") == 3 * 2 and page.html().count("<article>") == 2
    assert page.notes["Measured"] == (
        "On 2 x chip; torch 1, scikit-learn 1; commit abc; `python -m tasks.benchmark`."
    )
    there = told.page(run(), replace(SETTINGS, device="cuda"), "").notes["Measured"]
    assert there.startswith("On board, 2 x chip; ")


def test_records_survive_json():
    assert told.table_rows(json.loads(json.dumps(run()))) == told.table_rows(run())
