"""Text models keep the padding promise for every kind of token, come back from disk bit for bit,
run in a transformers pipeline and learn."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

import resbackbones as rb
from resbackbones.data import open_dataset
from resbackbones.errors import InputError
from resbackbones.text import (
    Embedding,
    Ngrams,
    ResidualForSequenceClassification,
    ResidualTextConfig,
    TextItems,
    train_tokenizer,
)

TEXTS = ["who wrote the book on rivers", "what is a café", "how far is it to Zürich, or Bern?"]
LABELS = ["person", "thing", "number"]
TOKENIZERS: dict[str, Any] = {
    "character": train_tokenizer(TEXTS, "character"),
    "byte": train_tokenizer(TEXTS, "byte"),
    "word": train_tokenizer(TEXTS, "word"),
    "bpe": train_tokenizer(TEXTS, "bpe", vocab_size=300),
    "ngrams": train_tokenizer(TEXTS, "word", ngrams=Ngrams(buckets=200), lowercase=True),
}
SMALL = rb.BackboneSpec(
    (rb.Stage(12, 1), rb.Stage(16, 1, stride=2)), dims=1, in_channels=8, stem=rb.Stem(12)
)
NETS: dict[str, dict[str, Any]] = {
    "post": {"name_or_spec": SMALL},
    "pre": {"name_or_spec": SMALL, "order": "pre", "downsample": "max"},
    "causal": {"name_or_spec": SMALL, "causal": True, "norm": "layer"},
    "temporal": {"name_or_spec": "tcn_char", "head": {"pooling": "max"}},
    "dpcnn": {"name_or_spec": "dpcnn", "head": {"pooling": "mean_max"}},
    "vdcnn9": {"name_or_spec": "vdcnn9", "attention": "se", "head": {"pooling": "k_max"}},
    "attentive": {"name_or_spec": SMALL, "head": {"pooling": "attentive"}},
}


def trained(tokens: str, net: str = "pre", **options: Any) -> ResidualForSequenceClassification:
    """A model with the running statistics and embedding of one that has been trained."""
    torch.manual_seed(0)
    options = {"labels": LABELS, "processor": TOKENIZERS[tokens], **NETS[net], **options}
    model = ResidualForSequenceClassification.build(**options)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(getattr(module, "running_mean", None), torch.Tensor):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
        for table in model.embedding.parameters():
            table.mul_(50)  # N(0, 1): nothing hides behind small numbers
    return model.eval()


def same(batch: torch.Tensor, single: torch.Tensor) -> bool:
    return bool((batch - single).abs().max() <= 1e-4 * max(1.0, float(single.abs().max())))


@pytest.mark.parametrize("net", ["pre", "causal"])
@pytest.mark.parametrize("tokens", TOKENIZERS)
def test_a_batch_gives_the_logits_of_each_text_alone(tokens: str, net: str) -> None:
    check_batch_is_single(trained(tokens, net), examples=10)


@pytest.mark.parametrize("net", [net for net in NETS if net not in ("pre", "causal")])
def test_any_net_keeps_the_promise(net: str) -> None:
    check_batch_is_single(trained("ngrams", net), examples=4)


def check_batch_is_single(model: ResidualForSequenceClassification, examples: int) -> None:
    words = " ".join(TEXTS).split()

    @settings(max_examples=examples, deadline=None)
    @given(lengths=st.lists(st.integers(0, 30), min_size=2, max_size=4), seed=st.integers(0, 99))
    def check(lengths: list[int], seed: int) -> None:
        random = np.random.default_rng(seed)
        texts = [" ".join(random.choice(words, length)) for length in lengths]
        batch = model.processor(texts, padding=True, return_tensors="pt")
        # What stands in the padding must not matter.
        padding = batch["attention_mask"] == 0
        batch["input_ids"][padding] = 3
        if "ngram_ids" in batch:
            batch["ngram_ids"][padding] = 7
        with torch.no_grad():
            together = model(**batch).logits
            for row, text in enumerate(texts):
                alone = model.processor(text, return_tensors="pt")
                assert same(together[row], model(**alone).logits[0])
                del alone["attention_mask"]
                assert same(together[row], model(**alone).logits[0])

    check()


@pytest.mark.parametrize("net", NETS)
def test_an_empty_text_has_finite_logits(net: str) -> None:
    model = trained("word", net)
    assert model(**model.processor("", return_tensors="pt")).logits.isfinite().all()


@pytest.mark.parametrize("tokens", TOKENIZERS)
def test_saved_and_loaded_it_is_the_same_bit_for_bit(tokens: str, tmp_path: Path) -> None:
    model = trained(tokens, embedding=Embedding(0.2, 0.1), head={"dropout": 0.3})
    model.save_pretrained(tmp_path)
    batch = model.processor([*TEXTS, "unheard of"], padding=True, return_tensors="pt")
    for loaded in (
        ResidualForSequenceClassification.from_pretrained(tmp_path),
        transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path),
    ):
        assert isinstance(loaded, ResidualForSequenceClassification)
        assert loaded.config.id2label == dict(enumerate(LABELS))
        assert loaded.config.to_dict() == model.config.to_dict() | {
            "_name_or_path": str(tmp_path), "dtype": loaded.config.to_dict()["dtype"]
        }  # fmt: skip
        assert loaded.embedding.dropout.p == 0.2 and loaded.embedding.word_dropout.p == 0.1
        again = loaded.processor([*TEXTS, "unheard of"], padding=True, return_tensors="pt")
        assert torch.equal(model(**batch).logits, loaded(**again).logits)
        assert not set(dict(loaded.named_buffers())) - set(loaded.state_dict())
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, ResidualTextConfig) and "resnet" not in config.model_type


@pytest.mark.parametrize("net", NETS)
def test_any_net_comes_back_bit_for_bit(net: str, tmp_path: Path) -> None:
    model = trained("ngrams", net)
    model.save_pretrained(tmp_path)
    loaded = ResidualForSequenceClassification.from_pretrained(tmp_path)
    # Weights at addresses that are not aligned are added up in another order.
    assert not any(p.data_ptr() % 64 for p in loaded.parameters())
    for texts in (TEXTS, TEXTS[2:]):
        batch = model.processor(texts, padding=True, return_tensors="pt")
        assert torch.equal(model(**batch).logits, loaded(**batch).logits)


@pytest.mark.parametrize("tokens", TOKENIZERS)
def test_pipeline_takes_one_text_or_a_batch(tokens: str, tmp_path: Path) -> None:
    model = trained(tokens)
    model.save_pretrained(tmp_path)
    classify = transformers.pipeline("text-classification", model=str(tmp_path))
    texts = [*TEXTS, "", "unheard of"]
    singles = [classify(text)[0] for text in texts]
    batch = classify(texts, batch_size=3)
    for text, single, padded in zip(texts, singles, batch, strict=True):
        with torch.no_grad():
            logits = model(**model.processor(text, return_tensors="pt")).logits[0]
        assert single["label"] == padded["label"] == LABELS[int(logits.argmax())]
        assert single["score"] == pytest.approx(float(logits.softmax(0).max()), abs=1e-5)
        assert padded["score"] == pytest.approx(single["score"], abs=1e-5)
    ranked = classify(texts[0], top_k=None)
    assert ranked[0] == singles[0] and {item["label"] for item in ranked} == set(LABELS)


@pytest.mark.parametrize("tokens", ["byte", "ngrams"])
def test_a_pipeline_reads_as_much_of_a_text_as_training_did(tokens: str, tmp_path: Path) -> None:
    options = {"byte": {"kind": "byte"}, "ngrams": {"ngrams": Ngrams(buckets=200)}}[tokens]
    tokenizer = train_tokenizer(TEXTS, max_length=5, **options)  # type: ignore[arg-type]
    model = trained(tokens, processor=tokenizer)
    model.save_pretrained(tmp_path)
    classify = transformers.pipeline("text-classification", model=str(tmp_path))
    long = TEXTS[0]
    source = open_dataset(Dataset.from_dict({"text": [long, "a"], "label": [0, 1]}))
    with pytest.warns(UserWarning, match="longer than 5 tokens"):
        items = TextItems(source, tokenizer)
    with torch.no_grad():
        batch = items.__getitems__([0])
        scores = model(**batch).logits.softmax(1)[0]
    assert batch["input_ids"].shape == (1, 5) and items.truncated == 1
    for answer in (classify(long, top_k=None), classify([long, "a"], top_k=None, batch_size=2)[0]):
        given = {each["label"]: each["score"] for each in answer}
        assert [given[label] for label in LABELS] == pytest.approx(scores.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("processor", "sentence"),
    [
        (
            train_tokenizer([*TEXTS, "more"], "word"),
            "has vocab_size=23, but the model was built for 22",
        ),
        (TOKENIZERS["ngrams"], "tokenizer has ngram_buckets=200, but the model was built for 0"),
    ],
)
def test_another_models_tokenizer_is_refused_on_load(
    processor: Any, sentence: str, tmp_path: Path
) -> None:
    trained("word").save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=sentence):
        ResidualForSequenceClassification.from_pretrained(tmp_path)


def test_parameters() -> None:
    tokenizer = TOKENIZERS["ngrams"]
    net = rb.backbone("dpcnn")
    expected = {
        "tokens": len(tokenizer) * 250,
        "n-grams": (200 + 1) * 250,
        "backbone": 15 * (250 * 250 * 3 + 250),
        "head": 2 * 250 * 3 + 3,
    }
    assert rb.count_parameters(net) == expected["backbone"]
    model = trained("ngrams", "dpcnn")
    assert len(tokenizer) == 22 and rb.count_parameters(model) == sum(expected.values())


@pytest.mark.parametrize("tokens", ["byte", "ngrams"])
def test_it_learns_sixteen_sentences_by_heart(tokens: str) -> None:
    torch.manual_seed(0)
    texts = [
        f"{ask} {verb} the {thing} ?"
        for ask in ("who", "what", "where", "when")
        for verb, thing in (("made", "bread"), ("is", "sea"), ("saw", "moon"), ("lost", "key"))
    ]
    labels = torch.arange(16) // 4
    options = {"byte": {"kind": "byte"}, "ngrams": {"ngrams": Ngrams(buckets=512)}}[tokens]
    tokenizer = train_tokenizer(texts, **options)  # type: ignore[arg-type]
    spec = rb.BackboneSpec(
        (rb.Stage(32, 2),), dims=1, in_channels=32, order="pre", stem=rb.Stem(32)
    )
    model = ResidualForSequenceClassification.build(
        spec, num_labels=4, processor=tokenizer, head={"pooling": "mean_max"}
    )
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = model(**batch, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        out = model(**batch, labels=labels)
    assert out.loss < 0.01 and torch.equal(out.logits.argmax(1), labels)
    assert not model.embedding.tokens.weight[0].any()  # padding stays nothing


def test_embedding_dropout_is_for_training_alone() -> None:
    model = trained("word", embedding=Embedding(word_dropout=0.5))
    ids = model.processor(TEXTS[0], return_tensors="pt")["input_ids"]
    whole = model.embedding(ids)
    assert torch.equal(whole, model.embedding(ids))
    torch.manual_seed(0)
    dropped = model.embedding.train()(ids)
    gone = (dropped == 0).all(1)
    assert 0 < gone.sum() < ids.numel()  # whole tokens, and what is left is scaled up
    torch.testing.assert_close(dropped[0, :, ~gone[0]], 2 * whole[0, :, ~gone[0]])


def adversarial(size: float) -> tuple[ResidualForSequenceClassification, dict[str, Any]]:
    """A model in training, without chance or batch statistics, and a batch of texts."""
    embedding = Embedding(adversarial=size)
    model = trained("ngrams", "causal", embedding=embedding, head={"pooling": "mean"}).train()
    batch = TOKENIZERS["ngrams"](TEXTS, padding=True, return_tensors="pt")
    return model, {**batch, "labels": torch.tensor([0, 1, 2])}


def test_no_step_so_short_raises_the_loss_more() -> None:
    model, batch = adversarial(0.01)
    x = model.embedding(batch["input_ids"], batch["ngram_ids"])
    lengths = batch["attention_mask"].sum(1)

    def loss_of(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = model.classify(vectors, lengths)
        return logits, torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none")

    logits, losses = loss_of(x)
    step = model.adversarial_step(x, lengths, logits, losses.mean())
    real = batch["attention_mask"].bool().unsqueeze(1)
    assert not step.masked_select(~real).any()
    for row, length in enumerate(lengths):
        sure = 1 - model.doubt(logits)[row]
        vector = x[row].square().sum(0).sum().div(length).sqrt()
        assert torch.isclose(step[row].norm(), 0.01 * sure * vector, rtol=1e-4)
        one = x[row : row + 1, :, :length].detach().requires_grad_()
        alone = model.classify(one)
        loss = model.loss(alone, batch["labels"][row : row + 1])
        single = model.adversarial_step(one, None, alone, loss)[0]
        assert torch.allclose(step[row, :, :length], single, atol=1e-4 * float(single.abs().max()))
    steepest = loss_of(x + step)[1] - losses
    torch.manual_seed(0)
    for _ in range(10):
        other = torch.randn_like(x) * real
        other *= (step.flatten(1).norm(dim=1) / other.flatten(1).norm(dim=1))[:, None, None]
        assert (steepest > (loss_of(x + other)[1] - losses).abs()).all()


def test_the_loss_is_of_texts_as_they_are_and_behind_their_step() -> None:
    model, batch = adversarial(0.5)
    usual, _ = adversarial(0.0)
    plain = usual(**batch).loss
    x = model.embedding(batch["input_ids"], batch["ngram_ids"])
    lengths = batch["attention_mask"].sum(1)
    logits = model.classify(x, lengths)
    step = model.adversarial_step(x, lengths, logits, model.loss(logits, batch["labels"]))
    hard = model.classify(x + step, lengths)
    loss = model(**batch).loss
    assert torch.isclose(loss, (plain + model.loss(hard, batch["labels"])) / 2) and loss > plain
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    empty = batch["attention_mask"].clone()
    empty[0] = 0
    assert model(**batch | {"attention_mask": empty}).loss.isfinite()
    with torch.no_grad():  # there is no slope to climb
        assert torch.equal(model(**batch).loss, plain)
    assert torch.equal(model.eval()(**batch).loss, usual.eval()(**batch).loss)
    model.freeze_backbone()
    assert torch.equal(model.train()(**batch).loss, usual.eval()(**batch).loss)


@pytest.mark.parametrize("problem", [None, "multi_label_classification"])
def test_doubt_is_1_where_the_net_guesses(problem: str | None) -> None:
    embedding = Embedding(adversarial=1.0)
    model = trained("ngrams", problem_type=problem, embedding=embedding)
    guess, sure = torch.zeros(1, 3), torch.tensor([[20.0, -20.0, -20.0]])
    assert torch.allclose(model.doubt(guess), torch.ones(1))
    assert torch.allclose(model.doubt(sure), torch.zeros(1), atol=1e-4)


def test_unknown_words_differ_by_their_ngrams() -> None:
    def logits(tokens: str, text: str) -> torch.Tensor:
        model = trained(tokens)
        return model(**model.processor(text, return_tensors="pt")).logits

    assert torch.equal(logits("word", "unheard"), logits("word", "unseen"))
    assert not torch.equal(logits("ngrams", "unheard"), logits("ngrams", "unseen"))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_labels": 2, "labels": None, "name_or_spec": "dpcn"}, "did you mean 'dpcnn'"),
        ({"kernel": 3}, "BackboneSpec has no field 'kernel'"),
        ({"name_or_spec": "resnet20"}, "add dims=1 and in_channels="),
        ({"labels": None}, "needs its classes"),
        ({"head": {"pooling": "median"}}, "pooling='median'"),
    ],
    ids=str,
)
def test_wrong_builds_are_refused(changes: dict[str, Any], sentence: str) -> None:
    options = {"name_or_spec": SMALL, "labels": LABELS, "processor": TOKENIZERS["word"], **changes}
    with pytest.raises(InputError, match=sentence):
        ResidualForSequenceClassification.build(**options)


def test_wrong_embeddings_are_refused() -> None:
    with pytest.raises(InputError, match="adversarial=-1; use a number from 0 up"):
        Embedding(adversarial=-1)
    with pytest.raises(InputError, match=r"Embedding has word_dropout=1\.0"):
        Embedding(word_dropout=1.0)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"padding_side": "left"}, "padding token, put on the right"),
        ({"pad_token": None}, "padding token, put on the right"),
        ({"model_input_names": ["input_ids", "token_type_ids"]}, "gives token_type_ids"),
    ],
    ids=str,
)
def test_wrong_tokenizers_are_refused(changes: dict[str, Any], sentence: str) -> None:
    tokenizer = train_tokenizer(TEXTS, "word")
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    with pytest.raises(InputError, match=sentence):
        ResidualForSequenceClassification.build(SMALL, labels=LABELS, processor=tokenizer)


def test_wrong_inputs_are_refused() -> None:
    model = trained("ngrams")
    batch = dict(model.processor("who is it", return_tensors="pt"))
    with pytest.raises(InputError, match="needs ngram_ids"):
        model(input_ids=batch["input_ids"])
    with pytest.raises(InputError, match="run from 2 to 99, but the embedding has 22 tokens"):
        model(**batch | {"input_ids": torch.tensor([[2, 99, 4, 5]])})


def test_a_checkpoint_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    trained("word").save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"embedding\.tokens\.weight has shape"):
        ResidualForSequenceClassification.from_pretrained(tmp_path, vocab_size=7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        new = ResidualForSequenceClassification.from_pretrained(
            tmp_path, num_labels=5, ignore_mismatched_sizes=True
        )
    assert new.head.linear.weight.shape == (5, 16)
