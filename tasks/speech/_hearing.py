"""What the recipe of transcripts does with recordings of any length, and with speech as it comes:
write them down with times and as subtitles, and write words as they are spoken."""

import contextlib
import importlib
import queue
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor
from tqdm import tqdm

from resbackbones import report
from resbackbones.errors import InputError
from resbackbones.speech import (
    ResidualForCTC,
    Segment,
    WordStream,
    audio_blocks,
    decode_audio,
    departure,
    transcribe_long,
    write_subtitles,
)
from resbackbones.speech.hypotheses import Span, separates
from resbackbones.speech.recordings import FULL_SCALE, duration
from resbackbones.speech.streaming import whole_only
from resbackbones.speech.subtitles import check_form, clock
from tasks._fields import Recipe
from tasks._running import peak_memory, wrapped

MICROPHONE = "microphone"
PIECE = 0.1  # seconds of sound from one look at the words to the next
COMPARED = 120.0  # seconds that are heard whole beside, where pieces are approximate
GAP = 1.0  # seconds between two words that begin a new line
WIDTH = 80
Timed = tuple[Tensor, float]  # samples, and when the last of them was spoken, by the clock


@dataclass(frozen=True, kw_only=True)
class Hearing(Recipe):
    """The fields of a recipe whose models write down what they hear."""

    causal: bool = False
    """The net reads nothing ahead, so that it can write words as they come (--live)."""
    listen: tuple[Path, ...] = ()
    """With --predict MODEL: recordings of any length, written down with times."""
    subtitles: Path | None = None
    """With --listen FILE: where to write subtitles, a file .srt, .vtt or .json."""
    live: str | None = None
    """With --predict MODEL: a recording that is heard as a microphone would hear it, or
    "microphone" (the extra of that name); words are written as they come."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("listen", "live"):
            if getattr(self, name) and not self.predict:
                raise InputError(f"--{name} asks a saved model; give it with --predict MODEL")
        if self.subtitles is not None:
            if len(self.listen) != 1:
                raise InputError("--subtitles are of one recording; name it with --listen FILE")
            check_form(self.subtitles)

    @property
    def asks(self) -> bool:
        return bool(self.listen or self.live)

    @property
    def variant(self) -> str:
        return super().variant + ("-causal" if self.causal else "")

    @property
    def changes(self) -> dict[str, Any]:
        """What of the spec is asked for."""
        return {"skip": self.skip, **({"causal": True} if self.causal else {})}


def heard(config: Hearing, model: ResidualForCTC, inputs: Sequence[Any]) -> None:
    """Do with a saved model what was asked for."""
    for file in config.listen:
        segments = listen(model, file)
        if config.subtitles is not None:
            separator = " " if separates(model.symbols) else ""
            write_subtitles(config.subtitles, segments, separator)
            print(f"{config.subtitles} has the subtitles")
    rate = model.processor.feature_extractor.sampling_rate
    if config.live == MICROPHONE:
        print("listening; end with Ctrl-C", file=sys.stderr)
        write_live(model, microphone(rate), endless=True)
    elif config.live is not None:
        write_live(model, paced(recorded(Path(config.live), rate), rate))


def listen(model: ResidualForCTC, file: Path) -> list[Segment]:
    """Print what is said in a recording, utterance by utterance, and how much it took."""
    rate = model.processor.feature_extractor.sampling_rate
    with _naming(file):
        seconds = duration(file)
    started = time.monotonic()
    found: list[Segment] = []
    with tqdm(total=round(seconds, 1), unit="s", desc=file.name, leave=False, disable=None) as bar:

        def blocks() -> Iterator[Tensor]:
            for block in recorded(file, rate):
                yield block
                bar.update(round(min(len(block) / rate, seconds - bar.n), 3))

        for segment in transcribe_long(model, blocks()):
            found.append(segment)
            bar.clear()
            print(f"{clock(segment.start)} - {clock(segment.end)}  {segment.text}", flush=True)
    took = time.monotonic() - started
    memory = peak_memory()
    told = f"{seconds:,.1f} s of {file} took {took:,.1f} s, {seconds / took:.1f} times as fast"
    print(wrapped(told + (f"; peak memory {memory:,.0f} MB" if memory else "")))
    if not found:
        print("nothing is written of it")
    front_end = model.processor.feature_extractor.front_end
    if whole := whole_only(model.backbone, front_end):
        samples = decode_audio(file, rate, max_seconds=COMPARED)
        rates = departure(model, samples)
        error = f"CER {report.format_metric('cer', rates.compute()['cer'])}"
        print(
            wrapped(
                f"approximate, as {' and '.join(whole)} looks at a whole recording: "
                f"{error if rates.spoken else 'nothing'} of the first {len(samples) / rate:.0f} s "
                "against the same heard whole"
            )
        )
    return found


def write_live(model: ResidualForCTC, pieces: Iterable[Timed], endless: bool = False) -> None:
    """Write words as they come.

    Args:
        endless: whether they come until somebody ends it with Ctrl-C.

    Raises:
        InputError: the model cannot be streamed.
    """
    stream = model.stream()
    words = WordStream(model.symbols, stream.seconds_per_frame)
    page = Page(sys.stdout, " " if separates(model.symbols) else "")
    latest = 0.0
    ended: contextlib.AbstractContextManager[None, bool | None] = contextlib.nullcontext()
    if endless:
        ended = contextlib.suppress(KeyboardInterrupt)
    with ended:
        for samples, spoken in pieces:
            page.write(words.push(stream.push(samples)), words.partial)
            latest = max(latest, time.monotonic() - spoken)
    told = words.push(stream.finish())
    page.write([*told, *words.finish()], "")
    page.end()
    print(
        f"words came at most {latest + PIECE + stream.latency_seconds:.2f} s after they were "
        f"spoken: {PIECE:.2f} s of a piece, {stream.latency_seconds:.2f} s that the model waits, "
        f"{latest:.2f} s to compute"
    )


class Page:
    """Lines of words, where a terminal shows the unfinished word as well.

    Args:
        out: where to.
        separator: what stands between two words.
    """

    def __init__(self, out: TextIO, separator: str) -> None:
        self._out, self._separator, self._rewrites = out, separator, out.isatty()
        self._line, self._end, self._shown = "", 0.0, ""

    def write(self, words: Sequence[Span], partial: str) -> None:
        """Show further words, and the beginning of the next."""
        for word in words:
            longer = self._line + self._separator + word.text
            if self._line and (word.start - self._end >= GAP or len(longer) > WIDTH):
                self._show(self._line + "\n")
                self._line = self._shown = ""
                longer = word.text
            self._line = longer if self._line else word.text
            self._end = word.end
            if not self._rewrites:
                self._show(self._line)
        if self._rewrites:
            more = self._separator + partial if self._line and partial else partial
            self._show((self._line + more)[: max(WIDTH, len(self._line))])

    def end(self) -> None:
        """End the last line."""
        if self._line:
            self._show(self._line + "\n")
        self._line = self._shown = ""

    def _show(self, line: str) -> None:
        """Make the last line on the page this one."""
        if self._shown == line:
            return
        new = line[len(self._shown) :] if line.startswith(self._shown) else f"\r\x1b[K{line}"
        self._out.write(new)
        self._out.flush()
        self._shown = line


def paced(blocks: Iterable[Tensor], rate: int) -> Iterator[Timed]:
    """A recording's samples as a microphone would give them: a tenth of a second at a time, and
    none before it was spoken."""
    started, spoken = time.monotonic(), 0
    for block in blocks:
        for piece in block.split(max(1, round(PIECE * rate))):
            spoken += len(piece)
            due = started + spoken / rate
            if (wait := due - time.monotonic()) > 0:
                time.sleep(wait)
            yield piece, due


def microphone(rate: int) -> Iterator[Timed]:
    """What the default microphone hears, at this rate, until it is stopped.

    Raises:
        InputError: sounddevice is not installed, or there is no microphone.
    """
    try:
        sounddevice: Any = importlib.import_module("sounddevice")
    except (ImportError, OSError) as error:  # OSError: without PortAudio's own library
        raise InputError(
            "a microphone is heard through sounddevice, which cannot be loaded; install "
            "'resbackbones[microphone]' (and on Linux libportaudio2), or give a recording to --live"
        ) from error
    heard: queue.Queue[Timed] = queue.Queue()

    def hear(samples: Any, frames: int, moment: Any, status: Any) -> None:
        heard.put((torch.from_numpy(samples[:, 0].copy()), time.monotonic()))

    size = max(1, round(PIECE * rate))
    try:
        device = sounddevice.InputStream(
            samplerate=rate, blocksize=size, channels=1, dtype="float32", callback=hear
        )
    except (sounddevice.PortAudioError, ValueError) as error:
        raise InputError(
            f"there is no microphone that gives {rate:,} samples per second ({error}); connect "
            "one, or give a recording to --live"
        ) from error
    with device:
        while True:
            yield heard.get()


def recorded(file: Path, rate: int) -> Iterator[Tensor]:
    """The float samples of a file, a few seconds at a time; what is wrong with it names it."""
    with _naming(file):
        for block in audio_blocks(file, rate):
            yield block.float() / FULL_SCALE


@contextlib.contextmanager
def _naming(file: Path) -> Iterator[None]:
    try:
        yield
    except (InputError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{file} cannot be read ({reason}); give another recording") from error
