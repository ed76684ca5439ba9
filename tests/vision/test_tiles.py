"""Tiles give what the whole image gives where every operator is local; else they say so."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import resbackbones as rb
from resbackbones.vision import (
    Approximate,
    DeepLabV3Plus,
    ResidualForSemanticSegmentation,
    ResidualImageProcessor,
    SemanticFPN,
    UNet,
)
from resbackbones.vision.decoders import Decoder
from resbackbones.vision.tiles import Tiles

NARROW = rb.BackboneSpec(
    (rb.Stage(4, 1), rb.Stage(6, 1, 2), rb.Stage(6, 1, (1, 2), kernel=(3, 5))),
    stem=rb.Stem(4, 3, 2),
)
PATCHES = rb.BackboneSpec(
    (rb.Stage(4, 1), rb.Stage(6, 1, 2)), stem=rb.Stem(4, 4, 4), downsample="patch", norm="layer",
    shortcut="average",
)  # fmt: skip
POOLED = rb.BackboneSpec(
    (rb.Stage(4, 1), rb.Stage(6, 1, 2)), stem=rb.Stem(4, 3, 2, pool=2), shortcut="average"
)
LOCAL: dict[str, tuple[rb.BackboneSpec, Decoder]] = {
    "deeplabv3plus": (POOLED, DeepLabV3Plus(8, 4, rates=(1, 2), image_pooling=False)),
    "fpn": (NARROW, SemanticFPN(8, 8)),
    "unet": (NARROW, UNet(2, 8)),
    "unet, patches": (PATCHES, UNet(2, 8)),
}


def build(spec: rb.BackboneSpec, decoder: Decoder, **changes: Any) -> Any:
    torch.manual_seed(0)
    model = ResidualForSemanticSegmentation.build(spec, num_labels=5, decoder=decoder, **changes)
    for module in model.modules():  # running statistics as after a training
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def pixels(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", LOCAL)
@settings(max_examples=8)
@given(height=st.integers(1, 110), width=st.integers(1, 110), tile=st.integers(1, 80))
def test_tiles_give_what_the_whole_gives(name: str, height: int, width: int, tile: int) -> None:
    # In double precision, where nothing but another neighbour makes a difference: over few
    # channels, a layer norm divides by what is mostly rounding.
    model = build(*LOCAL[name]).double()
    x = torch.randn(1, 3, height, width, dtype=torch.float64)
    tile = max(tile, height // 3, width // 3)  # few enough to be quick
    whole = model._logits(x).detach()[0]
    tiles = Tiles(model._logits, model.reach, model.backbone.strides[-1], tile)
    assert tiles.pieces.is_exact
    pieces = torch.full_like(whole, math.nan)
    with torch.no_grad():
        for (rows, columns), (own_rows, own_columns), logits in tiles.logits(x):
            assert logits.shape[1:] == (rows.stop - rows.start, columns.stop - columns.start)
            own = logits[
                :,
                own_rows.start - rows.start : own_rows.stop - rows.start,
                own_columns.start - columns.start : own_columns.stop - columns.start,
            ]
            pieces[:, own_rows, own_columns] = own
    torch.testing.assert_close(pieces, whole, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", LOCAL)
def test_the_reach_is_what_a_pixel_depends_on(name: str) -> None:
    """No pixel beyond it has a gradient; and it is no more than a few strides too far."""
    model = build(*LOCAL[name])
    for axis in (0, 1):
        before, after = model.reach[axis]
        coarsest = model.backbone.strides[-1][axis]
        nearest, furthest = 0, 0
        for at in range(160, 160 + coarsest):
            x = torch.randn(1, 3, 320, 320)[:, :, : 320 if axis == 0 else 64]
            x = x[..., : 64 if axis == 0 else 320].requires_grad_()
            logits = model._logits(x)
            picked = logits[:, :, at] if axis == 0 else logits[..., at]
            picked.square().sum().backward()
            seen = x.grad.abs().sum((0, 1, 3 - axis)).nonzero().flatten()  # type: ignore[union-attr]
            assert at - before <= seen.min() and seen.max() <= at + after
            nearest, furthest = (
                max(nearest, at - int(seen.min())),
                max(furthest, int(seen.max()) - at),
            )
        assert before - nearest <= 4 * coarsest and after - furthest <= 4 * coarsest


@pytest.mark.parametrize("name", LOCAL)
def test_predicting_in_tiles(name: str) -> None:
    model = build(*LOCAL[name])
    image = pixels(130, 101)
    (whole,), (pieces,) = model.predict(image), model.predict(image, tile=40)
    assert torch.equal(pieces, whole)


@pytest.mark.parametrize("name", [name for name in LOCAL if "patches" not in name])
def test_tiles_in_single_precision(name: str) -> None:
    model = build(*LOCAL[name])
    x = torch.randn(1, 3, 130, 101)
    tiles = Tiles(model._logits, model.reach, model.backbone.strides[-1], 40)
    with torch.no_grad():
        whole = model._logits(x)[0]
        bound = 1e-5 * max(1, whole.abs().max().item())
        for read, own, logits in tiles.logits(x):
            inside = [
                slice(o.start - r.start, o.stop - r.start) for r, o in zip(read, own, strict=True)
            ]
            assert (logits[:, inside[0], inside[1]] - whole[:, own[0], own[1]]).abs().max() <= bound


@pytest.mark.parametrize(
    ("spec", "decoder", "changes"),
    [
        (NARROW, DeepLabV3Plus(8, 4), {}),
        (NARROW, UNet(2, 8), {"norm": "group"}),
        (NARROW, UNet(2, 8), {"attention": "se"}),
        (NARROW, UNet(2, 8), {"causal": True}),
    ],
    ids=["image pooling", "group norm", "attention", "causal"],
)
def test_what_is_not_local_is_refused_or_called_approximate(
    spec: rb.BackboneSpec, decoder: Decoder, changes: dict[str, Any]
) -> None:
    model = build(spec, decoder, **changes)
    image = pixels(90, 90)
    with pytest.raises(rb.InputError, match="no tile gives what the whole gives"):
        model.predict(image, tile=40)
    with pytest.warns(Approximate, match=r"approximate.*they gave \d+\.\d\d% of these another"):
        (found,) = model.predict(image, tile=40, overlap=16)
    assert found.shape == (90, 90) and found.min() >= 0


def test_an_overlap_smaller_than_the_reach_is_approximate() -> None:
    model = build(NARROW, UNet(2, 8))
    image = pixels(90, 90)
    with pytest.warns(Approximate, match="nobody knows how many of"):
        model.predict(image, tile=40, overlap=0)
    (whole,), (pieces,) = model.predict(image), model.predict(image, tile=40, overlap=90)
    assert torch.equal(pieces, whole)  # without a warning


@pytest.mark.parametrize("options", [{"tile": 0}, {"tile": 4.0}, {"tile": 4, "overlap": -1}])
def test_what_is_no_number_of_pixels(options: dict[str, Any]) -> None:
    with pytest.raises(rb.InputError, match="is no number of pixels"):
        build(NARROW, UNet(2, 8)).predict(pixels(9, 9), **options)


def test_a_processor_that_resizes_needs_no_tiles() -> None:
    processor = ResidualImageProcessor(size={"height": 32, "width": 32})
    with pytest.raises(rb.InputError, match="leave tile out"):
        build(NARROW, UNet(2, 8), processor=processor).predict(pixels(9, 9), tile=4)
