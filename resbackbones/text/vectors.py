"""Word vectors that others trained, as the first embedding of a word tokenizer's vocabulary."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from resbackbones.data.paths import binary, one_sentence
from resbackbones.errors import InputError
from resbackbones.text.models import ResidualForSequenceClassification


@dataclass(frozen=True)
class WordVectors:
    """What a file of word vectors says of a tokenizer's words.

    Attributes:
        values: float32 `(V, D)`, a row per token of the tokenizer; 0 where the file has none.
        found: bool `(V,)`, which tokens have a vector.
        words: how many of the tokens are words: all but the special ones.

    >>> vectors = WordVectors(torch.ones(4, 2), torch.tensor([False, False, True, True]), words=3)
    >>> str(vectors)
    '67 % of 3 words have a vector'
    """

    values: Tensor
    found: Tensor
    words: int

    @property
    def coverage(self) -> float:
        """The share of the words that have a vector, 0 to 1."""
        return int(self.found.sum()) / self.words

    def __str__(self) -> str:
        return f"{self.coverage:.0%} of {self.words:,} words have a vector".replace("%", " %")

    def copy_into(self, model: ResidualForSequenceClassification) -> None:
        """Let an untrained model's embedding of these tokens start here; that of the others stays
        as it was drawn, near 0.

        Raises:
            InputError: a model whose embedding is of another width, or of other tokens.
        """
        weight = model.embedding.tokens.weight
        (tokens, width), (own, channels) = self.values.shape, weight.shape
        if tokens != own:
            raise InputError(
                f"the vectors are of a tokenizer of {tokens:,} tokens, but the model's has "
                f"{own:,}; load them with the tokenizer that the model was built with"
            )
        if width != channels:
            raise InputError(
                f"the vectors have {width} numbers, but the net takes {channels} (in_channels); "
                f"build it with in_channels={width}"
            )
        with torch.no_grad():
            weight[self.found] = self.values[self.found].to(weight)


def load_vectors(path: str | PathLike[str], tokenizer: PreTrainedTokenizerFast) -> WordVectors:
    """Read the vectors of a tokenizer's words.

    A word that the file has not as it is spelled takes the vector of the first there that differs
    in case alone, the most common one.

    Args:
        path: a text file as GloVe, fastText and word2vec write it, also as .gz: a word and its
            numbers per line, and perhaps a first line with the counts of words and numbers. Or
            the folder of a static embedding model as Model2Vec or sentence-transformers save it
            (`model.safetensors` and `tokenizer.json`): a word's vector is the mean of those of the
            pieces that it is cut into.
        tokenizer: of words, as `train_tokenizer` makes it.

    Raises:
        InputError: a tokenizer of something else than words; nothing that can be read; a line with
            more or fewer numbers than others, or with what is no finite number; fewer lines than
            the first one says; no vector for any of the words.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(
            f"there is no file or folder {path}; give a text file of word vectors, or the folder "
            "of a static embedding model"
        )
    words = _words(tokenizer)
    read = _of_static_model if path.is_dir() else _of_text
    with one_sentence(path):
        rows = read(path, words)
    if not rows:
        raise InputError(
            f"{path} has no vector for any of the tokenizer's {len(words):,} words (such as "
            f"{', '.join(map(repr, list(words)[:3]))}); give one of the same language"
        )
    (width,) = {len(vector) for vector in rows.values()}
    values = torch.zeros(len(tokenizer), width)
    found = torch.zeros(len(tokenizer), dtype=torch.bool)
    for number, vector in rows.items():
        values[number] = torch.from_numpy(vector)
        found[number] = True
    return WordVectors(values, found, len(words))


def _words(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """The words of a tokenizer, in the order of their numbers -> these."""
    special = set(tokenizer.all_special_ids)
    every = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    words = {token: number for token, number in every if number not in special}
    of_words = isinstance(tokenizer.backend_tokenizer.model, WordLevel)
    if not of_words or all(len(token) == 1 for token in words):
        raise InputError(
            f"vectors are of words, but the tokenizer's tokens are others ({list(words)[-1]!r}); "
            "use train_tokenizer(…, 'word')"
        )
    return words


# A file of text


def _of_text(path: Path, words: Mapping[str, int]) -> dict[int, np.ndarray]:
    """A token's number -> its vector; of two in the file, the first."""
    wanted: dict[str, list[int]] = {}
    for word, number in words.items():
        wanted.setdefault(word.casefold(), []).append(number)
    exact: dict[int, np.ndarray] = {}
    alike: dict[int, np.ndarray] = {}
    for line, spelled, numbers in _lines(path):
        own = words.get(spelled)
        for number in wanted.get(spelled.casefold(), ()):
            into = exact if number == own else alike
            if number not in into:
                into[number] = _numbers(path, line, spelled, numbers)
    return alike | exact


def _lines(path: Path) -> Iterator[tuple[int, str, bytes]]:
    """Each line's number from 1, its word and its numbers, not yet read as such."""
    width = count = None
    line = 0
    with binary(path) as file:
        for line, content in enumerate(file, 1):
            content = content.strip()
            if width is not None and content.count(b" ") == width:  # nearly all: not cut in vain
                word, _, numbers = content.partition(b" ")
                yield line, word.decode(errors="replace"), numbers
                continue
            parts = content.split()
            if line == 1 and len(parts) == 2 and all(part.isdigit() for part in parts):
                count, width = map(int, parts)
                continue
            if not parts:
                continue
            if width is None:
                width = len(parts) - 1
            # Some words in published files hold blanks: ". . ." and "at name@domain.com".
            start = len(parts) - width
            if width < 1 or start < 1 or (start > 1 and _is_number(parts[1])):
                raise InputError(
                    f"line {line} of {path} has {len(parts) - 1} numbers behind its word "
                    f"{content[:40]!r}; expected {'some' if width < 1 else width}, as in the first "
                    "line: give a text of word vectors, unpacked, or repair the line"
                )
            word, numbers = (b" ".join(each) for each in (parts[:start], parts[start:]))
            yield line, word.decode(errors="replace"), numbers
    if count is not None and line - 1 < count:
        raise InputError(
            f"{path} ends after {line - 1:,} of the {count:,} words that its first line tells of; "
            "copy or download it again"
        )


def _is_number(text: bytes) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _numbers(path: Path, line: int, word: str, numbers: bytes) -> np.ndarray:
    try:
        vector = np.array(numbers.split(), dtype=np.float32)
    except ValueError as error:
        odd = next(number for number in numbers.split() if not _is_number(number))
        raise InputError(
            f"line {line} of {path} has {odd.decode(errors='replace')!r} among the numbers of "
            f"{word!r}; repair or remove the line"
        ) from error
    if not np.isfinite(vector).all():
        raise InputError(
            f"line {line} of {path} has NaN or infinity among the numbers of {word!r}; repair or "
            "remove the line"
        )
    return vector


# A static embedding model


def _of_static_model(folder: Path, words: Mapping[str, int]) -> dict[int, np.ndarray]:
    """A token's number -> the mean of the vectors of the pieces that its word is cut into; none
    for a word all of whose pieces are unknown."""
    inner = folder / "0_StaticEmbedding"  # where sentence-transformers may keep it
    folder = inner if inner.is_dir() else folder
    files = folder / "tokenizer.json", folder / "model.safetensors"
    for file in files:
        if not file.is_file():
            raise InputError(
                f"{folder} holds no {file.name}, so it is no static embedding model; give a folder "
                "that Model2Vec saved, or a text file of word vectors"
            )
    tensors = load_file(files[1])
    table = tensors.get("embeddings", tensors.get("embedding.weight"))
    if table is None:
        raise InputError(
            f"{files[1]} holds no table of embeddings (it has {', '.join(sorted(tensors))}), so it "
            "is no static embedding model; give a folder that Model2Vec saved"
        )
    if not table.is_floating_point():
        raise InputError(
            f"{files[1]} holds vectors of whole numbers ({table.dtype}) without their scale; give "
            "a folder saved with float32 or float16"
        )
    table = table.float()
    cut = Tokenizer.from_file(str(files[0]))
    cut.no_padding()
    cut.no_truncation()
    if "mapping" in tensors:  # several tokens share a row
        table = table[tensors["mapping"].long()]
    if "weights" in tensors:
        table = table * tensors["weights"].float().unsqueeze(1)
    if cut.get_vocab_size() > len(table):
        raise InputError(
            f"{files[0]} has {cut.get_vocab_size():,} tokens, but {files[1]} {len(table):,} "
            "vectors; copy or download the folder again"
        )
    if not table.isfinite().all():
        raise InputError(f"{files[1]} holds NaN or infinity; copy or download it again")
    unknown = _unknown(json.loads(cut.to_str())["model"], cut)
    found = {}
    encoded = cut.encode_batch(list(words), add_special_tokens=False)
    for number, pieces in zip(words.values(), encoded, strict=True):
        if ids := [each for each in pieces.ids if each != unknown]:
            found[number] = table[ids].mean(0).numpy()
    return found


def _unknown(model: Mapping[str, Any], tokenizer: Tokenizer) -> int | None:
    """The number of the token for what is unknown."""
    token = model.get("unk_token")
    return model.get("unk_id") if token is None else tokenizer.token_to_id(token)
