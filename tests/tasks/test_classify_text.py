"""The text recipe trains, saves and records on made-up questions, and names bad input."""

import io
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
import transformers

from resbackbones.errors import InputError
from resbackbones.report import load_records
from resbackbones.text import (
    Ngrams,
    NgramTokenizer,
    ResidualForCausalLM,
    ResidualForSequenceClassification,
    train_tokenizer,
)
from tasks import _recipe
from tasks._using import run
from tasks.text import _classification, classify_text
from tasks.text.classify_text import TASK

# Two steps teach nothing, and fit says so.
pytestmark = pytest.mark.filterwarnings("ignore::resbackbones.train.StillAtChance")
SPEED = ["--epochs", "1", "--batch-size", "16", "--device", "cpu", "--least-steps", "0"]
SPEED += ["--least-updates", "1"]


def classify(*arguments: object) -> None:
    run(TASK, [str(argument) for argument in arguments])


def test_pairs_of_texts_are_told_by_both_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    firsts = ["who is it", "where is it"] * 40
    seconds = ["yes it is", "yes it is", "no never", "no never"] * 20
    table = {"one": firsts, "two": seconds, "label": [text[:1] for text in seconds]}
    pandas.DataFrame(table).to_csv(tmp_path / "pairs.csv", index=False)
    given = ["--data", tmp_path / "pairs.csv", "--input-column", "one", "--pair-column", "two"]
    classify(*given, "--output", tmp_path / "out", "--folds", "0", *SPEED)
    model = ResidualForSequenceClassification.from_pretrained(tmp_path / "out" / "seed-0" / "model")
    assert {"who", "never"} <= set(model.processor.get_vocab())
    assert re.search(r"NB-SVM on TF-IDF *\| *100\.0 %", capsys.readouterr().out)


def test_an_embedding_starts_from_vectors(
    questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("who 1 2 3 4\nwhere -1 -2 -3 -4\n")
    config = classify_text.Config(data=str(questions), vectors=vectors, device="cpu")
    made = classify_text.experiment(config)
    assert "words have a vector." in made.found
    model = made.build()
    rows = model.processor.convert_tokens_to_ids(["who", "where"])
    assert model.embedding.tokens.weight[rows].tolist() == [[1, 2, 3, 4], [-1, -2, -3, -4]]


def test_trains_saves_records_and_says_how_to_go_on(
    questions: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "out"
    classify("--data", questions, "--output", output, "--seeds", "0", "1", "--record", *SPEED)
    printed = capsys.readouterr().out
    assert "NB-SVM on TF-IDF" in printed and "word_resnet6-tfidf, mean ± sd" in printed
    assert "29 training and 3 validation rows, the latter 9.4 % of train, strat" in printed
    assert 'transformers.pipeline("text-classification", model="' in printed

    (record,) = load_records(tmp_path / "results")
    assert (record.task, record.dataset, record.arm) == (
        "classify_text",
        "questions",
        "word_resnet6-tfidf",
    )
    assert record.seeds == [0, 1] and record.split == "test" and record.baseline is not None
    assert record.baseline["value"] == 1.0  # the first word tells

    for seed in (0, 1):
        log = (output / f"seed-{seed}" / "log.jsonl").read_text()
        assert json.loads(log.splitlines()[-1])["step"] == 2
        model = output / f"seed-{seed}" / "model"
        pipeline = transformers.pipeline("text-classification", model=str(model))
        answers = pipeline(["who is 12 ?", "where"], batch_size=2)
        assert {answer["label"] for answer in answers} <= {"person", "place"}


@pytest.mark.parametrize("tokenizer", ["character", "byte", "bpe"])
def test_other_tokenizers_and_nets_resume(
    tokenizer: str, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", questions, "--output", tmp_path / "out", "--spec", "vdcnn9", *SPEED]
    arguments += ["--tokenizer", tokenizer]
    classify(*arguments)
    first = capsys.readouterr().out
    classify(*arguments, "--resume")
    assert capsys.readouterr().out == first  # there was nothing left to do


def test_it_begins_with_the_net_of_a_language_model(
    questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = train_tokenizer(["who is it", "where is 12 ?"], "character")
    language = ResidualForCausalLM.build("char_gcnn12", processor=tokenizer)
    language.save_pretrained(tmp_path / "language")
    given = ["--data", questions, "--weights", tmp_path / "language", "--output", tmp_path / "out"]
    classify(*given, "--learning-rate", "0", *SPEED)
    printed = " ".join(capsys.readouterr().out.split())
    assert f"the vectors of {len(tokenizer)} tokens are theirs, in" in printed
    assert "the head is left as drawn" in printed
    assert "char_gcnn12-pretrained-tfidf, seed 0" in printed
    model = ResidualForSequenceClassification.from_pretrained(tmp_path / "out" / "seed-0" / "model")
    pairs = zip(model.backbone.parameters(), language.backbone.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)  # as nothing was learned
    assert model.processor.get_vocab() == tokenizer.get_vocab()
    config = classify_text.Config(data=str(questions), weights=tmp_path / "language")
    assert (config.layer_decay, config.unfreezing) == (0.8, 0.3)
    config = classify_text.Config(data=str(questions))
    assert (config.layer_decay, config.unfreezing) == (1.0, 0.0)


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_the_device_is_where_the_net_trains(
    device: str, questions: Path, tmp_path: Path, no_gpu: None, handed_to_fit: Callable[..., Any]
) -> None:
    given = ["--data", questions, "--output", tmp_path / "out", *SPEED, "--device", device]
    assert handed_to_fit(classify, *given)[1].device == device


@pytest.mark.gpu
def test_a_gpu_trains(questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--data", questions, "--output", tmp_path / "out", *SPEED, "--device", "cuda"]
    classify(*given)
    assert "MACs per item" in capsys.readouterr().out


def test_bad_input_is_one_sentence(
    questions: Path, tmp_path: Path, no_gpu: None, refused: Callable[..., str]
) -> None:
    def told(*arguments: object) -> str:
        return refused(classify, "--output", tmp_path / "out", *SPEED, *arguments)

    assert "needs a GPU and there is none" in told("--data", "nowhere", "--device", "cuda")
    assert not (tmp_path / "out").exists()
    assert "nowhere" in told("--data", tmp_path / "nowhere")
    assert "'sentiment'" in told("--data", questions, "--label-column", "sentiment")
    assert "'txt'" in told("--data", questions, "--input-column", "txt")
    assert "did you mean 'resnet5" in told("--data", questions, "--spec", "resnet5O")
    assert "dims=1" in told("--data", questions, "--spec", "resnet50")
    assert "epochs=0" in told("--data", questions, "--epochs", "0")
    (tmp_path / "file").write_text("no folder")
    assert "file" in told("--data", questions, "--output", tmp_path / "file")


def test_a_label_outside_the_range_is_named(
    questions: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    (questions / "labels.json").write_text('["place", "person"]')
    table = pandas.read_csv(questions / "train.csv")
    table["label"] = table["label"].map({"place": 0, "person": 1})
    table.loc[5, "label"] = 7
    table.to_csv(questions / "train.csv", index=False)
    error = refused(classify, "--data", questions, "--output", tmp_path / "out", *SPEED)
    assert "7" in error and "line 7" in error


def test_rows_without_a_text_are_named_or_counted(
    questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    table = pandas.read_csv(questions / "test.csv")
    table.loc[3, "text"] = None
    table.to_csv(questions / "test.csv", index=False)
    arguments = ["--data", questions, "--output", tmp_path / "out", *SPEED]
    assert "line 5" in refused(classify, *arguments)
    classify(*arguments, "--on-bad", "skip")
    assert "left out 1 bad item" in capsys.readouterr().out


def test_all_rows_are_trained_on_when_asked(
    questions: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    classify("--data", questions, "--output", "out", "--all-rows", "--record", *SPEED)
    assert "those for validation among them" in capsys.readouterr().out
    (record,) = load_records("results")
    assert record.arm == "word_resnet6-tfidf-all-rows" and record.held_out
    log = [json.loads(line) for line in Path("out/seed-0/log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 2 and "accuracy" not in log[-1]  # 32 rows in batches of 16


def test_all_rows_without_a_test_split_are_refused(
    questions: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    (questions / "test.csv").unlink()
    given = ["--data", questions, "--output", tmp_path / "out", *SPEED]
    assert "there is no test split to measure on" in refused(classify, *given, "--all-rows")


def test_texts_are_named_line_by_line_and_measured(
    questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    given = ["--ngrams", "no", "--no-tfidf", *SPEED]
    classify("--data", questions, "--output", tmp_path / "out", *given)
    model = tmp_path / "out" / "seed-0" / "model"
    capsys.readouterr()
    classify("--evaluate", model, "--data", questions / "test.csv")
    assert "on 8 items of" in capsys.readouterr().out
    (tmp_path / "lines.txt").write_text("who is 12 ?\n\nwhere is it ?\n")
    classify("--predict", model, tmp_path / "lines.txt")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["who is 12 ?", "where is it ?"]
    (tmp_path / "lines.txt").write_text("who is it\n" + "where is 12 ? " * 200)
    with pytest.warns(UserWarning, match="1 of 2 texts of .*lines.txt are longer than 512 tokens"):
        classify("--predict", model, tmp_path / "lines.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    error = refused(classify, "--predict", model, tmp_path / "binary.txt")
    assert f"{tmp_path / 'binary.txt'} cannot be read" in error


@pytest.fixture
def saved(questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A model of those questions."""
    classify("--data", questions, "--output", tmp_path / "out", *SPEED)
    capsys.readouterr()
    return tmp_path / "out" / "seed-0" / "model"


def test_lines_of_standard_input_are_answered_and_explained(
    saved: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., str],
) -> None:
    def given(content: bytes) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))

    given("\ufeffwho is Zoë <b>?\r\n\r\nwhere is it".encode())
    classify("--predict", saved, "-", "--explain", tmp_path / "why.html")
    printed = capsys.readouterr().out
    asked = [line.split("|")[1].strip() for line in printed.splitlines()[2:4]]
    assert asked == ["who is Zoë <b>?", "where is it"]
    assert f"{tmp_path / 'why.html'} shows which words spoke for each answer" in printed
    page = (tmp_path / "why.html").read_text(encoding="utf-8")
    assert page.count("<blockquote>") == 2 and ">Zoë</span>" in page
    assert "&lt;" in page and "<b>?" not in page
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    given(b"who is it")
    classify("--predict", saved, "-", "--explain", tmp_path / "why.html")
    assert "\x1b[30;48;2;" in capsys.readouterr().out
    given(b"who is it")
    error = refused(classify, "--predict", saved, "-", "--explain", tmp_path)
    assert f"cannot write the page {tmp_path} (Is a directory)" in error
    error = refused(classify, "--data", "questions", "--explain", tmp_path / "why.html")
    assert "--explain is of answers; give it with --predict" in error
    given(b"")
    classify("--predict", saved, "-")
    assert capsys.readouterr().out == ""


def test_a_label_that_the_model_does_not_know_is_named_with_its_row(
    saved: Path, questions: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    table = pandas.read_csv(questions / "test.csv")
    table.loc[[2, 4], "label"] = "animal"
    table.to_csv(questions / "animals.csv", index=False)
    given = ["--evaluate", saved, "--data", questions / "animals.csv"]
    error = refused(classify, *given)
    assert "line 4" in error and "(and 1 more)" in error
    assert "is of the class 'animal', which the model does not know, only 'person', 'pl" in error
    with pytest.warns(UserWarning, match=r"2 of the 8 rows of .* cannot be used \(line 4 of"):
        classify(*given, "--on-bad", "skip")
    assert "on 6 items of" in capsys.readouterr().out


def test_classes_count_alike_when_asked(
    questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    table = pandas.read_csv(questions / "train.csv")
    few = table[table.label == "person"].head(4)
    pandas.concat([table[table.label == "place"], few]).to_csv(questions / "train.csv", index=False)
    weights: list[Any] = []

    def fit(model: Any, *_: Any) -> Any:
        weights.append(model.class_weights)
        raise InputError("this is enough")

    monkeypatch.setattr(_recipe, "fit", fit)
    given = ["--data", questions, "--output", tmp_path / "out", *SPEED, "--all-rows"]
    refused(classify, *given)
    refused(classify, *given, "--class-weights", "balanced")
    assert weights[0] is None
    assert weights[1].tolist() == pytest.approx([20 / (2 * 4), 20 / (2 * 16)])
    error = refused(classify, *given, "--class-weights", "balanced", "--multi-label")
    assert "--class-weights are for items of one class each" in error
    assert TASK.config(data="x", class_weights="balanced").arm == "word_resnet6-balanced-tfidf"
    changed = TASK.config(data="x", skip="none", tfidf=False, change="no dropout")
    assert changed.arm == "word_resnet6-plain, no dropout"


def test_settings_follow_the_texts(tmp_path: Path, refused: Callable[..., str]) -> None:
    def settings(text: str, **options: Any) -> Any:
        table = pandas.DataFrame({"text": [f"{text} {row} ." for row in range(20)] * 2})
        table["label"] = table.index % 2
        table.to_csv(tmp_path / "texts.csv", index=False)
        options = {"data": str(tmp_path / "texts.csv"), "tfidf": False, "device": "cpu", **options}
        made = classify_text.experiment(classify_text.Config(**options))
        assert made.finish is None and made.train.tfidf_logits is None
        model = made.build()
        adversarial = model.config.embedding["adversarial"]
        assert ("Adversarial steps" in made.found) == (adversarial > 0)
        return model.processor, made.most_epochs, adversarial

    short, epochs, adversarial = settings("who is it")
    assert short.ngrams == Ngrams(buckets=256) and epochs > 1000 and adversarial == 0.4
    assert "." in short.get_vocab() and "19" in short.get_vocab()  # they stand there twice
    assert len(settings("who is it", min_frequency=30)[0]) == 3 + len("who is it .".split())
    long, epochs, adversarial = settings("who is it " * 30)
    assert not isinstance(long, NgramTokenizer) and epochs > 1000 and adversarial == 0
    assert settings("who is it " * 30, most_tokens=1)[1] == 4  # but four at least
    assert settings("who is it", most_tokens=0, adversarial=0.1)[1:] == (None, 0.1)
    error = refused(classify, "--data", "x", "--tokenizer", "byte", "--min-frequency", "3")
    assert "--min-frequency is not for --tokenizer byte" in error


def test_the_share_is_chosen_on_validation_rows_alone(
    questions: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    places = (tmp_path / f"out-{number}" for number in itertools.count())

    def share(*arguments: object) -> float:
        place = next(places)
        classify("--data", questions, "--output", place, *SPEED, *arguments)
        model = place / "seed-0" / "model"
        return ResidualForSequenceClassification.from_pretrained(model).config.tfidf

    assert share() == 0.5  # three rows are too few to choose by
    monkeypatch.setattr(_classification, "ENOUGH", 3)
    assert share() > 0.5  # two steps teach a net nothing
    assert "NB-SVM on TF-IDF has a share of" in capsys.readouterr().out
    assert share("--all-rows") == 0.5
    assert share("--no-tfidf") == 0
    assert "has a share of" not in capsys.readouterr().out
    config = classify_text.Config(data=str(questions / "train.csv"), fold=(0, 5), device="cpu")
    assert classify_text.experiment(config).finish is None  # what is held out is measured


def test_any_number_of_classes_per_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("red", "green", "blue")
    for split, count in (("train", 40), ("test", 16)):
        given = [[word for bit, word in enumerate(words) if row >> bit & 1] for row in range(count)]
        rows = [{"text": f"it is {' '.join(own)} {row} .", "tags": "|".join(own) or "[]"}
                for row, own in enumerate(given)]  # fmt: skip
        Path("tagged").mkdir(exist_ok=True)
        pandas.DataFrame(rows).to_csv(f"tagged/{split}.csv", index=False)
    classify("--data", "tagged", "--multi-label", "--output", "out", *SPEED, "--all-rows")
    printed = capsys.readouterr().out
    assert "cut at '|'" in " ".join(printed.split()) and "mean average precision" in printed
    results = json.loads(Path("out/results.json").read_text())
    assert results["NB-SVM on TF-IDF"]["metrics"]["mean_average_precision"] > 0.95
    assert set(results["seed 0"]["per_class"]) == set(words)
    model = Path("out/seed-0/model")
    classify(
        "--evaluate", model, "--data", "tagged/test.csv"
    )  # the model knows that there are many
    assert "on 16 items of" in capsys.readouterr().out
    Path("lines.txt").write_text("it is red")
    classify("--predict", model, "lines.txt", "--explain", "why.html")
    answers = re.findall(r"([\d.]+) %", capsys.readouterr().out)
    assert len(answers) == 3 and abs(sum(map(float, answers)) - 100) > 1
    assert "<blockquote>" in Path("why.html").read_text()


def test_a_csv_file_of_semicolons_is_enough(
    questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pandas.read_csv(questions / "train.csv").rename(columns={"label": "Sentiment"})
    table.to_csv(tmp_path / "reviews.csv", index=False, sep=";")
    classify(
        "--data", tmp_path / "reviews.csv", "--output", tmp_path / "out", "--folds", "0", *SPEED
    )
    printed = " ".join(capsys.readouterr().out.split())
    assert "29 items to train on, 3 for validation (held out: 9.4 % of train" in printed
    assert "reviews.csv, validation split (29 training and 3 validation rows" in printed
