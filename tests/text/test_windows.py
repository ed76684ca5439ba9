"""Running text keeps every character, in whatever pieces it is tokenized."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from resbackbones.data import open_unlabelled
from resbackbones.errors import InputError
from resbackbones.text import running_text, tokenize, train_tokenizer, windows

LINES = ["to be, or not to be,", "", "  that is the question:", "whether 'tis nobler"]


@pytest.mark.parametrize("kind", ["character", "byte", "bpe", "unigram"])
@pytest.mark.parametrize("block", [5, 2**16])
def test_the_lines_of_files_are_one_text(
    kind: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "BLOCK", block)
    monkeypatch.setattr(windows, "ROWS", 3)
    text = "\n".join(LINES * 3) + "\n"
    (tmp_path / "train.txt").write_text(text)
    (tmp_path / "test.txt").write_text("to be\n")
    sources = open_unlabelled(tmp_path, kind="text")
    assert list(sources) == ["train", "test"] and sources["train"].in_lines
    blocks = list(running_text(sources["train"]))
    assert "".join(piece for _, piece in blocks) == text
    assert [begins for begins, _ in blocks] == [True] + [False] * (len(blocks) - 1)
    assert len(blocks) == 1 or max(len(piece) for _, piece in blocks) <= block
    tokenizer = train_tokenizer([text], kind, add_bos_token=False)
    row = tokenize(sources["train"], tokenizer)
    assert tokenizer.decode(row.tokens.tolist()) == text
    assert (row.characters, row.unknown, row.tokens.dtype) == (len(text), 0, torch.int32)
    if block > len(text):
        assert row.tokens.tolist() == tokenizer(text)["input_ids"]
    beginning, end = row.split(0.25)
    assert torch.equal(torch.cat([beginning.tokens, end.tokens]), row.tokens)
    assert len(end) == round(len(row) / 4)
    assert beginning.characters + end.characters == row.characters


@settings(deadline=None, max_examples=30)
@given(texts=st.lists(st.text("ab \n", max_size=30), min_size=1, max_size=8))
def test_each_row_of_a_table_is_a_text(texts: list[str]) -> None:
    source = open_unlabelled(Dataset.from_dict({"text": texts}), kind="text")["train"]
    tokenizer = train_tokenizer(["ab \n"], "character")
    if not any(texts):
        with pytest.raises(InputError, match="holds no text; give a file with some"):
            tokenize(source, tokenizer)
        return
    wanted = [token for text in texts if text for token in tokenizer(text)["input_ids"]]
    assert tokenize(source, tokenizer).tokens.tolist() == wanted


def test_what_the_tokenizer_does_not_know_is_counted() -> None:
    source = open_unlabelled(Dataset.from_dict({"text": ["abc", None, "cd"]}), kind="text")
    row = tokenize(source["train"], train_tokenizer(["ab"], "character"))
    assert row.unknown == 3 and row.characters == 5 and len(row) == 7
    assert [half.unknown for half in row.split(3 / 7)] == [1, 2]


def test_a_tokenizer_that_cuts_texts_cuts_none_here() -> None:
    source = open_unlabelled(Dataset.from_dict({"text": ["abababab"]}), kind="text")["train"]
    assert len(tokenize(source, train_tokenizer(["ab"], "character", max_length=3))) == 9


def test_what_is_found_out_is_told_and_what_is_missing_refused(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("to be", encoding="utf-16")
    with pytest.warns(UserWarning, match="The text is utf-16, as its first bytes say"):
        found = open_unlabelled(tmp_path, kind="text")
    assert "".join(text for _, text in running_text(found["train"])) == "to be\n"
    splits = DatasetDict({"a": Dataset.from_dict({"x": ["1"]}), "b": Dataset.from_dict({"x": []})})
    with pytest.raises(InputError, match=r"has no 'train' split; name one of 'a', 'b'"):
        open_unlabelled(splits, kind="text")
    splits = DatasetDict({"b": Dataset.from_dict({"one": ["1"], "two": ["2"]})})
    with pytest.raises(InputError, match=r"one.*two"):
        open_unlabelled(splits, kind="text")
    assert open_unlabelled(splits, "two", kind="text")["train"].columns["input"] == "two"


def test_empty_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    with pytest.raises(InputError, match=r"empty\.txt is empty; give a file with text"):
        open_unlabelled(tmp_path / "empty.txt", kind="text")
