"""Segmentation models: shapes, loss, saving, pipelines, prediction, export."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.export import Dim
from torch.nn import functional

import resbackbones as rb
from resbackbones.vision import (
    DeepLabV3Plus,
    ResidualForSemanticSegmentation,
    ResidualImageProcessor,
    SemanticFPN,
    UNet,
)

NET = rb.BackboneSpec(
    (rb.Stage(4, 1), rb.Stage(6, 1, 2), rb.Stage(8, 1, 2), rb.Stage(10, 1, 2)),
    stem=rb.Stem(4, 3, 2, pool=2),
)
SHALLOW = rb.BackboneSpec((rb.Stage(4, 1), rb.Stage(6, 1, 2)), stem=rb.Stem(4, 3, 2))
SMALL: dict[str, Any] = {
    "deeplabv3plus": DeepLabV3Plus(channels=8, fine_channels=4),
    "fpn": SemanticFPN(8, 8),
    "unet": UNet(2, 8),
}


def build(decoder: str = "unet", **options: Any) -> ResidualForSemanticSegmentation:
    torch.manual_seed(0)
    options = {"labels": ["road", "sky", "tree"], "ignore_index": 255} | options
    return ResidualForSemanticSegmentation.build(
        options.pop("spec", NET), decoder=SMALL[decoder], **options
    )


def picture(width: int, height: int, seed: int = 0) -> PIL.Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


@pytest.mark.parametrize("decoder", SMALL)
@settings(max_examples=15)
@given(height=st.integers(1, 70), width=st.integers(1, 70))
def test_any_size(decoder: str, height: int, width: int) -> None:
    model = build(decoder).eval()
    with torch.no_grad():
        logits = model(pixel_values=torch.randn(1, 3, height, width)).logits
    assert logits.shape == (1, 3, height, width) and logits.isfinite().all()


@pytest.mark.parametrize("decoder", SMALL)
@pytest.mark.parametrize(
    "changes",
    [
        {"norm": "group"},
        {"norm": "layer"},
        {"norm": "weight"},
        {"norm": "none", "init": "fixup"},
        {"order": "pre", "in_channels": 1},
        {"attention": "se", "activation": "silu", "order": "pre"},
        {"skip": "none"},
    ],
    ids=str,
)
def test_any_spec_trains(decoder: str, changes: dict[str, Any]) -> None:
    model = build(decoder, **changes)
    x = torch.randn(2, model.backbone.spec.in_channels, 33, 50)
    model(pixel_values=x, labels=torch.randint(3, (2, 33, 50))).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    ("name", "decoder", "strides"),
    [
        ("resnet18", "deeplabv3plus", (4, 8, 16, 16)),
        ("resnet18", "fpn", (4, 8, 16, 32)),
        ("resnet20", "deeplabv3plus", (1, 2, 4)),
    ],
)
def test_output_strides(name: str, decoder: str, strides: tuple[int, ...]) -> None:
    model = ResidualForSemanticSegmentation.build(name, num_labels=2, decoder=decoder)
    assert tuple(max(s) for s in model.backbone.strides) == strides


def test_an_output_stride_of_its_own() -> None:
    model = ResidualForSemanticSegmentation.build("resnet18", num_labels=2, output_stride=8)
    assert model.backbone.strides[-1] == (8, 8)
    dilations = [b[0].convolutions[0].conv.dilation for b in model.decoder.branches[1:]]
    assert dilations == [(12, 12), (24, 24), (36, 36)]  # Chen et al. 2018, table 1
    thirds = rb.BackboneSpec((rb.Stage(8, 1), rb.Stage(8, 1, stride=3)), stem=rb.Stem(8, 3, 8))
    with pytest.raises(rb.InputError, match=r"or give output_stride=24, or another decoder"):
        ResidualForSemanticSegmentation.build(thirds, num_labels=2)


@pytest.mark.parametrize("pooling", [True, False])
def test_the_mean_over_the_image_reaches_all_of_it(pooling: bool) -> None:
    torch.manual_seed(0)
    decoder = DeepLabV3Plus(8, 4, rates=(1, 2), image_pooling=pooling)
    model = ResidualForSemanticSegmentation.build(SHALLOW, num_labels=3, decoder=decoder).eval()
    x = torch.randn(1, 3, 200, 200).requires_grad_()
    model(x).logits[..., 0, 0].sum().backward()
    reached = x.grad.abs().sum((0, 1)) > 0  # type: ignore[union-attr]
    assert reached[:9, :9].all() and reached[-9:, -9:].all() == pooling


def test_parameters_are_those_of_the_papers() -> None:
    """ResNet-50 and DeepLabV3+ with full convolutions: written out layer by layer."""
    backbone = 25_557_032 - 2048 * 1000 - 1000  # torchvision's, without its classifier
    norm = 2 * 256
    branches = 2048 * 256 + norm + 3 * (9 * 2048 * 256 + norm) + 2048 * 256 + 256
    project = 5 * 256 * 256 + norm
    fine = 256 * 48 + 2 * 48
    fuse = 9 * (256 + 48) * 256 + norm + 9 * 256 * 256 + norm
    model = ResidualForSemanticSegmentation.build(
        "resnet50", num_labels=21, decoder=DeepLabV3Plus(separable=False)
    )
    assert rb.count_parameters(model) == backbone + branches + project + fine + fuse + 257 * 21


@pytest.mark.parametrize("decoder", SMALL)
def test_one_image_trains(decoder: str) -> None:
    """The mean over the image, of one image, has no variance that a batch norm could divide by."""
    model = build(decoder).train()
    output = model(pixel_values=torch.randn(1, 3, 64, 64), labels=torch.randint(3, (1, 64, 64)))
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(p.requires_grad for p in model.parameters())  # nothing is frozen
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_loss_is_the_mean_over_real_pixels() -> None:
    model = build(ignore_index=11).eval()
    x, labels = torch.randn(2, 3, 20, 24), torch.randint(3, (2, 20, 24))
    labels[0, :10] = labels[1] = 11
    output = model(pixel_values=x, labels=labels)
    real = labels != 11
    expected = functional.cross_entropy(output.logits.movedim(1, -1)[real], labels[real])
    torch.testing.assert_close(output.loss, expected)
    assert model.weight({"labels": labels}) == 10 * 24


def test_a_batch_without_a_real_pixel_gives_nothing() -> None:
    model = build().train()
    output = model(pixel_values=torch.randn(1, 3, 64, 64), labels=torch.full((1, 64, 64), 255))
    output.loss.backward()
    assert output.loss == 0 and model.weight({"labels": torch.full((1, 64, 64), 255)}) == 0
    assert all(p.grad is None or (p.grad == 0).all() for p in model.parameters())


@pytest.mark.filterwarnings("ignore::UserWarning:torch.backends.mkldnn")
def test_splitting_a_batch_leaves_the_update() -> None:
    """With a norm of each image alone, a batch's gradient is that of its parts by their weight."""
    model = build(norm="layer").train()
    model.class_weights = torch.tensor([0.5, 1.0, 3.0])
    x, labels = torch.randn(3, 3, 32, 32), torch.randint(3, (3, 32, 32))
    labels[0, 5:] = 255

    def gradient(*parts: slice) -> torch.Tensor:
        model.zero_grad()
        weights = [model.weight({"labels": labels[part]}) for part in parts]
        # Without oneDNN (torch 2.12): on processors that have AVX2 alone the backward pass of a 1x1
        # convolution of 4 to 6 channels with stride 2 corrupts its memory.
        with torch.backends.mkldnn.flags(enabled=False):
            for part, weight in zip(parts, weights, strict=True):
                (model(x[part], labels[part]).loss * weight / sum(weights)).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])  # type: ignore[union-attr]

    whole = gradient(slice(0, 3))
    parts = gradient(slice(0, 1), slice(1, 3))
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6 * whole.abs().max().item())


def test_fit_goes_on_where_an_update_has_no_real_pixel() -> None:
    class Half(rb.data.Items):
        def __len__(self) -> int:
            return 4

        def __getitems__(self, rows: Any) -> dict[str, torch.Tensor]:
            labels = torch.full((len(rows), 64, 64), 255)
            labels[torch.tensor(rows) % 2 == 0] = 1
            return {"pixel_values": torch.ones(len(rows), 3, 64, 64), "labels": labels}

    model = build()
    options = rb.train.Options(
        epochs=2, batch_size=1, metric="mean_iou", label_smoothing=0.1, progress=False
    )
    result = rb.train.fit(model, Half(), Half(), options)
    assert all(value.isfinite().all() for value in model.parameters())
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"] < 2


def test_smoothing_and_class_weights_are_of_the_training() -> None:
    model = build(norm="layer").train()
    x, labels = torch.randn(1, 3, 32, 32), torch.randint(3, (1, 32, 32))
    plain = model(x, labels).loss
    model.class_weights, model.label_smoothing = torch.tensor([0.5, 1.0, 3.0]), 0.1
    logits = model(x).logits
    nll = functional.cross_entropy(
        logits, labels, model.class_weights, label_smoothing=0.1, reduction="sum"
    )
    torch.testing.assert_close(model(x, labels).loss, nll / labels.numel())
    torch.testing.assert_close(model.eval()(x, labels).loss, plain)
    model.class_weights = torch.ones(4)
    with pytest.raises(rb.InputError, match="for 3 classes"):
        model.train()(x, labels)


def test_labels_of_another_size() -> None:
    """A model of small images is judged on the masks of large ones."""
    model = build().eval()
    x, labels = torch.randn(1, 3, 20, 24), torch.randint(3, (1, 40, 47))
    output = model(x, labels)
    large = functional.interpolate(output.logits, (40, 47), mode="bilinear")
    torch.testing.assert_close(output.loss, functional.cross_entropy(large, labels))
    metric = model.metric()
    metric.update(output, {"labels": labels})
    assert metric.counts.sum() == 40 * 47
    assert metric.compute()["pixel_accuracy"] == (large.argmax(1) == labels).double().mean().item()


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (torch.zeros(1, 1, 8, 8).long(), "need one class per pixel"),
        (torch.zeros(1, 8, 8), r"labels are torch.float32"),
        (torch.full((1, 8, 8), 3), "labels run from 3 to 3, but there are classes 0 to 2"),
        (torch.full((1, 8, 8), -1), "give build ignore_index="),
    ],
)
def test_labels_that_are_none(labels: torch.Tensor, said: str) -> None:
    with pytest.raises(rb.InputError, match=said):
        build().eval()(torch.randn(1, 3, 8, 8), labels)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"spec": rb.SPECS["tcn"]}, "needs a spec with dims=2"),
        ({"ignore_index": 2}, "ignore_index=2 is the number of a class"),
        ({"processor": ResidualImageProcessor(num_channels=1)}, "makes 1 channels"),
        (
            {"processor": ResidualImageProcessor(crop_size={"height": 8, "width": 8})},
            "leave crop_size out",
        ),
        ({"labels": ["a", "a"]}, "occurs twice"),
    ],
)
def test_refusals(options: dict[str, Any], said: str) -> None:
    with pytest.raises(rb.InputError, match=said):
        build(**options)


@pytest.mark.parametrize(
    ("decoder", "said"),
    [
        ("unett", "did you mean 'unet'"),
        (7, "is no decoder; give a name"),
        ({"kind": "unet", "chanels": 3}, "no field 'chanels'"),
    ],
)
def test_unknown_decoders(decoder: Any, said: str) -> None:
    with pytest.raises(rb.InputError, match=said):
        ResidualForSemanticSegmentation.build("resnet20", num_labels=2, decoder=decoder)
    with pytest.raises(rb.InputError, match="rates="):
        DeepLabV3Plus(rates=(0,))


@pytest.mark.parametrize("decoder", SMALL)
def test_saved_and_loaded(decoder: str, tmp_path: Path) -> None:
    model = build(decoder, ignore_index=11).eval()
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    assert type(loaded) is ResidualForSemanticSegmentation and loaded.config.ignore_index == 11
    x = torch.randn(2, 3, 33, 50)
    assert torch.equal(loaded(x).logits, model(x).logits)
    assert loaded.processor.to_dict() == model.processor.to_dict()
    assert loaded.reach == model.reach


def test_names_survive_fine_tuning_and_the_pipeline(tmp_path: Path) -> None:
    size = {"height": 24, "width": 32}
    model = build(processor=ResidualImageProcessor(size=size))
    model.save_pretrained(tmp_path / "first")
    names = ["cell", "nucleus", "glass", "void"]
    tuned = ResidualForSemanticSegmentation.from_pretrained(
        tmp_path / "first",
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
        ignore_mismatched_sizes=True,
    )
    assert torch.equal(tuned.backbone.stem[0].convolutions[0].conv.weight,
                       model.backbone.stem[0].convolutions[0].conv.weight)  # fmt: skip
    tuned.train()
    tuned(torch.randn(2, 3, 32, 32), torch.randint(4, (2, 32, 32))).loss.backward()
    tuned.eval().save_pretrained(tmp_path / "second")
    segment = transformers.pipeline("image-segmentation", model=str(tmp_path / "second"))
    image = picture(50, 37)
    found = {answer["label"]: np.array(answer["mask"]) > 0 for answer in segment(image)}
    (expected,) = tuned.predict(image)
    assert expected.shape == (37, 50) and expected.dtype == torch.int64
    assert set(found) == {names[number] for number in expected.unique()}
    for name, mask in found.items():
        assert (mask == (expected == names.index(name)).numpy()).all()


def test_what_cannot_be_predicted_is_a_sentence(tmp_path: Path) -> None:
    model = build("unet")
    with pytest.raises(rb.InputError, match=r"none\.png cannot be read"):
        model.predict(tmp_path / "none.png")
    model.processor = None
    with pytest.raises(rb.InputError, match="no processor"):
        model.predict(PIL.Image.new("RGB", (8, 8)))


def test_predictions_are_of_the_images_own_size(tmp_path: Path) -> None:
    model = build(processor=ResidualImageProcessor(size={"height": 24, "width": 32})).train()
    images = [picture(50, 37), picture(20, 90, 1)]
    images[0].save(tmp_path / "first.png")
    turned = picture(30, 20, 2)
    exif = turned.getexif()
    exif[0x0112] = 6  # on its side
    turned.save(tmp_path / "turned.jpg", exif=exif)
    found = model.predict([tmp_path / "first.png", images[1], str(tmp_path / "turned.jpg")])
    assert [tuple(f.shape) for f in found] == [(37, 50), (90, 20), (30, 20)]
    assert torch.equal(found[0], model.predict(images[0])[0])
    assert model.training and model.backbone.training


def test_the_processor_refuses_sizes_that_do_not_fit() -> None:
    output = build()(torch.randn(2, 3, 8, 8))
    maps = ResidualImageProcessor().post_process_semantic_segmentation(output)
    assert [tuple(m.shape) for m in maps] == [(8, 8)] * 2
    with pytest.raises(rb.InputError, match="1 target sizes for 2 images"):
        ResidualImageProcessor().post_process_semantic_segmentation(output, [(4, 4)])


@pytest.mark.parametrize("decoder", SMALL)
def test_export(decoder: str) -> None:
    model = build(decoder, spec=SHALLOW).eval()
    sizes = {"pixel_values": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}}
    example = {"pixel_values": torch.randn(2, 3, 130, 171)}
    program = torch.export.export(model, (), example, dynamic_shapes=sizes).module()
    for batch, height, width in ((1, 97, 140), (3, 128, 128)):
        x = torch.randn(batch, 3, height, width)
        with torch.no_grad():
            torch.testing.assert_close(program(pixel_values=x).logits, model(x).logits)


def test_onnx(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = build("deeplabv3plus", spec=SHALLOW).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of onnxscript and of torch's own converter
        torch.onnx.export(
            model, (), tmp_path / "model.onnx", kwargs={"pixel_values": torch.randn(2, 3, 64, 75)},
            dynamic_shapes={"pixel_values": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}},
            dynamo=True, external_data=False, verbose=False,
        )  # fmt: skip
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for size in ((1, 3, 33, 50), (2, 3, 7, 1)):
        x = torch.randn(size)
        logits, *_ = session.run(None, {"pixel_values": x.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(
                torch.from_numpy(logits), model(x).logits, rtol=1e-4, atol=1e-5
            )
