"""The recipe of language models trains on any text, writes on, and names bad input."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas
import pytest
import transformers

from resbackbones.report import load_records
from resbackbones.text import ResidualForCausalLM
from tasks import _recipe
from tasks._using import run
from tasks.text import _language
from tasks.text.model_language import TASK

NET = ["--spec", "tcn_char", "--device", "cpu", "--epochs", "1", "--least-steps", "0"]
NET += ["--least-updates", "1", "--batch-size", "16", "--length", "32", "--new-tokens", "12"]
VERSES = "".join(f"{a} {b} the {c}\n" for a in "who where".split() for b in "is was sees".split()
                 for c in "rain sun moon sea sand tree".split()) * 4  # fmt: skip


def model_language(*arguments: object) -> None:
    run(TASK, [str(argument) for argument in arguments])


@pytest.fixture
def verses(tmp_path: Path) -> Path:
    folder = tmp_path / "verses"
    folder.mkdir()
    (folder / "train.txt").write_text(VERSES)
    (folder / "validation.txt").write_text("where was the sun\nwho sees the tree\n" * 20)
    return folder


def test_trains_writes_saves_and_records(
    verses: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    model_language("--data", verses, "--output", "out", "--record", "--prompt", "who", *NET)
    printed = capsys.readouterr().out
    size = len(VERSES)
    assert f"{size - round(size / 20):,} tokens to train on, 720 to measure on (vali" in printed
    assert "a token is a character" in printed and "Kneser-Ney" in printed
    assert "n-grams have a share in the answers" in printed and "MACs per token" in printed
    results = json.loads(Path("out/results.json").read_text())
    ours, counted = results["seed 0"]["metrics"], list(results.values())[1]["metrics"]
    assert ours["loss"] <= counted["loss"] + 0.01 < ours["net_loss"]
    assert set(ours) == {"loss", "bits", "perplexity", "net_loss"}

    (record,) = load_records("results")
    assert (record.task, record.arm) == ("model_language", "tcn_char-kneser-ney")
    assert (record.metric, record.higher_is_better, record.split) == ("loss", False, "validation")
    assert record.baseline is not None and record.baseline["value"] == counted["loss"]
    rest = f"{size - round(size / 20):,}"
    assert record.protocol == (
        f"{rest} characters of train in {rest} tokens (character), {round(size / 20)} others for "
        "choices"
    )
    assert record.sample.startswith("who") and len(record.sample) == 15
    assert record.sample in printed
    assert record.macs < 2 * record.parameters

    place = "out/seed-0/model"
    model = ResidualForCausalLM.from_pretrained(place)
    assert model.ngrams is not None and max(model.ngram_share.tolist()) > 0.4
    write = transformers.pipeline("text-generation", model=place)
    (answer,) = write("who", max_new_tokens=5, do_sample=False)
    assert len(answer["generated_text"]) == 8
    model_language("--evaluate", place, "--data", verses)
    assert f"{ours['loss']:.3f} | {ours['bits']:.3f}" in capsys.readouterr().out
    model_language("--predict", place, "--prompt", "who", "--new-tokens", "12")
    assert capsys.readouterr().out.startswith(record.sample)
    (tmp_path / "begun.txt").write_text("where is")
    model_language("--predict", place, "begun.txt", "--new-tokens", "3", "--temperature", "0")
    assert len(capsys.readouterr().out.rstrip("\n")) == 11


def test_all_rows_train_too(
    verses: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model_language("--data", verses, "--output", tmp_path / "out", "--all-rows", *NET)
    printed = capsys.readouterr().out
    assert f"{len(VERSES):,} tokens to train on" in printed and "-all-rows, seed 0" in printed
    model = ResidualForCausalLM.from_pretrained(tmp_path / "out" / "seed-0" / "model")
    assert set(model.ngram_share.tolist()) == {0.5}


@pytest.mark.parametrize("tokenizer", ["byte", "bpe", "word"])
def test_documents_begin_with_a_mark(tokenizer: str, tmp_path: Path) -> None:
    pandas.DataFrame({"text": VERSES.split("\n")[:-1]}).to_csv(tmp_path / "rows.csv", index=False)
    given = ["--data", tmp_path / "rows.csv", "--tokenizer", tokenizer, "--no-kneser-ney"]
    model_language(*given, "--output", tmp_path / "out", "--skip", "none", *NET)
    model = ResidualForCausalLM.from_pretrained(tmp_path / "out" / "seed-0" / "model")
    assert model.processor("who")["input_ids"][0] == model.config.bos_token_id
    assert model.ngrams is None and model.config.spec["skip"] == "none"


def test_gpt2_is_as_large(verses: Path, tmp_path: Path) -> None:
    given = ["--data", verses, "--peer", "gpt2", "--spec", "char_gcnn12", *NET[2:]]
    model_language(*given, "--output", tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(results["seed 0"]["metrics"]) == {"loss", "bits", "perplexity"}
    config = json.loads((tmp_path / "out" / "seed-0" / "model" / "config.json").read_text())
    peer = _language.GPT2(transformers.GPT2Config(**config))
    ours = 12 * (3 * 192 * 384 + 2 * 192) + 2 * 192 + 27 * 192
    assert abs(peer.num_parameters() / ours - 1) < 0.02


def test_training_goes_on_from_a_saved_model(
    verses: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model_language("--data", verses, "--output", tmp_path / "one", *NET)
    first = tmp_path / "one" / "seed-0" / "model"
    other = tmp_path / "other.txt"
    other.write_text(VERSES[::-1])
    capsys.readouterr()
    model_language("--data", other, "--output", tmp_path / "two", "--weights", first, *NET[2:])
    said = " ".join(capsys.readouterr().out.split())
    assert "tokens are theirs, in their order (embedding.tokens.weight)" in said
    assert "tcn_char-pretrained-kneser-ney, seed 0" in said


def test_wrong_input_is_named_in_a_line(
    verses: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    empty, short = tmp_path / "empty.txt", tmp_path / "short.txt"
    empty.touch()
    short.write_text("to be")
    model_language("--data", verses, "--output", tmp_path / "out", *NET)
    place = tmp_path / "out" / "seed-0" / "model"
    three = tmp_path / "three"
    three.mkdir()
    for split in ("train", "validation", "test"):
        (three / f"{split}.txt").write_text(VERSES)
    for sentence, arguments in (
        ("empty.txt is empty; give a file with text", ["--data", empty]),
        ("tokens are too few for windows of 512; give 1025 or more", ["--data", short]),
        ("there is nothing to train on", []),
        ("no spec is called 'gnn'", ["--data", verses, "--spec", "gnn"]),
        ("looks at tokens to come; build it with", ["--data", verses, "--spec", "word_resnet6"]),
        ("--folds are of rows at random", ["--data", verses, "--folds", 3]),
        ("--new-tokens 0 make no text", ["--data", verses, "--new-tokens", 0]),
        ("--temperature is -1.0", ["--data", verses, "--temperature", -1]),
        ("--all-rows trains on the end", ["--data", three, "--all-rows"]),
        ("is no text model; give a folder", ["--data", verses, "--weights", tmp_path]),
        ("the prompt holds '☃', 'Q', which", ["--predict", place, "--prompt", "☃Q who"]),
        ("the prompt is empty", ["--predict", place, empty]),
        ("--predict names a model and no file", ["--predict", place]),
    ):
        assert sentence in refused(model_language, *arguments)


def test_a_long_text_is_cut_into_pairs_of_bytes(
    verses: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_language, "SHORT", 100)
    monkeypatch.setattr(_recipe, "FEW", 0)
    model_language("--data", verses, "--output", tmp_path / "out", *NET)
    model = ResidualForCausalLM.from_pretrained(tmp_path / "out" / "seed-0" / "model")
    assert len(model.processor("where is the sun")["input_ids"]) < 10
