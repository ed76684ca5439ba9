"""Classifiers of texts for `tasks.speed`: our default and what people use, untrained and in the
published sizes."""

import random
import statistics
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

import resbackbones as rb
from resbackbones import report
from resbackbones.text import (
    Ngrams,
    ResidualForSequenceClassification,
    TfidfClassifier,
    train_tokenizer,
)
from tasks.text import classify_text
from tasks.text._peers import KimCNN

TOKENS = (32, 128, 512)  # per text
BATCHES = (1, 32)
VOCABULARY = 30_000
LABELS = ("negative", "positive")
WHOLE = "from text, with TF-IDF"

Seconds = Mapping[str, Sequence[float]]


def classifiers() -> dict[str, Any]:
    """Ours, as `tasks.text.classify_text` builds it, and the others by name."""
    draw = random.Random(0)
    words = ["".join(draw.choices(string.ascii_lowercase, k=2 + n % 8)) for n in range(VOCABULARY)]
    ours = ResidualForSequenceClassification.build(
        classify_text.Config.spec,
        labels=LABELS,
        processor=train_tokenizer(words, "word", ngrams=Ngrams()),
        head={"pooling": "mean_max"},
    )
    # The sizes of nreimers/MiniLM-L6-H384-uncased.
    mini = BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    nets: dict[str, Any] = {
        "ours": ours,
        "Kim's CNN": KimCNN(VOCABULARY, LABELS),
        "MiniLM-L6": BertForSequenceClassification(mini),
        "DistilBERT": DistilBertForSequenceClassification(DistilBertConfig()),
    }
    return {name: net.eval() for name, net in nets.items()}


def turns(device: str) -> Iterator[tuple[tuple[int, int], int, dict[str, Callable[[], object]]]]:
    """Per batch and length, `(B, T)`: the multiply-adds of a round, and one evaluation of each."""
    nets = {name: net.to(device) for name, net in classifiers().items()}
    tokenizer: Any = nets["ours"].processor
    known = sorted(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens))
    draw = random.Random(0)
    some = [" ".join(draw.choices(known, k=64)) for _ in range(100)]
    tfidf = TfidfClassifier.fit(some, torch.arange(100) % 2, 2)

    def call(net: nn.Module, inputs: Mapping[str, Tensor]) -> Callable[[], object]:
        @torch.inference_mode()
        def evaluate() -> object:
            return net(**inputs)

        return evaluate

    def whole(texts: Sequence[str], tokens: int) -> Callable[[], object]:
        @torch.inference_mode()
        def answer() -> object:
            given = tokenizer(texts, max_length=tokens, truncation=True, return_tensors="pt")
            return nets["ours"](**given.to(device)).logits.cpu() + tfidf.logits(texts)

        return answer

    for tokens in TOKENS:
        macs = 0
        for batch in BATCHES:
            texts = [" ".join(draw.choices(known, k=tokens)) for _ in range(batch)]
            given = tokenizer(texts, max_length=tokens, truncation=True, return_tensors="pt")
            given = given.to(device)
            plain = {name: given[name] for name in ("input_ids", "attention_mask")}
            plain["input_ids"] = plain["input_ids"].clamp(max=VOCABULARY - 1)
            inputs = {name: given if name == "ours" else plain for name in nets}
            if not macs:
                macs = sum(rb.count_macs(nets[name], dict(inputs[name])) for name in nets) // batch
            found = {name: call(net, inputs[name]) for name, net in nets.items()}
            yield (batch, tokens), batch * macs, found | {WHOLE: whole(texts, tokens)}


def table(timings: Sequence[tuple[tuple[int, ...], Seconds, Seconds]], close: str) -> list[str]:
    """What was measured, per shape `(B, T)` the seconds of each and the ratios over ours; nothing
    where nothing was."""
    if not timings:
        return []
    others = list(timings[0][2])
    rows = [
        [
            " x ".join(map(str, shape)),
            f"{1000 * statistics.median(seconds['ours']):.1f}",
            *(f"{statistics.median(ratios[name]):.1f}" for name in others),
        ]
        for shape, seconds, ratios in timings
    ]
    return [
        report.markdown_table(["texts x tokens", "ours, ms", *others], rows, left=1),
        f"The time of an evaluation of {classify_text.Config.spec}, and that of others over it: "
        f"above 1 where ours is faster; fp32, {close}",
    ]
