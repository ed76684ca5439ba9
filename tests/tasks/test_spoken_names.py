"""Training may hear the names of classes from synthesised voices; nothing else does."""

import importlib.util
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from resbackbones.errors import InputError
from resbackbones.report import load_records
from resbackbones.speech import Clips
from tasks._using import run
from tasks.speech._spoken_names import with_names
from tasks.speech.spot_keywords import TASK

speaks = pytest.mark.skipif(
    importlib.util.find_spec("espeakng_loader") is None,
    reason="speech is synthesised by espeak-ng: pip install espeakng-loader",
)
pytestmark = pytest.mark.filterwarnings("ignore::resbackbones.train.StillAtChance")


def clips(*names: str) -> Clips:
    waveforms = [torch.ones(800, dtype=torch.int16)] * len(names)
    return Clips(waveforms, 8000, torch.arange(len(names)), names, list(range(len(names))), [])


@speaks
def test_names_of_words_are_said_by_several_voices_and_always_the_same() -> None:
    given = clips("_silence_", "yes", "good_morning", "unknown")
    first, again = with_names(given, 3), with_names(given, 3)
    assert first.labels.tolist() == [0, 1, 2, 3, 1, 1, 1, 2, 2, 2]
    assert first.rows == list(range(10)) and first.names == given.names
    said = first.waveforms[4:]
    assert all(torch.equal(a, b) for a, b in zip(said, again.waveforms[4:], strict=True))
    for waveform in said:
        assert waveform.dtype == torch.int16 and 1000 < waveform.abs().max()
        assert 0.1 < len(waveform) / 8000 < 2 and waveform.abs()[:400].max() > 20  # trimmed
    means = [sum(map(len, said[first : first + 3])) / 3 for first in (0, 3)]
    assert means[0] < 0.8 * means[1]  # "yes" is shorter than "good morning"
    assert len({len(waveform) for waveform in said}) > 3
    assert with_names(given, 0) is given
    assert math.isinf(first.max_seconds)


def test_what_has_no_name_to_say_is_refused() -> None:
    with pytest.raises(InputError, match="none of unknown, _silence_ is a word"):
        with_names(clips("unknown", "_silence_"), 1)
    several = replace(clips("yes", "no"), labels=torch.eye(2))
    with pytest.raises(InputError, match="--multi-label"):
        with_names(several, 1)


@speaks
def test_the_recipe_hears_them_in_training_alone(
    recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    monkeypatch.chdir(tmp_path)
    speed = ["--spec", "tc_resnet8", "--epochs", "1", "--least-steps", "0", "--device", "cpu"]

    def spot(*arguments: object) -> None:
        run(TASK, [*map(str, arguments), *speed])

    spot("--data", recordings, "--record", "--output", "plain")
    spot("--data", recordings, "--record", "--output", "more", "--synthesised", "5")
    plain, more = sorted(load_records(Path("results")), key=lambda record: record.arm)
    assert (plain.arm, more.arm) == ("tc_resnet8", "tc_resnet8-synthesised")
    assert "5 synthesised clips of each word in training" in more.protocol
    counts = [re.search(r"(\d+) training and (\d+) valid", each.protocol) for each in (plain, more)]
    rows = [tuple(map(int, found.groups())) for found in counts if found]
    assert rows[1] == (rows[0][0] + 2 * 5, rows[0][1])
    assert "--synthesised is -1" in refused(spot, "--data", recordings, "--synthesised", "-1")
    assert "--synthesised is 2" in refused(spot, "--phrase", "hey", "--synthesised", "2")
