"""Models made ready to answer.

fold(model)  an equal copy of fewer operations
"""

import copy
from collections.abc import Sequence
from typing import TypeVar, cast

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval

from resbackbones.core.blocks import ConvLayer, Convolution
from resbackbones.errors import InputError

Model = TypeVar("Model", bound=nn.Module)


def fold(model: Model) -> Model:
    """A copy whose convolutions do the work of the batch norms right behind them, whose weights are
    what their parametrisations make of them (weight norm, standardisation), and lie channels last.

    It answers as the model does, but for rounding, and sooner. It is for answering alone: keep the
    model itself to train and to save.

    Args:
        model: a `Backbone`, or any model with one, in evaluation mode. Batch norms that stand
            before an activation and a convolution, as in pre-activated nets, stay as they are.

    Raises:
        InputError: a model in training mode, whose batch norms still change.

    >>> import resbackbones as rb
    >>> net = rb.backbone("resnet20").eval()
    >>> sum(isinstance(module, nn.BatchNorm2d) for module in rb.deploy.fold(net).modules())
    0
    """
    if model.training:
        raise InputError(
            "a model in training mode cannot be folded, as its batch norms still change; call "
            ".eval() first"
        )
    folded = copy.deepcopy(model)
    for layer in folded.modules():
        if not isinstance(layer, ConvLayer):
            continue
        convolutions = cast("Sequence[Convolution]", layer.convolutions)
        for convolution in convolutions:
            if parametrize.is_parametrized(convolution.conv):
                convolution.conv = _plain(convolution.conv)
        norm, last = layer.after.norm, convolutions[-1]
        if isinstance(norm, nn.BatchNorm2d) and not layer.after.norm_last:
            last.conv, layer.after.norm = fuse_conv_bn_eval(last.conv, norm), None
    folded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's lack it
    return folded


def _plain(conv: nn.Conv2d) -> nn.Conv2d:
    """The same convolution, whose weight is its own. (torch takes a parametrisation away from the
    class, which a copy shares with the module it is of.)"""
    plain = nn.utils.skip_init(
        nn.Conv2d,
        *(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride),
        *(conv.padding, conv.dilation, conv.groups, conv.bias is not None),
    )
    plain.weight = nn.Parameter(conv.weight.detach())
    plain.bias = conv.bias
    return plain.eval()


__all__: Sequence[str] = ("fold",)
