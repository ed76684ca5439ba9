"""Which numbers a forward pass computes in."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


def autocast(device: str, precision: str) -> torch.autocast:
    """Inside, "bfloat16" computes in it, and so does "auto" where the hardware does."""
    low = precision == "bfloat16" or (precision == "auto" and has_bfloat16(device))
    return torch.autocast(device, torch.bfloat16, enabled=low)


def has_bfloat16(device: str) -> bool:
    """Whether the hardware multiplies in bfloat16, which then is faster than float32."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """Have CUDA compute float32 in float32, which its convolutions do not by default."""
    cudnn: Any = torch.backends.cudnn
    layers = [cudnn.conv, cudnn.rnn]
    before = [layer.fp32_precision for layer in layers]
    # Old and new switch: whoever reads the old one in between is refused if they disagree.
    cudnn.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32 = before[0] == "tf32"
        for layer, precision in zip(layers, before, strict=True):
            layer.fp32_precision = precision
