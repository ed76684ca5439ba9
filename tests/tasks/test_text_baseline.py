"""The text baseline reads punctuation and both texts of a pair, learns from training rows alone,
and gets the share in the answers that validation rows say."""

import random

import pytest
import torch
from datasets import Dataset

import resbackbones as rb
from resbackbones.data import open_dataset
from resbackbones.text import ResidualForSequenceClassification, TextItems, train_tokenizer
from tasks.text._baseline import baseline, fit, part_of_the_answer, share_out, whole

TOKENIZER = train_tokenizer(["a"], "byte")


def texts(count: int, seed: int) -> TextItems:
    """Questions and statements: a question mark tells them apart, letters do not."""
    draw = random.Random(seed)
    rows = [" ".join(draw.choices("abcdefg", k=6)) for _ in range(count)]
    ends = [" ?" if number % 2 else " ." for number in range(count)]
    table = {
        "text": [row + end for row, end in zip(rows, ends, strict=True)],
        "label": [number % 2 for number in range(count)],
    }
    return TextItems(open_dataset(Dataset.from_dict(table)), TOKENIZER)


def test_punctuation_counts() -> None:
    name, metric = baseline(fit(texts(30, 0), balanced=False), texts(20, 2))
    assert name == "NB-SVM on TF-IDF" and metric.names == ("0", "1")
    figures = metric.compute()
    assert figures["accuracy"] == 1 and 0 <= figures["calibration_error"] < 0.5


def test_a_tokenizer_takes_it_along() -> None:
    train, test = texts(30, 0), texts(20, 2)
    tokenizer = train_tokenizer(["a"], "byte")
    tfidf = part_of_the_answer(train, [test], tokenizer, balanced=False)
    assert tokenizer.tfidf is tfidf and train.tfidf_logits is None
    assert torch.equal(test.tfidf_logits, tfidf.logits(whole(test)))  # type: ignore[arg-type]


def test_a_pair_is_read_whole() -> None:
    table = {"text": ["who", "where"], "pair": ["is it", "was it"], "label": [0, 1]}
    columns = {"input": "text", "pair": "pair"}
    items = TextItems(open_dataset(Dataset.from_dict(table), columns=columns), TOKENIZER)
    assert whole(items) == ["who is it", "where was it"]


@pytest.mark.parametrize("right", ["baseline", "net"])
def test_who_is_right_has_the_share(right: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The other answers at random."""
    items = texts(40, 1)
    model = ResidualForSequenceClassification.build(
        rb.BackboneSpec((rb.Stage(8, 1),), dims=1, in_channels=8),
        labels=["0", "1"],
        processor=TOKENIZER,
    )
    tokens = model.embedding.tokens.weight
    answers = torch.where(items.labels.bool(), 1.0, -1.0)
    if right == "net":  # which sees nothing but the last mark
        model.forward = lambda **batch: type(  # type: ignore[method-assign]
            "Output", (), {"logits": answers_of(batch["labels"]), "loss": tokens.sum()}
        )
        answers = torch.randn(40, generator=torch.Generator().manual_seed(0))
    items.tfidf_logits = torch.stack([-answers, answers], 1)
    share_out(model, items, batch_size=16)
    said = capsys.readouterr().out
    if right == "net":
        assert model.config.tfidf == 0.05
        assert said == "NB-SVM on TF-IDF has a share of 5 % in the answers, the net the rest\n"
    else:
        assert model.config.tfidf == 1.0


def answers_of(labels: torch.Tensor) -> torch.Tensor:
    return 5.0 * torch.nn.functional.one_hot(labels, 2) - 2.5
