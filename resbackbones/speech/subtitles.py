"""What was said as subtitles, in the forms that players read: SubRip (.srt) and WebVTT (.vtt); and
as JSON, word by word."""

import html
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from resbackbones.errors import InputError
from resbackbones.speech.hypotheses import Span
from resbackbones.speech.long import Segment

WIDTH = 42  # characters of a line, as broadcasters have it
LINES = 2
LONGEST, SHORTEST = 7.0, 1.0  # seconds that a cue is shown
PAUSE = 1.0  # seconds between two words that end a cue


@dataclass(frozen=True)
class Cue:
    """What is shown at a time.

    Attributes:
        start, end: in seconds.
        lines: of its text.
    """

    start: float
    end: float
    lines: tuple[str, ...]


def cues(
    words: Iterable[Span],
    *,
    width: int = WIDTH,
    lines: int = LINES,
    longest: float = LONGEST,
    pause: float = PAUSE,
    separator: str = " ",
) -> list[Cue]:
    """Words put together to what is shown at a time: up to `lines` lines, of `longest` seconds, and
    up to a pause. A cue stays for a second where the next one lets it.

    Args:
        words: in their order.
        width: characters of a line; a longer word has a line of its own.
        lines: of a cue.
        longest: seconds of a cue; a longer word has a cue of its own.
        pause: seconds between two words that end a cue.
        separator: what stands between two words of a line.

    Raises:
        InputError: numbers that are none.

    >>> cues([Span("good", 0.0, 0.4, 1.0), Span("morning", 0.5, 0.9, 1.0)], width=8)
    [Cue(start=0.0, end=1.0, lines=('good', 'morning'))]
    """
    for name, count in (("width", width), ("lines", lines)):
        if type(count) is not int or count < 1:
            raise InputError(f"{name}={count!r} leaves no room for a word; give 1 or more")
    for name, seconds in (("longest", longest), ("pause", pause)):
        if not 0 < seconds < math.inf:
            raise InputError(f"{name}={seconds!r} is no time; give seconds, above 0")
    parts: list[tuple[float, float, list[str]]] = []
    for word in words:
        text = " ".join(word.text.split())
        if not text:
            continue
        if parts and word.start - parts[-1][1] < pause and word.end - parts[-1][0] <= longest:
            start, _, shown = parts[-1]
            longer = f"{shown[-1]}{separator}{text}"
            if len(longer) <= width:
                parts[-1] = (start, word.end, [*shown[:-1], longer])
                continue
            if len(shown) < lines:
                parts[-1] = (start, word.end, [*shown, text])
                continue
        parts.append((word.start, word.end, [text]))
    return [
        Cue(start, min(max(end, start + SHORTEST), following), tuple(shown))
        for (start, end, shown), (following, _, _) in itertools.pairwise(
            [*parts, (math.inf, math.inf, [])]
        )
    ]


def to_srt(shown: Iterable[Cue]) -> str:
    """SubRip, whose text is plain.

    >>> print(to_srt([Cue(0.5, 3661.25, ("good", "morning"))]))
    1
    00:00:00,500 --> 01:01:01,250
    good
    morning
    <BLANKLINE>
    """
    blocks = [
        f"{number}\n{clock(cue.start, ',')} --> {clock(cue.end, ',')}\n{_text(cue)}\n"
        for number, cue in enumerate(shown, 1)
    ]
    return "\n".join(blocks)


def to_vtt(shown: Iterable[Cue]) -> str:
    """WebVTT (W3C 2019), in which &, < and > are written as references.

    >>> print(to_vtt([Cue(0.5, 2.0, ("R&B", "-->"))]))
    WEBVTT
    <BLANKLINE>
    00:00:00.500 --> 00:00:02.000
    R&amp;B
    --&gt;
    <BLANKLINE>
    """
    blocks = [
        f"{clock(cue.start, '.')} --> {clock(cue.end, '.')}\n"
        f"{html.escape(_text(cue), quote=False)}\n"
        for cue in shown
    ]
    return "\n".join(["WEBVTT\n", *blocks])


def to_json(segments: Iterable[Segment]) -> str:
    """`{"segments": [{"start", "end", "text", "words": [{"text", "start", "end", "confidence"},
    …]}, …]}`, times in seconds."""
    return json.dumps(
        {"segments": [_rounded(asdict(segment)) for segment in segments]},
        ensure_ascii=False,
        indent=1,
    )


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return round(value, 3) if isinstance(value, float) else value


def _srt(segments: Sequence[Segment], separator: str) -> str:
    return to_srt(cues(_words(segments), separator=separator))


def _vtt(segments: Sequence[Segment], separator: str) -> str:
    return to_vtt(cues(_words(segments), separator=separator))


def _json(segments: Sequence[Segment], separator: str) -> str:
    return to_json(segments) + "\n"


FORMS: dict[str, Callable[[Sequence[Segment], str], str]] = {
    ".srt": _srt,
    ".vtt": _vtt,
    ".json": _json,
}


def check_form(path: "str | os.PathLike[str]") -> None:
    """Refuse a file of which nobody can tell the form.

    Raises:
        InputError: say so.
    """
    if Path(path).suffix.lower() not in FORMS:
        raise InputError(f"{path} tells no form of subtitles; name a file .srt, .vtt or .json")


def write_subtitles(
    path: "str | os.PathLike[str]", segments: Sequence[Segment], separator: str = " "
) -> None:
    """Write what was said into a file, in the form that its ending tells, in UTF-8.

    Args:
        segments: as `transcribe_long` gives them.
        separator: what stands between two words.

    Raises:
        InputError: another ending, or it cannot be written.
    """
    check_form(path)
    text = FORMS[Path(path).suffix.lower()](segments, separator)
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror}); name another file") from error


def _words(segments: Iterable[Segment]) -> Iterable[Span]:
    return (word for segment in segments for word in segment.words)


def _text(cue: Cue) -> str:
    return "\n".join(cue.lines)


def clock(seconds: float, point: str = ".") -> str:
    """Hours, minutes, seconds and thousandths.

    >>> clock(3723.5)
    '01:02:03.500'
    """
    whole, thousandths = divmod(round(seconds * 1000), 1000)
    minutes, seconds = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{point}{thousandths:03}"


__all__: Sequence[str] = (
    "Cue",
    "check_form",
    "clock",
    "cues",
    "to_json",
    "to_srt",
    "to_vtt",
    "write_subtitles",
)
