"""What was said as subtitles that players and people can read."""

import itertools
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resbackbones.errors import InputError
from resbackbones.speech import Segment, write_subtitles
from resbackbones.speech.hypotheses import Span
from resbackbones.speech.subtitles import Cue, cues, to_json, to_srt, to_vtt

WORDS = st.lists(
    st.tuples(
        st.text(st.characters(blacklist_categories=("Cs", "Cc", "Z")), min_size=1, max_size=60),
        st.floats(0, 3),
        st.floats(0.01, 2),
    ),
    max_size=40,
)
TIME = re.compile(r"(\d\d+):(\d\d):(\d\d)[.,](\d\d\d)")


def spans(words: list[tuple[str, float, float]]) -> list[Span]:
    told, now = [], 0.0
    for text, gap, length in words:
        told.append(Span(text, now + gap, now + gap + length, 0.5))
        now = told[-1].end
    return told


@settings(max_examples=60)
@given(words=WORDS, width=st.integers(1, 50), lines=st.integers(1, 3))
def test_cues_hold_every_word_in_its_time(
    words: list[tuple[str, float, float]], width: int, lines: int
) -> None:
    said = spans(words)
    shown = cues(said, width=width, lines=lines, longest=6.0, pause=0.8)
    written = [word for cue in shown for line in cue.lines for word in line.split(" ")]
    assert written == [span.text for span in said]
    rest = iter(said)
    for cue, following in itertools.pairwise([*shown, None]):
        assert cue is not None
        own = [next(rest) for line in cue.lines for _ in line.split(" ")]
        assert cue.start == own[0].start and cue.end >= own[-1].end
        assert own[-1].end - cue.start <= 6.0 or len(own) == 1
        assert all(b.start - a.end < 0.8 for a, b in itertools.pairwise(own))
        assert len(cue.lines) <= lines
        assert all(len(line) <= width or " " not in line for line in cue.lines)
        if following is None:
            assert cue.end - cue.start >= 1.0 - 1e-9
        else:  # shown for a second where the next one lets it
            assert cue.end <= following.start
            assert cue.end - cue.start >= 1.0 - 1e-9 or cue.end == following.start


@settings(max_examples=40)
@given(words=WORDS)
def test_files_are_what_their_forms_say(words: list[tuple[str, float, float]]) -> None:
    shown = cues(spans(words))
    for text, point in ((to_srt(shown), ","), (to_vtt(shown), ".")):
        blocks = text.removeprefix("WEBVTT\n").strip("\n").split("\n\n") if shown else []
        assert len(blocks) == len(shown)
        for number, (block, cue) in enumerate(zip(blocks, shown, strict=True), 1):
            rows = block.split("\n")
            if point == ",":
                assert rows.pop(0) == str(number)
            times = [
                3600 * int(h) + 60 * int(m) + int(s) + int(ms) / 1000
                for h, m, s, ms in TIME.findall(rows[0])
            ]
            assert rows[0].count(point) == 2 and " --> " in rows[0]
            assert times == pytest.approx([cue.start, cue.end], abs=0.00051)
            if point == ".":
                assert not any("-->" in row or "<" in row for row in rows[1:])
                plain = [
                    row.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
                    for row in rows[1:]
                ]
                assert tuple(plain) == cue.lines
            else:
                assert tuple(rows[1:]) == cue.lines


def test_lines_of_a_script_without_spaces() -> None:
    said = [Span(letter, n / 4, n / 4 + 0.2, 1.0) for n, letter in enumerate("日本語日本語")]
    (cue,) = cues(said, width=4, separator="")
    assert cue.lines == ("日本語日", "本語")


def test_a_word_of_white_space_leaves_no_empty_line() -> None:
    said = [Span("a\n\nb", 0.0, 0.5, 1.0), Span(" ", 0.5, 0.6, 1.0), Span("c", 0.6, 0.7, 1.0)]
    assert cues(said) == [Cue(0.0, 1.0, ("a b c",))]


def test_json_tells_every_word(tmp_path: Path) -> None:
    segment = Segment(0.12, 1.0, "é <b>", (Span("é", 0.12, 0.5, 0.98765), Span("<b>", 0.6, 1, 0.5)))
    told = json.loads(to_json([segment]))
    assert told == {
        "segments": [
            {
                "start": 0.12,
                "end": 1.0,
                "text": "é <b>",
                "words": [
                    {"text": "é", "start": 0.12, "end": 0.5, "confidence": 0.988},
                    {"text": "<b>", "start": 0.6, "end": 1, "confidence": 0.5},
                ],
            }
        ]
    }
    for ending, start in ((".srt", "1\n00:00:00,120"), (".vtt", "WEBVTT\n\n"), (".JSON", "{")):
        write_subtitles(tmp_path / f"x{ending}", [segment])
        text = (tmp_path / f"x{ending}").read_text(encoding="utf-8")
        assert text.startswith(start) and "é" in text
        write_subtitles(tmp_path / f"none{ending}", [])  # nothing was said


def test_bad_input_is_one_sentence(tmp_path: Path) -> None:
    for path, said in (
        (tmp_path / "x.txt", "name a file .srt, .vtt or .json"),
        (tmp_path / "no" / "x.srt", "cannot write"),
    ):
        with pytest.raises(InputError, match=said):
            write_subtitles(path, [])
    for wrong in ({"width": 0}, {"lines": 1.5}, {"longest": 0}, {"pause": float("inf")}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            cues([], **wrong)  # type: ignore[arg-type]
