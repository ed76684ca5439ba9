"""Trials are drawn the same on every machine, written, and read with clear words."""

import gzip
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resbackbones.data import NoTarget, open_dataset
from resbackbones.errors import InputError
from resbackbones.speech import Trials, make_trials, read_trials, speakers_of

ROOT = Path(__file__).parent.parent.parent
DATA = Path("../shared/data/speech_commands_speaker_split")
LIST = ROOT / "tasks/speech/trials/speech_commands_speaker_split.txt.gz"


@settings(max_examples=40, deadline=None)
@given(
    speakers=st.lists(st.sampled_from(["ann", "bob", "cat", "dan", None]), min_size=2, max_size=60),
    per_speaker=st.integers(1, 20),
    different=st.integers(1, 200),
    seed=st.integers(0, 5),
)
def test_trials_are_what_they_say(
    speakers: list[str | None], per_speaker: int, different: int, seed: int
) -> None:
    counts = Counter(s for s in speakers if s is not None)
    if len(counts) < 2 or max(counts.values()) < 2:
        with pytest.raises(InputError, match="make no pairs of the same and of different ones"):
            make_trials(speakers, per_speaker, different, seed)
        return
    trials = make_trials(speakers, per_speaker, different, seed)
    pairs = list(zip(trials.left.tolist(), trials.right.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs) and all(left < right for left, right in pairs)
    found: Counter[str | None] = Counter()
    for (left, right), same in zip(pairs, trials.same.tolist(), strict=True):
        assert speakers[left] is not None and speakers[right] is not None
        assert (speakers[left] == speakers[right]) == same
        found[speakers[left]] += same
    for speaker, count in counts.items():
        assert found[speaker] == min(per_speaker, count * (count - 1) // 2)
    size = sum(counts.values())
    there = (size**2 - sum(n**2 for n in counts.values())) // 2
    assert int((~trials.same).sum()) == min(different, there)
    assert trials.alone == sum(count == 1 for count in counts.values())
    again = make_trials(speakers, per_speaker, different, seed)
    assert again.fingerprint() == trials.fingerprint()


def test_pairs_are_drawn_evenly() -> None:
    trials = make_trials(["a"] * 50 + ["b"] * 50, per_speaker=300, different=1000)
    for kind in (trials.same, ~trials.same):
        rows = torch.cat([trials.left[kind], trials.right[kind]]).bincount(minlength=100)
        assert rows.min() > 0 and rows.max() < 4 * rows.double().mean()
    other = make_trials(["a"] * 50 + ["b"] * 50, per_speaker=300, different=1000, seed=1)
    assert other.fingerprint() != trials.fingerprint()


@pytest.mark.parametrize("name", ["list.txt", "list.txt.gz"])
def test_written_and_read_they_are_the_same(name: str, tmp_path: Path) -> None:
    trials = make_trials(["a", "b", "a", "b", "c"])
    trials.write(tmp_path / name)
    first = (tmp_path / name).read_bytes()
    text = gzip.decompress(first) if name.endswith("gz") else first
    assert text.splitlines()[0] == b"1 0 2"
    found = read_trials(tmp_path / name)
    assert found.fingerprint() == trials.fingerprint()
    trials.write(tmp_path / name)
    assert (tmp_path / name).read_bytes() == first
    with pytest.raises(InputError, match="cannot write the trials"):
        trials.write(tmp_path / "nowhere" / name)


def test_a_list_may_call_recordings_by_name(tmp_path: Path) -> None:
    path = tmp_path / "veri_test.txt"
    path.write_text("1 id1/a.wav id1/b.wav\n\n0 id1/a.wav id2/c.wav\n")
    found = read_trials(path, {"id1/a.wav": 4, "id1/b.wav": 1, "id2/c.wav": 0})
    assert (found.left.tolist(), found.right.tolist()) == ([4, 4], [1, 0])
    assert found.same.tolist() == [True, False]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("1 0 1\n2 0 1\n", "line 2 of .* is '2 0 1'; expected 1 or 0"),
        ("1 0\n", "line 1 of .*; expected 1 or 0, for the same speaker or not, and two recordings"),
        ("1 0 x.wav\n", "line 1 of .* names 'x.wav', which is no row, counted from 0"),
        ("1 0 1\n", "1 pairs, but none of the same speaker or none of different ones"),
        ("", "0 pairs, but none"),
    ],
)
def test_what_is_no_list_is_refused(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "list").write_text(text)
    with pytest.raises(InputError, match=sentence):
        read_trials(tmp_path / "list")
    with pytest.raises(InputError, match=r"cannot read trials from .*nowhere"):
        read_trials(tmp_path / "nowhere")
    with pytest.raises(InputError, match="which is no recording of the data"):
        (tmp_path / "list").write_text("1 a b\n")
        read_trials(tmp_path / "list", {"a": 0})


def test_the_committed_list_is_the_one_that_is_drawn() -> None:
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is not there")
    source = open_dataset(str(DATA), "test", target=NoTarget(), kind="audio")
    drawn, kept = make_trials(speakers_of(source)), read_trials(LIST)
    assert drawn.fingerprint() == kept.fingerprint()
    assert (int(kept.same.sum()), len(kept), drawn.alone) == (1124, 21124, 0)
    assert isinstance(kept, Trials)
