"""Counted n-grams share in a language model's answers."""

import math
from pathlib import Path

import pytest
import torch

import resbackbones as rb
from resbackbones.errors import InputError
from resbackbones.text import KneserNey, ResidualForCausalLM, TokenWindows, train_tokenizer

SMALL = rb.BackboneSpec(
    (rb.Stage(16, 2),), dims=1, in_channels=16, norm="layer", order="pre", causal=True
)


def test_a_model_shares_its_answers_with_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["abcd"], "character")
    model = ResidualForCausalLM.build(SMALL, processor=tokenizer).eval()
    text = torch.tensor(tokenizer("abcd" * 100).input_ids)
    windows = TokenWindows(text, 50, context=4)
    before = rb.train.evaluate(model, windows)
    model.add_ngrams(KneserNey.fit(text, len(tokenizer), 3), share=0.25)
    mixed = rb.train.evaluate(model, windows)
    assert mixed["net_loss"] == pytest.approx(before["loss"]) and "net_loss" not in before
    with torch.no_grad():
        logits = model(text[None]).logits
        assert logits.exp().sum(-1).allclose(torch.ones(()), atol=1e-5)
        net = model.head(model._feature(text[None])[0]).softmax(-1)
        assert model.ngrams is not None
        counted, _ = model.ngrams(model.ngrams.history(text[None]), torch.arange(len(tokenizer)))
        assert logits.exp().allclose(0.75 * net + 0.25 * counted, atol=1e-6)
        right = logits[0, :-1].gather(1, text[1:, None]).mean()
    assert mixed["loss"] == pytest.approx(-float(right), rel=1e-4)
    model.choose_ngram_share(windows)  # the net has learnt nothing, they know it all
    assert model.ngram_share.tolist() == [1.0] * 3 and not model.training
    assert rb.train.evaluate(model, windows)["loss"] < 0.05
    model.train()
    assert "net_loss" not in model(text[None], labels=text[None])  # the net is trained by itself
    model.eval()
    noise = torch.randint(3, len(tokenizer), (4000,))
    options = rb.train.Options(
        epochs=30, batch_size=4, learning_rate=1e-2, progress=False, device="cpu", metric="loss",
        higher_is_better=False, keep="last",
    )  # fmt: skip
    rb.train.fit(model, TokenWindows(text, 50, moving=True), windows, options)
    model.add_ngrams(KneserNey.fit(noise, len(tokenizer), 3))
    model.choose_ngram_share(windows)
    assert max(model.ngram_share.tolist()) <= 0.05 and math.isfinite(mixed["loss"])
    model.save_pretrained(tmp_path)
    loaded = ResidualForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    for name, value in model.ngrams.state_dict().items():  # probabilities have to sum to 1
        assert torch.equal(loaded.ngrams.state_dict()[name], value)
        assert loaded.ngrams.state_dict()[name].dtype == value.dtype
    with pytest.raises(InputError, match="share=2 is none; give a number from 0 to 1"):
        model.add_ngrams(model.ngrams, share=2)
    with pytest.raises(InputError, match="the model has no n-grams to give a share"):
        ResidualForCausalLM.build(SMALL, processor=tokenizer).choose_ngram_share(windows)
    with pytest.raises(InputError, match="the n-grams are of 3 tokens and the model of"):
        model.add_ngrams(KneserNey.fit(torch.tensor([0, 1, 2]), 3, 2))
