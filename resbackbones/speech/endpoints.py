"""Where one utterance ends and the next begins in a recording of any length: at pauses, which are
runs of blanks in a recogniser's logits (`by_blanks`) or quiet in the sound (`by_energy`).

Both take what comes piece by piece and hold no more than the longest utterance and the newest
piece.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from resbackbones.speech.hypotheses import BLANK, parted, separates

LEVEL = 0.01  # seconds of sound of which one level is taken
SMOOTH = 5  # levels whose mean power counts
LOOK = 1.0  # seconds from one look at the levels to the next
CONTRAST = 10.0  # dB between loud and quiet without which nothing is a pause
RANGE = 40.0  # dB under what is loud, below which no quiet is told from another
SHARE = 0.3  # of the way from quiet to loud, below which it is quiet


def by_blanks(
    logits: Iterable[Tensor], symbols: Sequence[str], pause: int, longest: int
) -> Iterator[tuple[int, Tensor]]:
    """The utterances of a recording: its logits, cut in the middle of pauses.

    A pause is a run of frames at which a blank or a space is likeliest, and it stands between
    words: what `greedy` reads in the utterances is what it reads in the whole. Only where nobody
    pauses for so long, the longest pause there is ends an utterance, of whatever length, between
    words where there is one. Frames of nothing but a pause are left out.

    Args:
        logits: `(1, T, V)` each, one behind the other.
        symbols: what they are of, the blank first.
        pause: frames that end an utterance.
        longest: frames of an utterance, at most.

    Yields:
        The first frame of an utterance, and its logits `(1, T, V)`.
    """
    idle_symbols = torch.tensor(
        [n == BLANK or parted(symbol) == (True, "") for n, symbol in enumerate(symbols)]
    )
    spaces = idle_symbols.clone()
    spaces[BLANK] = False
    opening = torch.tensor([parted(symbol)[0] for symbol in symbols])
    if not separates(symbols):  # then words may end anywhere
        spaces[BLANK], opening = True, ~opening
    margin = -(-pause // 2)

    def cut(held: Tensor, ended: bool) -> int | None:
        """Where to cut what is held, from its first frame on."""
        path = held[0].argmax(-1).cpu()
        idle, frames = idle_symbols[path], len(path)
        silent = frames if bool(idle.all()) else int(idle.int().argmin())
        if silent == frames and ended:
            return frames or None
        if silent > margin:
            return silent - margin

        def between(start: int, end: int) -> bool:
            """Whether words end there."""
            return bool(spaces[path[start:end]].any() or (end < frames and opening[path[end]]))

        pauses = [(start, end) for start, end in _runs(idle) if 0 < start < longest]
        for start, end in pauses:
            told = end < frames and end - start >= pause and between(start, end)
            if told and (start + end) // 2 <= longest:
                return (start + end) // 2
        if frames > longest:
            if pauses:
                words = [run for run in pauses if between(*run)]
                return _middle_of_longest(words or pauses, longest)
            blanks = held[0, longest // 2 : longest].log_softmax(-1)[:, BLANK]
            return max(1, longest // 2 + int(blanks.argmax()))
        return frames if ended and frames else None

    first = 0
    held: Tensor | None = None
    for block in itertools.chain(logits, [None]):
        if block is not None:
            held = block if held is None else torch.cat([held, block], 1)
        while held is not None and (place := cut(held, block is None)) is not None:
            utterance = held[:, :place]
            if not idle_symbols[utterance[0].argmax(-1).cpu()].all():
                yield first, utterance
            first, held = first + place, held[:, place:].clone()


def by_energy(
    blocks: Iterable[Tensor], rate: int, pause: float, longest: float
) -> Iterator[tuple[int, Tensor]]:
    """A recording, cut in the middle of pauses, for a recogniser that is to hear each piece whole.

    Quiet is what is below a level between the loudest and the softest of the last `longest`
    seconds; where they are less than 10 dB apart nothing is. Where nobody pauses for so long, the
    longest pause there is ends a piece, or else the softest moment of its second half.

    Args:
        blocks: float samples `(n,)` each, one behind the other.
        rate: of them, in Hz.
        pause: seconds of quiet that end a piece.
        longest: seconds of a piece, at most.

    Yields:
        The first sample of a piece, and its samples; put together, they are the recording.
    """
    unit = max(1, round(LEVEL * rate))
    most, quiet = max(2, round(longest * rate / unit)), max(1, round(pause * rate / unit))
    look = max(1, round(LOOK * rate / unit)) * unit
    past = torch.zeros(0)  # levels before what is held

    def cut(held: Tensor, levels: Tensor, ended: bool) -> int | None:
        """At which level to cut."""
        known = torch.cat([past, levels]).double()
        soft, loud = known.quantile(0.1), known.quantile(0.95)
        soft = torch.maximum(soft, loud - RANGE)
        low = (levels < soft + SHARE * (loud - soft)) & (loud - soft >= CONTRAST)
        pauses = [(start, end) for start, end in _runs(low) if 0 < start < most]
        for start, end in pauses:
            if end < len(levels) and end - start >= quiet and (start + end) // 2 <= most:
                return (start + end) // 2
        if len(levels) <= most:
            return None
        if pauses:
            return _middle_of_longest(pauses, most)
        return most // 2 + 1 + int(levels[most // 2 : most].argmin())

    first, held = 0, torch.zeros(0)
    for block in itertools.chain(_even(blocks, look), [None]):
        if block is not None:
            held = torch.cat([held, block])
        while len(held) > unit:
            levels = _levels(held, unit)
            place = cut(held, levels, block is None)
            if place is None or place * unit >= len(held):
                break
            yield first, held[: place * unit]
            past = torch.cat([past, levels[:place]])[-most:]
            first, held = first + place * unit, held[place * unit :].clone()
    if len(held):
        yield first, held


def _even(blocks: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """The same samples in blocks of one size, the last one shorter."""
    held = torch.zeros(0)
    for block in blocks:
        held = torch.cat([held, block])
        whole = len(held) // size * size
        yield from held[:whole].split(size) if whole else ()
        held = held[whole:].clone()
    if len(held):
        yield held


def _levels(samples: Tensor, unit: int) -> Tensor:
    """The level of every `unit` samples in dB, smoothed."""
    power = samples[: len(samples) // unit * unit].view(-1, unit).square().mean(1)
    smooth = functional.avg_pool1d(power[None], SMOOTH, 1, SMOOTH // 2, count_include_pad=False)
    return 10 * torch.log10(smooth[0] + 1e-10)


def _runs(marked: Tensor) -> list[tuple[int, int]]:
    """Runs `[start, end)` of what is marked, bool `(n,)`."""
    edges = functional.pad(marked.int(), (1, 1)).diff().nonzero()[:, 0].tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def _middle_of_longest(runs: Sequence[tuple[int, int]], limit: int) -> int:
    """The middle of the longest run, the last one of several, as far as it reaches to a limit."""
    inside = [(start, min(end, limit)) for start, end in runs]
    start, end = max(inside, key=lambda run: (run[1] - run[0], run))
    return max(1, (start + end) // 2)


def frames_of(seconds: float, seconds_per_frame: float) -> int:
    """Frames of so many seconds, one at least."""
    return max(1, math.ceil(seconds / seconds_per_frame))


__all__: Sequence[str] = ("by_blanks", "by_energy", "frames_of")
