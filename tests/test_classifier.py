"""What the classifiers of images, audio and text share: losses, metrics, freezing."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from torch.nn import functional

import resbackbones as rb
from resbackbones.classifier import class_weights
from resbackbones.metrics import Confusion, MultiLabel
from resbackbones.speech import ResidualForAudioClassification
from resbackbones.text import ResidualForSequenceClassification, train_tokenizer
from resbackbones.vision import ResidualForImageClassification
from tests.train.helpers import sgd

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


WEIGHTS = torch.tensor([0.5, 3.0, 1.0])


def test_weights_of_classes() -> None:
    counts = torch.tensor([900, 90, 10, 0])
    for power in (0.0, 0.5, 1.0):
        weights = class_weights(counts, power)
        assert (weights * counts).sum() / counts.sum() == pytest.approx(1)
        assert weights[3] == 1  # of a class without an item: neither infinite nor no number
    torch.testing.assert_close(class_weights(counts)[:3], 1000 / (3 * counts[:3]))  # scikit-learn's
    assert torch.equal(class_weights(torch.zeros(2)), torch.ones(2))


@pytest.mark.parametrize("wing", ["vision", "speech", "text"])
def test_class_weights_make_a_weighted_mean_in_every_wing(wing: str) -> None:
    model, batch = a_model_of_each_wing()[wing]
    labels, model.class_weights = torch.tensor([0, 1]), WEIGHTS
    output = model(**batch, labels=labels)
    torch.testing.assert_close(
        output.loss, functional.cross_entropy(output.logits, labels, WEIGHTS)
    )
    assert model.weight({**batch, "labels": labels}) == 3.5
    model.eval()
    output = model(**batch, labels=labels)
    assert torch.equal(output.loss, functional.cross_entropy(output.logits, labels))
    assert model.weight({**batch, "labels": labels}) == 2


def test_smoothed_and_mixed_labels_keep_the_weight_of_their_class() -> None:
    model = small().train()
    model.class_weights, model.label_smoothing = WEIGHTS, 0.3
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 1])
    each = functional.cross_entropy(logits, labels, label_smoothing=0.3, reduction="none")
    expected = (WEIGHTS[labels] * each).sum() / WEIGHTS[labels].sum()
    torch.testing.assert_close(model.loss(logits, labels), expected)
    one, other = functional.one_hot(labels, 3).float(), functional.one_hot(labels.flip(0), 3)
    torch.testing.assert_close(model.loss(logits, one), expected)
    # A mixture is as much of each item as its share says.
    both = torch.cat([0.75 * one, 0.25 * other])
    torch.testing.assert_close(
        model.loss(logits, 0.75 * one + 0.25 * other), model.loss(torch.cat([logits, logits]), both)
    )
    assert model.weight({"labels": 0.75 * one + 0.25 * other}) == pytest.approx(
        float(0.75 * WEIGHTS[labels].sum() + 0.25 * WEIGHTS[labels.flip(0)].sum())
    )


def test_smoothing_leaves_a_common_class_its_own_items() -> None:
    """Where torch's `weight=` has a loss that is least at another class."""
    model = small().train()
    model.class_weights, model.label_smoothing = class_weights(torch.tensor([980, 10, 10])), 0.1
    logits = torch.zeros(1, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(model.loss(logits, torch.tensor([0])), logits)
    assert gradient[0, 0] < 0 < gradient[0, 1]
    theirs = functional.cross_entropy(
        logits, torch.tensor([0]), model.class_weights, label_smoothing=0.1
    )
    (gradient,) = torch.autograd.grad(theirs, logits)
    assert gradient[0, 0] > 0 > gradient[0, 1]


@pytest.mark.parametrize(("accumulate", "mixup"), [(2, 0.0), (3, 0.0), (3, 0.4)])
def test_an_update_of_weighted_items_is_the_same_however_it_is_split(
    accumulate: int, mixup: float
) -> None:
    torch.manual_seed(1)
    labels = functional.one_hot(torch.arange(12) % 7 % 3, 3).float()
    labels = torch.lerp(labels, labels.flip(0), mixup) if mixup else labels.argmax(1)
    rows = [{"pixel_values": torch.randn(3, 8, 8), "labels": label} for label in labels]

    def trained(size: int, parts: int) -> tuple[Any, float]:
        torch.manual_seed(0)
        spec = rb.BackboneSpec((rb.Stage(4, 1),), stem=rb.Stem(4), norm="layer")
        model = ResidualForImageClassification.build(spec, labels=LABELS)
        model.class_weights = WEIGHTS
        options = sgd(batch_size=size, accumulate=parts, label_smoothing=0.1)
        return model, rb.train.fit(model, rows, options=options).history[0]["train_loss"]

    whole, loss = trained(12, 1)
    parts, same = trained(12 // accumulate, accumulate)
    assert same == pytest.approx(loss, rel=1e-6)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        (torch.ones(2), r"class_weights has shape \(2,\) for 3 classes; give one number per class"),
        (torch.tensor([1.0, torch.nan, 1.0]), "give finite numbers from 0 up"),
        (torch.tensor([1.0, -1.0, 1.0]), "give finite numbers from 0 up"),
    ],
)
def test_wrong_class_weights_are_refused(weights: torch.Tensor, sentence: str) -> None:
    with pytest.raises(rb.InputError, match=sentence):
        small().class_weights = weights
    with pytest.raises(rb.InputError, match="class weights are for items of one class each"):
        small(problem_type=MANY).class_weights = WEIGHTS


def test_a_batch_of_classes_that_count_nothing_is_no_nan() -> None:
    model = small().train()
    model.class_weights = torch.tensor([0.0, 1.0, 1.0])
    assert model.loss(torch.randn(2, 3), torch.tensor([0, 0])) == 0


def test_class_weights_are_no_part_of_what_is_saved(tmp_path: Path) -> None:
    model = small()
    model.class_weights = WEIGHTS
    model.save_pretrained(tmp_path)
    assert ResidualForImageClassification.from_pretrained(tmp_path).class_weights is None


def test_a_run_goes_on_with_the_weights_it_began_with(tmp_path: Path) -> None:
    rows = [{"pixel_values": torch.randn(3, 8, 8), "labels": i % 3} for i in range(6)]
    options = rb.train.Options(
        epochs=1, batch_size=6, device="cpu", output=tmp_path, progress=False, least_updates=1
    )
    rb.train.fit(small(), rows, options=options)
    model = small()
    model.class_weights = WEIGHTS
    with pytest.raises(rb.InputError, match=r"has class_weights=None, not \[0.5, 3.0, 1.0\]"):
        rb.train.fit(model, rows, options=dataclasses.replace(options, resume=True))


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


def test_a_model_frozen_whole_rests_in_either_mode() -> None:
    model = small(head={"dropout": 0.5})
    model.requires_grad_(False)
    for change in (model.train, model.eval):
        change()
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
