"""Images in; classes and boxes out. Importing this registers the models with transformers' Auto
classes."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
)

from resbackbones.vision.box_items import BoxAugment, BoxItems
from resbackbones.vision.boxes import draw_boxes
from resbackbones.vision.data import Augment, ImageItems, choose_size, open_image
from resbackbones.vision.detection import (
    ResidualDetectionConfig,
    ResidualDetectionProcessor,
    ResidualForObjectDetection,
)
from resbackbones.vision.metrics import AveragePrecision
from resbackbones.vision.models import ResidualForImageClassification, ResidualVisionConfig
from resbackbones.vision.processor import ResidualImageProcessor

AutoConfig.register(ResidualVisionConfig.model_type, ResidualVisionConfig)
AutoImageProcessor.register(
    ResidualVisionConfig, image_processor_classes={"torchvision": ResidualImageProcessor}
)
AutoModelForImageClassification.register(ResidualVisionConfig, ResidualForImageClassification)

AutoConfig.register(ResidualDetectionConfig.model_type, ResidualDetectionConfig)
AutoImageProcessor.register(
    ResidualDetectionConfig, image_processor_classes={"torchvision": ResidualDetectionProcessor}
)
AutoModelForObjectDetection.register(ResidualDetectionConfig, ResidualForObjectDetection)

__all__ = [
    "Augment",
    "AveragePrecision",
    "BoxAugment",
    "BoxItems",
    "ImageItems",
    "ResidualDetectionConfig",
    "ResidualDetectionProcessor",
    "ResidualForImageClassification",
    "ResidualForObjectDetection",
    "ResidualImageProcessor",
    "ResidualVisionConfig",
    "choose_size",
    "draw_boxes",
    "open_image",
]
