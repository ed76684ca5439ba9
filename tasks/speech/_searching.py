"""How `transcribe` finds texts in what a net says of each frame: greedily, by a beam search, and by
one that knows the language."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from torch.utils.data import Subset

from resbackbones.errors import InputError
from resbackbones.ngrams import BackoffModel
from resbackbones.ngrams.backoff import END, START, UNKNOWN
from resbackbones.speech import CTCTokenizer, ResidualForCTC, TranscriptItems
from resbackbones.speech.beam import BeamSearch, Unit
from resbackbones.speech.decode import greedy
from resbackbones.speech.fusion import SPACES
from resbackbones.speech.recognition import Search
from resbackbones.train import World, evaluate
from tasks._fields import Recipe
from tasks._running import wrapped
from tasks._telling import SEARCHES

NGRAMS = "ngrams.arpa"  # beside a model: those it was trained with
FIGURES = tuple(f"{rate}_{name}" for name in SEARCHES for rate in ("cer", "wer"))
ORDERS: dict[Unit, int] = {"token": 6, "word": 3}
# Weights of the language model, and bonuses per token or word, to choose from; and what is taken
# where there is nothing to choose by.
GRIDS: dict[Unit, tuple[Sequence[float], Sequence[float]]] = {
    "token": ((0.3, 0.6, 0.9, 1.3), (0.0, 1.0, 2.0)),
    "word": ((0.3, 0.6, 1.0, 1.5), (0.0, 1.0, 2.0)),
}
USUAL: dict[Unit, tuple[float, float]] = {"token": (0.6, 1.0), "word": (0.6, 1.0)}
CHOOSE = 256  # recordings that weights are chosen by, at most


@dataclass(frozen=True, kw_only=True)
class Searching(Recipe):
    """The fields of a recipe whose models write down what they hear."""

    search: Literal["greedy", "beam"] = "greedy"
    """How the text is found that counts: by the likeliest symbol of each frame, or as the likeliest
    of many texts ("beam"); after a training, errors of both are told."""
    beam_width: int = 16
    """Beginnings of texts that a beam search keeps."""
    language_model: str = "train"
    """What a beam search knows of the language: n-grams of the training texts ("train"; they are
    saved with the model, and used with it), an ARPA file, or nothing ("none")."""
    lm_unit: Unit | None = None
    """What it tells: words, or the net's symbols ("token") (train: symbols; a file: found)."""
    lm_order: int | None = None
    """Of n-grams of the training texts (6 of symbols, 3 of words)."""
    lm_weight: float | None = None
    """Of the language model beside the net (chosen on the validation split)."""
    length_bonus: float | None = None
    """For each symbol or word, as the language model tells them (chosen on the validation
    split)."""
    lexicon: Path | None = None
    """The words that a beam search may write: a file with one in front on each line."""
    hot_words: tuple[str, ...] = ()
    """Words that a beam search expects more than others."""
    hot_word_bonus: float = 5.0
    """For each of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("beam_width", "lm_order"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{_flag(name)} is {value}; give a number from 1 up")
        if self.lm_weight is not None and not 0 <= self.lm_weight < math.inf:
            raise InputError(f"--lm-weight is {self.lm_weight}; give a number from 0 up")
        for name in ("length_bonus", "hot_word_bonus"):
            if (value := getattr(self, name)) is not None and not math.isfinite(value):
                raise InputError(f"{_flag(name)} is {value}; give a finite number")
        if self.search == "greedy" and (self.predict or self.evaluate):
            for field in fields(Searching):
                if field.name in Searching.__annotations__ and (
                    getattr(self, field.name) != field.default
                ):
                    raise InputError(
                        f"{_flag(field.name)} is for a beam search, and a saved model writes "
                        "greedily; add --search beam"
                    )

    @property
    def variant(self) -> str:
        known = "" if self.language_model == "none" else "-ngrams"
        return super().variant + ("" if self.search == "greedy" else f"-beam{known}")


class Searches:
    """The searches that a configuration asks for.

    Args:
        config: how they search.
        tokenizer: by whose symbols.
        lm: the language model; None for none.
        unit: what it tells.
        weights: its weight and the bonus; None for the usual ones.

    Raises:
        InputError: a language model, lexicon or hot words that the symbols cannot write.
    """

    def __init__(
        self,
        config: Searching,
        tokenizer: CTCTokenizer,
        lm: BackoffModel | None,
        unit: Unit = "token",
        weights: tuple[float, float] | None = None,
    ) -> None:
        self.config, self.symbols, self.lm, self.unit = config, tokenizer.symbols, lm, unit
        own, usual = (config.lm_weight, config.length_bonus), weights or USUAL[unit]
        self.weights: tuple[float, ...] = tuple(
            each if given is None else given for given, each in zip(own, usual, strict=True)
        )
        self.words: dict[str, Any] = {
            "lexicon": config.lexicon and _normal(tokenizer, _words(config.lexicon)),
            "hot_words": _normal(tokenizer, config.hot_words),
            "hot_word_bonus": config.hot_word_bonus,
        }
        self.chosen_by = "the usual ones" if None in own else "as given"
        self.by_name()  # what does not fit together is told at once

    @classmethod
    def to_train(
        cls, config: Searching, tokenizer: CTCTokenizer, texts: Sequence[str]
    ) -> "Searches":
        """Those of a model that is trained on these texts.

        Raises:
            InputError: as above, or no ARPA file.
        """
        if config.language_model != "train":
            return cls._of_file(config, tokenizer)
        unit: Unit = config.lm_unit or "token"
        if unit == "word":
            sentences = [tokenizer.normalized(text).split() for text in texts]
        else:
            symbols = tokenizer.symbols
            sentences = [[symbols[n] for n in row] for row in tokenizer.encode_all(texts)]
        longest = 2 + max(map(len, sentences))  # with its beginning and its end
        order = min(config.lm_order or ORDERS[unit], longest)
        return cls(config, tokenizer, BackoffModel.fit(sentences, order), unit)

    @classmethod
    def of_saved(cls, config: Searching, model: ResidualForCTC, saved: Path) -> "Searches":
        """Those of a saved model.

        Raises:
            InputError: as above, or no language model is saved with it.
        """
        tokenizer = model.processor.tokenizer
        if config.language_model != "train":
            return cls._of_file(config, tokenizer)
        path, told = saved / NGRAMS, model.config.search
        if told is None or not path.is_file():
            raise InputError(
                f"{saved} has no language model ({NGRAMS}) beside it; give an ARPA file with "
                "--language-model, or --language-model none"
            )
        unit = told["lm_unit"]
        if config.lm_unit not in (None, unit):
            raise InputError(
                f"the language model of {saved} tells {unit}s; leave --lm-unit out, or give "
                "another one with --language-model"
            )
        weights = told["lm_weight"], told["length_bonus"]
        return cls(config, tokenizer, BackoffModel.read(path), unit, weights)

    @classmethod
    def _of_file(cls, config: Searching, tokenizer: CTCTokenizer) -> "Searches":
        if config.language_model == "none":
            return cls(config, tokenizer, None)
        path = Path(config.language_model)
        if not path.is_file():
            raise InputError(
                f"--language-model is {path}, which is no file; give train, none, or the path of "
                "an ARPA file"
            )
        lm = BackoffModel.read(path)
        return cls(config, tokenizer, lm, config.lm_unit or _unit(lm, tokenizer))

    def beam(self, lm: BackoffModel | None, weight: float = 0, bonus: float = 0) -> BeamSearch:
        knowledge = dict(self.words)
        if lm is not None:
            told = {"lm_unit": self.unit, "lm_weight": weight, "length_bonus": bonus}
            knowledge |= {"lm": lm, **told}
        return BeamSearch(self.symbols, self.config.beam_width, **knowledge)

    def by_name(self) -> dict[str, Search]:
        """By the names in `SEARCHES`."""
        searches: dict[str, Search] = {"greedy": greedy, "beam": self.beam(None)}
        if self.lm is not None:
            searches["beam_lm"] = self.beam(self.lm, *self.weights)
        return searches

    def give(self, model: ResidualForCTC) -> None:
        """Have a model write by the search that counts, and be measured by the others beside it."""
        searches = self.by_name()
        asked = "greedy" if self.config.search == "greedy" else list(searches)[-1]
        model.search = searches.pop(asked)
        model.beside = searches

    def finish(self, items: TranscriptItems | None, model: ResidualForCTC) -> None:
        """Give them to a trained model, with the weights that are best on these items, the
        validation split's; None where it is what is measured on."""
        own = self.config.lm_weight, self.config.length_bonus
        if self.lm is not None and items is not None and None in own:
            self.choose(items, model)
        self.give(model)
        if self.lm is not None:
            weight, bonus = self.weights
            model.config.search = {
                "lm_unit": self.unit, "lm_weight": weight, "length_bonus": bonus,
            }  # fmt: skip
            if World.now().first:
                print(wrapped(self.told()), flush=True)

    def choose(self, items: TranscriptItems, model: ResidualForCTC) -> None:
        """Choose the weights that make the fewest errors."""
        assert self.lm is not None
        config, lm = self.config, self.lm
        own, grid = (config.lm_weight, config.length_bonus), GRIDS[self.unit]
        tried = list(
            itertools.product(
                *(each if given is None else [given] for given, each in zip(own, grid, strict=True))
            )
        )
        step = math.ceil(len(items) / CHOOSE)
        some: Any = Subset(items, range(0, len(items), step))
        if World.now().first:
            print(f"choosing the weight of the n-grams on {len(some):,} recordings …", flush=True)
        model.search = greedy
        model.beside = {str(place): self.beam(lm, *pair) for place, pair in enumerate(tried)}
        figure = "wer" if config.metric == "wer" else "cer"
        size, budget = config.evaluation_batch_size, config.budget
        found = evaluate(model, some, batch_size=size, budget=budget)
        errors = [found[f"{figure}_{place}"] for place in range(len(tried))]
        self.weights = tried[errors.index(min(errors))]
        self.chosen_by = (
            f"the best of {len(tried)} by the {figure.upper()} of {len(some):,} validation "
            f"recordings, {100 * min(errors):.1f} %, where greedy search has "
            f"{100 * found[figure]:.1f} %"
        )

    def keep(self, model: ResidualForCTC, place: Path) -> str:
        """Put the language model into the folder of a model, and say what there is to say."""
        if self.lm is None:
            return ""
        folder = place / "model"
        folder.mkdir(parents=True, exist_ok=True)
        self.lm.write(folder / NGRAMS)
        return self.told()

    def told(self) -> str:
        """What the language model is, and its weights."""
        assert self.lm is not None
        weight, bonus = self.weights
        what = "words" if self.unit == "word" else "symbols"
        where = "of the training texts"
        if self.config.language_model != "train":
            where = f"of {self.config.language_model}"
        return (
            f"beam search of width {self.config.beam_width} with {self.lm.order}-grams of {what} "
            f"{where}: weight {weight:g}, bonus {bonus:g}, {self.chosen_by}"
        )


def prepare(config: Searching, model: ResidualForCTC) -> None:
    """Have a saved model search as the configuration asks."""
    if config.search == "beam":
        saved = config.predict[0] if config.predict else config.evaluate
        assert saved is not None
        Searches.of_saved(config, model, saved).give(model)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _unit(lm: BackoffModel, tokenizer: CTCTokenizer) -> Unit:
    """What a language model tells, by what most of its words are."""
    words = [word for word in lm.vocabulary if word not in (UNKNOWN, START, END)]
    known = sum(word in tokenizer.symbols or word in SPACES for word in words)
    return "token" if 2 * known > len(words) else "word"


def _words(path: Path) -> list[str]:
    """The first word of each line.

    Raises:
        InputError: no such file, one that is no text, or one without a word.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise InputError(
            f"the lexicon {path} cannot be read ({reason}); give a file with a word on each line"
        ) from error
    words = [line.split()[0] for line in lines if line.split()]
    if not words:
        raise InputError(f"the lexicon {path} has no word; give a file with one on each line")
    return words


def _normal(tokenizer: CTCTokenizer, words: Iterable[str]) -> list[str]:
    """Words as the model's texts are written; one of which nothing is left stays as it was."""
    return [tokenizer.normalized(word) or word for word in words]
