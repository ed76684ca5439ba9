"""From texts to batches: tokenized once, padded batch by batch."""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from resbackbones.core.context import valid_mask
from resbackbones.data import Items, Source, read
from resbackbones.text.tokenizer import NgramTokenizer, cuts

CHUNK = 1000  # texts tokenized in one call


class TextItems(Items):
    """Labelled texts, or pairs of them where the source has a column "pair", as `fit` takes them: a
    list of rows becomes a batch as long as its longest.

    Tokens are kept end to end; where they have n-grams, as numbers into a table of distinct ones.

    Args:
        source: from `open_dataset` or `open_splits`.
        tokenizer: the model's. Texts are cut at its `model_max_length`, where it has one, with a
            warning; the model later reads as much, also in a pipeline.
        on_bad: "error" names the first row that is no text, or an empty one, "skip" leaves such
            rows out and lists them in `skipped`.

    Attributes:
        labels: int64 `(N,)`; of `Labels` float32 `(N, K)`.
        lengths: tokens of each text, int64 `(N,)`.
        rows: row of each item in the source.
        skipped: the bad ones, "name: reason".
        truncated: how many texts were cut.
        tfidf_logits: of the tokenizer's TF-IDF classifier, `(N, K)`, where it has one.
        unknown: rows, from 0, of these items that hold no token but the unknown one, of which a
            warning tells.

    Raises:
        InputError: a row that is no text, or an empty one.
    """

    lengths: Tensor

    def __init__(
        self,
        source: Source,
        tokenizer: PreTrainedTokenizerFast,
        *,
        on_bad: Literal["error", "skip"] = "error",
    ) -> None:
        super().__init__()
        found = read(source, _texts, on_bad, roles=source.inputs)
        self.source, self.rows, self.skipped = source, found.rows, found.skipped
        self.labels = source.targets()[found.rows]
        self.truncated = 0
        ngrams = tokenizer.ngrams if isinstance(tokenizer, NgramTokenizer) else None
        distinct = {(tokenizer.pad_token_id, *ngrams.of_nothing): 0} if ngrams else {}
        nothing = {tokenizer.unk_token_id, tokenizer.bos_token_id}
        self.unknown: list[int] = []
        tokens: list[Tensor] = []
        logits: list[Tensor] = []
        for start in range(0, len(found.items), CHUNK):
            chunk = found.items[start : start + CHUNK]
            encoded = tokenizer(*map(list, zip(*chunk, strict=True)), truncation=cuts(tokenizer))
            if "tfidf_logits" in encoded:
                logits.append(torch.tensor(encoded["tfidf_logits"]))
            self.truncated += sum(bool(text.overflowing) for text in encoded.encodings or ())
            for row, ids in enumerate(encoded["input_ids"]):
                if ngrams:
                    whole = zip(ids, encoded["ngram_ids"][row], strict=True)
                    ids = [distinct.setdefault((i, *n), len(distinct)) for i, n in whole]
                elif tokenizer.unk_token_id in ids and nothing.issuperset(ids):
                    self.unknown.append(start + row)
                tokens.append(torch.tensor(ids, dtype=torch.int32))
        self.lengths = torch.tensor([len(text) for text in tokens])
        self._starts = self.lengths.cumsum(0) - self.lengths
        self._tokens = torch.cat(tokens)
        self._distinct = torch.tensor(list(distinct)) if ngrams else None
        self.tfidf_logits = torch.cat(logits) if logits else None
        self._padding = 0 if ngrams else int(tokenizer.pad_token_id)
        if self.truncated:
            warnings.warn(
                f"{self.truncated} of {len(self)} texts of {source.name} are longer than "
                f"{tokenizer.model_max_length} tokens and were cut; a larger max_length of the "
                "tokenizer (--max-length) reads more of them",
                UserWarning,
                stacklevel=2,
            )
        if self.unknown:
            count = len(self.unknown)
            warnings.warn(
                f"{count} of {len(self)} texts of {source.name} {'hold' if count > 1 else 'holds'} "
                "nothing that the tokenizer knows (the first: "
                f"{source.row_name(found.rows[self.unknown[0]])}), so the model cannot tell them "
                "apart; train the tokenizer on more such texts, or on bytes (--tokenizer byte)",
                UserWarning,
                stacklevel=2,
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` `(B, T)`, `ngram_ids` `(B, T, N)` where the tokenizer
        gives them, `tfidf_logits` `(B, K)` likewise, and `labels`, `(B,)` or, of `Labels`,
        `(B, K)`."""
        index = torch.as_tensor(rows)
        size = max(1, int(self.lengths[index].max()))
        mask = valid_mask(self.lengths[index], size)
        places = self._starts[index].unsqueeze(1) + torch.arange(size)
        tokens = torch.full(mask.shape, self._padding)
        tokens[mask] = self._tokens[places[mask]].long()
        batch = {"input_ids": tokens, "attention_mask": mask.long()}
        if self._distinct is not None:
            whole = self._distinct[tokens]
            batch |= {"input_ids": whole[..., 0], "ngram_ids": whole[..., 1:]}
        if self.tfidf_logits is not None:
            batch["tfidf_logits"] = self.tfidf_logits[index]
        return {**batch, "labels": self.labels[index]}

    def _parts(self) -> Iterator[bytes | str]:
        yield from super()._parts()
        yield self._tokens.numpy().tobytes()
        yield b"" if self._distinct is None else self._distinct.numpy().tobytes()
        yield b"" if self.tfidf_logits is None else self.tfidf_logits.numpy().tobytes()


def _texts(*values: Any) -> tuple[str, ...]:
    for value in values:
        if not isinstance(value, str):
            raise ValueError(f"{value!r:.40} is no text")
        if not value.strip():
            raise ValueError("it is empty")
    return values
