"""Images in, classes out. Importing this registers the models with transformers' Auto classes."""

from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from resbackbones.vision.augment import Augment
from resbackbones.vision.data import ImageItems
from resbackbones.vision.explain import grad_cam, overlay
from resbackbones.vision.images import choose_size, open_image
from resbackbones.vision.models import ResidualForImageClassification, ResidualVisionConfig
from resbackbones.vision.processor import ResidualImageProcessor

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
    "choose_size",
    "grad_cam",
    "open_image",
    "overlay",
]
