"""What a run leaves on the disk, and what a resumed one makes of it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from resbackbones.errors import InputError
from tasks._benchmark import arms
from tasks._benchmark.store import Store

SETTINGS = arms.Settings(domains=("vision",), vision="pictures")


def line(arm: str = "plain", depth: int | None = 8, seed: int | None = 0, **more: Any) -> dict:
    net = arm != "baseline"
    of = {"depth": depth if net else None, "seed": seed if net else None}
    return {"domain": "vision", "arm": arm, **of, "value": 0.1 + 0.2, "loss": 1, **more}


@pytest.fixture
def whole(tmp_path: Path) -> Store:
    """A run with a baseline and two nets."""
    store = Store(tmp_path, SETTINGS, resume=False)
    for record in (line("baseline"), line(seed=0), line(seed=1)):
        store.add(record)
    return store


def again(store: Store) -> Store:
    return Store(store.path.parent, SETTINGS, resume=True)


def test_a_run_is_read_as_it_was_written(whole: Store) -> None:
    text = whole.path.read_text()
    resumed = again(whole)
    assert resumed.records == whole.records and resumed.path.read_text() == text
    assert resumed.done == whole.done and len(resumed.done) == 3
    (said,) = resumed.said
    assert said.startswith("3 arms are recorded in")


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "garbage",
        lambda text: "[1, 2]",
        lambda text: text[:40],  # as a power cut leaves it
        lambda text: text.replace("0.3", "0.4"),
        lambda text: text.replace('"seed": 1, ', ""),
        lambda text: text.replace('"value": 0.30000000000000004', '"value": NaN'),
        lambda text: text[: text.index(', "crc32"')] + "}",
    ],
)
def test_a_damaged_line_is_named_and_set_aside_and_its_arm_runs_again(
    whole: Store, damage: Callable[[str], str]
) -> None:
    lines = whole.path.read_text().splitlines()
    text = damage(lines[2])
    assert text != lines[2]
    whole.path.write_text("\n".join([*lines[:2], text]))
    resumed = again(whole)
    assert resumed.records == whole.records[:2]  # what is whole is kept
    assert arms.Job("vision", "plain", 8, 1) not in resumed.done
    assert f"line 3 of {whole.path} is damaged" in resumed.said[0]
    assert "its arm runs again" in resumed.said[0]
    aside = whole.path.parent / "damaged.jsonl"
    assert aside.read_text() == text + "\n"
    resumed.add(line(seed=1))  # starts a line of its own
    assert len(again(whole).records) == 3 and aside.read_text() == text + "\n"


def test_blank_lines_are_nothing_and_a_repeated_arm_counts_once(whole: Store) -> None:
    text = whole.path.read_text()
    lines = text.splitlines()
    whole.path.write_text("\n\n".join([*lines, lines[1]]) + "\n  \n")
    assert again(whole).records == whole.records
    assert whole.path.read_text() == text


@pytest.mark.parametrize("text", ["{", "[]", '{"data": 1}'])
def test_a_damaged_configuration_is_one_sentence(whole: Store, text: str) -> None:
    path = whole.path.parent / "configuration.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"configuration\.json is damaged.*another --output"):
        again(whole)


def test_other_settings_and_an_empty_folder_are_refused(whole: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="epochs = None, not 2"):
        Store(tmp_path, replace(SETTINGS, epochs=2), resume=True)
    with pytest.raises(InputError, match="already holds a run"):
        Store(tmp_path, SETTINGS, resume=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no run to go on with"):
        Store(tmp_path / "empty", SETTINGS, resume=True)


def test_a_domain_can_be_added(whole: Store, tmp_path: Path) -> None:
    both = replace(SETTINGS, domains=("vision", "text"), text="texts.csv")
    assert len(Store(tmp_path, both, resume=True).records) == 3
    assert again(whole).records  # and left out again
    with pytest.raises(InputError, match=r"'texts\.csv'}, not {'text': 'other'}"):
        Store(tmp_path, arms.Settings(domains=("text",), text="other"), resume=True)
