"""Weights of torchvision, timm, transformers and the common CIFAR repositories, into our models and
back: the same numbers under other names, so the same logits."""

from resbackbones.weights.exporting import export_weights
from resbackbones.weights.loading import WeightsMismatch, load_weights

__all__ = ["WeightsMismatch", "export_weights", "load_weights"]
