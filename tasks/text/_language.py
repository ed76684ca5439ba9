"""What `model_language` reads, how it is judged, and how a trained model writes on."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import TextStreamer
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from resbackbones.core.zoo import resolve
from resbackbones.data import Source, Splits, open_unlabelled
from resbackbones.errors import InputError
from resbackbones.metrics import Metric
from resbackbones.text import (
    Embedding,
    KneserNey,
    Perplexity,
    ResidualForCausalLM,
    TokenRow,
    TokenWindows,
    running_text,
    tokenize,
    train_tokenizer,
)
from resbackbones.train import World
from tasks._recipe import Experiment
from tasks._running import wrapped
from tasks.text._gpt2 import GPT2, gpt2
from tasks.text._pretrained import Pretrained

SHORT = 10_000_000  # characters up to which each is a token
MEASURED = 0.1  # of a single text's end
HELD_OUT = 0.05  # of the rest, or of a training text beside others
COUNTED = 20_000_000  # tokens, the last ones, whose n-grams are counted
WINDOW = 1024  # tokens told per window of evaluation
START = 16  # tokens that a sample begins with, where nobody gave a prompt
# What all recipes have and no raw text is told by, and their values when unset.
UNREAD = {"train_limit": None, "on_bad": "error", "label_column": None, "group_column": None}
UNREAD |= {"group_pattern": None}


@dataclass(frozen=True)
class Parts:
    """The text in its parts: what is trained on, what chooses, what is measured, and its name."""

    train: TokenRow
    chosen_by: TokenRow
    measured: TokenRow
    name: str


def refuse(config: Any) -> None:
    """Refuse what nothing can be made of, before anything is read.

    Raises:
        InputError: say what.
    """
    for name, unset in UNREAD.items():
        if getattr(config, name) != unset:
            flag = name.replace("_", "-")
            raise InputError(f"--{flag} says nothing of raw text; leave it out")
    if config.weights is not None:
        Pretrained.refuse(config, ("spec", "tokenizer", "vocab_size"))
    if config.peer != "none" and (config.skip, config.weights) != ("identity", None):
        raise InputError(f"--skip and --weights are not for --peer {config.peer}; leave them out")
    if config.folds:
        raise InputError(
            "--folds are of rows at random, but a text is held out from its end; leave it out"
        )
    if config.length < 1 or config.context < 0 or config.new_tokens < 1:
        raise InputError(
            f"--length {config.length}, --context {config.context} and --new-tokens "
            f"{config.new_tokens} make no text; give 1, 0 and 1 up"
        )
    if config.temperature < 0:
        raise InputError(f"--temperature is {config.temperature}; give a number from 0 up")


def texts_of(config: Any) -> dict[str, Source]:
    """The splits of the data, as raw text."""
    return open_unlabelled(
        str(config.data),
        config.input_column,
        kind="text",
        separator=config.separator,
        encoding=config.encoding,
    )


def parts_of(rows: Mapping[str, TokenRow], all_rows: bool) -> Parts:
    """What is measured on is the test split, else the validation split, else the end of the
    training text. What chooses is the validation split, where it is not that, else the end of what
    is left of the training text; with `all_rows` that is trained on too."""
    train = rows["train"]
    if "test" in rows:
        measured, name = rows["test"], "test"
    elif "validation" in rows:
        measured, name = rows["validation"], "validation"
    else:
        (train, measured), name = train.split(MEASURED), "end of the text"
    if name == "test" and "validation" in rows:
        return Parts(train, rows["validation"], measured, name)
    beginning, end = train.split(HELD_OUT)
    return Parts(train if all_rows else beginning, end, measured, name)


def learned(config: Any, sources: Mapping[str, Source]) -> tuple[Any, str]:
    """A tokenizer of the training text, but for what is measured on, and its kind."""
    train, kind = sources["train"], config.tokenizer
    size = sum(len(text) for _, text in running_text(train))
    if len(sources) == 1:
        size = round((1 - MEASURED) * size)
    if kind == "auto":
        kind = "character" if size <= SHORT else "bpe"

    def texts() -> Iterator[str]:
        left = size
        for _, text in running_text(train):
            yield text[:left]
            if (left := left - len(text)) <= 0:
                return

    options = {} if config.vocab_size is None else {"vocab_size": config.vocab_size}
    # The lines of a file are one text, within which nothing begins.
    return train_tokenizer(texts(), kind, add_bos_token=not train.in_lines, **options), kind


def experiment(config: Any) -> Experiment:
    """What is trained on which text, and the n-grams beside it."""
    saved = Pretrained.find(config.weights)
    spec = config.spec if saved is None else saved.spec
    spec = resolve(spec, skip=config.skip, dropout=config.dropout)
    sources = texts_of(config)
    if config.all_rows and sources.keys() >= {"validation", "test"}:
        raise InputError(
            "--all-rows trains on the end of the training text, which chooses nothing where there "
            "are a validation and a test split; leave it out"
        )
    if saved is None:
        tokenizer, kind = learned(config, sources)
    else:
        tokenizer, kind = saved.tokenizer(VERY_LARGE_INTEGER), "token of the saved model"
    if config.prompt:
        prompt_tokens(config.prompt, tokenizer)
    embedding = Embedding(config.embedding_dropout)
    build: Any = partial(ResidualForCausalLM.build, spec, processor=tokenizer, embedding=embedding)
    if config.peer == "gpt2":
        build = partial(gpt2, build(), config.context + 1 + config.length, config.dropout)
    model = build()  # what does not fit together is told at once
    rows = {name: tokenize(source, tokenizer) for name, source in sources.items()}
    parts = parts_of(rows, config.all_rows)
    tokens, pad = parts.train.tokens, tokenizer.pad_token_id
    train = TokenWindows(
        tokens, config.length, context=config.context, moving=True, pad_token_id=pad
    )
    chosen_by, test = (windows(row, model) for row in (parts.chosen_by, parts.measured))

    @cache
    def counted() -> KneserNey:
        end = parts.chosen_by.tokens
        beginning = tokens[: len(tokens) - len(end)] if config.all_rows else tokens
        best = KneserNey.fit_best(beginning[-COUNTED:], len(tokenizer), end)
        if config.all_rows:
            best = KneserNey.fit(tokens[-COUNTED:], len(tokenizer), best.order)
        return best

    def simple() -> tuple[str, Metric]:
        metric, row = Perplexity(), parts.measured.tokens
        loss = torch.tensor(counted().nats(row))
        metric.update(SimpleNamespace(loss=loss), {"labels": row[None]})
        of = f" of the last {COUNTED:,} tokens" if len(tokens) > COUNTED else ""
        return f"{sum(counted().sizes):,} Kneser-Ney {counted().order}-grams{of}", metric

    def together(model: ResidualForCausalLM) -> None:
        model.add_ngrams(counted())
        if not config.all_rows:
            model.choose_ngram_share(chosen_by, config.evaluation_batch_size)
        shares = [f"{share:.0%}".replace("%", " %") for share in model.ngram_share.tolist()]
        if World.now().first:
            said = "n-grams have a share in the answers, where they know 0, 1, … tokens before, of"
            print(wrapped(f"{said} {', '.join(shares)}"))

    is_peer = config.peer != "none"
    most = max(1, config.most_tokens // len(tokens)) if config.most_tokens else None
    return Experiment(
        Splits(sources["train"], sources["train"], sources.get("test")),
        train,
        None if config.all_rows else chosen_by,
        test,
        build,
        simple,
        found(parts, tokenizer, kind),
        finish=together if config.kneser_ney and not is_peer else None,
        most_epochs=most,
        protocol=protocol(parts, kind, config.all_rows),
        split=parts.name,
        per=("token", test.size + 1 + test.context),
        sample=None if is_peer else partial(sample, config=config, parts=parts),
    )


def windows(row: TokenRow, model: Any) -> TokenWindows:
    """A row for a model to be measured on: each token with all before it that it can reach."""
    size = min(WINDOW, max(1, len(row) - 1))
    if isinstance(model, GPT2):  # it reads so many alone: half of them stand before any told
        size = model.config.n_positions // 2
        return TokenWindows(row.tokens, size, context=size - 1)
    reach = int(model.backbone.receptive_field) - 1
    pad = model.config.pad_token_id
    return TokenWindows(row.tokens, size, context=reach, pad_token_id=pad)


def protocol(parts: Parts, kind: str, all_rows: bool) -> str:
    """What was trained on and chosen by, in a few words."""
    told = f"{parts.train.characters:,} characters of train in {len(parts.train):,} tokens ({kind})"
    chosen_by = "its end chose the n-grams' order and is trained on" if all_rows else (
        f"{len(parts.chosen_by):,} others for choices"
    )  # fmt: skip
    return f"{told}, {chosen_by}"


def found(parts: Parts, tokenizer: Any, kind: str) -> str:
    """What the text is, in sentences."""
    said = (
        f"{len(parts.train):,} tokens to train on, {len(parts.measured):,} to measure on "
        f"({parts.name}), {len(parts.chosen_by):,} to choose by; a token is a {kind}, of "
        f"{len(tokenizer):,} different ones"
    )
    each = parts.measured.characters / len(parts.measured)
    said += "." if each == 1 else f", and of {each:.2f} characters on average."
    if unknown := parts.measured.unknown:
        said += f" The tokenizer does not know {unknown:,} of those to measure on."
    return said


# Writing


def read(path: Path, tokenizer: Any) -> list[str]:
    """A file, or standard input where it is called "-", to be gone on from."""
    content = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    return [content.decode("utf-8-sig")]


def prompt_tokens(prompt: str, tokenizer: Any) -> torch.Tensor:
    """A prompt as tokens, `(1, T)`.

    Raises:
        InputError: nothing in it, or what the tokenizer does not know.
    """
    encoding = tokenizer(prompt).encodings[0]
    if not encoding.ids:
        raise InputError("the prompt is empty; give a text to write on from (--prompt)")
    unknown = [
        prompt[start:end]
        for (start, end), token in zip(encoding.offsets, encoding.ids, strict=True)
        if token == tokenizer.unk_token_id and end > start
    ]
    if unknown:
        names = ", ".join(map(repr, dict.fromkeys(unknown)))
        raise InputError(
            f"the prompt holds {names}, which the model's texts did not; leave it out, or train "
            "with a tokenizer that knows all (--tokenizer byte)"
        )
    return torch.tensor([encoding.ids])


def write_on(model: Any, prompt: str, config: Any) -> str:
    """Write on from a prompt, on standard output as it comes; the prompt and what follows."""
    tokens = prompt_tokens(prompt, model.processor)
    torch.manual_seed(config.seed)
    options: dict[str, Any] = {"max_new_tokens": config.new_tokens}
    if config.temperature:
        options |= {"do_sample": True, "temperature": config.temperature}
    streamer = TextStreamer(model.processor, skip_special_tokens=True)
    written = model.generate(tokens.to(model.device), streamer=streamer, **options)[0]
    return model.processor.decode(written, skip_special_tokens=True)


def sample(model: Any, config: Any, parts: Parts) -> str:
    """What a trained model writes, from the prompt or from how the measured text begins."""
    begun = parts.measured.tokens[:START].tolist()
    prompt = config.prompt or model.processor.decode(begun, skip_special_tokens=True)
    if not prompt:  # nothing that the tokenizer knows
        return ""
    print("\nit writes, after the first words:\n", flush=True)
    return write_on(model, prompt, config)


def write_all(config: Any, model: Any, texts: Sequence[str]) -> None:
    """Write on from each file, and from the prompt."""
    for prompt in [*texts, *([config.prompt] if config.prompt else [])]:
        write_on(model, prompt, config)
