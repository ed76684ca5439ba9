"""Detectors of one stage: torchvision's answers, padding, classes that survive, what is refused."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator

import resbackbones as rb
from resbackbones.core.zoo import resolve
from resbackbones.vision import (
    ResidualDetectionProcessor,
    ResidualForImageClassification,
    ResidualForObjectDetection,
)
from resbackbones.vision.boxes import select
from resbackbones.vision.pyramid import choose_levels

DETECTORS = ("fcos", "retinanet")
LABELS = ("cat", "dog", "owl")


# Strides 2, 4, 8.
TINY = rb.BackboneSpec(
    (rb.Stage(16, 1), rb.Stage(24, 1, 2), rb.Stage(32, 1, 2)), stem=rb.Stem(8, stride=2)
)


def small(detector: str = "fcos", **changes: Any) -> ResidualForObjectDetection:
    torch.manual_seed(0)
    options = {"labels": LABELS, "channels": 64, "levels": (4, 8)} | changes
    if detector == "fcos":
        options.setdefault("convolutions", 1)
    return ResidualForObjectDetection.build(TINY, detector=detector, **options)


def label(boxes: list[list[float]], classes: list[int]) -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "class_labels": torch.tensor(classes, dtype=torch.int64),
    }


TWO = [label([[3, 4, 30, 20], [10, 10, 15, 16]], [0, 2]), label([], [])]


class Levels(nn.Module):
    """Our backbone and pyramid as torchvision's detectors take them."""

    def __init__(self, model: ResidualForObjectDetection) -> None:
        super().__init__()
        self.model, self.out_channels = model, model.config.channels

    def forward(self, x: Tensor) -> Any:
        levels = self.model.pyramid(self.model.backbone(x))
        return OrderedDict((str(n), level) for n, level in enumerate(levels))


def torchvisions(model: ResidualForObjectDetection, height: int, width: int) -> nn.Module:
    strides = model.pyramid.strides
    if model.config.detector == "fcos":
        kind: Any = FCOS
        anchors = AnchorGenerator(tuple((s,) for s in strides), ((1.0,),) * len(strides))
    else:
        kind = RetinaNet
        sizes = tuple(
            (4 * s, int(4 * s * 2 ** (1 / 3)), int(4 * s * 2 ** (2 / 3))) for s in strides
        )
        anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(strides))
    made = kind(
        Levels(model), 3, anchor_generator=anchors, min_size=height, max_size=width,
        image_mean=[0.0] * 3, image_std=[1.0] * 3, score_thresh=0.0, nms_thresh=0.6,
        topk_candidates=10_000, detections_per_img=100,
    )  # fmt: skip
    made.head.load_state_dict(model.head.state_dict())
    return made.train(model.training)


@pytest.mark.parametrize("detector", DETECTORS)
def test_it_is_torchvisions_detector(detector: str) -> None:
    model = small(detector, levels=(2, 4, 8, 16), convolutions=4)
    with torch.no_grad():  # scores that differ
        model.head.classification_head.cls_logits.weight.normal_()
    x = torch.rand(2, 3, 64, 96)
    theirs = torchvisions(model, 64, 96)
    targets = [{"boxes": t["boxes"], "labels": t["class_labels"]} for t in TWO]
    expected = sum(theirs(list(x), targets).values())
    torch.testing.assert_close(model(x, labels=TWO).loss, expected)
    with torch.no_grad():
        found = select(model.eval()(x), 0.0, candidates=10_000)
        for ours, other in zip(found, torchvisions(model, 64, 96)(list(x)), strict=True):
            assert len(ours["boxes"]) == 100
            torch.testing.assert_close(ours["scores"], other["scores"], rtol=0, atol=1e-5)
            # Scores may be equal but for rounding, and their order then is one or the other.
            both = [torch.cat([o["boxes"], 9.0 * o["labels"][:, None]], 1) for o in (ours, other)]
            assert torch.cdist(*both, p=1).amin(1)[:90].amax() < 1e-3


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("levels", [(2,), (2, 4), (8, 16), None])
def test_every_parameter_is_trained(detector: str, levels: Any) -> None:
    model = small(detector, levels=levels)
    assert rb.count_parameters(model) == sum(p.numel() for p in model.parameters())
    assert not any("Frozen" in type(m).__name__ for m in model.modules())
    model(torch.randn(2, 3, 32, 48), labels=TWO).loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_parameters_are_torchvisions() -> None:
    model = ResidualForObjectDetection.build("resnet50", num_labels=91)
    # fcos_resnet50_fpn has 32,269,600, and freezes the 53,120 of its batch norms.
    assert rb.count_parameters(model) == 32_269_600 + 53_120


def test_stages_that_no_level_reads_are_left_out() -> None:
    spec, levels = choose_levels(resolve("resnet18"), (8, 16))
    assert levels == (8, 16) and len(spec.stages) == 3
    spec, levels = choose_levels(resolve("resnet18"))
    assert levels == (8, 16, 32, 64, 128) and len(spec.stages) == 4
    dilated = rb.with_output_stride(resolve("resnet18"), 16)
    assert choose_levels(dilated, (8, 16))[0] == dilated  # the last two stages have stride 16


@pytest.mark.parametrize("detector", DETECTORS)
@settings(max_examples=12, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=2, max_size=4))
def test_padding_changes_nothing(detector: str, sizes: list[tuple[int, int]]) -> None:
    model = small(
        detector, attention="se", levels=(2, 4, 8, 16)
    ).eval()  # which means over all of an image
    torch.manual_seed(len(sizes))
    images = [torch.randn(3, high, wide) for high, wide in sizes]
    x = torch.full((len(sizes), 3, 41, 43), float("nan"))
    mask = torch.zeros(len(sizes), 41, 43, dtype=torch.int64)
    for number, image in enumerate(images):
        high, wide = image.shape[1:]
        x[number, :, :high, :wide], mask[number, :high, :wide] = image, 1
    with torch.no_grad():
        output = model(x, mask)
        found = select(output, 0.05)
        for number, image in enumerate(images):
            alone = model(image.unsqueeze(0))
            real = output.logits[number, :, 0] > -99
            for name in ("logits", "pred_boxes", "regression", "anchors"):
                ours, theirs = output[name][number][real], alone[name][0]
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
            one = select(alone, 0.05)[0]
            torch.testing.assert_close(found[number]["scores"], one["scores"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("detector", DETECTORS)
def test_padding_teaches_nothing(detector: str) -> None:
    model = small(detector, norm="group")
    # The anchor that fits the second box best would stand in the padding.
    labels = [label([[3, 4, 30, 20], [38, 10, 40, 14]], [0, 2]), TWO[1]]
    x, mask = torch.randn(2, 3, 48, 64), torch.zeros(2, 48, 64, dtype=torch.int64)
    mask[0, :32, :40], mask[1, :48, :30] = 1, 1
    clean = x * mask.unsqueeze(1)
    expected = model(clean, mask, labels).loss
    expected.backward()
    gradient = model.backbone.stem[0].convolutions[0].conv.weight.grad.clone()
    model.zero_grad()
    loss = model(x, mask, labels).loss
    loss.backward()
    assert torch.equal(loss, expected)
    assert torch.equal(model.backbone.stem[0].convolutions[0].conv.weight.grad, gradient)
    if detector == "retinanet":  # whose loss is a mean over images
        alone = [
            model(clean[:1, :, :32, :40], labels=labels[:1]).loss,
            model(clean[1:, :, :, :30], labels=labels[1:]).loss,
        ]
        torch.testing.assert_close(loss, sum(alone) / 2)


def test_masks_that_are_no_rectangle_are_refused() -> None:
    model, x = small(), torch.randn(1, 3, 16, 16)
    hole = torch.ones(1, 16, 16)
    hole[0, 3, 3] = 0
    late = torch.zeros(1, 16, 16)
    late[0, 4:, :] = 1
    for mask in (hole, late, torch.zeros(1, 16, 16)):
        with pytest.raises(rb.InputError, match="no rectangle at the upper left"):
            model(x, mask)
    with pytest.raises(rb.InputError, match=r"pixel_mask has shape \(1, 8, 16\)"):
        model(x, torch.ones(1, 8, 16))


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize(
    "boxes",
    [
        [],
        [[5, 5, 6, 6]],
        [[0, 0, 1e-3, 1e-3]],
        [[0, 0, 48, 32]],
        [[-1e4, -1e4, 1e5, 1e5]],
        [[0, 0, 1e-3, 32], [0, 0, 48, 1e-3]],
        [[7, 7, 20, 20]] * 50,
    ],
)
def test_no_box_makes_a_loss_that_is_no_number(detector: str, boxes: list) -> None:
    model = small(detector)
    labels = [label(boxes, [1] * len(boxes)), label([], [])]
    loss = model(torch.randn(2, 3, 32, 48), labels=labels).loss
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_a_batch_of_one_trains() -> None:
    small()(torch.randn(1, 3, 32, 48), labels=TWO[:1]).loss.backward()
    with pytest.raises(rb.InputError, match=r'1 image of 3x2 pixels; .* norm="group"'):
        small()(torch.randn(1, 3, 2, 3), labels=[label([[0, 0, 2, 2]], [0])])
    small(norm="group")(torch.randn(1, 3, 2, 3), labels=[label([[0, 0, 2, 2]], [0])])


@pytest.mark.parametrize("detector", ["fcos", pytest.param("retinanet", marks=pytest.mark.slow)])
def test_it_learns_to_find_what_it_was_shown(detector: str) -> None:
    model = small(detector, labels=["square", "bar"])
    images, labels = torch.full((2, 3, 48, 64), -1.0), []
    for number, (square, bar) in enumerate([((4, 6), (30, 20)), ((36, 20), (6, 30))]):
        boxes = [[*square, square[0] + 16, square[1] + 16], [*bar, bar[0] + 24, bar[1] + 12]]
        for x1, y1, x2, y2 in boxes:
            images[number, :, y1:y2, x1:x2] = 1
        labels.append(label(boxes, [0, 1]))
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(50 if detector == "fcos" else 80):
        optimizer.zero_grad()
        model(images, labels=labels).loss.backward()
        optimizer.step()
    metric = model.metric()
    metric.update(model(images, labels=labels), {"pixel_values": images, "labels": labels})
    assert metric.compute()["ap50"] > 0.9


# What users of detectors complain of: sizes, classes, names


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = small(processor=ResidualDetectionProcessor(size={"height": 32, "width": 40}))
    with torch.no_grad():
        model.head.classification_head.cls_logits.weight.mul_(100)
        model.head.regression_head.bbox_reg.bias.fill_(2.0)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("detector", DETECTORS)
def test_save_and_load_give_the_same_bits(detector: str, tmp_path: Path) -> None:
    model = small(detector).eval()
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForObjectDetection.from_pretrained(tmp_path)
    assert type(loaded) is ResidualForObjectDetection and not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    x = torch.randn(2, 3, 40, 50)
    for name, value in model(x).items():
        assert torch.equal(value, loaded(x)[name]), name
    assert loaded.config.id2label == dict(enumerate(LABELS))
    assert type(transformers.AutoImageProcessor.from_pretrained(tmp_path)) is type(loaded.processor)
    assert loaded.processor.to_dict() == model.processor.to_dict()


def photo(width: int, height: int) -> PIL.Image.Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


@pytest.mark.parametrize(
    "size", [{"height": 32, "width": 40}, {"shortest_edge": 24, "longest_edge": 40}]
)
def test_the_pipeline(size: dict, saved: Path) -> None:
    model = ResidualForObjectDetection.from_pretrained(saved)
    model.processor = ResidualDetectionProcessor(size=size)
    model.save_pretrained(saved)
    images = [photo(80, 60), photo(30, 90), photo(64, 64)]
    expected = model.predict(images, threshold=0.3)
    for batch_size in (1, 3):
        detect = transformers.pipeline("object-detection", str(saved), batch_size=batch_size)
        answers = detect(images, threshold=0.3)
        for answer, one, image in zip(answers, expected, images, strict=True):
            assert [a["label"] for a in answer] == one["labels"]
            assert {a["label"] for a in answer} <= set(LABELS) and answer
            assert [a["score"] for a in answer] == pytest.approx(one["scores"].tolist(), abs=1e-5)
            boxes = torch.tensor([list(a["box"].values()) for a in answer])
            assert (boxes - one["boxes"]).abs().max() <= 1.001  # the pipeline cuts decimals off
            assert boxes[:, 2].max() <= image.width and boxes[:, 3].max() <= image.height


def test_boxes_are_in_the_pixels_of_the_image_itself(saved: Path, tmp_path: Path) -> None:
    model = ResidualForObjectDetection.from_pretrained(saved)
    image = photo(80, 96)
    output = model(**model.processor(image, return_tensors="pt"))
    (inside,) = select(output, 0.3)
    found = model.predict(image, threshold=0.3)
    expected = inside["boxes"] * torch.tensor([2.0, 3.0, 2.0, 3.0])
    torch.testing.assert_close(found["boxes"], expected)
    assert found["labels"] == [LABELS[number] for number in inside["labels"].tolist()]
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # lies on its side, as a telephone saves it
    image.rotate(90, expand=True).save(tmp_path / "photo.png", exif=exif)
    image.save(tmp_path / "upright.png")
    array = np.array(image)
    ways = [tmp_path / "upright.png", str(tmp_path / "photo.png"), array, torch.tensor(array)]
    for other in model.predict(ways, threshold=0.3):
        # A batch of four is computed in another order than an image alone.
        torch.testing.assert_close(other["boxes"], found["boxes"], rtol=1e-4, atol=1e-4)
        assert other["labels"] == found["labels"]


def test_predict_refuses_what_is_no_image(saved: Path) -> None:
    model = small()
    with pytest.raises(rb.InputError, match=r"nowhere\.png cannot be read"):
        model.predict("nowhere.png")
    with pytest.raises(rb.InputError, match="an image is given as int"):
        model.predict([3])
    model.processor = None
    with pytest.raises(rb.InputError, match="no processor"):
        model.predict(photo(20, 20))


def test_predict_leaves_the_model_as_it_was() -> None:
    model = small().train()
    model.backbone.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.predict(photo(20, 20))
    assert model.training and model.head.training and not model.backbone.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("how", [{"labels": ["hat", "sock"]}, {"num_labels": 2}])
def test_fine_tuning_to_other_classes(how: dict, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(rb.InputError, match="ignore_mismatched_sizes=True"):
        ResidualForObjectDetection.from_pretrained(saved, **how)
    old = ResidualForObjectDetection.from_pretrained(saved)
    new = ResidualForObjectDetection.from_pretrained(saved, ignore_mismatched_sizes=True, **how)
    names = how.get("labels", ["LABEL_0", "LABEL_1"])
    for name, value in old.state_dict().items():  # all but what tells classes apart is kept
        if "cls_logits" not in name:
            assert torch.equal(value, new.state_dict()[name]), name
    last = new.head.classification_head.cls_logits
    assert last.weight.shape[0] == 2 and 0.005 < last.weight.std() < 0.02
    assert last.bias.sigmoid().tolist() == pytest.approx([0.01] * 2)
    new.train()(torch.randn(1, 3, 32, 40), labels=[label([[2, 2, 20, 20]], [1])]).loss.backward()
    new.save_pretrained(tmp_path / "new")
    with torch.no_grad():
        last.bias.fill_(1.0)
    new.save_pretrained(tmp_path / "new")
    again = ResidualForObjectDetection.from_pretrained(tmp_path / "new")
    assert again.config.id2label == dict(enumerate(names))
    assert set(again.predict(photo(40, 40))["labels"]) <= set(names)
    detect = transformers.pipeline("object-detection", str(tmp_path / "new"))
    answers = detect(photo(40, 40))
    assert answers and {answer["label"] for answer in answers} <= set(names)


def test_names_of_as_many_classes_keep_the_weights(saved: Path) -> None:
    old = ResidualForObjectDetection.from_pretrained(saved)
    new = ResidualForObjectDetection.from_pretrained(saved, labels=["a", "b", "c"])
    assert new.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert new.config.label2id == {"a": 0, "b": 1, "c": 2}
    for name, value in old.state_dict().items():
        assert torch.equal(value, new.state_dict()[name]), name


def test_a_missing_tower_is_no_matter_of_classes(saved: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(saved / "model.safetensors")
    del weights["head.regression_head.conv.0.weight"]
    save_file(weights, saved / "model.safetensors", {"format": "pt"})
    with pytest.raises(rb.InputError, match=r"lacks head\.regression_head"):
        ResidualForObjectDetection.from_pretrained(
            saved, num_labels=2, ignore_mismatched_sizes=True
        )


def test_a_classifier_is_no_detector(tmp_path: Path) -> None:
    ResidualForImageClassification.build("resnet20", num_labels=3).save_pretrained(tmp_path)
    with pytest.raises((rb.InputError, ValueError)):
        transformers.pipeline("object-detection", str(tmp_path))


# What is refused


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "needs its classes; give num_labels="),
        ({"labels": []}, "no classes; give one or more"),
        ({"num_labels": 2, "detector": "yolo"}, "detector='yolo' is not known"),
        ({"num_labels": 2, "channels": 48}, "channels=48 cannot be; give a multiple of 32 from 64"),
        ({"num_labels": 2, "convolutions": 0}, "convolutions=0 cannot be"),
        (
            {"num_labels": 2, "detector": "retinanet", "convolutions": 2},
            "RetinaNet's towers have 4",
        ),
        ({"num_labels": 2, "dims": 1}, "needs a spec with dims=2"),
        ({"num_labels": 2, "levels": 8}, "levels=8 are not 1 to 5 rising strides"),
        ({"num_labels": 2, "levels": (4, 2)}, "not 1 to 5 rising strides"),
        ({"num_labels": 2, "levels": ()}, "not 1 to 5 rising strides"),
        ({"num_labels": 2, "levels": (1, 2)}, r"levels=\(1, 2\) do not fit .* strides 2, 4, 8"),
        ({"num_labels": 2, "levels": (4, 16)}, r"levels=\(4, 16\) do not fit"),
        ({"num_labels": 2, "levels": (8, 32)}, "from 8 on as 16, 32"),
        ({"num_labels": 2, "processor": ResidualDetectionProcessor(num_channels=1)}, "1 channels"),
        ({"num_labels": 2, "levls": (2, 4)}, "levls"),
    ],
)
def test_wrong_builds_are_refused(arguments: dict, sentence: str) -> None:
    with pytest.raises(rb.InputError, match=sentence):
        ResidualForObjectDetection.build(TINY, **arguments)


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (TWO[:1], "labels of 2 images are 1 of them"),
        (TWO[0], "labels of 2 images are"),
        ([{"boxes": torch.zeros(1, 4)}, TWO[1]], "image 0 of the batch has no tensors"),
        ([TWO[1], {"boxes": torch.zeros(2, 4), "class_labels": torch.zeros(1)}], r"boxes \(2, 4\)"),
        (
            [TWO[0], label([[5, 5, 5, 9]], [0])],
            r"image 1 .* \[5\.0, 5\.0, 5\.0, 9\.0\], .* no area",
        ),
        ([label([[1, 1, 9, float("nan")]], [0]), TWO[1]], "no area"),
        ([TWO[0], label([[5, 5, 6, 9]], [3])], "image 1 .* class 3, .* classes 0 to 2; .* from 0"),
        ([label([[5, 5, 6, 9]], [-1]), TWO[1]], "class -1"),
    ],
)
def test_labels_that_cannot_be_learnt_from_are_refused(labels: Any, sentence: str) -> None:
    with pytest.raises(rb.InputError, match=sentence):
        small()(torch.randn(2, 3, 16, 16), labels=labels)


def test_a_crop_is_refused() -> None:
    with pytest.raises(rb.InputError, match="whole images"):
        ResidualDetectionProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})


# Leaving Python


@pytest.mark.parametrize("detector", ["fcos", pytest.param("retinanet", marks=pytest.mark.slow)])
def test_export(detector: str) -> None:
    model = small(detector).eval()
    sizes = {"pixel_values": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}}
    example = {"pixel_values": torch.randn(2, 3, 40, 52)}
    program = torch.export.export(model, (), example, dynamic_shapes=sizes).module()
    for shape in [(3, 3, 64, 48), (1, 3, 33, 71)]:
        x = torch.randn(shape)
        with torch.no_grad():
            expected, found = model(x), program(pixel_values=x)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value)
