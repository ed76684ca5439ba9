"""Backoff models tell what an ARPA file says, whoever wrote it, and what Kneser and Ney would."""

import gzip
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resbackbones.errors import InputError
from resbackbones.ngrams import BackoffModel, Trie

SENTENCES = ["the cat sat", "the cat ran", "a dog sat on the mat", "the", ""]
# As SRILM writes one: no unknown word, backoffs left out where they are 1, blanks for tabs, and
# without "b a", which a pruned model may lack though "b a b" is there.
SRILM = """
\\data\\
ngram 1=4
ngram 2=3
ngram 3=1

\\1-grams:
-0.5 </s>
-99 <s> -0.3
-0.4 a -0.2
-0.6 b

\\2-grams:
-0.3 <s> a -0.1
-0.2 a b
-0.7 b </s>

\\3-grams:
-0.05 b a b

\\end\\
"""
Gram = tuple[str, ...]


def tables(text: str) -> tuple[dict[Gram, float], dict[Gram, float]]:
    """The probabilities and the backoffs that an ARPA file lists, line by line."""
    told: dict[Gram, float] = {}
    weights: dict[Gram, float] = {}
    length = 0
    for line in text.splitlines():
        fields = line.split()
        if line.endswith("-grams:"):
            length += 1
        elif length and len(fields) > length:
            gram = tuple(fields[1 : 1 + length])
            told[gram] = float(fields[0])
            if len(fields) > 1 + length:
                weights[gram] = float(fields[-1])
    return told, weights


def katz(told: dict[Gram, float], weights: dict[Gram, float], words: Gram) -> float:
    """The decimal logarithm of the last word's probability behind the others, by recursion."""
    if words in told:
        return told[words]
    return weights.get(words[:-1], 0.0) + katz(told, weights, words[1:])


def by_hand(sentences: list[Gram], order: int, vocabulary: list[str], words: Gram) -> float:
    """Interpolated modified Kneser-Ney, as Chen & Goodman and Heafield et al. write it."""
    stands = {
        n: Counter(s[i : i + n] for s in sentences for i in range(len(s) - n + 1))
        for n in range(1, order + 1)
    }
    counts = {order: stands[order]}
    for length in range(1, order):
        counts[length] = Counter(gram[1:] for gram in stands[length + 1])
        for gram in stands[length]:
            if gram[0] == "<s>":
                counts[length][gram] = stands[length][gram]
    counts[1]["<s>",] = 0
    found = 1 / (len(vocabulary) - 1)
    for length in range(1, len(words) + 1):
        context = words[len(words) - length : -1]
        inside = {g: c for g, c in counts[length].items() if g[:-1] == context}
        if not (whole := sum(inside.values())):
            continue
        n = [sum(c == k for c in counts[length].values()) for k in range(5)]
        taken = [0.0, 0.5, 1.0, 1.5]
        if min(n[1:]):
            share = n[1] / (n[1] + 2 * n[2])
            formula = [k - (k + 1) * share * n[k + 1] / n[k] for k in (1, 2, 3)]
            taken = taken if min(formula) <= 0 else [0.0, *formula]
        count = inside.get((*context, words[-1]), 0)
        rest = sum(taken[min(c, 3)] for c in inside.values())
        found = (count - taken[min(count, 3)] + rest * found) / whole
    return found


@settings(max_examples=25)
@given(
    st.lists(st.text("abc", max_size=8), min_size=2, max_size=30),
    st.integers(1, 4),
    st.booleans(),
    st.lists(st.sampled_from(["a", "b", "c", "<unk>"]), max_size=3),
)
def test_it_tells_what_the_papers_tell(
    texts: list[str], order: int, begins: bool, before: list[str]
) -> None:
    texts = [*texts, "abca"]
    model = BackoffModel.fit(texts, order)
    sentences = [("<s>", *text, "</s>") for text in texts]
    state = torch.tensor(model.start if begins else 0)
    for word in before:
        _, state = model.score(state, torch.tensor(model.ids[word]))
    before = ["<s>"] * begins + before
    context = tuple(before)[max(0, len(before) - order + 1) :]
    whole = 0.0
    for word in set(model.vocabulary) - {"<s>"}:
        found = float(model.score(state, torch.tensor(model.ids[word]))[0].exp())
        wanted = by_hand(sentences, order, list(model.vocabulary), (*context, word))
        assert found == pytest.approx(wanted, rel=1e-5)
        whole += found
    assert whole == pytest.approx(1, abs=1e-5)


def test_probabilities_of_two_sentences_by_hand() -> None:
    """Discounts where counts tell none are 0.5, 1 and 1.5. Of 1-grams: a stands behind <s> alone, b
    behind a, </s> behind a and b; uniform 1/4, as <s> is never told. Of 2-grams: <s> a twice."""
    model = BackoffModel.fit(["a", "ab"], 2)

    def told(*words: str) -> float:
        return 10 ** float(model.log_probs[node(model, words)])

    rest = (0.5 + 0.5 + 1.0) / 4 * (1 / 4)
    assert told("<unk>") == pytest.approx(rest)
    assert told("a") == pytest.approx(0.5 / 4 + rest)
    assert told("</s>") == pytest.approx(1.0 / 4 + rest)
    assert told("<s>", "a") == pytest.approx(1.0 / 2 + 1.0 / 2 * told("a"))
    assert told("a", "b") == pytest.approx(0.5 / 2 + 1.0 / 2 * told("b"))
    assert told("b", "</s>") == pytest.approx(0.5 / 1 + 0.5 / 1 * told("</s>"))
    assert 10 ** float(model.backoffs[node(model, ("<s>",))]) == pytest.approx(0.5)
    wanted = told("<s>", "a") * told("a", "b") * told("b", "</s>")
    assert float(model.log_probs_of(["ab"])) == pytest.approx(math.log(wanted), rel=1e-6)


def node(model: BackoffModel, words: tuple[str, ...]) -> int:
    found = torch.tensor(0)
    for word in words:
        found = model.trie.find(found, torch.tensor(model.ids[word]))
    return int(found)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_every_state_tells_all_words_and_rows_are_scores(order: int) -> None:
    model = BackoffModel.fit([s.split() for s in SENTENCES], order)
    assert model.order == order == len(model.sizes)
    size = len(model.vocabulary)
    words = torch.arange(size)
    nodes = torch.arange(len(model.trie)) if order > 1 else torch.tensor([0])
    states = model._after[nodes].unique()
    scores, after = model.score(states[:, None].expand(-1, size), words.expand(len(states), -1))
    assert scores.exp().sum(1).tolist() == pytest.approx([1.0] * len(states), abs=1e-5)
    assert set(after.unique().tolist()) <= set(states.tolist()) | {0}
    rows = model.rows(states, words)
    assert torch.allclose(rows, scores, rtol=1e-5, atol=1e-4)
    some = torch.tensor([4, 0, 4, 2])
    assert torch.equal(model.rows(states, some), rows[:, some])


@pytest.mark.parametrize("name", ["model.arpa", "model.arpa.gz"])
def test_what_was_written_is_read_to_the_bit(tmp_path: Path, name: str) -> None:
    model = BackoffModel.fit(["a cat", "a dog", "the cat sat on the mat"], 4)
    model.write(tmp_path / name)
    read = BackoffModel.read(tmp_path / name)
    assert read.vocabulary == model.vocabulary and " " in read.vocabulary
    assert (read.order, read.sizes, read.start) == (4, model.sizes, model.start)
    for part in ("log_probs", "backoffs", "shorter"):
        assert torch.equal(getattr(read, part), getattr(model, part))
    raw = (tmp_path / name).read_bytes()
    text = (gzip.decompress(raw) if name.endswith("gz") else raw).decode()
    told, weights = tables(text)
    assert len(told) == sum(model.sizes)
    history = ["<s>"]
    total = 0.0
    for word in [*"a cat zoo", "</s>"]:
        word = {" ": "<space>", "z": "<unk>"}.get(word, word)
        history.append(word)
        total += katz(told, weights, tuple(history[-4:]))
    assert float(model.log_probs_of(["a cat zoo"])) == pytest.approx(total * math.log(10), rel=1e-6)


def test_files_of_other_tools_are_read(tmp_path: Path) -> None:
    (tmp_path / "pruned.arpa").write_text(SRILM)
    model = BackoffModel.read(tmp_path / "pruned.arpa")
    assert model.vocabulary == ("</s>", "<s>", "a", "b", "<unk>")
    assert model.sizes == [5, 4, 1]
    told, weights = tables(SRILM)
    told["<unk>",] = -100.0
    for text in ("ab", "bab", "abab", "bb", "xa", ""):
        words = ["<s>", *("<unk>" if c == "x" else c for c in text), "</s>"]
        wanted = sum(
            katz(told, weights, tuple(words[max(0, i - 2) : i + 1])) for i in range(1, len(words))
        )
        assert float(model.log_probs_of([text])) == pytest.approx(wanted * math.log(10), rel=1e-5)
    (tmp_path / "upper.arpa").write_text("\\data\\\nngram 1=1\n\\1-grams:\n-0.5\t<UNK>\n\\end\\")
    model = BackoffModel.read(tmp_path / "upper.arpa")
    assert model.vocabulary == ("<unk>",) and model.start == 0
    assert float(model.log_probs_of(["x"])) == pytest.approx(-0.5 * math.log(10))


@pytest.mark.parametrize(
    ("given", "instead", "message"),
    [
        ("ngram 2=3\n", "", "line 4, is not of an ARPA file: the count of 2-grams is missing"),
        ("-0.2 a b", "-0.2 a b c d", "line 15, is not of an ARPA file: 2 words were expected"),
        ("-0.2 a b", "0.7 a b", "line 15, .* its numbers are no logarithms"),
        ("-0.2 a b", "x a b", "line 15, .* its numbers are no logarithms"),
        ("-0.2 a b", "-0.2 a c", "has an n-gram of 'c', which is none of its 1-grams"),
        ("-0.2 a b\n", "", "1 more 2-grams were expected"),
        ("\\2-grams:", "\\3-grams:", "\\\\2-grams: was expected"),
        ("\\end\\", "", "it ends before its n-grams do"),
        ("\\end\\", "-1 a a a\n\\end\\", "no further n-gram was expected"),
        (SRILM, "not a model", "it ends before its n-grams do"),
    ],
)
def test_a_file_that_is_none_is_refused(
    tmp_path: Path, given: str, instead: str, message: str
) -> None:
    (tmp_path / "bad.arpa").write_text(SRILM.replace(given, instead))
    with pytest.raises(InputError, match=message):
        BackoffModel.read(tmp_path / "bad.arpa")


def test_other_bad_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.arpa is no file; give the path of an ARPA file"):
        BackoffModel.read(tmp_path / "none.arpa")
    (tmp_path / "bytes.arpa").write_bytes(b"mmap lm \xff\xfe\x00")
    with pytest.raises(InputError, match=r"is no ARPA file: .* give one in UTF-8"):
        BackoffModel.read(tmp_path / "bytes.arpa")
    with pytest.raises(InputError, match="there is no sentence to count n-grams of"):
        BackoffModel.fit([], 2)
    with pytest.raises(InputError, match="sentence 1 holds '</s>', which stands for its edge"):
        BackoffModel.fit([["a"], ["b", "</s>"]], 2)
    with pytest.raises(
        InputError, match=r"no sentence is long enough for n-grams of 5; .* up to 4"
    ):
        BackoffModel.fit(["ab", "c"], 5)
    with pytest.raises(InputError, match="there is no sentence to tell"):
        BackoffModel.fit(["ab"], 2).perplexity([])
    with pytest.raises(InputError, match=r"the token '\\t' has white space or nothing in it"):
        BackoffModel.fit(["a\tb"], 2).write(tmp_path / "blank.arpa")


def test_words_outside_a_vocabulary_are_unknown_ones() -> None:
    model = BackoffModel.fit([s.split() for s in SENTENCES], 2, vocabulary=["the", "cat"])
    assert model.vocabulary == ("<unk>", "<s>", "</s>", "cat", "the")
    told = model.log_probs_of([["the", "mat"], ["the", "dog"], ["the"]])
    assert told[0] == told[1]
    goes_on = model.log_probs_of([["the"]], end=False)
    assert float(told[2]) < float(goes_on)
    wanted = math.exp(-float(told.sum()) / (2 + 2 + 1 + 3))
    assert model.perplexity([["the", "mat"], ["the", "dog"], ["the"]]) == pytest.approx(wanted)
    assert model.to("cpu") is model


def test_sequences_are_told_alone_as_together() -> None:
    model = BackoffModel.fit(["abcab", "bca", "cab"], 3)
    texts = ["", "a", "abcabc", "zab"]
    each = [float(model.log_probs_of([text])) for text in texts]
    assert model.log_probs_of(texts).tolist() == each


def test_a_trie_is_a_tree_of_its_sequences() -> None:
    words = ["a", "ab", "abc", "b", "", "ab"]
    trie, ends = Trie.of([[ord(c) - 97 for c in word] for word in words], 3)
    assert len(trie) == 5 and ends[4] == 0 and ends[1] == ends[5]
    rows, symbols, nodes = trie.children(torch.tensor([int(ends[2]), 0, len(trie), int(ends[0])]))
    assert rows.tolist() == [1, 1, 3] and symbols.tolist() == [0, 1, 1]
    assert nodes.tolist() == [int(ends[0]), int(ends[3]), int(ends[1])]
    empty, _ = Trie.of([], 3)
    assert len(empty) == 1 and empty.find(torch.tensor([0]), torch.tensor([1])).tolist() == [-1]
    assert all(len(part) == 0 for part in empty.children(torch.tensor([0, 1])))
