"""Detectors of two stages: torchvision's answers, padding, other classes, what is refused."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

import resbackbones as rb
from resbackbones.train import Options, evaluate, fit
from resbackbones.vision import ResidualDetectionProcessor, ResidualForTwoStageDetection
from resbackbones.vision.boxes import select

LABELS = ("cat", "dog", "owl")

# Strides 2, 4, 8.
TINY = rb.BackboneSpec(
    (rb.Stage(16, 1), rb.Stage(24, 1, 2), rb.Stage(32, 1, 2)), stem=rb.Stem(8, stride=2)
)
MASKS = pytest.mark.parametrize("masks", [False, True])


def small(masks: bool = False, **changes: Any) -> ResidualForTwoStageDetection:
    torch.manual_seed(0)
    options = {"labels": LABELS, "channels": 16, "hidden": 24, "levels": (4, 8)} | changes
    return ResidualForTwoStageDetection.build(TINY, masks=masks, **options)


def surer(model: ResidualForTwoStageDetection) -> ResidualForTwoStageDetection:
    """Scores that differ, of which many are high, and boxes that have moved."""
    predictor = model.head.roi_heads.box_predictor
    with torch.no_grad():
        predictor.cls_score.weight.normal_(std=2.0)
        predictor.bbox_pred.weight.normal_(std=0.5)
        model.head.rpn.head.cls_logits.weight.normal_()
    return model.eval()


def label(boxes: list, classes: list[int], size: tuple[int, int] = (32, 48)) -> dict[str, Tensor]:
    masks = torch.zeros(len(boxes), *size)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[max(0, int(y1)) : int(y2), max(0, int(x1)) : int(x2)] = 1
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "class_labels": torch.tensor(classes, dtype=torch.int64),
        "masks": masks,
    }


TWO = [label([[3, 4, 30, 20], [10, 10, 15, 16]], [0, 2]), label([], [])]


class Levels(nn.Module):
    """Our backbone and pyramid as torchvision's detectors take them."""

    def __init__(self, model: ResidualForTwoStageDetection) -> None:
        super().__init__()
        self.model, self.out_channels = model, model.config.channels

    def forward(self, x: Tensor) -> Any:
        levels = self.model.pyramid(self.model.backbone(x))
        return OrderedDict((str(n), level) for n, level in enumerate(levels))


def torchvisions(model: ResidualForTwoStageDetection, height: int, width: int) -> nn.Module:
    strides = model.pyramid.strides
    anchors = AnchorGenerator(
        tuple((8 * stride,) for stride in strides), ((0.5, 1.0, 2.0),) * len(strides)
    )
    names = [str(number) for number in range(len(model.pyramid.stages))]
    channels, classes = model.config.channels, 1 + len(LABELS)
    kind, parts = FasterRCNN, {}
    if model.config.masks:
        kind = MaskRCNN
        parts = {
            "mask_roi_pool": MultiScaleRoIAlign(names, 14, 2),
            "mask_head": MaskRCNNHeads(channels, [channels] * 4, 1),
            "mask_predictor": MaskRCNNPredictor(channels, channels, classes),
        }
    made = kind(
        Levels(model), rpn_anchor_generator=anchors, min_size=height, max_size=width,
        image_mean=[0.0] * 3, image_std=[1.0] * 3, box_roi_pool=MultiScaleRoIAlign(names, 7, 2),
        box_head=TwoMLPHead(channels * 49, model.config.hidden),
        box_predictor=FastRCNNPredictor(model.config.hidden, classes), **parts,
    )  # fmt: skip
    made.rpn.load_state_dict(model.head.rpn.state_dict())
    made.roi_heads.load_state_dict(model.head.roi_heads.state_dict())
    return made.train(model.training)


@MASKS
def test_it_is_torchvisions_detector(masks: bool) -> None:
    torch.manual_seed(0)
    options = {"labels": LABELS, "masks": masks, "hidden": 64, "channels": 32}
    model = surer(ResidualForTwoStageDetection.build("resnet18", **options))
    assert model.pyramid.strides == (4, 8, 16, 32, 64)
    x = torch.rand(2, 3, 64, 96)
    labels = [label([[3, 4, 30, 20], [40, 10, 75, 56]], [0, 2], (64, 96)), label([], [], (64, 96))]
    with torch.no_grad():
        theirs = torchvisions(model, 64, 96)
        ours, expected = model(x), theirs(list(x))
        assert min(map(len, ours.boxes)) > 5
        for number, other in enumerate(expected):
            for name in ("boxes", "scores"):
                found = ours[name][number]
                torch.testing.assert_close(found, other[name], rtol=1e-5, atol=1e-5)
            assert torch.equal(ours.labels[number], other["labels"] - 1)
        if masks:
            (found, _) = model.processor.post_process_object_detection(ours, 0.0)
            sure = (expected[0]["masks"][:, 0] - 0.5).abs() > 1e-4
            assert torch.equal(found["masks"][sure], (expected[0]["masks"][:, 0] > 0.5)[sure])
        # The loss of training, of the same draws.
        targets = [
            {"boxes": t["boxes"], "labels": t["class_labels"] + 1, "masks": t["masks"]}
            for t in labels
        ]
        theirs.rpn.train(), theirs.roi_heads.train(), setattr(theirs, "training", True)
        torch.manual_seed(0)
        losses = theirs(list(x), targets)
        assert len(losses) == 4 + masks
        torch.testing.assert_close(model(x, labels=labels).loss, sum(losses.values()))


def test_parameters_are_torchvisions() -> None:
    # (fasterrcnn and maskrcnn_resnet50_fpn keep the 53,120 of their batch norms as buffers.)
    for masks, count in ((False, 41_755_286), (True, 44_401_393)):
        model = ResidualForTwoStageDetection.build("resnet50", num_labels=90, masks=masks)
        assert rb.count_parameters(model) == count + 53_120
        assert all(parameter.requires_grad for parameter in model.parameters())


@MASKS
@pytest.mark.parametrize("levels", [(2,), (2, 4), (8, 16), (2, 4, 8, 16, 32), None])
def test_every_parameter_is_trained(masks: bool, levels: Any) -> None:
    model = small(masks, levels=levels)
    assert not any("Frozen" in type(m).__name__ for m in model.modules())
    model(torch.randn(2, 3, 32, 48), labels=TWO).loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@MASKS
def test_padding_changes_nothing(masks: bool) -> None:
    model = surer(small(masks, attention="se"))  # which means over all of an image
    sizes = [(32, 40), (17, 43), (41, 9), (30, 39)]
    images = [torch.randn(3, *size) for size in sizes]
    x = torch.full((4, 3, 41, 43), float("nan"))
    mask = torch.zeros(4, 41, 43, dtype=torch.int64)
    for number, image in enumerate(images):
        high, wide = image.shape[1:]
        x[number, :, :high, :wide], mask[number, :high, :wide] = image, 1
    labels = [label([[1, 2, 8, 15]], [number % 3], (41, 43)) for number in range(4)]
    with torch.no_grad():
        output = model(x, mask, labels)
        assert output.sizes.tolist() == [list(size) for size in sizes] and output.loss.isfinite()
        for number, image in enumerate(images):
            alone = model(image.unsqueeze(0))
            assert len(alone.boxes[0])
            for name in ("boxes", "scores", "labels", "masks")[: 3 + masks]:
                torch.testing.assert_close(output[name][number], alone[name][0], atol=1e-4, rtol=0)
            assert (output.boxes[number][:, 2:] <= torch.tensor(image.shape[:0:-1])).all()


def test_the_loss_of_evaluation_is_always_alike() -> None:
    model, x = surer(small(True)), torch.randn(2, 3, 32, 48)
    before = torch.get_rng_state()
    first, alone = model(x, labels=TWO), model(x)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(model(x, labels=TWO).loss, first.loss)
    for name in ("boxes", "scores", "labels", "masks"):
        assert all(map(torch.equal, first[name], alone[name]))
    assert not any(part.training for part in model.modules())


def test_the_first_image_decides_nothing() -> None:
    x = torch.randn(1, 3, 32, 48)
    expected = surer(small())(x)
    model = surer(small())
    model(torch.randn(1, 3, 1, 1))
    assert torch.equal(model(x).boxes[0], expected.boxes[0])


@MASKS
@pytest.mark.parametrize(
    "boxes",
    [
        [],
        [[5, 5, 6, 6]],
        [[0, 0, 1e-3, 1e-3]],
        [[0, 0, 48, 32]],
        [[-1e4, -1e4, 1e5, 1e5]],
        [[60, 40, 70, 50], [7, 7, 20, 20]],
        [[0, 0, 1e-3, 32], [0, 0, 48, 1e-3]],
        [[7, 7, 20, 20]] * 50,
    ],
)
def test_no_box_makes_a_loss_that_is_no_number(masks: bool, boxes: list) -> None:
    model = small(masks)
    labels = [label(boxes, [1] * len(boxes)), label([], [])]
    loss = model(torch.randn(2, 3, 32, 48), labels=labels).loss
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_half_of_float32_is_enough() -> None:
    model, x = small(True), torch.randn(2, 3, 32, 48)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(x, labels=TWO).loss
    assert loss.dtype == torch.float32 and loss.isfinite()
    found = surer(model).bfloat16()(x.bfloat16())
    assert found.boxes[0].dtype == found.masks[0].dtype == torch.float32


def test_it_learns_to_find_what_it_was_shown() -> None:
    model = small(labels=["square", "bar"], norm="group")
    images, labels = torch.full((2, 3, 48, 64), -1.0), []
    for number, (square, bar) in enumerate([((4, 6), (30, 20)), ((36, 20), (6, 30))]):
        boxes = [[*square, square[0] + 16, square[1] + 16], [*bar, bar[0] + 24, bar[1] + 12]]
        for x1, y1, x2, y2 in boxes:
            images[number, :, y1:y2, x1:x2] = 1
        labels.append(label(boxes, [0, 1], (48, 64)))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(50):
        optimizer.zero_grad()
        model(images, labels=labels).loss.backward()
        optimizer.step()
    metric, batch = model.metric(), {"pixel_values": images, "labels": labels}
    metric.update(model.eval()(**batch), batch)
    assert metric.compute()["ap50"] > 0.9 and metric.compute()["loss"] > 0
    output = model.train()(**batch)
    assert output.boxes is None
    with pytest.raises(rb.InputError, match=r"call model\.eval\(\) first"):
        select(output)


class Pictures:
    """Six images in two sizes, of which every third has no object."""

    def __len__(self) -> int:
        return 6

    def __getitems__(self, rows: list[int]) -> dict[str, Any]:
        x, mask = torch.zeros(len(rows), 3, 32, 48), torch.ones(len(rows), 32, 48)
        labels = []
        for number, row in enumerate(map(int, rows)):
            x[number, :, 4:20, 3:30] = row / 6
            mask[number, :, 32 + 16 * (row % 2) :] = 0
            labels.append(label([[3, 4, 30, 20]], [row % 3]) if row % 3 else label([], []))
        return {"pixel_values": x, "pixel_mask": mask, "labels": labels}


def test_it_is_trained_and_evaluated_as_the_others() -> None:
    losses = []
    for _ in range(2):
        model = small(True, norm="group")
        options = Options(epochs=1, batch_size=4, metric="map", device="cpu")
        fit(model, Pictures(), Pictures(), options)
        figures = evaluate(model, Pictures(), batch_size=3)
        assert {"map", "ap50", "mask_map", "loss"} <= figures.keys()
        assert np.isfinite(figures["loss"])
        losses.append(figures["loss"])
    assert losses[0] == losses[1]


# Sizes, classes, names


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    processor = ResidualDetectionProcessor(size={"shortest_edge": 24, "longest_edge": 40})
    surer(small(True, processor=processor)).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def photo(width: int, height: int) -> PIL.Image.Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


@MASKS
def test_save_and_load_give_the_same_bits(masks: bool, tmp_path: Path) -> None:
    model = surer(small(masks))
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForObjectDetection.from_pretrained(tmp_path)
    assert type(loaded) is ResidualForTwoStageDetection and not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    x = torch.randn(2, 3, 40, 50)
    ours, theirs = model(x), loaded(x)
    assert ours.keys() == theirs.keys() and ("masks" in ours) == masks
    for name in ours:
        assert all(map(torch.equal, ours[name], theirs[name])), name
    assert loaded.config.id2label == dict(enumerate(LABELS))
    assert type(transformers.AutoImageProcessor.from_pretrained(tmp_path)) is type(loaded.processor)


def test_the_pipeline_and_predict_say_the_same(saved: Path) -> None:
    model = ResidualForTwoStageDetection.from_pretrained(saved)
    images = [photo(80, 60), photo(30, 90), photo(64, 64)]
    expected = model.predict(images, threshold=0.3)
    for batch_size in (1, 3):
        detect = transformers.pipeline("object-detection", str(saved), batch_size=batch_size)
        answers = detect(images, threshold=0.3)
        for answer, one, image in zip(answers, expected, images, strict=True):
            assert answer and [a["label"] for a in answer] == one["labels"]
            assert [a["score"] for a in answer] == pytest.approx(one["scores"].tolist(), abs=1e-5)
            boxes = torch.tensor([list(a["box"].values()) for a in answer])
            assert (boxes - one["boxes"]).abs().max() <= 1.001  # the pipeline cuts decimals off
            assert boxes[:, 2].max() <= image.width and boxes[:, 3].max() <= image.height
            assert one["masks"].shape == (len(boxes), image.height, image.width)
            assert one["masks"].dtype == torch.bool


@pytest.mark.parametrize("how", [{"labels": ["hat", "sock"]}, {"num_labels": 2}])
def test_fine_tuning_to_other_classes(how: dict, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(rb.InputError, match="ignore_mismatched_sizes=True"):
        ResidualForTwoStageDetection.from_pretrained(saved, **how)
    old = ResidualForTwoStageDetection.from_pretrained(saved)
    new = ResidualForTwoStageDetection.from_pretrained(saved, ignore_mismatched_sizes=True, **how)
    for name, value in old.state_dict().items():  # all but what tells classes apart is kept
        if not name.startswith(ResidualForTwoStageDetection.of_classes):
            assert torch.equal(value, new.state_dict()[name]), name
    heads = new.head.roi_heads
    assert heads.box_predictor.cls_score.weight.shape == (3, 24)
    assert heads.box_predictor.bbox_pred.weight.shape == (12, 24)
    assert heads.mask_predictor.mask_fcn_logits.weight.shape[0] == 3
    assert 0 < heads.box_predictor.cls_score.weight.abs().amax() <= 24**-0.5
    new.train()(
        torch.randn(2, 3, 32, 48), labels=[label([[2, 2, 20, 20]], [1])] * 2
    ).loss.backward()
    new.save_pretrained(tmp_path / "new")
    again = ResidualForTwoStageDetection.from_pretrained(tmp_path / "new")
    names = how.get("labels", ["LABEL_0", "LABEL_1"])
    assert again.config.id2label == dict(enumerate(names))
    assert set(again.predict(photo(40, 40), threshold=0.1)["labels"]) <= set(names)


# What is refused


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "needs its classes; give num_labels="),
        ({"num_labels": 2, "channels": 0}, "channels=0 cannot be; give 1 or more"),
        ({"num_labels": 2, "hidden": 1.5}, r"hidden=1\.5 cannot be"),
        ({"num_labels": 2, "masks": "all"}, "masks='all' is neither True nor False"),
        ({"num_labels": 2, "dims": 1}, "needs a spec with dims=2"),
        ({"num_labels": 2, "levels": (2, 8)}, r"levels=\(2, 8\) are not .* double the one before"),
        ({"num_labels": 2, "levels": (4, 16)}, r"levels=\(4, 16\) do not fit"),
        ({"num_labels": 2, "processor": ResidualDetectionProcessor(num_channels=1)}, "1 channels"),
        ({"num_labels": 2, "detector": "fcos"}, "detector"),
    ],
)
def test_wrong_builds_are_refused(arguments: dict, sentence: str) -> None:
    with pytest.raises(rb.InputError, match=sentence):
        ResidualForTwoStageDetection.build(TINY, **arguments)


def test_labels_that_cannot_be_learnt_from_are_refused() -> None:
    model, x = small(True), torch.randn(2, 3, 32, 48)
    with pytest.raises(rb.InputError, match="labels of 2 images are 1 of them"):
        model(x, labels=TWO[:1])
    with pytest.raises(rb.InputError, match=r"class 3, .* classes 0 to 2"):
        model(x, labels=[label([[5, 5, 6, 9]], [3]), TWO[1]])
    plain = {name: value for name, value in TWO[0].items() if name != "masks"}
    small()(x, labels=[plain, TWO[1]])  # without masks none are needed
    for masks in ({}, {"masks": torch.ones(2, 16, 48)}):
        with pytest.raises(rb.InputError, match=r'image 0 .* "masks" .* \(2, 32, 48\)'):
            model(x, labels=[plain | masks, TWO[1]])
