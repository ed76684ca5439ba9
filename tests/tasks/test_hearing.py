"""The recipe of transcripts writes down recordings of any length, with subtitles, and words as they
come: paced as they were spoken, and no sooner."""

import io
import json
import queue
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from resbackbones.core.pieces import Approximate
from resbackbones.errors import InputError
from resbackbones.speech import ResidualForCTC, joined, transcribe_long
from resbackbones.speech.hypotheses import Span
from tasks._using import run
from tasks.speech import _hearing
from tasks.speech._hearing import Page, microphone, paced, write_live
from tasks.speech.transcribe import TASK, Config, experiment
from tests.speech import tones
from tests.speech.test_long import model, talk


def transcribe(*arguments: object) -> None:
    run(TASK, [str(argument) for argument in arguments])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "talk.wav", talk().numpy(), tones.RATE)
    return tmp_path / "talk.wav"


def saved(made: ResidualForCTC, tmp_path: Path) -> Path:
    made.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_long_recording_is_written_down(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where, expected = saved(model(), tmp_path), list(transcribe_long(model(), file))
    for ending in ("srt", "vtt", "json"):
        output = tmp_path / f"x.{ending}"
        transcribe("--predict", where, "--listen", file, "--subtitles", output)
        printed = capsys.readouterr().out
        assert output.is_file() and f"{output} has the subtitles" in printed
        assert [line.partition("  ")[2] for line in printed.splitlines()[: len(expected)]] == [
            segment.text for segment in expected
        ]
        assert "20.0 s of" in printed and "times as fast; peak memory" in " ".join(printed.split())
        assert "approximate" not in printed
    told = json.loads((tmp_path / "x.json").read_text())
    assert [each["text"] for each in told["segments"]] == [each.text for each in expected]
    subtitles = (tmp_path / "x.vtt").read_text()
    assert subtitles.startswith("WEBVTT\n\n00:00:0")


def test_what_is_approximate_is_measured(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_hearing, "COMPARED", 5.0)
    where = saved(model("mean_std"), tmp_path)
    with pytest.warns(Approximate, match="normalize='mean_std'"):
        transcribe("--predict", where, "--listen", file)
    said = " ".join(capsys.readouterr().out.split())
    assert "normalize='mean_std' looks at a whole recording: CER" in said
    assert "% of the first 5 s against the same heard whole" in said


def test_a_file_is_heard_live(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    clock = types.SimpleNamespace(monotonic=lambda: 0.0, sleep=slept.append)
    monkeypatch.setattr(_hearing, "time", clock)
    causal = model(causal=True)
    transcribe("--predict", saved(causal, tmp_path), "--live", file)
    printed = capsys.readouterr().out
    *lines, end = printed.splitlines()
    assert " ".join(" ".join(lines).split()) == causal.transcribe(talk())[0]
    assert all(len(line) <= 80 for line in lines) and len(lines) > 1
    assert "words came at most" in end and "0.06 s that the model waits" in end
    assert "0.00 s to compute" in end
    assert slept == pytest.approx([(n + 1) / 10 for n in range(200)])


def test_sound_comes_no_sooner_than_it_was_spoken(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    clock = types.SimpleNamespace(monotonic=lambda: now[0], sleep=sleep)
    monkeypatch.setattr(_hearing, "time", clock)
    heard: list[int] = []
    for samples, due in paced(torch.zeros(3050).split(1500), 1000):
        heard.append(len(samples))
        assert due == pytest.approx(100 + sum(heard) / 1000) and now[0] >= due - 1e-9
        now[0] += 0.25 if len(heard) == 3 else 0.01  # once it takes longer to compute
    assert sum(heard) == 3050 and max(heard) == 100
    assert now[0] == pytest.approx(103.05 + 0.01, abs=0.02)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def span(text: str, start: float) -> Span:
    return Span(text, start, start + 0.2, 1.0)


def test_a_page_shows_the_unfinished_word_on_a_terminal_alone() -> None:
    terminal, plain = Terminal(), io.StringIO()
    for out in (terminal, plain):
        page = Page(out, " ")
        page.write([], "he")
        page.write([], "hel")
        page.write([span("hello", 0.0)], "")
        page.write([], "wor")
        page.write([span("world", 0.3)], "ag")
        page.write([span("again", 3.0)], "")
        page.write([span("x" * 90, 3.3)], "")
        page.end()
    assert plain.getvalue() == f"hello world\nagain\n{'x' * 90}\n"
    shown = terminal.getvalue()
    assert shown.startswith("hello world ag\r\x1b[Khello world\nagain\n")
    # What is left on each line is what the file has.
    left = [line.rpartition("\x1b[K")[2] for line in shown.split("\n")]
    assert left == plain.getvalue().split("\n")


class Microphone(types.ModuleType):
    """sounddevice, as far as it is used."""

    class PortAudioError(Exception):
        pass

    def __init__(self, samples: np.ndarray | None) -> None:
        super().__init__("sounddevice")
        self.samples = samples

    def InputStream(self, samplerate: int, blocksize: int, channels: int, **more: Any) -> Any:
        if self.samples is None:
            raise self.PortAudioError("Error querying device -1")
        assert (samplerate, channels, more["dtype"]) == (tones.RATE, 1, "float32")
        for piece in np.array_split(self.samples[:, None], len(self.samples) // blocksize):
            more["callback"](piece, len(piece), None, None)
        return torch.no_grad()  # something to enter and leave


def test_a_microphone_is_heard_until_it_is_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(queue.Queue[Any]):
        def get(self, *arguments: Any, **options: Any) -> Any:
            if self.empty():
                raise KeyboardInterrupt  # as Ctrl-C does
            return super().get(*arguments, **options)

    monkeypatch.setitem(sys.modules, "sounddevice", Microphone(talk(6).numpy()))
    monkeypatch.setattr(_hearing.queue, "Queue", Stopped)
    causal = model(causal=True)
    transcribe("--predict", saved(causal, tmp_path), "--live", "microphone")
    captured = capsys.readouterr()
    *lines, end = captured.out.splitlines()
    assert " ".join(" ".join(lines).split()) == causal.transcribe(talk(6))[0]
    assert "end with Ctrl-C" in captured.err and "words came at most" in end
    monkeypatch.setitem(sys.modules, "sounddevice", Microphone(None))
    with pytest.raises(InputError, match=r"no microphone that gives 8,000 .*querying device"):
        next(microphone(tones.RATE))
    monkeypatch.setitem(sys.modules, "sounddevice", None)  # which is how a missing one looks
    with pytest.raises(InputError, match=r"install 'resbackbones\[microphone\]'"):
        next(microphone(tones.RATE))


def test_what_cannot_be_is_one_sentence(
    file: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    where, causal = saved(model(), tmp_path), tmp_path / "causal"
    model(causal=True).save_pretrained(causal)
    for arguments, said in (
        (("--listen", file, "--data", "x"), "--listen asks a saved model"),
        (("--live", file, "--data", "x"), "--live asks a saved model"),
        (("--predict", where, file, "--subtitles", "x.srt"), "--subtitles are of one recording"),
        (("--predict", where, "--listen", file, "--subtitles", "x.doc"), "name a file .srt"),
        (("--predict", where, "--listen", tmp_path / "no.wav"), "no.wav"),
        (("--predict", causal, "--live", tmp_path / "no.wav"), "no.wav"),
        (("--predict", where, "--live", file), "reads ahead"),
    ):
        assert said in refused(transcribe, *arguments)
    with pytest.raises(InputError, match="looks at the whole recording"):
        write_live(model("mean_std", causal=True), [])


def test_a_causal_net_is_trained_for_it(tmp_path: Path) -> None:
    data = tones.folder(tmp_path / "tones", {"train": 8, "validation": 2, "test": 2})
    config = Config(data=str(data), causal=True, sampling_rate=8000, device="cpu")
    made = experiment(config).build()
    assert made.backbone.spec.causal and config.arm == "mel_resnet_ctc18-causal"
    assert made.eval().stream().latency_seconds == pytest.approx(0.056)
    plain = Config(data=str(data), sampling_rate=8000, device="cpu")
    assert plain.arm == "mel_resnet_ctc18" and "causal" not in plain.changes
    assert joined([], made.symbols) == ""
