"""Running text: tokens end to end, and windows of them.

Tokens lie in a file that the system reads when they are asked for, so a text may be larger than
memory.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, repeat

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from resbackbones.data import Items, Source
from resbackbones.data.columns import plain_values
from resbackbones.errors import InputError
from resbackbones.text.metrics import IGNORED

BLOCK = 2**16  # characters handed to a tokenizer at once, about
ROWS = 1000  # read at once
HASHED = 2**22  # tokens whose bytes enter a fingerprint at once


@dataclass(frozen=True)
class TokenRow:
    """The tokens of a split, end to end.

    Attributes:
        tokens: int32 `(N,)`, in a file without a name, which goes with the last process that reads
            it; it lies where TMPDIR says.
        characters: of the text.
        unknown_token_id: the token that stands for what the tokenizer does not know; None where it
            knows all.
    """

    tokens: Tensor
    characters: int
    unknown_token_id: int | None = None

    @property
    def unknown(self) -> int:
        """How many tokens stand for what the tokenizer does not know."""
        if self.unknown_token_id is None:
            return 0
        return sum(int((part == self.unknown_token_id).sum()) for part in self.tokens.split(HASHED))

    def __len__(self) -> int:
        return len(self.tokens)

    def split(self, share: float) -> tuple["TokenRow", "TokenRow"]:
        """The beginning, and this share of the tokens at the end."""
        cut = len(self) - round(share * len(self))
        per_token = self.characters / max(1, len(self))
        whole, first = self.characters, round(cut * per_token)
        before = replace(self, tokens=self.tokens[:cut], characters=first)
        return before, replace(self, tokens=self.tokens[cut:], characters=whole - first)


def running_text(source: Source) -> Iterator[tuple[bool, str]]:
    """A split's text in blocks, and whether each begins a text: the lines of a file are one text,
    in which each ends in a line end; otherwise a row is one. Rows without text are left out."""
    if source.in_lines:
        lines = (line + "\n" for line in _rows(source))
        yield from zip(chain([True], repeat(False)), _blocks(lines), strict=False)
        return
    for text in _rows(source):
        yield from zip(chain([True], repeat(False)), _blocks([text]), strict=False)


def tokenize(source: Source, tokenizer: PreTrainedTokenizerFast) -> TokenRow:
    """All tokens of a split, however long. Where the tokenizer marks where texts begin, each begins
    so.

    Raises:
        InputError: no token.
    """
    mark = tokenizer.bos_token_id in tokenizer("")["input_ids"]
    characters = 0
    first = os.environ.get("RANK", "0") == "0"
    with tempfile.TemporaryFile() as file:
        with tqdm(
            desc=f"reading {source.name}",
            unit="character",
            unit_scale=True,
            delay=2,
            disable=None if first else True,
        ) as bar:
            for blocks in _batched(running_text(source)):
                texts = [text for _, text in blocks]
                found = tokenizer(
                    texts, add_special_tokens=False, truncation=False, return_attention_mask=False
                )
                for (begins, text), ids in zip(blocks, found["input_ids"], strict=True):
                    ids = [tokenizer.bos_token_id] * (begins and mark) + ids
                    np.array(ids, dtype=np.int32).tofile(file)
                    characters += len(text)
                    bar.update(len(text))
        file.flush()
        if not file.tell():
            raise InputError(f"{source.name} holds no text; give a file with some")
        # Closed, the file lives on as long as it is mapped.
        tokens = torch.from_numpy(np.memmap(file, np.int32, "r+"))
    return TokenRow(tokens, characters, tokenizer.unk_token_id)


def _rows(source: Source) -> Iterator[str]:
    for start in range(0, len(source), ROWS):
        rows = slice(start, start + ROWS)
        values = plain_values(source.dataset, source.columns["input"], rows)
        yield from (value for value in values if value is not None)


def _blocks(texts: Iterable[str]) -> Iterator[str]:
    """The same text in blocks of about `BLOCK` characters, cut before a blank if there is one."""
    held = ""
    for text in texts:
        held += text
        start = 0
        while len(held) - start > BLOCK:
            half, most = start + BLOCK // 2, start + BLOCK
            cut = max(held.rfind(blank, half, most) for blank in (" ", "\n"))
            cut = most if cut < 0 else cut
            yield held[start:cut]
            start = cut
        held = held[start:]
    if held:
        yield held


def _batched(blocks: Iterable[tuple[bool, str]]) -> Iterator[list[tuple[bool, str]]]:
    """Blocks for one call of the tokenizer, which works on several at once."""
    batch: list[tuple[bool, str]] = []
    size = 0
    for block in blocks:
        batch.append(block)
        size += len(block[1])
        if size > 16 * BLOCK:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class TokenWindows(Items):
    """One long row of tokens in windows, for a language model to tell each from those before it.

    An item is `length` tokens to tell behind those that are only read. Where `context` is the reach
    of a net of convolutions, what it makes of windows is what it would make of the whole row.

    Args:
        tokens: of a text, or of several end to end, whole numbers `(N,)`.
        length: tokens told per window; the last one may have fewer.
        context: tokens read before each window, as far as there are some.
        moving: begin windows elsewhere in every epoch, drawn from (seed, epoch), for training; an
            epoch then leaves out up to two windows' tokens. Otherwise each token is told once, but
            for the first.
        pad_token_id: stands where there is no token.

    Raises:
        InputError: fewer tokens than a window has, two at least, or no such length or context.
    """

    def __init__(
        self,
        tokens: Tensor,
        length: int,
        *,
        context: int = 0,
        moving: bool = False,
        pad_token_id: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        if length < 1 or context < 0:
            raise InputError(
                f"length={length} and context={context} make no window; give 1 or 0 up"
            )
        least = 2 * length + 1 if moving else 2
        if len(tokens) < least:
            raise InputError(
                f"{len(tokens)} tokens are too few for windows of {length}; give {least} or more, "
                "or choose a smaller length"
            )
        self.tokens, self.size, self.context = tokens, length, context
        self.moving, self.pad_token_id = moving, pad_token_id

    def __len__(self) -> int:
        told = len(self.tokens) - 1
        return told // self.size - 1 if self.moving else -(-told // self.size)

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask` and `labels`, each `(B, context + 1 + length)`; labels are
        -100 where a token is not to be told."""
        starts = torch.as_tensor(rows) * self.size
        if self.moving:
            starts = starts + (self.draws([0], 1) * self.size).long().squeeze()
        inside = torch.arange(-self.context, self.size + 1)
        places = starts.unsqueeze(1) + inside
        real = (places >= 0) & (places < len(self.tokens))
        tokens = self.tokens[places.clamp(0, len(self.tokens) - 1)].long()
        return {
            "input_ids": tokens.masked_fill(~real, self.pad_token_id),
            "attention_mask": (places >= 0).long(),  # what stands behind the end nobody reads
            "labels": tokens.masked_fill(~real | (inside <= 0), IGNORED),
        }

    def _parts(self) -> Iterator[bytes | str]:
        yield from super()._parts()
        yield f"{self.size} {self.context} {self.moving}"
        for part in self.tokens.split(HASHED):
            yield part.cpu().numpy().tobytes()
