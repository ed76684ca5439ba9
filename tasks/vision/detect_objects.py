"""Train a residual object detector on your images.

    python -m tasks.vision.detect_objects --data ../shared/data/bccd --name BCCD \\
        --upside-down --record

reached an AP50 of 90.8 % on the test split (sliding windows on RBF features: 54.8 %) from random
weights, in 39 minutes on two cores of an EPYC that had other work.

Images whose objects are written beside them: COCO, Pascal VOC and YOLO files, or Parquet with a
column of boxes. Without a validation split, 10 % of the training rows are held out for it; the test
split is read once, at the end. The size of the images and the levels of the pyramid are chosen from
the boxes, and said.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from resbackbones.core.zoo import resolve
from resbackbones.data import Boxes, Source, Target
from resbackbones.train.options import Kind, Schedule
from resbackbones.vision import BoxAugment, BoxItems, choose_resolution
from resbackbones.vision import ResidualDetectionProcessor as Processor
from resbackbones.vision import ResidualForObjectDetection as OneStage
from resbackbones.vision import ResidualForTwoStageDetection as TwoStages
from resbackbones.vision.images import choose_channels
from tasks._classes import names_of
from tasks._fields import Recipe, Spec
from tasks._recipe import Experiment, Task, each
from tasks._using import run
from tasks.vision._box_baseline import baseline
from tasks.vision._files import read


@dataclass(frozen=True, kw_only=True)
class Config(Recipe):
    spec: Spec = "resnet18"
    """A net in resbackbones.SPECS with dims=2, as resnet18 or resnet50."""
    detector: Literal["fcos", "retinanet", "faster_rcnn", "mask_rcnn"] = "fcos"
    """FCOS (Tian et al. 2019), RetinaNet (Lin et al. 2017), or of two stages: Faster R-CNN (Ren et
    al. 2015), Mask R-CNN (He et al. 2017), which learns masks of COCO's segmentations, too."""
    levels: tuple[int, ...] | None = None
    """Strides of the pyramid's levels, as 8 16 32 (chosen from the boxes, and said)."""
    width: int = 128
    """Channels of the pyramid and the head; the papers have 256."""
    convolutions: int = 2
    """Of each of the two towers of FCOS's head alone; the paper has 4."""
    channels: Literal[1, 3] | None = None
    """3 for colour, 1 for grey (as the images are)."""
    image_size: int | None = None
    """The longer side in pixels that images are brought to (chosen from the boxes, and said)."""
    box_format: Literal["xyxy", "xywh"] | None = None
    """What the four numbers of a box in a table are: left, top, right, bottom, or left, top, width,
    height (found where only one fits the images; files of COCO, VOC and YOLO say it)."""
    on_bad_box: Literal["drop", "error"] = "drop"
    """Whether boxes that cannot be used are left out and counted, or their images are damaged."""
    augment: bool = True
    """Vary training images: sides, size, place, colours, neighbours."""
    upside_down: bool = False
    """Turn every other image upside down, too: under a microscope or from the air."""
    mosaic: float = 0.5
    """Share of the images that three others are laid beside."""
    least_steps: int = 2000
    epochs: int = 100
    batch_size: int = 8
    optimizer: Kind = "adamw"
    schedule: Schedule = "one_cycle"
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    clip: float = 10.0
    moving_average: float = 0.99
    evaluate_every: int = 5
    evaluation_batch_size: int = 16
    metric: str = "ap50"

    def open_alone(self, kind: str, target: Target) -> Source:
        assert isinstance(target, Boxes)
        return super().open_alone(kind, replace(target, **self.boxes))

    @property
    def boxes(self) -> dict[str, Any]:
        """How boxes are read."""
        return {"box_format": self.box_format, "on_bad_box": self.on_bad_box}


def experiment(config: Config) -> Experiment:
    spec = resolve(config.spec, skip=config.skip)
    splits = config.open("image", Boxes(masks=config.detector == "mask_rcnn", **config.boxes))
    channels = config.channels or choose_channels(splits.train)
    two_stages = config.detector in ("faster_rcnn", "mask_rcnn")
    size, levels, said = choose_resolution(
        splits.train, config.image_size, config.levels, finest=4 if two_stages else None
    )
    processor = Processor(num_channels=channels, size=size)
    make: Callable[..., Any] = TwoStages.build if two_stages else OneStage.build
    options: dict[str, Any] = {"masks": config.detector == "mask_rcnn"}
    if not two_stages:
        convolutions = config.convolutions if config.detector == "fcos" else 4
        options = {"detector": config.detector, "convolutions": convolutions}
    build = partial(
        make, replace(spec, in_channels=channels), labels=splits.train.target.names,
        levels=levels, channels=config.width, processor=processor, **options,
    )  # fmt: skip
    build()  # what does not fit together is told before the images are read
    train, validation, test = each(splits, lambda part: items(config, part, processor))
    if config.augment:
        train.augment = BoxAugment(upside_down=config.upside_down, mosaic=config.mosaic)
    simple = partial(baseline, train, test)
    return Experiment(splits, train, validation, test, build, simple, said)


def items(config: Config, source: Source, processor: Processor) -> BoxItems:
    return BoxItems(source, processor, on_bad=config.on_bad, device=config.where)


def target(model: Any) -> Boxes:
    """What a detector is measured on."""
    return Boxes(names_of(model), masks=getattr(model.config, "masks", False))


def answer(model: Any) -> Callable[[Any], Mapping[str, str]]:
    """How many objects of each class there are."""

    def count(image: Any) -> Mapping[str, str]:
        found = Counter(model.predict(image)["labels"])
        return {"objects": ", ".join(f"{number} {name}" for name, number in found.most_common())}

    return count


USE = """
import PIL.Image
from resbackbones.vision import {name}, draw_boxes

model = {name}.from_pretrained("{model}")
image = PIL.Image.open("image.png")
draw_boxes(image, model.predict(image)).save("found.png")
"""
GPU = {"spec": "resnet50", "width": 256, "convolutions": 4, "batch_size": 16}
TASK = Task(
    "detect_objects", "image", Config, experiment, items, (OneStage, TwoStages), read, USE, GPU,
    figures=("ap50", "map", "ap75", "mask_ap50", "mask_map"), target=target, answer=answer,
)  # fmt: skip

if __name__ == "__main__":
    run(TASK)
