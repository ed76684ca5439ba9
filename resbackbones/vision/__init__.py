"""Images in, classes out. Importing this registers the models with transformers' Auto classes."""

from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from resbackbones.vision.data import Augment, ImageItems, ResidualImageProcessor
from resbackbones.vision.models import ResidualForImageClassification, ResidualVisionConfig

AutoConfig.register(ResidualVisionConfig.model_type, ResidualVisionConfig)
AutoImageProcessor.register(
    ResidualVisionConfig, image_processor_classes={"torchvision": ResidualImageProcessor}
)
AutoModelForImageClassification.register(ResidualVisionConfig, ResidualForImageClassification)

__all__ = [
    "Augment",
    "ImageItems",
    "ResidualForImageClassification",
    "ResidualImageProcessor",
    "ResidualVisionConfig",
]
