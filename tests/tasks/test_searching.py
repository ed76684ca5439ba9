"""What the recipe of transcripts knows of a language: n-grams of the training texts weigh as much
as is best on validation recordings, go with the model, and find what the sound does not tell."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutput

import resbackbones as rb
from resbackbones.core import zoo
from resbackbones.ngrams import BackoffModel
from resbackbones.report import load_records
from resbackbones.speech import ResidualForCTC, TranscriptItems
from resbackbones.speech.beam import BeamSearch
from resbackbones.speech.decode import greedy
from resbackbones.speech.recognition import NO_CHARACTER
from resbackbones.train import evaluate
from tasks._using import run
from tasks.speech import _searching
from tasks.speech._searching import NGRAMS, Searches, prepare
from tasks.speech.transcribe import TASK, Config
from tests.speech import tones
from tests.speech.test_recognition import VOCABULARY, made

NET = rb.BackboneSpec((rb.Stage(16, 1, kernel=5),), dims=1, in_channels=24, stem=rb.Stem(16, 7, 2))
SPEED = ["--spec", "tones", "--epochs", "1", "--batch-size", "8", "--device", "cpu"]
SPEED += ["--least-steps", "0", "--sampling-rate", "8000"]
TEXTS = ["ad ad", "be", "ad be", "be be ad", "ad", "be ad"]  # d behind a, and e behind b


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(zoo.SPECS, "tones", NET)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Data, and the folder of a run on them."""
    place = tmp_path_factory.mktemp("searching")
    data = tones.folder(place / "tones", {"train": 12, "validation": 4, "test": 6})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(zoo.SPECS, "tones", NET)
        patch.chdir(place)
        transcribe("--data", data, "--output", place / "out", "--record", *SPEED)
    return data, place / "out"


def transcribe(*arguments: object) -> None:
    run(TASK, [str(argument) for argument in arguments])


def hears_d_as_e() -> ResidualForCTC:
    """A model that says what was said, and takes d for e and e for d a little more often than
    not."""
    model: Any = made()
    number = {symbol: place for place, symbol in enumerate(model.symbols)}
    number[" "] = number["▁"]
    other = {"d": "e", "e": "d"}

    def forward(references: Tensor, **_: Any) -> CausalLMOutput:
        logits = torch.zeros(*references.shape, 2, len(number) - 1)
        logits[..., 0] = 9.0
        for row, codes in enumerate(references.tolist()):
            for place, code in enumerate(c for c in codes if c != NO_CHARACTER):
                letter = chr(code)
                logits[row, place, 0, 0] = 0.0
                logits[row, place, 0, number[letter]] = 9.0
                if letter in other:
                    logits[row, place, 0, number[other[letter]]] = 9.2
        return CausalLMOutput(logits=logits.flatten(1, 2))

    model.forward = forward
    found: ResidualForCTC = model.eval()
    return found


def config(**changes: Any) -> Config:
    return Config(data="here", device="cpu", **changes)


def heard(model: ResidualForCTC, texts: list[str]) -> TranscriptItems:
    return TranscriptItems(tones.clips(texts), model, evaluation=True)


@pytest.mark.parametrize("unit", ["token", "word"])
def test_n_grams_of_training_texts_find_what_sound_does_not_tell(
    unit: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = hears_d_as_e()
    searches = Searches.to_train(config(lm_unit=unit), VOCABULARY, TEXTS)
    assert searches.lm is not None and "c" not in "".join(searches.lm.vocabulary)
    items = heard(model, ["ad be", "be", "ad ad be", "be ad"])
    searches.finish(items, model)
    found = evaluate(model, items)
    assert found["cer"] == found["cer_beam"] == 0.4 and found["wer"] == 1.0
    assert found["cer_beam_lm"] == found["wer_beam_lm"] == 0.0
    assert model.search is greedy and set(model.beside) == {"beam", "beam_lm"}
    told = " ".join(capsys.readouterr().out.split())
    assert "of 4 validation recordings, 0.0 %, where greedy search has 40.0 %" in told

    # They go with the model, and a later run finds the same with them.
    weight, bonus = searches.weights
    assert weight > 0
    assert searches.keep(model, tmp_path) in told
    saved = tmp_path / "model"
    kept = {"lm_unit": unit, "lm_weight": weight, "length_bonus": bonus}
    assert model.config.search == kept
    by_hand = BeamSearch(model.symbols, lm=saved / NGRAMS, **kept)
    again = hears_d_as_e()
    again.config.search = json.loads(json.dumps(kept))
    prepare(config(search="beam", evaluate=saved), again)
    assert not again.beside.keys() ^ {"greedy", "beam"}
    found = evaluate(again, items)
    assert (found["cer"], found["cer_greedy"]) == (0.0, 0.4)
    again.search = by_hand
    assert evaluate(again, items)["cer"] == 0.0


@pytest.mark.parametrize("weights", [(0.0, 0.4), (0.4, 0.0)])
def test_the_weight_is_the_one_of_fewest_errors(
    weights: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_searching.GRIDS, "token", (weights, (0.0,)))
    model = hears_d_as_e()
    searches = Searches.to_train(config(), VOCABULARY, TEXTS)
    searches.finish(heard(model, TEXTS), model)
    assert searches.weights == (0.4, 0.0)  # without the language model nothing is gained


def test_weights_are_not_chosen_by_what_is_measured_on() -> None:
    model = hears_d_as_e()
    searches = Searches.to_train(config(), VOCABULARY, TEXTS)
    usual = searches.weights
    searches.finish(None, model)
    assert searches.weights == usual and "the usual ones" in searches.told()
    # Those that are given are taken, and only the other one is chosen.
    searches = Searches.to_train(config(lm_weight=0.123), VOCABULARY, TEXTS)
    searches.finish(heard(model, TEXTS), model)
    assert searches.weights[0] == 0.123 and "of 3 by the CER" in searches.told()
    # Without a language model there is nothing to choose, and nothing to keep.
    searches = Searches.to_train(config(language_model="none"), VOCABULARY, TEXTS)
    searches.finish(heard(model, TEXTS), model)
    assert set(model.beside) == {"beam"} and not searches.keep(model, Path("nowhere"))


def test_the_metric_is_merged_and_travels_without_what_it_reads_by() -> None:
    model = hears_d_as_e()
    Searches.to_train(config(), VOCABULARY, TEXTS).give(model)
    whole, first, second = model.metric(), model.metric(), model.metric()
    for rows, metric in ((slice(0, 6), whole), (slice(0, 2), first), (slice(2, 6), second)):
        evaluate(model, heard(model, TEXTS[rows]), metric)
    packed = pickle.dumps(second)
    assert len(packed) < 5_000
    first.merge(pickle.loads(packed))
    assert first.compute() == whole.compute()


def test_all_searches_are_told_side_by_side(trained: tuple[Path, Path]) -> None:
    _, output = trained
    results = json.loads((output / "results.json").read_text())
    figures = results["seed 0"]["metrics"]
    assert {"cer", "wer", "cer_beam", "wer_beam", "cer_beam_lm", "wer_beam_lm"} <= set(figures)
    (record,) = load_records(output.parent / "results")
    assert record.arm == "tones" and record.values == [figures["cer"]]
    assert record.figures is not None
    assert record.figures["cer_beam_lm"] == [figures["cer_beam_lm"]]
    assert "6-grams of symbols of the training texts: weight" in record.sample


def test_a_saved_model_searches(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, output = trained
    saved, file = output / "seed-0" / "model", data / "test" / "1.wav"
    figures = json.loads((output / "results.json").read_text())["seed 0"]["metrics"]
    transcribe("--evaluate", saved, "--data", data, "--search", "beam")
    printed = capsys.readouterr().out
    assert f"{100 * figures['cer_beam_lm']:.1f} %" in printed and "CER, greedy" in printed
    lexicon = tmp_path / "words.txt"
    lexicon.write_text("\ufeffBad b a d\n\nCDE c d e\n", encoding="utf-8")

    def written(*arguments: object) -> str:
        transcribe("--predict", saved, file, "--search", "beam", *arguments)
        row = capsys.readouterr().out.splitlines()[2]
        return row.strip("| ").partition("|")[2].strip()

    model = ResidualForCTC.from_pretrained(saved)
    lm = BackoffModel.read(saved / NGRAMS)
    assert model.config.search is not None and lm.order == 6
    search = BeamSearch(model.symbols, lm=lm, **model.config.search)
    (sound,) = TASK.read(file, model.processor)
    assert written() == model.transcribe(sound, search=search)[0]
    arpa = "--language-model", output.parent / "words.arpa"
    BackoffModel.fit([["bad", "cde"], ["cde"]], 2).write(arpa[1])
    for known in (("--language-model", "none"), arpa):
        assert set(written("--lexicon", lexicon, *known).split()) <= {"bad", "cde"}
    assert "dada" in written("--hot-words", "Dada", "--hot-word-bonus", "300").split()


def test_a_file_of_a_language_may_be_trained_with(tmp_path: Path) -> None:
    path = tmp_path / "words.arpa"
    BackoffModel.fit([text.split() for text in TEXTS], 2).write(path)
    model = hears_d_as_e()
    searches = Searches.to_train(config(language_model=str(path), search="beam"), VOCABULARY, [""])
    items = heard(model, TEXTS)
    searches.finish(items, model)
    assert searches.unit == "word" and "words.arpa: weight" in searches.told()
    assert set(model.beside) == {"greedy", "beam"} and evaluate(model, items)["cer"] == 0.0
    searches.keep(model, tmp_path)
    assert (tmp_path / "model" / NGRAMS).read_bytes() == path.read_bytes()
    assert config(search="beam").arm == "mel_resnet_ctc18-beam-ngrams"
    assert config(search="beam", language_model="none").arm == "mel_resnet_ctc18-beam"


def test_bad_input_is_one_sentence(
    trained: tuple[Path, Path], tmp_path: Path, no_gpu: None, refused: Callable[..., str]
) -> None:
    data, output = trained
    saved, file = output / "seed-0" / "model", data / "test" / "1.wav"
    words = tmp_path / "words.txt"

    def told(*arguments: object) -> str:
        training = "--data", data, "--output", tmp_path / "out", *SPEED
        asked = "--predict", saved, file, "--search", "beam"
        measured = "--data", data, "--evaluate", saved, "--search", "beam"
        (error,) = {
            refused(transcribe, *given, *arguments) for given in (training, asked, measured)
        }
        return error

    foreign = tmp_path / "foreign.arpa"
    BackoffModel.fit(["жук", "жар"], 2).write(foreign)
    error = told("--language-model", foreign)
    assert "no word of the language model, which tells 5 words such as" in error
    assert "can be written with the model's tokens" in error and "--lm-unit token" in error
    assert "none of the model's 6 tokens" in told("--language-model", foreign, "--lm-unit", "token")
    assert "which is no file; give train, none" in told("--language-model", "trian")
    foreign.write_text("once upon a time\n", encoding="utf-8")
    assert "ends before its n-grams do" in told("--language-model", foreign)

    assert "cannot be read (No such file" in told("--lexicon", words)
    words.write_text("abc\nzoo\n", encoding="utf-8")
    assert "the lexicon's word 'zoo' has 'z', which the model's" in told("--lexicon", words)
    words.write_text("\n", encoding="utf-8")
    assert "has no word" in told("--lexicon", words)
    words.write_bytes(b"\xff\xfe\x00")
    assert "no text in UTF-8" in told("--lexicon", words)
    assert "the hot word 'zoo' has 'z'" in told("--hot-words", "zoo")
    assert "'ab ab' is none or several" in told("--hot-words", "ab ab")

    assert "--beam-width is 0" in told("--beam-width", "0")
    assert "--lm-weight is -1.0" in told("--lm-weight", "-1")
    assert "--length-bonus is nan" in told("--length-bonus", "nan")
    for arguments in (["--hot-words", "ab"], ["--language-model", "none"], ["--beam-width", "8"]):
        error = refused(transcribe, "--predict", saved, file, *arguments)
        assert f"{arguments[0]} is for a beam search" in error and "--search beam" in error

    asked = "--predict", saved, file, "--search", "beam"
    assert "tells tokens; leave --lm-unit out" in refused(transcribe, *asked, "--lm-unit", "word")
    (saved / NGRAMS).rename(tmp_path / "away")
    error = refused(transcribe, *asked)
    (tmp_path / "away").rename(saved / NGRAMS)
    assert "has no language model (ngrams.arpa) beside it" in error
