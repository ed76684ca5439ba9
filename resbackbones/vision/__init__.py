"""Images in; classes, boxes and masks out. Importing this registers the models with transformers'
Auto classes."""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
)

from resbackbones.core.pieces import Approximate
from resbackbones.vision.augment import Augment
from resbackbones.vision.auto_backbone import ResidualBackbone, ResidualBackboneConfig
from resbackbones.vision.box_items import BoxAugment, BoxItems, choose_resolution
from resbackbones.vision.boxes import draw_boxes
from resbackbones.vision.data import ImageItems
from resbackbones.vision.decoders import DECODERS, DeepLabV3Plus, SemanticFPN, UNet
from resbackbones.vision.detection import (
    ResidualDetectionConfig,
    ResidualForObjectDetection,
)
from resbackbones.vision.detector import ResidualDetectionProcessor
from resbackbones.vision.explain import grad_cam, overlay
from resbackbones.vision.images import choose_size, open_image
from resbackbones.vision.masks import MaskAugment, MaskItems, draw_masks
from resbackbones.vision.metrics import AveragePrecision, PixelConfusion
from resbackbones.vision.models import ResidualForImageClassification, ResidualVisionConfig
from resbackbones.vision.processor import ResidualImageProcessor
from resbackbones.vision.segmentation import (
    ResidualForSemanticSegmentation,
    ResidualSegmentationConfig,
)
from resbackbones.vision.two_stage import ResidualForTwoStageDetection, ResidualTwoStageConfig
from resbackbones.vision.whitening import whiten_stem

for config in (ResidualVisionConfig, ResidualSegmentationConfig):
    AutoConfig.register(config.model_type, config)
    AutoImageProcessor.register(
        config, image_processor_classes={"torchvision": ResidualImageProcessor}
    )
AutoModelForSemanticSegmentation.register(
    ResidualSegmentationConfig, ResidualForSemanticSegmentation
)
AutoModelForImageClassification.register(ResidualVisionConfig, ResidualForImageClassification)

for detector in (ResidualForObjectDetection, ResidualForTwoStageDetection):
    AutoConfig.register(detector.config_class.model_type, detector.config_class)
    AutoImageProcessor.register(
        detector.config_class, image_processor_classes={"torchvision": ResidualDetectionProcessor}
    )
    AutoModelForObjectDetection.register(detector.config_class, detector)
AutoConfig.register(ResidualBackboneConfig.model_type, ResidualBackboneConfig)
AutoBackbone.register(ResidualBackboneConfig, ResidualBackbone)

__all__ = [
    "DECODERS",
    "Approximate",
    "Augment",
    "AveragePrecision",
    "BoxAugment",
    "BoxItems",
    "DeepLabV3Plus",
    "ImageItems",
    "MaskAugment",
    "MaskItems",
    "PixelConfusion",
    "ResidualBackbone",
    "ResidualBackboneConfig",
    "ResidualDetectionConfig",
    "ResidualDetectionProcessor",
    "ResidualForImageClassification",
    "ResidualForObjectDetection",
    "ResidualForSemanticSegmentation",
    "ResidualForTwoStageDetection",
    "ResidualImageProcessor",
    "ResidualSegmentationConfig",
    "ResidualTwoStageConfig",
    "ResidualVisionConfig",
    "SemanticFPN",
    "UNet",
    "choose_resolution",
    "choose_size",
    "draw_boxes",
    "draw_masks",
    "grad_cam",
    "open_image",
    "overlay",
    "whiten_stem",
]
