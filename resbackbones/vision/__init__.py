"""Images in; classes and masks out. Importing this registers the models with transformers' Auto
classes."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
)

from resbackbones.vision.augment import Augment
from resbackbones.vision.data import ImageItems
from resbackbones.vision.decoders import DECODERS, DeepLabV3Plus, SemanticFPN, UNet
from resbackbones.vision.explain import grad_cam, overlay
from resbackbones.vision.images import choose_size, open_image
from resbackbones.vision.masks import MaskAugment, MaskItems, draw_masks
from resbackbones.vision.metrics import PixelConfusion
from resbackbones.vision.models import ResidualForImageClassification, ResidualVisionConfig
from resbackbones.vision.processor import ResidualImageProcessor
from resbackbones.vision.segmentation import (
    ResidualForSemanticSegmentation,
    ResidualSegmentationConfig,
)
from resbackbones.vision.tiles import Approximate

for config in (ResidualVisionConfig, ResidualSegmentationConfig):
    AutoConfig.register(config.model_type, config)
    AutoImageProcessor.register(
        config, image_processor_classes={"torchvision": ResidualImageProcessor}
    )
AutoModelForSemanticSegmentation.register(
    ResidualSegmentationConfig, ResidualForSemanticSegmentation
)
AutoModelForImageClassification.register(ResidualVisionConfig, ResidualForImageClassification)

__all__ = [
    "DECODERS",
    "Approximate",
    "Augment",
    "DeepLabV3Plus",
    "ImageItems",
    "MaskAugment",
    "MaskItems",
    "PixelConfusion",
    "ResidualForImageClassification",
    "ResidualForSemanticSegmentation",
    "ResidualImageProcessor",
    "ResidualSegmentationConfig",
    "ResidualVisionConfig",
    "SemanticFPN",
    "UNet",
    "choose_size",
    "draw_masks",
    "grad_cam",
    "open_image",
    "overlay",
]
