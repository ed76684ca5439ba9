"""torchaudio's beam search over flashlight, in C++: of the extra `flashlight`.

It is the faster one on a CPU where the lexicon is large, and reads the binary files of KenLM; it
knows no hot words and no words beside a lexicon's, and prunes more than its width says.
"""

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from resbackbones.errors import InputError
from resbackbones.ngrams import BackoffModel
from resbackbones.ngrams.backoff import LN10, SPACE
from resbackbones.speech.alignment import best_paths
from resbackbones.speech.hypotheses import (
    BLANK,
    SEPARATORS,
    Hypothesis,
    check_count,
    collapse,
    posteriors,
)


class FlashlightSearch:
    """The likeliest texts, as `BeamSearch` finds them and by the same score.

    Args:
        vocabulary: the tokens' strings by number, the blank first and a separator, " " or "▁",
            among them.
        width: prefixes that are kept.
        lm: of words where there is a lexicon, else of tokens: n-grams, or the path of a file that
            KenLM reads, in which the token " " is `<space>`.
        lm_weight: of its natural logarithms.
        length_bonus: per word of a lexicon.
        lexicon: the words that there may be; their characters are tokens.

    Raises:
        InputError: the extra is not installed, or something that it cannot do.
    """

    def __init__(
        self,
        vocabulary: Sequence[str],
        width: int = 50,
        *,
        lm: BackoffModel | str | Path | None = None,
        lm_weight: float = 0.5,
        length_bonus: float = 0.0,
        lexicon: Iterable[str] | None = None,
    ) -> None:
        try:
            from torchaudio.models.decoder import ctc_decoder
        except RuntimeError as error:
            raise InputError(
                "flashlight-text, which this search runs on, is not installed; install "
                "'resbackbones[flashlight]' under Python 3.11 or 3.12, or use BeamSearch"
            ) from error
        if type(width) is not int or width < 1:
            raise InputError(f"width={width!r} is no number of prefixes; give 1 or more")
        separator = next((token for token in SEPARATORS if token in vocabulary), None)
        if separator is None:
            raise InputError(
                "flashlight needs a token between words, ' ' or '▁', and the vocabulary has none; "
                "use BeamSearch"
            )
        if lexicon is None and length_bonus:
            raise InputError(
                f"length_bonus={length_bonus} is per word of a lexicon, and there is none; give "
                "one, or use BeamSearch"
            )
        self.vocabulary, self.width = tuple(vocabulary), width
        self._separator, self._strict = vocabulary.index(separator), lexicon is not None
        names = [SPACE if token == " " else token for token in vocabulary]
        with tempfile.TemporaryDirectory() as folder:
            words, order = Path(folder, "lexicon.txt"), Path(folder, "tokens.txt")
            # Without it, words that a language model tells are numbered as a hash table has them.
            order.write_text("\n".join(names), encoding="utf-8")
            if lexicon is not None:
                lines = [self._spelled(word) for word in dict.fromkeys(lexicon)]
                if not lines:
                    raise InputError("the lexicon has no word, so nothing can be said; fill it")
                words.write_text("".join(lines), encoding="utf-8")
            if isinstance(lm, BackoffModel):
                lm.write(Path(folder, "lm.arpa"))
                lm = Path(folder, "lm.arpa")
            elif lm is not None and not Path(lm).is_file():
                raise InputError(f"{lm} is no file; give the path of a language model")
            self._decoder: Any = ctc_decoder(
                lexicon=None if lexicon is None else str(words),
                tokens=names,
                lm=None if lm is None else str(lm),
                lm_dict=None if lexicon is not None else str(order),
                nbest=width,
                beam_size=width,
                lm_weight=lm_weight * LN10,  # KenLM tells decimal ones
                word_score=length_bonus,
                log_add=True,
                blank_token=names[BLANK],
                sil_token=names[self._separator],
            )

    def __call__(self, logits: Tensor, lengths: Tensor) -> list[Hypothesis]:
        """The best hypothesis of each item; see `n_best`."""
        return [hypotheses[0] for hypotheses in self.n_best(logits, lengths, 1)]

    @torch.inference_mode()
    def n_best(self, logits: Tensor, lengths: Tensor, count: int) -> list[list[Hypothesis]]:
        """The best hypotheses of each item, as many as asked for or as there are, best first; their
        `log_prob` is that of the best path. Arguments as of `BeamSearch.n_best`."""
        check_count(count, self.width)
        log_probs, lengths = posteriors(logits.cpu(), lengths.cpu(), self.vocabulary)
        # A word of a lexicon ends with the separator: the last one needs a frame of nothing else.
        heard, ends = log_probs, lengths
        if self._strict:
            heard, ends = functional.pad(log_probs, (0, 0, 0, 1)), lengths + 1
            every = torch.arange(len(ends))
            heard[every, lengths] = -torch.inf
            heard[every, lengths, self._separator] = 0
        found = [hypotheses[:count] for hypotheses in self._decoder(heard.contiguous(), ends)]
        if never := [item for item, hypotheses in enumerate(found) if not hypotheses]:
            raise InputError(f"nothing that the lexicon allows was found in item {never[0]}")
        frames = lengths.tolist()  # what is said behind them is nothing that was heard
        rows = [self._inner(h, frames[i]) for i, each in enumerate(found) for h in each]
        if not rows:
            return []
        counts = torch.tensor([len(row) for row in rows])
        items = torch.arange(len(found)).repeat_interleave(torch.tensor([*map(len, found)]))
        labels = pad_sequence(rows, batch_first=True)
        paths, told = best_paths(log_probs, lengths, labels, counts, items)
        scores = torch.tensor([h.score for each in found for h in each])
        made = iter(collapse(paths, log_probs, items, told, scores))
        return [[next(made) for _ in each] for each in found]

    def _inner(self, hypothesis: Any, frames: int) -> Tensor:
        """The tokens without the separators that flashlight puts around all frames."""
        tokens, times = hypothesis.tokens, hypothesis.timesteps
        around = (times == 0) | (times > frames)
        return tokens[~(around & (tokens == self._separator))]

    def _spelled(self, word: str) -> str:
        """The line of a word in a lexicon's file."""
        for character in word:
            if character not in self.vocabulary or character.isspace():
                raise InputError(
                    f"the lexicon's word {word!r} has {character!r}, which is no token of the "
                    "model; spell it as the model's texts were written, or leave it out"
                )
        separator = self.vocabulary[self._separator]
        return " ".join([word, *word, SPACE if separator == " " else separator]) + "\n"


__all__: Sequence[str] = ("FlashlightSearch",)
