"""Train a residual image classifier on your images.

    python -m tasks.vision.classify_images --data ../shared/data/cifar10_jpeg \\
        --name CIFAR-10-JPEG --epochs 28 --start 0.5 --growth 18 --batch-size 256 \\
        --learning-rate 0.2 --evaluate-every 4 --seeds 0 1 2 --record

reached 88.3 +- 0.2 % (PCA + RBF features + ridge: 51.3 %), in 30 minutes of training per seed on
two cores of an EPYC with bfloat16 that had other work too. Without its skips it reached 88.2 % (one
seed): a net of 14 layers does not need them. CIFAR-10-JPEG is CIFAR-10 re-encoded with losses: no
figure for CIFAR-10 compares.

Without a validation split, 10 % of the training rows are held out for it; the test split is read
once, at the end. Small images (up to 64 pixels) want a net with a small stem, as resnet14_small or
resnet18_small; larger ones, which are brought to one size, resnet18, resnet50, …
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from resbackbones.core.zoo import resolve
from resbackbones.data import Source
from resbackbones.train.options import Kind, Schedule
from resbackbones.vision import (
    Augment,
    ImageItems,
    ResidualImageProcessor,
    choose_size,
    whiten_stem,
)
from resbackbones.vision import ResidualForImageClassification as Model
from resbackbones.vision.images import choose_channels
from tasks._classification import Classification
from tasks._fields import Spec
from tasks._recipe import Experiment, Task, each
from tasks._using import run
from tasks.vision._baseline import baseline
from tasks.vision._files import read


@dataclass(frozen=True, kw_only=True)
class Config(Classification):
    spec: Spec = "resnet14_small"
    """A net in resbackbones.SPECS with dims=2, as resnet18_small or resnet50."""
    channels: Literal[1, 3] | None = None
    """3 for colour, 1 for grey (as the images are)."""
    image_size: int | None = None
    """Height and width in pixels that images are brought to (chosen from the data, and said)."""
    augment: bool = True
    """Vary training images by all that follows."""
    flip: bool = True
    """Left and right of every other one (not of digits or letters: --no-flip)."""
    shift: float = 1 / 16
    """How far they are moved at most, as a share of their side; with 100 epochs and more 1/8 is
    usual for CIFAR."""
    zoom: float = 1.0
    """Least share of their area that is cut out and enlarged; 0.25 is usual for photographs."""
    trivial: bool = False
    """One of 14 changes of colour or shape, of any strength (TrivialAugment)."""
    erase: float = 0.0
    """Share of them with a rectangle in the mean colour."""
    mixup: float = 0.0
    """Most that another image and its label may take of one, up to 0.5."""
    cutmix: float = 0.0
    """Share of them with a rectangle of another image, and as much of its label."""
    start: float = 1.0
    """Side of training images in the first epoch, as a share of the full one: smaller ones cost
    less (1: full from the first)."""
    growth: int = 0
    """Epochs in which they grow to their full side."""
    whiten: bool = True
    """Start the first convolution from the principal components of training images' patches."""
    epochs: int = 11
    batch_size: int = 128
    optimizer: Kind = "sgd"
    schedule: Schedule = "one_cycle"
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1


def experiment(config: Config) -> Experiment:
    spec = resolve(config.spec, skip=config.skip)
    splits = config.open("image")
    channels = config.channels or choose_channels(splits.train)
    size, said = choose_size(splits.train, config.image_size)
    processor = ResidualImageProcessor(num_channels=channels, size=size)
    names = splits.train.target.names
    spec, problem = replace(spec, in_channels=channels), config.problem_type
    make = partial(Model.build, labels=names, processor=processor, problem_type=problem)
    make(spec)  # what does not fit together is told before the images are read
    train, validation, test = each(splits, lambda part: items(config, part, processor))
    height, width = train[0]["pixel_values"].shape[-2:]
    count = min(len(train), 1000, max(16, 2**21 // (height * width)))  # tell what patches are
    some = train.__getitems__(range(0, len(train), len(train) // count))["pixel_values"]

    def build(**changes: Any) -> Model:
        model = make(spec, **changes)
        if config.whiten:
            whiten_stem(model.backbone, some)
        return model

    if config.augment:
        same = ("flip", "zoom", "trivial", "erase", "mixup", "cutmix", "start", "growth")
        given = {name: getattr(config, name) for name in same}
        train.augment = Augment(shift=round(config.shift * min(size.values())), **given)
    found = f"The {said}{'; they are grey (--channels 1)' if channels == 1 else ''}."
    simple = partial(baseline, train, validation, test)
    return Experiment(splits, train, validation, test, config.weighing(build, train), simple, found)


def items(config: Config, source: Source, processor: ResidualImageProcessor) -> ImageItems:
    return ImageItems(source, processor, on_bad=config.on_bad, device=config.where)


USE = """
import PIL.Image, transformers
import resbackbones.vision

classify = transformers.pipeline("image-classification", model="{model}")
print(classify(PIL.Image.open("image.png"), top_k=3))
"""
GPU = {
    "spec": "resnet18_small", "epochs": 60, "batch_size": 512, "learning_rate": 0.4, "shift": 1 / 8,
}  # fmt: skip
TASK = Task("classify_images", "image", Config, experiment, items, (Model,), read, USE, GPU)

if __name__ == "__main__":
    run(TASK)
