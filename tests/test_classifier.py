"""What the classifiers of images, audio and text share: losses, metrics, freezing."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from torch.nn import functional

import resbackbones as rb
from resbackbones.metrics import Confusion, MultiLabel
from resbackbones.speech import ResidualForAudioClassification
from resbackbones.text import ResidualForSequenceClassification, train_tokenizer
from resbackbones.vision import ResidualForImageClassification

LABELS = ["cat", "dog", "owl"]
MANY = "multi_label_classification"


def small(**options: Any) -> ResidualForImageClassification:
    torch.manual_seed(0)
    return ResidualForImageClassification.build("resnet20", labels=LABELS, **options)


def a_model_of_each_wing(**options: Any) -> dict[str, tuple[Any, dict[str, torch.Tensor]]]:
    """Models and a batch of two items for each, of different lengths where they have lengths."""
    torch.manual_seed(0)
    speech = ResidualForAudioClassification.build("tc_resnet8", labels=LABELS, **options)
    tokenizer = train_tokenizer(["who is it", "where is it"], "word")
    text = ResidualForSequenceClassification.build(
        "dpcnn", labels=LABELS, processor=tokenizer, **options
    )
    sounds = speech.processor([torch.randn(9000), torch.randn(5000)], return_tensors="pt")
    words = tokenizer(["who", "where is it"], padding=True, return_tensors="pt")
    images = {"pixel_values": torch.randn(2, 3, 8, 8)}
    return {
        "vision": (small(**options), images),
        "speech": (speech, dict(sounds)),
        "text": (text, dict(words)),
    }


def test_t8_soft_labels_are_shares_of_classes() -> None:
    model = small().eval()
    x = torch.randn(4, 3, 8, 8)
    hard = torch.tensor([0, 1, 2, 1])
    soft = functional.one_hot(hard, 3).float()
    expected = functional.cross_entropy(model(x).logits, hard)
    torch.testing.assert_close(model(x, hard).loss, expected)
    torch.testing.assert_close(model(x, soft).loss, expected)
    mixed = model(x, (soft + soft.flip(0)) / 2).loss
    parts = [functional.cross_entropy(model(x).logits, t) for t in (hard, hard.flip(0))]
    torch.testing.assert_close(mixed, sum(parts) / 2)


def test_label_smoothing_is_for_training_alone() -> None:
    model = small()
    model.label_smoothing = 0.3
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 1])
    smooth = functional.cross_entropy(logits, labels, label_smoothing=0.3)
    assert torch.equal(model.train().loss(logits, labels), smooth)
    assert torch.equal(model.eval().loss(logits, labels), functional.cross_entropy(logits, labels))
    assert model.loss(logits, None) is None


def test_a_classifier_is_evaluated_by_its_confusion() -> None:
    model, labels = small(), torch.tensor([0, 1, 2, 1])
    metric = model.metric()
    output = model(torch.randn(4, 3, 8, 8), labels)
    metric.update(output, {"labels": labels})
    accuracy = (output.logits.argmax(1) == labels).float().mean().item()
    assert metric.compute()["accuracy"] == pytest.approx(accuracy)
    assert metric.compute()["loss"] == pytest.approx(output.loss.item(), abs=1e-5)
    assert list(metric.per_class()) == list(model.config.id2label.values())
    assert model.weight({"pixel_values": torch.zeros(4, 3, 8, 8)}) == 4


WINGS = ("vision", "speech", "text")


@pytest.mark.parametrize("wing", WINGS)
@pytest.mark.parametrize("head", [{}, {"kind": "cosine"}], ids=["linear", "cosine"])
def test_many_labels_in_every_wing(wing: str, head: dict, tmp_path: Path) -> None:
    model, batch = a_model_of_each_wing(problem_type=MANY, head=head)[wing]
    model.eval()
    labels = torch.tensor([[1.0, 0, 1], [0, 0, 0]])
    output = model(**batch, labels=labels)
    expected = functional.binary_cross_entropy_with_logits(output.logits, labels)
    assert torch.equal(output.loss, expected)
    assert torch.equal(model(**batch, labels=labels.long()).loss, expected)
    assert isinstance(model.metric(), MultiLabel) and model.metric().names == tuple(LABELS)
    alone = {name: value[1:] for name, value in batch.items()}
    torch.testing.assert_close(model(**alone).logits, output.logits[1:], atol=1e-4, rtol=0)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.is_multi_label and isinstance(loaded.metric(), MultiLabel)
    assert torch.equal(loaded(**batch).logits, output.logits)


@pytest.mark.parametrize("wing", WINGS)
def test_padding_changes_nothing_for_a_cosine_head(wing: str) -> None:
    model, batch = a_model_of_each_wing(head={"kind": "cosine"})[wing]
    logits = model.eval()(**batch).logits
    for row in range(2):
        alone = {name: value[row : row + 1] for name, value in batch.items()}
        if "attention_mask" in alone:
            real = int(alone["attention_mask"].sum())
            alone = {name: value[..., :real] for name, value in alone.items()}
        torch.testing.assert_close(model(**alone).logits[0], logits[row], atol=1e-4, rtol=0)


def test_the_pipelines_answer_each_label_for_itself(tmp_path: Path) -> None:
    models = a_model_of_each_wing(problem_type=MANY, head={"kind": "cosine"})
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    sound = torch.randn(9000)
    asked: dict[str, tuple[str, Any, dict[str, Any]]] = {
        "vision": ("image-classification", PIL.Image.fromarray(pixels), {"images": [pixels]}),
        "speech": ("audio-classification", sound.numpy(), {"raw_speech": [sound]}),
        "text": ("text-classification", "where is it", {"text": ["where is it"]}),
    }
    for wing, (task, given, call) in asked.items():
        model = models[wing][0].eval()
        model.save_pretrained(tmp_path / wing)
        classify = transformers.pipeline(task, model=str(tmp_path / wing))
        answers = classify(given, top_k=3)
        (batch,) = [model.processor(*call.values(), return_tensors="pt")]
        scores = model(**batch).logits[0].sigmoid()
        assert sum(answer["score"] for answer in answers) == pytest.approx(scores.sum().item())
        for answer in answers:
            number = model.config.label2id[answer["label"]]
            assert answer["score"] == pytest.approx(scores[number].item(), abs=1e-6)


def test_one_question_can_be_asked_alone() -> None:
    model = ResidualForImageClassification.build("resnet20", labels=["cat"], problem_type=MANY)
    assert model(torch.randn(2, 3, 8, 8), torch.ones(2, 1)).loss.isfinite()
    with pytest.raises(rb.InputError, match="1 class cannot be told apart"):
        ResidualForImageClassification.build("resnet20", labels=["cat"])


def test_smoothing_many_labels_is_between_yes_and_no() -> None:
    model = small(problem_type=MANY)
    model.label_smoothing = 0.2
    logits, labels = torch.randn(4, 3), torch.randint(2, (4, 3))
    smooth = functional.binary_cross_entropy_with_logits(logits, labels * 0.8 + 0.1)
    torch.testing.assert_close(model.train().loss(logits, labels), smooth)
    plain = functional.binary_cross_entropy_with_logits(logits, labels.float())
    assert torch.equal(model.eval().loss(logits, labels), plain)


def test_wrong_problems_and_labels_are_refused() -> None:
    with pytest.raises(rb.InputError, match="problem_type='multi_label' is not known"):
        small(problem_type="multi_label")
    config = small().config
    config.problem_type = "regression"
    with pytest.raises(rb.InputError, match="problem_type='regression' is not known"):
        ResidualForImageClassification(config)
    model = small(problem_type=MANY)
    sentence = (
        r"labels have shape \(2,\), but with any number of classes per item they are \(2, 3\)"
    )
    with pytest.raises(rb.InputError, match=sentence):
        model(torch.randn(2, 3, 8, 8), torch.tensor([0, 1]))


@pytest.mark.parametrize("wing", WINGS)
def test_a_frozen_backbone_stays_as_it_is_in_any_loop(wing: str) -> None:
    model, batch = a_model_of_each_wing(head={"norm": "layer"})[wing]
    model.freeze_backbone()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        model.train()
        model(**batch, labels=torch.tensor([0, 1])).loss.backward()
        optimizer.step()
    assert model.training and model.head.training and not model.backbone.training
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert changed == {name for name, _ in model.head.named_parameters(prefix="head")}
    model.unfreeze()
    assert all(p.requires_grad for p in model.parameters()) and model.backbone.training
    model(**batch)
    norms = [n for n, value in model.state_dict().items() if n.endswith("running_mean")]
    assert any(not torch.equal(model.state_dict()[n], before[n]) for n in norms) or not norms


def test_unfreezing_leaves_a_model_in_its_mode() -> None:
    model = small().eval()
    model.freeze_backbone()
    model.unfreeze()
    assert not any(module.training for module in model.modules())


def test_fit_leaves_a_frozen_backbone_alone() -> None:
    model = small()
    model.freeze_backbone()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = [{"pixel_values": torch.randn(3, 8, 8), "labels": i % 3} for i in range(24)]
    options = rb.train.Options(epochs=1, batch_size=8, device="cpu", progress=False)
    rb.train.fit(model, rows, options=options)
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert changed == {"head.linear.weight", "head.linear.bias"}


def test_rates_fall_by_block_towards_the_stem() -> None:
    model = small(head={"kind": "cosine"})
    options = rb.train.Options(learning_rate=1.0, layer_decay=0.5, weight_decay=0.1)
    groups = rb.train.optimizers.parameter_groups(model, options)
    rates = {
        p: (group["initial_lr"], group["weight_decay"]) for group in groups for p in group["params"]
    }
    blocks = model.backbone.blocks
    assert len(rates) == len(list(model.parameters()))
    assert rates[model.head.linear.weight] == (1.0, 0.1)
    assert rates[model.head.linear.scale] == (1.0, 0.0)  # no weight of a map
    for depth, (_, block) in enumerate(reversed(blocks), 1):
        assert {rates[p][0] for p in block.parameters()} == {0.5**depth}
    stem = {rates[p][0] for p in model.backbone.stem.parameters()}
    assert stem == {0.5 ** (len(blocks) + 1)}


def test_the_metric_is_that_of_the_problem() -> None:
    assert isinstance(small().metric(), Confusion)
    assert isinstance(small(problem_type="single_label_classification").metric(), Confusion)
