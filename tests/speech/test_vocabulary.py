"""Texts of any script become symbols and come back; what has no symbol is told by name."""

import itertools
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from resbackbones.errors import InputError
from resbackbones.speech import CTCTokenizer, given_vocabulary, learn_vocabulary

TEXTS = [
    "Wa bvúlí, mwána!",
    "Ñandú e\u0301té\u2019s co-op",
    "हिन्दी में क्‍षेत्र",
    "Ελλάδα, ναι;",  # noqa: RUF001
    "می\u200cخواهم",  # noqa: RUF001
    "12 mice  (3,5 cats)",
    "",
]
KINDS = [("character", None), ("bpe", 60)]


def as_frames(numbers: list[int], repeats: list[int]) -> list[int]:
    """Each symbol for some frames, and a blank between two of a kind."""
    found = [0]
    for before, number, times in zip([0, *numbers], numbers, repeats, strict=False):
        found += [0] * (before == number) + [number] * times
    return found


@pytest.mark.parametrize(("symbols", "size"), KINDS)
@pytest.mark.parametrize("text", ["letters", "as_written"])
def test_texts_of_any_script_come_back(symbols: str, size: int | None, text: str) -> None:
    tokenizer = learn_vocabulary(TEXTS, symbols, size, text)  # type: ignore[arg-type]
    assert tokenizer.symbols[0] == "[BLANK]" and not tokenizer.unknown(TEXTS)

    @settings(max_examples=30, deadline=None)
    @given(
        st.sampled_from(TEXTS), st.lists(st.integers(1, 3), min_size=40, max_size=40), st.randoms()
    )
    def check(said: str, repeats: list[int], random: object) -> None:
        (numbers,) = tokenizer.encode_all([said])
        assert 0 not in numbers
        assert tokenizer.written(as_frames(numbers, repeats)) == tokenizer.normalized(said)
        assert tokenizer.decode(numbers, group_tokens=False) == tokenizer.normalized(said)

    check()


def test_how_texts_are_normalised() -> None:
    letters, written = (learn_vocabulary(["a"], text=text) for text in ("letters", "as_written"))
    said = "  “Don\u2019t”, SAID the dogs\u2019 \n owner—twice: 'é' e\u0301 rock-'n'-roll! \u200d ▁"
    assert letters.normalized(said) == "don't said the dogs owner twice é é rock n roll"
    assert written.normalized(said) == (
        "“Don\u2019t”, SAID the dogs\u2019 owner—twice: 'é' é rock-'n'-roll! \u200d"
    )
    joined = "क\u094d\u200dष"
    assert letters.normalized(joined) == joined


def test_what_has_no_symbol_is_told_and_left_out() -> None:
    tokenizer = learn_vocabulary(["a cat"], text="as_written")
    assert tokenizer.unknown(["a cät", "Cats, cats"]) == {"s": 2, "ä": 1, "C": 1, ",": 1}
    assert tokenizer.encode_all(["a cät", "xyz"]) == [[2, 1, 3, 4], []]
    # The blank's name is no blank.
    named = learn_vocabulary(["[BLANK]"], text="as_written")
    assert named.encode_all(["[BLANK]"]) == [[7, 3, 5, 2, 6, 4, 8]]


def test_where_symbols_and_words_stand() -> None:
    tokenizer = learn_vocabulary(["a cat"])
    frames = [0, 2, 2, 1, 0, 3, 2, 0, 2, 4]
    offsets = tokenizer.decode(frames, output_char_offsets=True)["char_offsets"]
    assert [tuple(each.values()) for each in offsets] == [
        ("a", 1, 3), (" ", 3, 4), ("c", 5, 6), ("a", 6, 7), ("a", 8, 9), ("t", 9, 10),
    ]  # fmt: skip
    words = tokenizer._get_word_offsets(offsets)
    assert [tuple(word.values()) for word in words] == [("a", 1, 3), ("caat", 5, 10)]
    pieces = given_vocabulary(["▁a", "▁ca", "t", "▁"])
    offsets = pieces.decode([1, 2, 2, 3, 4, 1], output_char_offsets=True)["char_offsets"]
    words = pieces._get_word_offsets(offsets)
    assert [tuple(word.values()) for word in words] == [("a", 0, 1), ("cat", 1, 4), ("a", 5, 6)]


def test_symbols_of_others_keep_their_order() -> None:
    tokenizer = given_vocabulary([" ", *"abc'"])
    assert tokenizer.symbols == ("[BLANK]", "▁", "a", "b", "c", "'")
    assert tokenizer.encode_all(["c'a b"]) == [[4, 5, 2, 1, 3]]
    pieces = given_vocabulary(["▁", "▁the", "t", "h", "e", "at", "▁c"])
    assert pieces.encode_all(["the cat"]) == [[2, 7, 6]]  # as few as will do
    assert pieces.written([2, 2, 7, 0, 6]) == "the cat"


def test_saved_loaded_and_pickled_it_is_the_same(tmp_path: Path) -> None:
    for symbols, size in KINDS:
        tokenizer = learn_vocabulary(TEXTS, symbols, size)  # type: ignore[arg-type]
        tokenizer.save_pretrained(tmp_path / symbols)
        for other in (
            CTCTokenizer.from_pretrained(tmp_path / symbols),
            AutoTokenizer.from_pretrained(tmp_path / symbols),
            pickle.loads(pickle.dumps(tokenizer)),
        ):
            assert isinstance(other, CTCTokenizer) and other.symbols == tokenizer.symbols
            assert other.encode_all(TEXTS) == tokenizer.encode_all(TEXTS)
            assert other.normalized("A  B!") == "a b" and other.pad_token_id == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((["a"], "chars"), "symbols='chars' is not known"),
        ((["a"], "bpe", None, "plain"), "text='plain' is not known"),
        ((["a"], "character", 30), "size=30 is for pieces of words"),
        ((["a"], "bpe", 0), "size=0 is for pieces of words"),
        ((["", " ...!"],), "hold no character"),
    ],
)
def test_bad_input_is_one_sentence(arguments: tuple, said: str) -> None:
    with pytest.raises(InputError, match=said):
        learn_vocabulary(*arguments)


@pytest.mark.parametrize("symbols", [[], ["a", "a"], ["a", ""], ["a", "[BLANK]"], ["a", 1]])
def test_what_are_no_symbols_is_refused(symbols: list) -> None:
    with pytest.raises(InputError, match="no symbols to write with"):
        given_vocabulary(symbols)


def test_pieces_are_as_many_as_asked_for_at_most() -> None:
    texts = ["".join(word) for word in itertools.product("abc", repeat=4)]
    assert len(learn_vocabulary(texts, "bpe", 20)) == 21
    assert len(learn_vocabulary(["ab"], "bpe", 1)) == 4  # each character has a symbol
