"""What a recipe says at its end."""

import json
from pathlib import Path

import pytest

from resbackbones.metrics import Confusion
from resbackbones.train import Result
from tasks._telling import Run, header, remarks, table, wilson, write_results

FIGURES = ("accuracy", "macro_f1", "calibration_error")


def answers(right: int, wrong: int) -> Confusion:
    """Of two classes as many of each; all that is wrong is taken for the first."""
    half = (right + wrong) // 2
    expected = [0] * half + [1] * half
    return Confusion.of(expected, [0] * (half + wrong) + [1] * (half - wrong), ["no", "yes"])


def run(right: int, wrong: int, seed: int = 0) -> Run:
    return Run(seed, answers(right, wrong), Result({}, {}, [], 1.0, 10))


def said(right: int, wrong: int, theirs: Confusion, skipped: tuple[str, ...] = ()) -> str:
    return " ".join(remarks("accuracy", [run(right, wrong)], ("SVC", theirs), skipped, "wait"))


def test_a_baseline_that_wins_is_named() -> None:
    assert "SVC is better here than the net: use it, or wait" in said(
        9000, 1000, answers(9500, 500)
    )
    assert said(10000, 0, answers(9000, 1000)) == ""  # nothing a reader could miss


def test_a_net_that_guesses_is_told_with_what_to_try() -> None:
    told = said(5000, 5000, answers(9000, 1000))
    assert "no better than always naming the most frequent class" in told
    assert "--learning-rate" in told and "--least-steps" in told
    assert "SVC is better" not in told  # one thing at a time


def test_what_is_taken_for_what_is_told_over_all_seeds() -> None:
    told = said(9500, 500, answers(9000, 1000))
    assert told == "most confused: yes taken for no: 500 of 5,000"
    runs = [run(90, 10), run(80, 20, 1)]
    (line, *_) = remarks("accuracy", runs, ("SVC", answers(60, 40)), [], "wait")
    assert line == "most confused (all 2 seeds): yes taken for no: 30 of 100"
    assert runs[0].metric.counts.sum() == 100  # of that seed still  # type: ignore[attr-defined]


def test_few_rows_have_an_interval() -> None:
    assert "2 rows tell an accuracy only so well: the 95 % interval is 34 to 100 %" in said(
        2, 0, answers(1, 1)
    )
    low, high = wilson(81, 263)  # Newcombe 1998, table I: 81/263 -> 0.2553 to 0.3662
    assert (low, high) == pytest.approx((0.2553, 0.3662), abs=1e-4)


def test_what_was_left_out_is_counted() -> None:
    assert "left out 1 bad item, the first: a.png: broken" in said(
        9500, 500, answers(9000, 1000), ("a.png: broken",)
    )
    assert "left out 2 bad items" in said(9500, 500, answers(9000, 1000), ("a", "b"))


def test_the_table_has_seeds_their_mean_and_the_baseline() -> None:
    lines = table(
        FIGURES, "net", [run(90, 10), run(80, 20, 1)], ("SVC", answers(70, 30))
    ).splitlines()
    assert [cell.strip() for cell in lines[0].split("|")[1:-1]] == [
        "",
        "accuracy",
        "macro F1",
    ]
    assert "net, seed 0" in lines[2] and "90.0 %" in lines[2]
    assert "net, mean ± sd" in lines[4] and "85.0 ± 7.1 %" in lines[4]
    assert lines[5].startswith("| SVC ") and "70.0 %" in lines[5]
    assert header(["precision", "f1"]) == ["precision", "F1"]


def test_results_hold_each_class_of_each_seed_and_of_the_baseline(tmp_path: Path) -> None:
    write_results(tmp_path / "results.json", [run(90, 10)], ("SVC", answers(70, 30)))
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results) == {"seed 0", "SVC"}
    assert results["seed 0"]["confusion"] == [[50, 0], [10, 40]]
    assert results["seed 0"]["per_class"]["yes"]["recall"] == 0.8
    assert results["SVC"]["metrics"]["accuracy"] == 0.7
