"""Language models look back alone, write the same with and without what they remember, in batches
as alone, and remember as much after many tokens as after a few."""

import copy
import itertools
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

import resbackbones as rb
from resbackbones.errors import InputError
from resbackbones.text import (
    Embedding,
    KneserNey,
    Memory,
    Ngrams,
    Perplexity,
    ResidualForCausalLM,
    Step,
    TokenWindows,
    generation,
    train_tokenizer,
)

TEXTS = ["who wrote the book on rivers", "what is a café", "how far is it to Zürich, or Bern?"]
TOKENIZER = train_tokenizer(TEXTS, "character")
SMALL = rb.BackboneSpec(
    (rb.Stage(16, 2), rb.Stage(16, 1, dilation=3)), dims=1, in_channels=16, norm="layer",
    order="pre", causal=True, stem=rb.Stem(16),
)  # fmt: skip
NETS: dict[str, dict[str, Any]] = {
    "tied": {"name_or_spec": SMALL},
    "gated": {
        "name_or_spec": SMALL, "branch": rb.Gated(), "order": "none", "norm": "weight",
        "tied": False,
    },
    "depthwise": {"name_or_spec": SMALL, "branch": rb.Inverted(), "order": "none"},
    "temporal": {
        "name_or_spec": "tcn_char", "stages": (rb.Stage(20, 1), rb.Stage(20, 1, dilation=4)),
    },
    "counted": {"name_or_spec": SMALL},  # and with n-grams
}  # fmt: skip


def made(net: str = "tied", **options: Any) -> ResidualForCausalLM:
    """A model with the vectors, norms and biases of one that has been trained."""
    torch.manual_seed(0)
    model = ResidualForCausalLM.build(processor=TOKENIZER, **NETS[net], **options)
    with torch.no_grad():
        model.embedding.tokens.weight.mul_(30)
        for parameter in model.backbone.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    if net == "counted":
        tokens = torch.tensor(TOKENIZER(" ".join(TEXTS * 3)).input_ids)
        model.add_ngrams(KneserNey.fit(tokens, len(TOKENIZER), 3))
    return model.eval()


def batch_of(texts: list[str], side: str = "left") -> dict[str, torch.Tensor]:
    return {**TOKENIZER(texts, padding=True, padding_side=side, return_tensors="pt")}


@pytest.mark.parametrize("net", NETS)
@settings(deadline=None, max_examples=5)
@given(place=st.integers(0, 39), seed=st.integers(0, 9))
def test_a_token_to_come_changes_nothing(net: str, place: int, seed: int) -> None:
    model = made(net).train(bool(seed % 2) and net != "temporal")  # which has dropout
    tokens = torch.randint(
        3, len(TOKENIZER), (1, 40), generator=torch.Generator().manual_seed(seed)
    )
    other = tokens.clone()
    other[:, place] = 3 + (other[:, place] - 2) % (len(TOKENIZER) - 3)
    assert not torch.equal(tokens, other)
    before, after = model(tokens).logits, model(other).logits
    assert torch.equal(before[:, :place], after[:, :place])
    assert not torch.equal(before[:, place:], after[:, place:])


@pytest.mark.parametrize("net", NETS)
def test_what_it_remembers_changes_no_token(net: str) -> None:
    model, batch = made(net), batch_of(TEXTS)
    options: dict[str, Any] = {"max_new_tokens": 40, "do_sample": False}
    greedy = model.generate(**batch, **options)
    assert greedy.unique().numel() > 4  # it does not repeat one thing
    for other in ({"use_cache": False}, {"prefill_chunk_size": 5}):
        assert torch.equal(model.generate(**batch, **options, **other), greedy)
    logits = model(**batch).logits[:, -1].detach()
    for text, row, last in zip(TEXTS, greedy, logits, strict=True):  # a batch is its texts
        single = model(**batch_of([text])).logits[0, -1].detach()
        assert torch.allclose(last, single, atol=1e-4 * max(1.0, float(single.abs().max())))
        alone = model.generate(**batch_of([text]), **options)[0]
        assert torch.equal(alone[-40:], row[-40:])
    beams = {**options, "num_beams": 3, "num_return_sequences": 2}
    assert torch.equal(
        model.generate(**batch, **beams), model.generate(**batch, **beams, use_cache=False)
    )
    drawn = []
    for use_cache in (True, False):
        torch.manual_seed(1)
        sampled = {**options, "do_sample": True, "use_cache": use_cache}
        drawn.append(model.generate(**batch, **sampled))
    assert torch.equal(*drawn) and not torch.equal(drawn[0], greedy)


@pytest.mark.parametrize("name", [n for n, s in rb.SPECS.items() if s.causal and s.dims == 1])
def test_every_causal_net_of_the_zoo_writes_the_same_with_its_memory(name: str) -> None:
    """Sixteen times narrower, as the published ones have up to 100 million weights."""
    spec = rb.SPECS[name]
    stages = tuple(replace(stage, channels=stage.channels // 16) for stage in spec.stages)
    stem = spec.stem and replace(spec.stem, channels=spec.stem.channels // 16)
    narrow = replace(spec, stages=stages, stem=stem, in_channels=spec.in_channels // 4)
    torch.manual_seed(0)
    model = ResidualForCausalLM.build(narrow, processor=TOKENIZER).eval()
    torch.nn.init.normal_(model.head.weight)
    torch.nn.init.normal_(model.embedding.tokens.weight)
    options: dict[str, Any] = {**batch_of(TEXTS), "max_new_tokens": 30, "do_sample": False}
    found = model.generate(**options)
    assert torch.equal(found, model.generate(**options, use_cache=False))
    assert found[:, -30:].unique().numel() > 2


@pytest.mark.parametrize("net", NETS)
@settings(deadline=None, max_examples=5)
@given(cuts=st.lists(st.integers(1, 39), max_size=4))
def test_pieces_are_the_whole(net: str, cuts: list[int]) -> None:
    model = made(net)
    tokens = torch.randint(3, len(TOKENIZER), (2, 40))
    places = [0, *sorted(set(cuts)), 40]
    cache, logits = None, []
    with torch.no_grad():
        whole = model(tokens).logits
        for start, end in itertools.pairwise(places):
            output = model(tokens[:, start:end], cache=cache, use_cache=True)
            cache = output.cache
            logits.append(output.logits)
    assert cache is not None and cache.get_seq_length() == 40 and cache.batch_size == 2
    assert torch.allclose(torch.cat(logits, 1), whole, atol=1e-4 * float(whole.abs().max()))


@pytest.mark.parametrize("net", NETS)
def test_an_exported_step_writes_the_same(net: str) -> None:
    model = made(net)
    step, batch = Step(model), torch.export.Dim("batch", max=64)
    states = step.begin(2)
    sizes = {"input_ids": {0: batch}, "states": [{0: batch} for _ in states]}
    exported = torch.export.export(step, (torch.zeros(2, 1).long(), states), dynamic_shapes=sizes)
    program = exported.module()
    for texts in (["who"], ["who", "far"], ["how"] * 3):
        tokens = TOKENIZER(texts, return_tensors="pt").input_ids
        wanted = model.generate(tokens, max_new_tokens=64, do_sample=False)[:, -64:]
        states, found = step.begin(len(texts)), []
        for token in tokens.T:
            logits, states = program(token[:, None], states)
        for _ in range(64):
            found.append(logits.argmax(-1))
            logits, states = program(found[-1][:, None], states)
        assert torch.equal(torch.stack(found, 1), wanted)


def test_it_goes_on_where_it_stopped_and_from_a_copy_again() -> None:
    model, batch = made(), batch_of(TEXTS)
    options: dict[str, Any] = {"do_sample": False}
    whole = model.generate(**batch, max_new_tokens=20, **options)
    first = model.generate(**batch, max_new_tokens=8, return_dict_in_generate=True, **options)
    seen = first.cache
    assert isinstance(seen, Memory)
    mask = torch.cat([batch["attention_mask"], torch.ones(3, 8, dtype=torch.int64)], 1)
    for cache in (copy.deepcopy(seen), seen):
        further = model.generate(
            input_ids=first.sequences,
            attention_mask=mask,
            cache=cache,
            max_new_tokens=12,
            **options,
        )
        assert torch.equal(further, whole)
    assert next(iter(seen.kept)) in set(model.backbone.modules())  # copies share the net
    seen.reset()
    assert seen.get_seq_length() == 0 and seen.batch_size == -1


def test_its_memory_does_not_grow() -> None:
    model = made("gated")
    cache, sizes = None, set()
    with torch.no_grad():
        for _ in range(5):
            cache = model(torch.full((1, 50), 4), cache=cache, use_cache=True).cache
            sizes.add(sum(kept.numel() for kept, _ in cache.kept.values()))
    assert len(sizes) == 1
    seen = model(torch.full((1, 50), 4), cache=cache, use_cache=True).cache
    assert not any(kept.requires_grad for kept, _ in seen.kept.values())
    repeated = copy.deepcopy(cache)
    repeated.batch_repeat_interleave(3)
    assert repeated.batch_size == 3 and cache.batch_size == 1


@pytest.mark.slow
def test_a_long_text_takes_no_more_memory() -> None:
    """Peak memory of processes that write 65,536 and 1,024 tokens."""
    code = """
import resource, sys
from tasks._speed_decoding import writers
model = writers()["ours"].eval()
tokens = model.generate(max_new_tokens=int(sys.argv[1]), do_sample=True)
print(tokens.shape[1], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    peaks = []
    for count in (1024, 65_536):
        command = [sys.executable, "-c", code, str(count)]
        ended = subprocess.run(command, capture_output=True, text=True, check=True)
        written, peak = map(int, ended.stdout.split())
        assert written >= count
        peaks.append(peak)
    assert peaks[1] - peaks[0] <= 64 * 1024  # KiB


@pytest.mark.parametrize("net", NETS)
def test_the_loss_is_that_of_all_logits(net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "LARGEST", 7 * len(TOKENIZER))  # seven positions at once
    model, batch = made(net), batch_of(TEXTS, "right")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    logits = model(**batch).logits
    wanted = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    )
    output = model(**batch, labels=labels)
    assert isinstance(model.metric(), Perplexity)
    assert output.logits is None and torch.allclose(output.loss, wanted)
    assert (
        int(model.weight({"labels": labels})) == sum(len(TOKENIZER(t).input_ids) for t in TEXTS) - 3
    )
    parts = [
        model(**{k: v[i : i + 1] for k, v in batch.items()}, labels=labels[i : i + 1])
        for i in range(3)
    ]
    weights = [model.weight({"labels": labels[i : i + 1]}) for i in range(3)]
    total = sum(part.loss * weight for part, weight in zip(parts, weights, strict=True))
    assert torch.allclose(total / sum(weights), wanted)
    slopes = [
        torch.autograd.grad(loss, model.embedding.tokens.weight)[0]
        for loss in (output.loss, wanted)
    ]
    assert torch.allclose(*slopes, atol=1e-5 * float(slopes[1].abs().max()))


@pytest.mark.parametrize("net", NETS)
def test_saved_loaded_and_piped_it_is_the_same(net: str, tmp_path: Path) -> None:
    model, batch = made(net), batch_of(TEXTS)
    model.save_pretrained(tmp_path)
    loaded = ResidualForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    tied = loaded.head.weight is loaded.embedding.tokens.weight
    assert tied == (net in ("tied", "depthwise", "counted"))
    auto = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(auto(**batch).logits, model(**batch).logits)
    write = transformers.pipeline("text-generation", model=str(tmp_path))
    options = {"max_new_tokens": 10, "do_sample": False}
    (answer,) = write("who is", **options)
    tokens = model.generate(**batch_of(["who is"]), **options)[0]
    assert answer["generated_text"] == TOKENIZER.decode(tokens, skip_special_tokens=True)
    assert len(write(TEXTS, batch_size=3, **options)) == 3


@settings(deadline=None, max_examples=10)
@given(length=st.integers(1, 60), count=st.integers(2, 130))
def test_windows_are_the_whole(length: int, count: int) -> None:
    model = made("gated")
    tokens = torch.randint(3, len(TOKENIZER), (count,), dtype=torch.int32)
    reach = int(model.backbone.receptive_field) - 1
    windows = TokenWindows(tokens, length, context=reach)
    found = rb.train.evaluate(model, windows, batch_size=4)
    with torch.no_grad():
        whole = float(model(tokens[None].long(), labels=tokens[None].long()).loss)
    assert found["loss"] == pytest.approx(whole, rel=1e-4)
    assert found["bits"] == pytest.approx(found["loss"] / math.log(2))
    labels = windows.__getitems__(range(len(windows)))["labels"]
    assert labels[labels != -100].tolist() == tokens[1:].tolist()  # each once, but the first


def test_windows_move_with_the_epoch() -> None:
    tokens = torch.arange(1000)
    windows = TokenWindows(tokens, 10, context=3, moving=True, seed=1)
    seen = []
    for epoch in range(3):
        windows.set_epoch(epoch)
        batch = windows.__getitems__(range(len(windows)))
        told = batch["labels"][batch["labels"] != -100]
        assert len(told) == len(windows) * 10 and told.diff().unique().tolist() == [1]
        assert torch.equal(batch["input_ids"][:, -10:], batch["labels"][:, -10:])
        seen.append(int(told[0]))
    assert len(set(seen)) > 1 and len(windows) == 98
    windows.set_epoch(0)
    assert int(windows.__getitems__([0])["labels"][0, 4]) == seen[0]
    same = TokenWindows(tokens, 10, context=3, moving=True, seed=1)
    assert same.fingerprint() == windows.fingerprint()
    others = [TokenWindows(tokens, 10, context=2, moving=True, seed=1)]
    others += [TokenWindows(tokens + 1, 10, context=3, moving=True, seed=1)]
    assert windows.fingerprint() not in [other.fingerprint() for other in others]
    for options, sentence in (
        ({"length": 500, "moving": True}, "1000 tokens are too few for windows of 500; give 1001"),
        ({"length": 0}, "length=0 and context=0 make no window"),
    ):
        with pytest.raises(InputError, match=sentence):
            TokenWindows(tokens, **options)


def test_it_learns_a_sentence_by_heart() -> None:
    torch.manual_seed(0)
    model = ResidualForCausalLM.build(SMALL, processor=TOKENIZER, embedding=Embedding(0.1))
    tokens = torch.tensor(TOKENIZER(TEXTS[0] * 40).input_ids)
    options = rb.train.Options(
        epochs=30, batch_size=4, learning_rate=1e-2, progress=False, device="cpu", metric="loss",
        higher_is_better=False,
    )  # fmt: skip
    windows = TokenWindows(tokens, 40, context=10, moving=True)
    result = rb.train.fit(model, windows, TokenWindows(tokens, 40, context=40), options)
    assert result.metrics["perplexity"] < 1.2
    start = TOKENIZER("who wro", return_tensors="pt")
    found = model.eval().generate(**start, max_new_tokens=21, do_sample=False)[0]
    assert TOKENIZER.decode(found, skip_special_tokens=True) == TEXTS[0]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"causal": False}, "this net looks at tokens to come; build it with"),
        ({"dims": 2}, "looks at tokens to come"),
        ({"norm": "batch"}, "has batch norms, which in training see tokens to come"),
        ({"norm": "group"}, "causal=True with norm='group' looks ahead"),
        ({"stages": (rb.Stage(16, 1, 2),)}, "has strides, so that some tokens would not be told"),
        ({"in_channels": 8, "tied": True}, "in_channels is 8 and that has 16; make them equal"),
    ],
)
def test_wrong_nets_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        ResidualForCausalLM.build(SMALL, processor=TOKENIZER, **changes)


def test_wrong_inputs_are_refused() -> None:
    model, batch = made(), batch_of(TEXTS)

    def refused(sentence: str, **options: Any) -> None:
        with pytest.raises(InputError, match=sentence):
            model(**{**batch, **options})

    refused("the cache is of DynamicCache", cache=DynamicCache())
    refused("the cache is of another model", cache=Memory(made("gated").backbone))
    cache = model(**batch_of(TEXTS[:1]), use_cache=True).cache
    refused("the cache has read 1 texts, but there are 3", cache=cache)
    refused("attention_mask has shape .* it has to be", attention_mask=torch.ones(3, 2))
    behind = batch_of(TEXTS, "right")
    refused("padding within or behind a text", **behind, use_cache=True)
    mixed = behind["attention_mask"].clone()
    mixed[2] = mixed[1].flip(0)
    refused("padding within or behind a text", attention_mask=mixed)
    within = torch.ones_like(mixed)
    within[0, 3] = 0
    refused("padding within or behind a text", attention_mask=within)
    refused("input_ids run from", input_ids=batch["input_ids"] + 100)
    for most in (0, -1):
        with pytest.raises(InputError, match=f"max_new_tokens={most} asks for no token"):
            model.generate(**batch, max_new_tokens=most)
    with pytest.raises(InputError, match="a convolution's memory cannot go back"):
        Memory(model.backbone).crop(1)
    ngrams = train_tokenizer(TEXTS, "word", ngrams=Ngrams(buckets=100))
    with pytest.raises(InputError, match="reads tokens alone"):
        ResidualForCausalLM.build(SMALL, processor=ngrams)
    with pytest.raises(InputError, match=r"the tokenizer has 5 tokens, but the model was built"):
        model.check_processor(train_tokenizer(["ab"], "character"))
