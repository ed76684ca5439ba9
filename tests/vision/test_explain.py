"""Grad-CAM finds what a classifier looks at, and leaves the model as it was."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor
from torch.nn import functional

import resbackbones as rb
from resbackbones.classifier import over_the_input
from resbackbones.vision import (
    ResidualForImageClassification,
    ResidualImageProcessor,
    grad_cam,
    overlay,
)


def looker(**options: Any) -> ResidualForImageClassification:
    """A net that only averages, whose classes count one colour each."""
    spec = rb.BackboneSpec((rb.Stage(3, 1),), norm="none", stem=None)
    model = ResidualForImageClassification.build(
        spec, labels=["red", "green", "blue"], processor=ResidualImageProcessor(**options)
    )
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.zero_()  # the branch says nothing: what is left is the skip
        model.head.linear.weight.copy_(torch.eye(3))
        model.head.linear.bias.zero_()
    return model


def patches() -> np.ndarray:
    """Black, 24 high and 32 wide, with a red patch at the top left and a blue one below right."""
    pixels = np.zeros((24, 32, 3), np.uint8)
    pixels[2:8, 3:9, 0] = 255
    pixels[16:22, 24:30, 2] = 255
    return pixels


@pytest.mark.parametrize("label", ["red", "blue", 0, 2])
def test_the_map_is_where_the_class_is(label: str | int) -> None:
    heat = grad_cam(looker(), patches(), label)
    assert heat.shape == (24, 32) and heat.dtype == torch.float32
    expected = torch.from_numpy(patches()[..., 0 if label in ("red", 0) else 2]).float() / 255
    torch.testing.assert_close(heat, expected)


def test_what_speaks_for_nothing_is_cold() -> None:
    assert torch.equal(grad_cam(looker(), patches(), "green"), torch.zeros(24, 32))


def test_the_map_lies_over_the_image_in_its_own_size() -> None:
    model = looker(size={"height": 12, "width": 12})
    pixels = np.kron(patches(), np.ones((4, 4, 1), np.uint8))
    heat = grad_cam(model, pixels, "blue")
    assert heat.shape == (96, 128)
    high, wide = (heat > 0.5).nonzero().float().mean(0).tolist()
    assert high == pytest.approx(4 * 19, abs=4) and wide == pytest.approx(4 * 27, abs=4)


def test_what_the_processor_cuts_off_is_cold() -> None:
    model = looker(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 16})
    pixels = np.full((24, 32, 3), 255, np.uint8)
    heat = grad_cam(model, pixels, "red")
    expected = torch.zeros(24, 32)
    expected[:, 8:24] = 1
    assert torch.equal(heat, expected)


@pytest.mark.parametrize("crop", [(9, 14), (14, 9), (30, 40), (9, 40), (13, 17)])
def test_cutting_and_unfitting_undo_each_other(crop: tuple[int, int]) -> None:
    processor = ResidualImageProcessor(crop_size={"height": crop[0], "width": crop[1]})
    pixels = torch.arange(1, 1 + 21 * 26, dtype=torch.float32).view(1, 21, 26)
    seen = processor.fit(pixels)
    back = processor.unfit(seen[None], 21, 26)[0]
    assert seen.shape[1:] == crop and back.shape == pixels.shape
    inside = back > 0
    assert inside.sum() == min(21, crop[0]) * min(26, crop[1])
    assert torch.equal(back[inside], pixels[inside])


def test_the_map_is_that_of_the_paper() -> None:
    torch.manual_seed(0)
    model = ResidualForImageClassification.build("resnet20", num_labels=4)
    x = torch.randint(0, 256, (3, 40, 52), dtype=torch.uint8)
    kept: dict[str, Tensor] = {}
    hook = model.backbone.stages[1].register_forward_hook(
        lambda _, given, y: kept.update(feature=y) or y.retain_grad()
    )
    model.eval()
    logits = model(model.pixel_values(x)).logits[0]
    logits[2].backward()
    hook.remove()
    feature, gradient = kept["feature"].detach()[0], kept["feature"].grad[0]
    weights = gradient.mean((1, 2))
    heat = functional.relu(torch.einsum("k,khw->hw", weights, feature))
    found = grad_cam(model, x, 2, stage=1)
    cells = heat / heat.max()
    torch.testing.assert_close(found[::2, ::2], cells, atol=1e-5, rtol=0)  # where they stand
    between = (cells[:, 1:] + cells[:, :-1]) / 2
    torch.testing.assert_close(found[::2, 1:-1:2], between, atol=1e-5, rtol=0)
    likeliest = int(logits.argmax())
    assert torch.equal(grad_cam(model, x), grad_cam(model, x, likeliest))


@pytest.mark.parametrize("spec", ["resnet18", "resnet20", "convnext_tiny", "resnet14_small"])
def test_the_map_lies_where_its_cells_look(spec: str) -> None:
    """The pixels whose gradients a cell has lie evenly around the cell's place."""
    torch.manual_seed(0)
    small = rb.SPECS[spec]
    small = replace(small, stages=tuple(replace(s, channels=8, blocks=1) for s in small.stages))
    small = replace(small, stem=replace(small.stem, channels=8), init="he", in_channels=3)
    model = ResidualForImageClassification.build(small, num_labels=2, norm="layer").eval()
    for stage in range(len(small.stages)):
        x = torch.randn(1, 3, 256, 256, requires_grad=True)
        feature = model.backbone(x)[stage]
        cell = feature.shape[2] // 2
        (reached,) = torch.autograd.grad(feature[..., cell, cell].sum(), x)
        rows = reached.abs().sum((0, 1, 3)).nonzero().double()
        if rows.min() == 0 or rows.max() == 255:  # the image's rim cuts its window off
            assert stage > 1
            continue
        heat = torch.zeros_like(feature[:, :1])
        heat[..., cell, cell] = 1
        place = over_the_input(heat.detach(), small, stage, [256, 256])[0, 0].sum(1)
        middle = (place * torch.arange(256)).sum() / place.sum()
        assert middle.item() == pytest.approx((rows.min() + rows.max()).item() / 2, abs=0.01)


@pytest.mark.parametrize("frozen", [False, True])
def test_the_model_is_left_as_it_was(frozen: bool) -> None:
    model = ResidualForImageClassification.build("resnet20", num_labels=2)
    if frozen:
        model.freeze_backbone()
    model.train()
    model.head.linear.weight.grad = torch.ones_like(model.head.linear.weight)
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        heat = grad_cam(model, torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8))
    assert not heat.requires_grad and heat.max() <= 1
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    grads = {name for name, p in model.named_parameters() if p.grad is not None}
    assert grads == {"head.linear.weight"} and (model.head.linear.weight.grad == 1).all()


def test_the_picture_is_the_image_where_nothing_is_and_warm_where_it_is(tmp_path: Path) -> None:
    image = patches()
    heat = torch.zeros(24, 32)
    heat[2:8, 3:9] = 1
    picture = overlay(image, heat, strength=0.5, colors="jet")
    assert picture.size == (32, 24) and picture.mode == "RGB"
    found = np.array(picture)
    assert np.array_equal(found[heat == 0], image[heat == 0])
    # Half of red, half of jet's hottest, which is half of red.
    assert np.array_equal(found[4, 5], [191, 0, 0])
    picture.save(tmp_path / "where.png")
    assert np.array_equal(np.array(PIL.Image.open(tmp_path / "where.png")), found)
    grey = PIL.Image.fromarray(image[..., 0])
    assert overlay(grey, heat).getpixel((31, 0)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: grad_cam(looker(), patches(), "read"), "no class 'read'; did you mean 'red'"),
        (lambda: grad_cam(looker(), patches(), 3), "no class 3; give 0 to 2, or a name"),
        (lambda: grad_cam(looker(), patches(), stage=1), "no stage 1; give -1 to 0"),
        (lambda: grad_cam(looker(), "gone.png"), "gone.png cannot be read"),
        (lambda: overlay(patches(), torch.zeros(3, 4)), r"heat has shape \(3, 4\), but the image"),
        (lambda: overlay(patches(), torch.zeros(24, 32), strength=2), "strength=2 is out of"),
        (lambda: overlay(patches(), torch.zeros(24, 32), colors="jett"), "did you mean 'jet'"),
    ],
)
def test_what_cannot_be_explained(call: Any, sentence: str) -> None:
    with pytest.raises(rb.InputError, match=sentence):
        call()
