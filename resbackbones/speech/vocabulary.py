"""What a recogniser writes with: its symbols, and how a text becomes them and they a text.

A text is normalised first, and a transcript that is scored is normalised alike: `TEXTS` says how.
Symbols are characters of any script, or pieces of words learned from the transcripts (byte-pair
encoding, Sennrich et al. 2016). Symbol 0 is the blank of CTC (Graves et al. 2006).
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Metaspace as MetaspaceDecoder
from tokenizers.models import BPE, Unigram
from tokenizers.normalizers import NFC, Lowercase, Normalizer, Replace, Strip
from tokenizers.normalizers import Sequence as Normalizers
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast, ProcessorMixin

from resbackbones.errors import InputError, nearest
from resbackbones.speech.frontend import ResidualFeatureExtractor

BLANK = "[BLANK]"
SPACE = "▁"  # stands for a space in symbols, as in SentencePiece
PIECES = 256  # learned where nobody says how many
Symbols = Literal["character", "bpe"]
Text = Literal["letters", "as_written"]
TEXTS: dict[str, str] = {
    "as_written": "Unicode's form NFC, with one space for any white space and none at the ends",
    "letters": "lower case letters, marks, digits, and apostrophes and joiners inside words "
    "(the typographic one being '), in Unicode's form NFC; all else, as punctuation, is one "
    "space",
}
# What "letters" leaves out: all but letters, marks and digits, and what stands between them.
_WORD, _INSIDE = r"\p{L}\p{M}\p{N}", r"'\x{200c}\x{200d}"
_OTHERS = rf"(?<![{_WORD}])[{_INSIDE}]|[{_INSIDE}](?![{_WORD}])|[^{_WORD}{_INSIDE}]"


def _normalizer(text: str) -> Normalizer:
    steps: list[Normalizer] = [NFC()]
    if text == "letters":
        steps += [Lowercase(), NFC(), Replace("\u2019", "'"), Replace(Regex(_OTHERS), " ")]
    steps += [Replace(SPACE, " "), Replace(Regex(r"\s+"), " "), Strip()]
    return Normalizers(steps)


class CTCTokenizer(PreTrainedTokenizerFast):
    """From texts to symbols and, of a recogniser's answer per frame, back: runs of one symbol are
    one, and blanks are none.

    Characters that are no symbol of it are left out; `unknown` tells which.

    >>> tokenizer = learn_vocabulary(["A cat!"])
    >>> tokenizer.symbols
    ('[BLANK]', '▁', 'a', 'c', 't')
    >>> tokenizer.encode_all(["a tact"])
    [[2, 1, 4, 2, 3, 4]]
    >>> tokenizer.decode([0, 2, 2, 1, 4, 0, 4, 2])
    'a tta'
    """

    replace_word_delimiter_char = " "  # transformers' pipeline asks for it

    # No __init__ here: with one, transformers would rebuild the tokenizer without its normaliser.

    @property
    def symbols(self) -> tuple[str, ...]:
        """All of them, in the order of their numbers."""
        return tuple(self.convert_ids_to_tokens(list(range(len(self)))))

    def normalized(self, text: str) -> str:
        """A text as it is learned and scored."""
        return self.backend_tokenizer.normalizer.normalize_str(text)

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """The symbols of each text, which never are blanks."""
        self.backend_tokenizer.encode_special_tokens = True  # a blank written out is text
        encodings = self.backend_tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [[number for number in encoding.ids if number] for encoding in encodings]

    def unknown(self, texts: Iterable[str]) -> Counter[str]:
        """How often each character is in texts that no symbol writes.

        >>> learn_vocabulary(["a cat"]).unknown(["act!", "act up"])
        Counter({'u': 1, 'p': 1})
        """
        known = set("".join(self.symbols[1:])) | {" "}
        counts = Counter(itertools.chain.from_iterable(map(self.normalized, texts)))
        return Counter({char: count for char, count in counts.items() if char not in known})

    def runs(self, numbers: Iterable[int]) -> list[tuple[str, int, int]]:
        """Of an answer per frame its symbols, a space in them as such, each with its first frame
        and the one behind its last."""
        found, end = [], 0
        for number, group in itertools.groupby(numbers):
            start, end = end, end + len(list(group))
            if number:
                symbol = self.backend_tokenizer.id_to_token(int(number)) or ""
                found.append((symbol.replace(SPACE, " "), start, end))
        return found

    def written(self, numbers: Iterable[int]) -> str:
        """The text of an answer per frame."""
        return " ".join("".join(symbol for symbol, _, _ in self.runs(numbers)).split())

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        group_tokens: bool = True,
        output_char_offsets: bool = False,
        **options: Any,
    ) -> Any:
        """As transformers' tokenizers for CTC: the text, or with `output_char_offsets` also where
        each symbol stands, in frames; `group_tokens=False` is of symbols, not of frames."""
        numbers = [token_ids] if isinstance(token_ids, int) else token_ids
        if not group_tokens:
            numbers = [each for number in numbers for each in (number, 0)]
        if not output_char_offsets:
            return self.written(numbers)
        names = ("char", "start_offset", "end_offset")
        offsets = [dict(zip(names, run, strict=True)) for run in self.runs(numbers)]
        return {"text": self.written(numbers), "char_offsets": offsets}

    def _get_word_offsets(
        self, offsets: Sequence[dict[str, Any]], word_delimiter_char: str = " "
    ) -> list[dict[str, Any]]:
        """Symbols put together to words: a space, also one that a symbol begins with, ends one."""
        words: list[dict[str, Any]] = []
        inside = False
        for each in offsets:
            first, *others = each["char"].split(word_delimiter_char)
            if first and inside:
                words[-1]["word"] += first
                words[-1]["end_offset"] = each["end_offset"]
            for word in filter(None, others if inside or not first else [first, *others]):
                words.append({"word": word, **{n: each[n] for n in ("start_offset", "end_offset")}})
            inside = not each["char"].endswith(word_delimiter_char)
        return words


def learn_vocabulary(
    texts: Iterable[str],
    symbols: Symbols = "character",
    size: int | None = None,
    text: Text = "letters",
) -> CTCTokenizer:
    """The symbols of some transcripts.

    Args:
        symbols: "character", or "bpe" for pieces of words.
        size: how many pieces, the blank not counted (256; fewer where the texts have no more).
        text: how texts are normalised, before all else and for good; `TEXTS` says it in words.

    Raises:
        InputError: an unknown name, texts without a character, a size that is none or of
            characters, whose number the texts tell.
    """
    for name, given, known in (("symbols", symbols, Symbols), ("text", text, Text)):
        if given not in get_args(known):
            raise InputError(f"{name}={given!r} is not known; {nearest(given, get_args(known))}")
    if size is not None and (symbols == "character" or size < 1):
        raise InputError(
            f"size={size} is for pieces of words, of which there are 1 or more; leave it out, or "
            "give symbols='bpe'"
        )
    normalizer = _normalizer(text)
    normalized = [normalizer.normalize_str(each) for each in texts]
    characters = sorted(set("".join(normalized)) - {" "})
    if not characters:
        raise InputError("the transcripts hold no character to learn; give some with text")
    if symbols == "character":
        return _characters([SPACE, *characters], normalizer)
    tokenizer = Tokenizer(BPE())
    _split_into_words(tokenizer, normalizer)
    wanted = max(PIECES if size is None else size, 1 + len(characters))
    trainer = BpeTrainer(
        vocab_size=1 + wanted,
        special_tokens=[BLANK],
        initial_alphabet=[SPACE, *characters],
        show_progress=False,
    )
    tokenizer.train_from_iterator(normalized, trainer)
    return CTCTokenizer(tokenizer_object=tokenizer, pad_token=BLANK)


def given_vocabulary(symbols: Sequence[str], text: Text = "as_written") -> CTCTokenizer:
    """A tokenizer of these symbols, without the blank, in this order: characters, a space among
    them, or pieces of words, of which "▁" begins a word. It is for models of others.

    Raises:
        InputError: no symbols, one that is none or stands there twice.
    """
    listed = [symbol.replace(" ", SPACE) for symbol in symbols if isinstance(symbol, str)]
    if not listed or len(set(listed) - {"", BLANK}) < len(symbols):
        raise InputError(
            f"{list(symbols)!r:.60} are no symbols to write with; give different texts, and leave "
            "the blank out"
        )
    normalizer = _normalizer(text)
    if all(len(symbol) == 1 for symbol in listed):
        return _characters(listed, normalizer)
    # As few pieces as will do; what none writes is a blank, which encoding leaves out.
    tokenizer = Tokenizer(Unigram([(symbol, -1.0) for symbol in (BLANK, *listed)], unk_id=0))
    _split_into_words(tokenizer, normalizer)
    return CTCTokenizer(tokenizer_object=tokenizer, pad_token=BLANK)


def _characters(symbols: Sequence[str], normalizer: Normalizer) -> CTCTokenizer:
    numbers = {symbol: number for number, symbol in enumerate([BLANK, *symbols])}
    tokenizer = Tokenizer(BPE(numbers, []))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = Metaspace(SPACE, prepend_scheme="never", split=False)
    return CTCTokenizer(tokenizer_object=tokenizer, pad_token=BLANK)


def _split_into_words(tokenizer: Tokenizer, normalizer: Normalizer) -> None:
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = Metaspace(SPACE, prepend_scheme="always")
    tokenizer.decoder = MetaspaceDecoder(SPACE, prepend_scheme="always")


class ResidualCTCProcessor(ProcessorMixin):
    """What a recogniser hears by, and what it writes with, saved and loaded together.

    Args:
        feature_extractor: from waveforms to features.
        tokenizer: from transcripts to symbols and back.
    """

    def __init__(
        self, feature_extractor: ResidualFeatureExtractor, tokenizer: CTCTokenizer
    ) -> None:
        super().__init__(feature_extractor, tokenizer)

    def __call__(self, audio: Any = None, sampling_rate: int | None = None, **options: Any) -> Any:
        """Features of clips, as the feature extractor makes them."""
        return self.feature_extractor(audio, sampling_rate, **options)
