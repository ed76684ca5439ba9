"""Where a classifier looks: Grad-CAM, and a picture of it."""

from collections.abc import Sequence
from typing import Any

import PIL.Image
import torch
from torch import Tensor

from resbackbones.classifier import class_heat
from resbackbones.errors import InputError, nearest
from resbackbones.vision.images import open_image, read_image
from resbackbones.vision.models import ResidualForImageClassification
from resbackbones.vision.processor import ResidualImageProcessor


def grad_cam(
    model: ResidualForImageClassification,
    image: Any,
    label: str | int | None = None,
    *,
    stage: int = -1,
) -> Tensor:
    """Which parts of an image speak for a class (Selvaraju et al. 2017, section 3): the feature's
    channels, each weighed by the mean gradient of the class's logit, summed, what is negative left
    out.

    Args:
        model: in any mode; its modes, gradients and statistics stay as they are.
        image: one, as `model.predict` takes it.
        label: the class, by name or number; by default the likeliest.
        stage: whose feature; the last one is the deepest and coarsest.

    Returns:
        float32 `(H, W)` on the CPU, of the image's own size, upright: 1 where most speaks for the
        class, 0 where nothing does, nothing does anywhere, or the processor cuts the image off.

    Raises:
        InputError: no such class or stage, or what `model.pixel_values` refuses.
    """
    image = read_image(image, model.processor)
    x = model.pixel_values(image).to(model.device, model.dtype)
    heat, _ = class_heat(model, x, label, stage)
    pixels = model.processor.process_image(image)
    return model.processor.unfit(heat[None, None], *pixels.shape[-2:])[0, 0]


def overlay(
    image: Any, heat: Tensor, *, strength: float = 0.5, colors: str = "turbo"
) -> PIL.Image.Image:
    """An image with heat laid over it, as a PIL image of its size in RGB: `.save("where.png")`.

    Args:
        image: as `grad_cam` takes it.
        heat: `(H, W)`, 0 to 1, of the image's size, as `grad_cam` gives it.
        strength: the colour's share, from 0 to 1, where the heat is 1; where it is 0 the image is
            as it was.
        colors: a colour map of matplotlib.

    Raises:
        InputError: heat of another size, a strength out of range or an unknown colour map.
    """
    from matplotlib import colormaps

    if not 0 <= strength <= 1:
        raise InputError(f"strength={strength} is out of range; give a number from 0 to 1")
    if colors not in colormaps:
        raise InputError(f"colors={colors!r} is no colour map; {nearest(colors, list(colormaps))}")
    shown = ResidualImageProcessor().process_image(open_image(image)).movedim(0, -1)
    if heat.shape != shown.shape[:2]:
        raise InputError(
            f"the heat has shape {tuple(heat.shape)}, but the image {tuple(shown.shape[:2])}; give "
            "the heat of this image"
        )
    heat = heat.clamp(0, 1)
    color = torch.from_numpy(255 * colormaps[colors](heat.numpy())[..., :3]).float()
    pixels = torch.lerp(shown.float(), color, strength * heat.unsqueeze(-1))
    return PIL.Image.fromarray(pixels.round().to(torch.uint8).numpy())


__all__: Sequence[str] = ("grad_cam", "overlay")
