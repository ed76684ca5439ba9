"""From texts to tokens: characters, bytes, words or pieces of words, learned by one function.

The answer is a transformers fast tokenizer, saved and loaded like any other. Each text begins with
a `[BOS]` token, so that even an empty one is a position for the net to look at; of a pair, the one
before the second text separates the two. Special tokens written out in a text are text. The length
that texts are cut to belongs to the tokenizer, so that a saved model, in a pipeline too, reads as
much of a text as its training did.
"""

import dataclasses
import inspect
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.decoders import Fuse
from tokenizers.models import BPE, Model, Unigram, WordLevel
from tokenizers.normalizers import NFC, Lowercase
from tokenizers.normalizers import Sequence as Normalizers
from tokenizers.pre_tokenizers import ByteLevel, Split, Whitespace
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer, Trainer, UnigramTrainer, WordLevelTrainer
from transformers import BatchEncoding, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import LARGE_INTEGER

from resbackbones.errors import InputError, nearest
from resbackbones.text.tfidf import TfidfClassifier

PAD, UNKNOWN, BEGIN = "[PAD]", "[UNK]", "[BOS]"
BYTES = len(ByteLevel.alphabet()) + 2  # tokens that spell any text: every byte, PAD and BEGIN


@dataclass(frozen=True)
class Ngrams:
    """Which character n-grams of a word get a number (Bojanowski et al. 2017, section 3.2).

    A word stands between angle brackets, `<word>`, so that its ends differ from its inside. The
    number is a hash, so every word has n-grams, also one that training never saw.

    Attributes:
        buckets: numbers to hash to; n-grams that fall together cannot be told apart.
        shortest, longest: characters of an n-gram.
        most: n-grams a word; of a long word the shortest ones from its beginning.

    >>> Ngrams(buckets=1000, most=8).of_word("cat")  # <ca cat at> <cat cat>
    (525, 833, 277, 680, 240, 0, 0, 0)

    Raises:
        InputError: a number below 1, or the shortest longer than the longest.
    """

    buckets: int = 32768
    shortest: int = 3
    longest: int = 4
    most: int = 24

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not isinstance(value, int) or value < 1:
                raise InputError(f"Ngrams has {name}={value!r}; use a whole number from 1 up")
        if self.shortest > self.longest:
            raise InputError(
                f"Ngrams has shortest={self.shortest} above longest={self.longest}; exchange them"
            )

    def of_word(self, word: str) -> tuple[int, ...]:
        """The numbers of a word's n-grams, 1 to `buckets`, filled up to `most` with 0."""
        return _ngrams_of_word(self, word)

    @property
    def of_nothing(self) -> tuple[int, ...]:
        """The row of a special token or of padding: `most` zeros."""
        return (0,) * self.most


@lru_cache(maxsize=1 << 17)
def _ngrams_of_word(options: Ngrams, word: str) -> tuple[int, ...]:
    marked = f"<{word}>"
    found = [
        # CRC-32 is the same on every machine; Python's own hash of a string is not.
        1 + zlib.crc32(marked[start : start + size].encode()) % options.buckets
        for size in range(options.shortest, options.longest + 1)
        for start in range(len(marked) - size + 1)
    ][: options.most]
    return (*found, *(0,) * (options.most - len(found)))


class TextTokenizer(PreTrainedTokenizerFast):
    """A tokenizer that cuts texts at its `model_max_length` unless told otherwise.
    `train_tokenizer` makes it.

    With a `tfidf` it gives, beside `input_ids` `(B, T)`, what that classifier makes of the whole
    texts, cut or not: `tfidf_logits` `(B, K)`.
    """

    vocab_files_names = {  # noqa: RUF012 (their form)
        "tokenizer_file": "tokenizer.json",
        "tfidf_file": TfidfClassifier.FILE,
    }
    _tfidf: TfidfClassifier | None = None

    # No __init__ here: with one, transformers would rebuild the tokenizer without its normaliser.

    @property
    def tfidf(self) -> TfidfClassifier | None:
        """The classifier that answers beside the net of a model; saved with the tokenizer.

        Raises:
            InputError: its file is damaged.
        """
        if file := self.init_kwargs.pop("tfidf_file", None):  # as it was loaded from
            self._tfidf = TfidfClassifier.load(file)
        return self._tfidf

    @tfidf.setter
    def tfidf(self, tfidf: TfidfClassifier | None) -> None:
        self.init_kwargs.pop("tfidf_file", None)
        self._tfidf = tfidf

    def __call__(
        self,
        text: str | Sequence[Any],
        text_pair: str | Sequence[str] | None = None,
        *,
        truncation: Any = None,
        return_tensors: str | None = None,
        **options: Any,
    ) -> BatchEncoding:
        """Tokenize one text or several, or pairs of them, of which the longer is cut first; options
        are those of any transformers tokenizer.

        Raises:
            InputError: words already split, where whole texts are needed.
        """
        truncation = cuts(self) if truncation is None else truncation
        encoded = super().__call__(text, text_pair, truncation=truncation, **options)
        single = isinstance(text, str)
        if self.tfidf is not None:
            if options.get("is_split_into_words"):
                raise InputError(
                    "a tokenizer with a TF-IDF classifier takes whole texts; leave out "
                    "is_split_into_words"
                )
            logits = self.tfidf.logits(list(map(" ".join, _parts(text, text_pair)))).tolist()
            encoded["tfidf_logits"] = logits[0] if single else logits
        return encoded.convert_to_tensors(return_tensors, prepend_batch_axis=single)

    def _save_pretrained(self, save_directory: Any, *arguments: Any, **options: Any) -> Any:
        """Called by `save_pretrained`."""
        files = super()._save_pretrained(save_directory, *arguments, **options)
        place = Path(save_directory) / TfidfClassifier.FILE
        if self.tfidf is None:
            place.unlink(missing_ok=True)  # of what was saved there before
            return files
        self.tfidf.save(place)
        return (*files, str(place))


class NgramTokenizer(TextTokenizer):
    """A word tokenizer that gives, beside `input_ids` `(B, T)`, the character n-grams of each word:
    `ngram_ids` `(B, T, N)`, 0 where there is none. `train_tokenizer` makes it."""

    model_input_names = ["input_ids", "attention_mask", "ngram_ids"]  # noqa: RUF012 (their form)

    @property
    def ngrams(self) -> Ngrams:
        """Which n-grams; saved with the tokenizer."""
        return Ngrams(**self.init_kwargs["ngram_options"])

    def __call__(
        self,
        text: str | Sequence[Any],
        text_pair: str | Sequence[str] | None = None,
        *,
        is_split_into_words: bool = False,
        return_overflowing_tokens: bool = False,
        return_tensors: str | None = None,
        **options: Any,
    ) -> BatchEncoding:
        """Tokenize one text or several, or pairs; options are those of any transformers tokenizer.

        Raises:
            InputError: words already split, or a request for what was cut off.
        """
        if is_split_into_words or return_overflowing_tokens:
            raise InputError(
                "a tokenizer with n-grams takes whole texts; leave out is_split_into_words and "
                "return_overflowing_tokens"
            )
        encoded = super().__call__(text, text_pair, **options)
        single = isinstance(text, str)
        rows = [
            self._ngram_rows(encoding, parts)
            for encoding, parts in zip(
                encoded.encodings or (), _parts(text, text_pair), strict=True
            )
        ]
        encoded["ngram_ids"] = rows[0] if single else rows
        return encoded.convert_to_tensors(return_tensors, prepend_batch_axis=single)

    def _ngram_rows(self, encoding: Encoding, texts: Sequence[str]) -> list[tuple[int, ...]]:
        ngrams, normalizer = self.ngrams, self.backend_tokenizer.normalizer
        return [
            # From the text itself, where an unknown word still stands; padding and special tokens
            # are of no text.
            ngrams.of_nothing
            if number is None
            else ngrams.of_word(normalizer.normalize_str(texts[number][start:end]))
            for (start, end), number in zip(encoding.offsets, encoding.sequence_ids, strict=True)
        ]

    def _pad(self, encoded_inputs: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Called by `pad`, and so by transformers' collators."""
        padded = super()._pad(encoded_inputs, *arguments, **options)
        if "ngram_ids" in padded:
            missing = len(padded["input_ids"]) - len(padded["ngram_ids"])
            padded["ngram_ids"] = [*padded["ngram_ids"], *[self.ngrams.of_nothing] * missing]
        return padded


def _parts(
    text: str | Sequence[Any], text_pair: str | Sequence[str] | None
) -> Iterator[tuple[str, ...]]:
    """Each item's texts, one or, of a pair, two."""
    texts = [text] if isinstance(text, str) else text
    others = [text_pair] if isinstance(text_pair, str) else text_pair
    for number, each in enumerate(texts):
        own = (each,) if isinstance(each, str) else tuple(each)
        yield own if others is None else (*own, others[number])


def character(
    vocab_size: int = 5000, min_frequency: int = 1, lowercase: bool = False
) -> tuple[Tokenizer, Trainer]:
    """Every character is a token, spaces and line ends too; rare ones are unknown."""
    tokenizer = _blank(WordLevel(unk_token=UNKNOWN), lowercase)
    tokenizer.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = Fuse()
    return tokenizer, _most_frequent(vocab_size, min_frequency)


def byte() -> tuple[Tokenizer, Trainer]:
    """Every byte of the UTF-8 text is a token: nothing is learned, and nothing unknown."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    return tokenizer, _byte_pairs(BYTES, 1)  # so no pair is merged


def word(
    vocab_size: int = 50000,
    min_frequency: int = 1,
    lowercase: bool = False,
) -> tuple[Tokenizer, Trainer]:
    """Runs of letters and digits, and runs of other signs, are tokens; rare ones are unknown."""
    tokenizer = _blank(WordLevel(unk_token=UNKNOWN), lowercase)
    tokenizer.pre_tokenizer = Whitespace()
    return tokenizer, _most_frequent(vocab_size, min_frequency)


def bpe(
    vocab_size: int = 8000, min_frequency: int = 2, lowercase: bool = False
) -> tuple[Tokenizer, Trainer]:
    """Byte-pair encoding of bytes (Sennrich et al. 2016; Radford et al. 2019): a frequent word is
    one token, a rare one several, nothing is unknown."""
    return _blank_of_bytes(BPE(), vocab_size, lowercase), _byte_pairs(vocab_size, min_frequency)


def unigram(vocab_size: int = 8000, lowercase: bool = False) -> tuple[Tokenizer, Trainer]:
    """Pieces of words, over bytes, that make the texts most likely under a unigram language model
    (Kudo 2018, section 3.2): words are cut into likely pieces, nothing is unknown."""
    trainer = UnigramTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BEGIN],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    return _blank_of_bytes(Unigram(), vocab_size, lowercase), trainer


# A kind's parameters are the options it reads; any other is refused.
KINDS: dict[str, Callable[..., tuple[Tokenizer, Trainer]]] = {
    "character": character,
    "byte": byte,
    "word": word,
    "bpe": bpe,
    "unigram": unigram,
}


def train_tokenizer(
    texts: Iterable[str],
    kind: str = "word",
    *,
    max_length: int | None = None,
    ngrams: Ngrams | None = None,
    add_bos_token: bool = True,
    **options: Any,
) -> TextTokenizer:
    """Learn a tokenizer from texts. The same texts give the same tokenizer.

    Args:
        texts: what to learn the vocabulary from: the training split's, not the others'.
        kind: "character", "byte", "word", "bpe" or "unigram".
        max_length: tokens of a text, or a pair, at most, each `[BOS]` included; the rest is cut
            off, in training and wherever the saved model reads. It is the tokenizer's
            `model_max_length`. None reads texts of any length whole.
        ngrams: also give each word's character n-grams (kind "word" alone).
        add_bos_token: whether each text begins with `[BOS]`; not for pieces of one long text. The
            second text of a pair always does.
        options: of all kinds but "byte": `vocab_size` (tokens at most, special ones included) and
            `lowercase`; of "character", "word" and "bpe" also `min_frequency` (rarer ones are left
            out).

    Raises:
        InputError: an unknown kind, an option it does not read, a vocab_size that does not hold
            every byte (bpe, unigram), a max_length below 2, one text where several are expected,
            something among them that is no text, or no text to learn from.

    >>> tokenizer = train_tokenizer(["to be or not to be"], "word")
    >>> tokenizer("to see or not to see")["input_ids"]
    [2, 4, 1, 6, 5, 4, 1]
    >>> train_tokenizer([], "byte")("hé")["input_ids"]
    [1, 73, 129, 104]
    """
    if kind not in KINDS:
        raise InputError(f"a tokenizer of kind {kind!r} is not known; {nearest(kind, KINDS)}")
    known = list(inspect.signature(KINDS[kind]).parameters)
    for name in options:
        if name not in known:
            raise InputError(
                f"the {kind} tokenizer has no option {name!r}; "
                + (nearest(name, known) if known else "leave it out")
            )
    for name in ("vocab_size", "min_frequency"):
        if name in options and (not isinstance(options[name], int) or options[name] < 1):
            raise InputError(f"{name}={options[name]!r} is not a count; use a whole number above 0")
    if max_length is not None and (not isinstance(max_length, int) or max_length < 2):
        raise InputError(
            f"max_length={max_length!r} leaves no room for a text; use 2 or more, or None"
        )
    if isinstance(texts, str | bytes):
        raise InputError(
            f"{texts!r:.40} is one text, whose letters would be learned; give a list of texts"
        )
    if ngrams is not None and kind != "word":
        raise InputError(f"n-grams are parts of words; use kind='word' with them, not {kind!r}")
    tokenizer, trainer = KINDS[kind](**options)
    tokenizer.train_from_iterator(_checked(texts), trainer)
    if kind == "unigram":
        tokenizer.model = _in_order(tokenizer)
    special = {"pad_token": PAD, "unk_token": UNKNOWN, "bos_token": BEGIN}
    special = {n: t for n, t in special.items() if tokenizer.token_to_id(t) is not None}
    if tokenizer.get_vocab_size() == len(special) and ngrams is None:
        raise InputError(
            "there is nothing to learn a vocabulary from; give texts with words, or a lower "
            "min_frequency"
        )
    first = f"{BEGIN} $A" if add_bos_token else "$A"
    begin = [(BEGIN, tokenizer.token_to_id(BEGIN))]
    tokenizer.post_processor = TemplateProcessing(
        single=first, pair=f"{first} {BEGIN} $B", special_tokens=begin
    )
    settings: dict[str, Any] = {
        **special,
        "tokenizer_object": tokenizer,
        "split_special_tokens": True,
        "padding_side": "right",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
    }
    if ngrams is None:
        return TextTokenizer(**settings)
    return NgramTokenizer(**settings, ngram_options=dataclasses.asdict(ngrams))


def cuts(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether there is a length that the tokenizer cuts texts at."""
    return tokenizer.model_max_length <= LARGE_INTEGER  # beyond, transformers takes it for none


def _checked(texts: Iterable[Any]) -> Iterator[str]:
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str):
            raise InputError(f"text {number} is {text!r:.40}, no text; leave it out, or repair it")
        yield text


def _in_order(tokenizer: Tokenizer) -> Unigram:
    """The unigram model of a tokenizer, the same for the same texts: the trainer's own differs from
    run to run in the order of its pieces, in the last digits of their scores and in the scores of
    the bytes that no text held, each 0.0001 above the one before."""
    special: list[tuple[str, float]] = []
    pieces: list[tuple[str, float]] = []
    for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"]:
        (special if piece in (PAD, BEGIN) else pieces).append((piece, round(score, 6)))
    least = min(score for _, score in pieces)
    unseen = least + 0.0001 * (BYTES + 1)
    found = [(p, least if len(p) == 1 and score < unseen else score) for p, score in pieces]
    return Unigram([*special, *sorted(found, key=lambda each: (-each[1], each[0]))])


def _blank_of_bytes(model: Model, vocab_size: int, lowercase: bool) -> Tokenizer:
    if vocab_size < BYTES:
        raise InputError(
            f"vocab_size={vocab_size} cannot hold every byte; use {BYTES} or more, or kind='word'"
        )
    tokenizer = _blank(model, lowercase)
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    return tokenizer


def _blank(model: Model, lowercase: bool) -> Tokenizer:
    """One spelling for what looks the same (Unicode NFC), before anything is split."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = Normalizers([NFC(), Lowercase()] if lowercase else [NFC()])
    return tokenizer


def _most_frequent(vocab_size: int, min_frequency: int) -> Trainer:
    return WordLevelTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[PAD, UNKNOWN, BEGIN],
        show_progress=False,
    )


def _byte_pairs(vocab_size: int, min_frequency: int) -> Trainer:
    return BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[PAD, BEGIN],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )


__all__: Sequence[str] = ("KINDS", "NgramTokenizer", "Ngrams", "TextTokenizer", "train_tokenizer")
