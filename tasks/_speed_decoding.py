"""Language models for `tasks.speed`: how fast ours and GPT-2 write, untrained and as large."""

import statistics
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from resbackbones import report
from resbackbones.core.backbone import count_parameters
from resbackbones.core.zoo import SPECS
from resbackbones.text import KneserNey, ResidualForCausalLM, train_tokenizer
from tasks.text import model_language
from tasks.text._gpt2 import gpt2

PROMPTS = (1, 1024)  # tokens
NEW = 256
WIDTH = 348  # of our net, which then has 8.8 million parameters
COUNTED = "ours, with n-grams"

Seconds = Mapping[str, Sequence[float]]


def writers() -> dict[str, Any]:
    """Ours, in the shape of `tasks.text.model_language` and wider, with and without n-grams, and
    GPT-2, which can read as far as is asked of it."""
    spec = SPECS[str(model_language.Config.spec)]
    stages = tuple(replace(stage, channels=WIDTH) for stage in spec.stages)
    tokenizer = train_tokenizer([string.printable], "character")
    torch.manual_seed(0)
    nets = {
        name: ResidualForCausalLM.build(
            replace(spec, stages=stages), in_channels=WIDTH, processor=tokenizer
        )
        for name in ("ours", COUNTED)
    }
    text = torch.randint(3, len(tokenizer), (100_000,))
    nets[COUNTED].add_ngrams(KneserNey.fit(text, len(tokenizer), 6))
    return {**nets, "GPT-2": gpt2(nets["ours"], max(PROMPTS) + NEW)}


def turns(device: str) -> Iterator[tuple[tuple[int, int], int, dict[str, Callable[[], object]]]]:
    """Per prompt, `(T, new tokens)`: the multiply-adds of a round, and one text of each."""
    nets = {name: net.to(device).eval() for name, net in writers().items()}
    work = sum(map(count_parameters, nets.values()))  # per token
    for prompt in PROMPTS:
        tokens = torch.randint(3, 60, (1, prompt), device=device)

        def call(net: Any, tokens: torch.Tensor = tokens) -> Callable[[], object]:
            options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
            mask = torch.ones_like(tokens)
            return lambda: net.generate(tokens, attention_mask=mask, **options)

        yield (prompt, NEW), work * (prompt + NEW), {n: call(net) for n, net in nets.items()}


def table(timings: Sequence[tuple[tuple[int, ...], Seconds, Seconds]], close: str) -> list[str]:
    """What was measured, per prompt the tokens per second of ours and the ratios over its time;
    nothing where nothing was."""
    if not timings:
        return []
    others = list(timings[0][2])
    rows = [
        [
            f"{shape[0]:,} + {shape[1]}",
            f"{shape[1] / statistics.median(seconds['ours']):,.0f}",
            *(f"{statistics.median(ratios[name]):.2f}" for name in others),
        ]
        for shape, seconds, ratios in timings
    ]
    return [
        report.markdown_table(["prompt + new tokens", "ours, tokens/s", *others], rows, left=1),
        "Greedy writing of one text, the prompt included: new tokens per second, and the time of "
        f"others over that of ours, above 1 where ours is faster; fp32, {close}",
    ]
