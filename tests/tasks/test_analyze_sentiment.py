"""The recipe of opinions names its poles, says how far off it is in stars, and is a recipe of texts
in all else."""

from collections.abc import Callable
from pathlib import Path

import pandas
import pytest
import transformers

from resbackbones.metrics import Confusion, MultiLabel
from tasks._using import run
from tasks.text.analyze_sentiment import TASK, how_far_off

pytestmark = pytest.mark.filterwarnings("ignore::resbackbones.train.StillAtChance")
SPEED = ["--epochs", "1", "--batch-size", "16", "--device", "cpu", "--least-steps", "0"]
SPEED += ["--least-updates", "1"]


def analyze(*arguments: object) -> None:
    run(TASK, [str(argument) for argument in arguments])


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """A CSV file of numbered opinions."""
    rows = [
        {"review": f"{'fine' if row % 2 else 'poor'} film {row}", "label": row % 2}
        for row in range(40)
    ]
    pandas.DataFrame(rows).to_csv(tmp_path / "reviews.csv", index=False)
    return tmp_path / "reviews.csv"


def test_0_and_1_are_the_poles(
    reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    analyze("--data", reviews, "--output", tmp_path / "out", "--folds", "0", *SPEED)
    model = tmp_path / "out" / "seed-0" / "model"
    answer = transformers.pipeline("sentiment-analysis", model=str(model))("a fine film")
    assert answer[0]["label"] == "positive"  # TF-IDF knows, whatever the net has learned
    capsys.readouterr()
    analyze("--evaluate", model, "--data", reviews)
    assert "on 40 items of" in capsys.readouterr().out
    named = pandas.read_csv(reviews)
    named["label"] = named["label"].map({0: "negative", 1: "positive"})
    named.to_csv(tmp_path / "named.csv", index=False)
    analyze("--evaluate", model, "--data", tmp_path / "named.csv")
    assert "on 40 items of" in capsys.readouterr().out
    named["label"] = named.index % 3
    named.to_csv(tmp_path / "three.csv", index=False)
    error = refused(analyze, "--evaluate", model, "--data", tmp_path / "three.csv")
    assert "'0', which the model does not know, only 'negative', 'positive'" in error


def test_stars_are_told_in_stars(
    reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pandas.read_csv(reviews)
    table["label"] = 1 + table.index % 5
    table.to_csv(reviews, index=False)
    analyze("--data", reviews, "--output", tmp_path / "out", "--folds", "0", *SPEED)
    model = tmp_path / "out" / "seed-0" / "model"
    assert "answers are off by" in capsys.readouterr().out
    analyze("--evaluate", model, "--data", reviews)
    assert "answers are off by" in capsys.readouterr().out


def test_how_far_off() -> None:
    stars = Confusion.of([0, 1, 2, 2], [0, 2, 0, 2], ["1", "2", "3"])
    assert list(how_far_off(stars)) == [
        "answers are off by 0.75 on average; 75.0 % by no more than 1"
    ]
    assert not list(how_far_off(Confusion.of([0, 1], [0, 1], ["0", "1"])))
    assert not list(how_far_off(Confusion.of([0, 1], [0, 1], ["bad", "fair", "good"])))
    assert not list(how_far_off(MultiLabel(3, ["1", "2", "3"])))
