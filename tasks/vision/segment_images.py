"""Train a residual net to give every pixel of your images a class.

    python -m tasks.vision.segment_images --data ../shared/data/camvid_jpeg --name CamVid-JPEG \\
        --ignore 11 --classes sky building pole road pavement tree sign fence car pedestrian \\
        bicyclist --record

reached a mean IoU of 52.8 % on the test split (a random forest on pixels: 29.7 %) from random
weights, in 29 minutes on two cores of an EPYC with bfloat16. CamVid-JPEG is CamVid re-encoded with
losses.

The data are images and a mask for each, whose numbers are the classes. Images are brought to a
size, masks are not: what is reported is of all their pixels. Without a validation split, 10 % of
the training rows are held out for it; the test split is read once, at the end.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from resbackbones.classifier import class_weights
from resbackbones.core.zoo import resolve
from resbackbones.data import Masks, Source, Target
from resbackbones.train.options import Kind
from resbackbones.vision import DeepLabV3Plus, MaskAugment, MaskItems, ResidualImageProcessor
from resbackbones.vision import ResidualForSemanticSegmentation as Model
from resbackbones.vision.images import choose_channels
from resbackbones.vision.masks import choose_shorter_side, pixel_counts
from tasks._classes import names_of
from tasks._fields import Recipe, Spec
from tasks._recipe import Experiment, Task, each
from tasks._using import run
from tasks.vision._files import read
from tasks.vision._mask_baseline import baseline, name_shares


@dataclass(frozen=True, kw_only=True)
class Config(Recipe):
    spec: Spec = "resnet16_fine"
    """A net in resbackbones.SPECS with dims=2, as resnet18 or resnet50."""
    decoder: Literal["deeplabv3plus", "fpn", "unet"] = "deeplabv3plus"
    """What makes a map of the net's features."""
    classes: tuple[str, ...] = ()
    """Names of the classes, in the order of their numbers (those in a list beside the data)."""
    ignore: int | None = None
    """The number in the masks of pixels that have no class (255 where it is that)."""
    channels: Literal[1, 3] | None = None
    """3 for colour, 1 for grey (as the images are)."""
    image_size: int | None = None
    """The shorter side in pixels that images are brought to (288 where they are larger)."""
    augment: bool = True
    """Vary training images: size and place of what is cut out, left and right, colours."""
    crop: tuple[int, int] | None = None
    """Height and width of what is cut out of training images (2/3 of the shorter side, 4:3)."""
    balance: float = 0.5
    """How much rare classes count in the loss: 0 as their pixels do, 1 as much as any other."""
    epochs: int = 100
    evaluate_every: int = 5
    batch_size: int = 8
    evaluation_batch_size: int = 8
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    optimizer: Kind = "adamw"
    metric: str = "mean_iou"

    def open_alone(self, kind: str, target: Target) -> Source:
        assert isinstance(target, Masks)
        return super().open_alone(kind, replace(target, ignore=self.ignore))


def experiment(config: Config) -> Experiment:
    spec = resolve(config.spec, skip=config.skip)
    splits = config.open("image", Masks(config.classes, config.ignore))
    channels = config.channels or choose_channels(splits.train)
    side, size, said = choose_shorter_side(splits.train, config.image_size)
    processor = ResidualImageProcessor(num_channels=channels, size=size)
    decoder = DeepLabV3Plus(128, 32) if config.decoder == "deeplabv3plus" else config.decoder
    names = splits.train.target.names
    make = partial(Model.build, labels=names, decoder=decoder, processor=processor)
    make(replace(spec, in_channels=channels))  # what does not fit together is told at once
    train, validation, test = each(splits, lambda part: items(config, part, processor))
    weights = class_weights(pixel_counts(train), config.balance)

    def build(**changes: Any) -> Model:
        model = make(replace(spec, in_channels=channels), **changes)
        model.class_weights = weights
        return model

    if config.augment:
        height = max(32, round(side / 48) * 32)
        train.augment = MaskAugment(config.crop or (height, height * 4 // 3), (2 / 3, 3 / 2))
    train.check_batches(config.batch_size)
    for part in (validation, test):
        part.check_batches(config.evaluation_batch_size)
    simple = partial(baseline, train, validation, test)
    return Experiment(splits, train, validation, test, build, simple, f"The {said}.")


def items(config: Config, source: Source, processor: ResidualImageProcessor) -> MaskItems:
    return MaskItems(source, processor, on_bad=config.on_bad, device=config.where)


USE = """
from resbackbones.vision import ResidualForSemanticSegmentation, draw_masks, open_image

model = ResidualForSemanticSegmentation.from_pretrained("{model}")
image = open_image({{"bytes": None, "path": "image.png"}})
(classes,) = model.predict(image)
draw_masks(image, classes, list(model.config.id2label.values())).save("classes.png")
"""
GPU = {"spec": "resnet50d", "epochs": 300, "batch_size": 16}
FIGURES = ("mean_iou", "mean_dice", "pixel_accuracy")
TASK = Task(
    *("segment_images", "image", Config, experiment, items, (Model,), read, USE, GPU, FIGURES),
    target=lambda model: Masks(names_of(model)),
    answer=name_shares,
)

if __name__ == "__main__":
    run(TASK)
