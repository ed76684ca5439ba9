"""A first convolution that starts where the statistics of the images already say it should."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from resbackbones.core.backbone import Backbone
from resbackbones.errors import InputError

LEAST = 5e-4  # added to the variances: JPEG has none left in some directions


@torch.no_grad()
def whiten_stem(backbone: Backbone, pixel_values: Tensor) -> int:
    """Draw the first convolution from images: its filters become the principal components of their
    patches, each once per sign and scaled to variance 1.

    What the next layers see then varies alike in all directions, while patches of images vary some
    thousand times more in brightness than in fine detail (LeCun et al. 1998, "Efficient BackProp",
    section 4.3; of patches: Page 2019, "How to Train Your ResNet" 8; Jordan 2024, arXiv:2404.00498,
    section 3.2, who keeps them frozen: here they are trained on). Channels beyond two per component
    stay as they are; of more components than channels the strongest are taken.

    Args:
        backbone: its first convolution has all its input channels in one group.
        pixel_values: images as the net sees them, `(N, C, H, W)`; some hundreds tell enough.

    Returns:
        How many channels have been drawn.

    Raises:
        InputError: a first convolution in groups, or images smaller than its kernel.

    >>> import resbackbones as rb
    >>> net = rb.backbone("resnet14_small")
    >>> whiten_stem(net, torch.rand(100, 3, 32, 32))
    54
    """
    conv = next(module for module in backbone.modules() if isinstance(module, nn.Conv2d))
    if conv.groups != 1:
        raise InputError(
            f"the first convolution has {conv.groups} groups; whitening needs all "
            "channels in one, so leave it as it is (--no-whiten)"
        )
    height, width = conv.kernel_size
    if pixel_values.shape[-2] < height or pixel_values.shape[-1] < width:
        raise InputError(
            f"images of {pixel_values.shape[-1]}x{pixel_values.shape[-2]} pixels are smaller than "
            f"the {width}x{height} patches of the first convolution; give larger ones"
        )
    patches = functional.unfold(pixel_values.double(), (height, width), stride=(height, width))
    patches = patches.transpose(1, 2).flatten(0, 1)  # (N, C * height * width)
    variances, components = torch.linalg.eigh(torch.cov(patches.T, correction=0))  # ascending
    filters = (components / (variances + LEAST).sqrt()).T.flip(0)
    both = torch.stack([filters, -filters], 1).flatten(0, 1)[: conv.out_channels]
    conv.weight[: len(both)] = both.unflatten(1, conv.weight.shape[1:]).to(conv.weight)
    return len(both)
