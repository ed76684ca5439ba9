"""Augmentation: what each operation does, and that an item's draws alone decide it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import autoaugment
from torchvision.transforms.v2 import InterpolationMode

import resbackbones as rb
from resbackbones.train import Options, fit
from resbackbones.vision import (
    Augment,
    ImageItems,
    ResidualForImageClassification,
    ResidualImageProcessor,
    augment,
)
from resbackbones.vision.augment import (
    CUTMIX,
    DRAWS,
    FLIP,
    LEVELS,
    OPERATIONS,
    SHARE,
    SHIFT,
    augmented,
    mixed,
    trivially_augmented,
)
from tests.vision.helpers import images

GREY = ResidualImageProcessor(num_channels=1)
RGB = ResidualImageProcessor()


def plain(pixels: Tensor, options: Augment, draws: Tensor, epoch: int = 0) -> Tensor:
    """Augmented, of bytes that stand for themselves."""
    return augmented(pixels, options, draws, Tensor.float, [0.0] * pixels.shape[1], epoch)


def some_draws(count: int, **at: Any) -> Tensor:
    """Draws in the middle, but for those given."""
    draws = torch.full((count, DRAWS), 0.5)
    for name, value in at.items():
        draws[:, getattr(augment, name)] = torch.as_tensor(value)
    return draws


ALL: dict[str, Augment] = {
    "flip, shift": Augment(shift=3),
    "zoom": Augment(zoom=0.5),
    "trivial": Augment(trivial=True, shift=2),
    "cutout, erase": Augment(cutout=0.3, erase=0.5),
    "mixup": Augment(mixup=0.5),
    "cutmix": Augment(cutmix=0.5, mixup=0.3),
    "growing": Augment(start=0.5, growth=6, shift=2),
    "everything": Augment(True, 3, 0.5, True, 0.3, 0.5, 0.5, 0.5, 0.5, 6),
}


@pytest.mark.parametrize("options", ALL.values(), ids=ALL)
@pytest.mark.parametrize("memory", [1 << 30, 0], ids=["in memory", "by the batch"])
def test_augmentation_depends_on_seed_epoch_and_item_alone(options: Augment, memory: int) -> None:
    source = images(30)

    def item(rows: list[int], at: int, seed: int = 1, epoch: int = 3) -> tuple[Tensor, Tensor]:
        items = ImageItems(source, RGB, options, seed=seed, memory=memory)
        items.set_epoch(epoch)
        batch = items.__getitems__(rows)
        return batch["pixel_values"][at], batch["labels"][at]

    together, alone = item([0, 5, 9, 5], 1), item([5], 0)
    torch.testing.assert_close(together, alone)
    for other in ({"epoch": 4}, {"seed": 2}):
        same = [torch.equal(item([row], 0)[0], item([row], 0, **other)[0]) for row in range(8)]
        assert not all(same)


def test_mixed_labels_sum_to_one_and_are_the_pixels_shares() -> None:
    items = ImageItems(images(60), GREY, Augment(flip=False, mixup=0.5))
    batch = items.__getitems__(list(range(60)))
    torch.testing.assert_close(batch["labels"].sum(1), torch.ones(60))
    assert (batch["labels"].amax(1) >= 0.5).all()
    assert (batch["labels"].amax(1) < 0.9).any()


def test_flip_and_shift_only_move_pixels() -> None:
    x = torch.arange(1, 241, dtype=torch.uint8).view(4, 3, 4, 5)
    draws = some_draws(4, FLIP=[0.9, 0.9, 0.9, 0.1])
    draws[3, SHIFT] = torch.tensor([0.99, 0.0])
    y = plain(x, Augment(flip=True, shift=2), draws)
    assert torch.equal(y[:3], x[:3].float())  # not flipped, and in the middle of the shifts
    expected = torch.zeros(3, 4, 5)  # flipped, two up and two to the right
    expected[:, :2, 2:] = x[3].float().flip(-1)[:, 2:, :3]
    assert torch.equal(y[3], expected)
    assert torch.equal(plain(x, Augment(flip=False), draws), x.float())
    assert torch.equal(plain(x, Augment(), some_draws(4, FLIP=0.1)), x.flip(-1).float())


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 12), st.integers(0, 99))
def test_any_shift_is_that_of_an_image_with_a_rim(
    height: int, width: int, most: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(1, 256, (5, 2, height, width), generator=generator, dtype=torch.uint8)
    draws = torch.rand(5, DRAWS, generator=generator)
    y = plain(x, Augment(shift=most), draws)
    padded = torch.nn.functional.pad(x, (most,) * 4)
    for row, (image, at) in enumerate(zip(padded, draws, strict=True)):
        image = image.flip(-1) if at[FLIP] < 0.5 else image
        down, right = (at[SHIFT] * (2 * most + 1)).long().tolist()
        assert torch.equal(y[row], image[:, down : down + height, right : right + width].float())


def test_the_rim_is_of_the_mean_colour() -> None:
    processor = ResidualImageProcessor(image_mean=[0.2, 0.4, 0.6], image_std=[0.2, 0.2, 0.2])
    items = ImageItems(images(6), processor, Augment(shift=4))
    batch = items.__getitems__(list(range(6)))["pixel_values"]
    blank = (batch == 0).all(1)
    assert 0 < blank.float().mean() < 0.9


def test_cutout_puts_a_square_to_zero() -> None:
    x = torch.ones(1, 1, 8, 8, dtype=torch.uint8)
    y = plain(x, Augment(flip=False, cutout=0.5), some_draws(1))
    expected = torch.ones(8, 8)
    expected[2:6, 2:6] = 0
    assert torch.equal(y[0, 0], expected)
    y = plain(x, Augment(flip=False, cutout=0.5), some_draws(1, CUTOUT=0.0))
    assert y[0, 0, :2, :2].sum() == 0 and y.sum() == 60  # the rest lies outside


def test_erasing_is_of_so_many_images_and_of_such_rectangles() -> None:
    torch.manual_seed(0)
    count = 3000
    x = torch.ones(count, 1, 32, 32, dtype=torch.uint8)
    gone = 1 - plain(x, Augment(flip=False, erase=0.3), torch.rand(count, DRAWS))[:, 0]
    erased = gone.flatten(1).any(1)
    assert erased.float().mean() == pytest.approx(0.3, abs=0.03)
    gone = gone[erased]
    high, wide = gone.any(2).sum(1), gone.any(1).sum(1)
    assert torch.equal(gone.sum((1, 2)).long(), high * wide)  # rectangles
    area = (high * wide) / 32**2
    assert 0.005 < area.min() < 0.03 and 0.37 < area.max() < 0.46
    assert area.mean() == pytest.approx(0.21, abs=0.02)
    assert (high > wide).float().mean() == pytest.approx(0.5, abs=0.08)
    aspect = high / wide
    assert 0.15 < aspect.min() < 0.35 and 2.8 < aspect.max() < 7  # whole pixels


def test_zoom_stays_inside_the_image_and_can_be_the_whole() -> None:
    x = torch.linspace(0, 240, 16).round().to(torch.uint8).expand(50, 1, 16, 16)
    torch.manual_seed(0)
    y = plain(x, Augment(flip=False, zoom=0.2), torch.rand(50, DRAWS))
    assert y.min() >= -0.1 and y.max() <= 240.1
    span = (y[:, 0, 0, -1] - y[:, 0, 0, 0]) / 240
    assert span.min() > 0.3 and span.max() <= 1.001  # sqrt(0.2 * 3/4) of the width, at least


def test_mixup_takes_a_share_of_the_whole_image() -> None:
    x, others = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
    y, share = mixed(x, others, Augment(mixup=0.4), some_draws(2, SHARE=[0.0, 0.5]))
    torch.testing.assert_close(share, torch.tensor([0.0, 0.2]))
    torch.testing.assert_close(y, share.view(2, 1, 1, 1).expand(2, 3, 4, 4))


def test_cutmix_takes_a_rectangle_and_counts_its_pixels() -> None:
    torch.manual_seed(0)
    count, draws = 2000, torch.rand(2000, DRAWS)
    x, others = torch.zeros(count, 3, 16, 16), torch.ones(count, 3, 16, 16)
    y, share = mixed(x, others, Augment(cutmix=1.0), draws)
    assert set(y.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(y.mean((1, 2, 3)), share)
    taken = y[:, 0]
    rectangle = taken.amax(1, keepdim=True) * taken.amax(2, keepdim=True)
    assert torch.equal(taken, rectangle)
    # Half the area but for what lies outside: of side s and a centre anywhere, s - s^2 / 4 of it.
    sides = draws[:, SHARE].sqrt()
    torch.testing.assert_close(
        share.mean(), (sides - sides**2 / 4).square().mean(), atol=0.02, rtol=0
    )


def test_cutmix_and_mixup_share_the_images() -> None:
    torch.manual_seed(0)
    draws = torch.rand(1000, DRAWS)
    x, others = torch.zeros(1000, 1, 8, 8), torch.ones(1000, 1, 8, 8)
    y, share = mixed(x, others, Augment(cutmix=0.25, mixup=0.5), draws)
    torch.testing.assert_close(y.mean((1, 2, 3)), share)
    cut = draws[:, CUTMIX][:, 2] < 0.25
    assert cut.float().mean() == pytest.approx(0.25, abs=0.05)
    torch.testing.assert_close(share[~cut], 0.5 * draws[~cut, SHARE])
    assert ((y == 0) | (y == 1)).flatten(1).all(1)[cut].all()


def test_labels_of_any_number_of_classes_are_mixed_too() -> None:
    items = ImageItems(images(20), RGB, Augment(mixup=0.5))
    whole = items.__getitems__(list(range(20)))["labels"]
    items.labels = torch.nn.functional.one_hot(items.labels, 3).float()
    torch.testing.assert_close(items.__getitems__(list(range(20)))["labels"], whole)


# TrivialAugment

# The names that torchvision has for the same operations.
NAMES = {
    "identity": "Identity", "shear x": "ShearX", "shear y": "ShearY",
    "translate x": "TranslateX", "translate y": "TranslateY", "rotate": "Rotate",
    "brightness": "Brightness", "color": "Color", "contrast": "Contrast",
    "sharpness": "Sharpness", "posterize": "Posterize", "solarize": "Solarize",
    "autocontrast": "AutoContrast", "equalize": "Equalize",
}  # fmt: skip


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_is_torchvisions(name: str, turned: bool) -> None:
    torch.manual_seed(0)
    x = torch.randint(0, 256, (LEVELS, 3, 20, 24), dtype=torch.uint8)
    draws = torch.zeros(LEVELS, 3)
    draws[:, 0] = (list(OPERATIONS).index(name) + 0.5) / len(OPERATIONS)
    draws[:, 1] = (torch.arange(LEVELS) + 0.5) / LEVELS
    draws[:, 2] = 0.1 if turned else 0.9
    found = trivially_augmented(x, draws, [10.0, 20.0, 30.0])
    space = autoaugment.TrivialAugmentWide()._augmentation_space(LEVELS)
    strengths, signed = space[NAMES[name]]
    for level in range(LEVELS):
        strength = round(float(strengths[level]), 4) if strengths.ndim else 0.0
        strength = -strength if signed and turned else strength
        expected = autoaugment._apply_op(
            x[level], NAMES[name], strength, InterpolationMode.NEAREST, [10.0, 20.0, 30.0]
        )
        # The same operation in torchvision's two versions rounds in two ways.
        assert (found[level].int() - expected.int()).abs().max() <= 1, (level, strength)


def test_operations_strengths_and_directions_are_drawn_evenly() -> None:
    torch.manual_seed(0)
    count = 4000
    x = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8).expand(count, 3, 8, 8)
    y = trivially_augmented(x, torch.rand(count, 3), [0.0] * 3)
    kinds = y.flatten(1).unique(dim=0)
    assert len(kinds) > 200
    still = (y == x).flatten(1).all(1).float().mean().item()
    assert 1 / len(OPERATIONS) - 0.02 < still < 0.2  # identity, and the least of the others


@pytest.mark.parametrize("channels", [1, 3])
def test_trivial_augmentation_of_grey_is_grey(channels: int) -> None:
    torch.manual_seed(0)
    grey = torch.randint(0, 256, (300, 1, 8, 8), dtype=torch.uint8)
    draws = torch.rand(300, 3)
    y = trivially_augmented(grey.expand(-1, channels, -1, -1), draws, [7.0] * channels)
    assert y.shape == (300, channels, 8, 8)
    assert (y.int() - y[:, :1].int()).abs().max() <= 1


def test_trivial_augmentation_is_for_grey_and_colour() -> None:
    with pytest.raises(rb.InputError, match="uint8 images of 1 or 3 channels, but these"):
        trivially_augmented(torch.zeros(2, 5, 8, 8, dtype=torch.uint8), torch.rand(2, 3), [0.0] * 5)


# Growing images


def test_growing_images_are_small_at_first() -> None:
    items = ImageItems(images(8, (32, 48, 3)), RGB, Augment(start=0.5, growth=4))
    shapes = []
    for epoch in range(6):
        items.set_epoch(epoch)
        shapes.append(tuple(items.__getitems__([3, 1])["pixel_values"].shape[2:]))
    assert shapes == [(16, 24), (20, 32), (24, 36), (28, 40), (32, 48), (32, 48)]
    items.augment = None
    items.set_epoch(0)
    assert items.__getitems__([3])["pixel_values"].shape[2:] == (32, 48)


@given(st.integers(1, 300), st.floats(0.01, 1), st.integers(1, 30))
def test_sides_grow_to_the_full_one(full: int, start: float, growth: int) -> None:
    options = Augment(start=start, growth=growth)
    sides = [options.side(full, epoch) for epoch in range(growth + 2)]
    assert sides == sorted(sides) and sides[0] >= 1 and sides[growth:] == [full, full]
    assert all(side % 4 == 0 or side == full for side in sides)


def test_a_resumed_run_sees_the_images_that_it_would_have_seen(tmp_path: Path) -> None:
    source = images(48, (16, 16, 3))
    options = Augment(shift=2, trivial=True, erase=0.5, mixup=0.3, cutmix=0.5, start=0.5, growth=2)

    def run(name: str, resume: bool = False, stop: int | None = None) -> dict[str, Tensor]:
        torch.manual_seed(0)
        spec = rb.BackboneSpec((rb.Stage(8, 1), rb.Stage(16, 1, 2)))
        model = ResidualForImageClassification.build(spec, num_labels=3)
        items = ImageItems(source, RGB, options)
        fetch: Callable = items.__getitems__
        fetched = [0]

        def until(rows: list[int]) -> dict[str, Tensor]:
            fetched[0] += 1
            if fetched[0] == stop:
                raise KeyboardInterrupt
            return fetch(rows)

        items.__getitems__ = until  # type: ignore[method-assign]
        how = Options(
            output=tmp_path / name, epochs=4, batch_size=16, least_updates=1, device="cpu",
            checkpoint_steps=1, resume=resume, progress=False,
        )  # fmt: skip
        fit(model, items, options=how)
        return model.state_dict()

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("cut", stop=7)  # in the second epoch, whose images are half grown
    resumed = run("cut", resume=True)
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"zoom": 0.0}, "Augment has zoom=0.0"),
        ({"cutout": 2.0}, "Augment has cutout=2.0"),
        ({"erase": -0.1}, "Augment has erase=-0.1"),
        ({"mixup": 0.7}, "Augment has mixup=0.7"),
        ({"cutmix": 1.5}, "Augment has cutmix=1.5"),
        ({"shift": -1}, "Augment has shift=-1"),
        ({"start": 0.0, "growth": 3}, "Augment has start=0.0"),
        ({"start": 0.5}, "start=0.5 but growth=0, so images would be full-sized"),
    ],
    ids=str,
)
def test_wrong_augmentation_is_refused(options: dict, sentence: str) -> None:
    with pytest.raises(rb.InputError, match=sentence):
        Augment(**options)
