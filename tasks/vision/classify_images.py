"""Train a residual image classifier on your images.

    python -m tasks.vision.classify_images --data ../shared/data/cifar10_jpeg \\
        --name CIFAR-10-JPEG --seeds 0 1 2 --record

reached 85.8 +- 0.2 % (principal components + RBF features + ridge: 47.5 %), in 17 minutes of
training a seed on one core of a 2-core Xeon. CIFAR-10-JPEG is CIFAR-10 re-encoded with losses: no
figure for CIFAR-10 compares.

--data is a folder of class folders, a Parquet file or folder, a hub id, or a folder written by
`save_to_disk`. Without a validation split, 10 % of the training rows are held out for it; the test
split is read once, at the end. Small images (up to 64 pixels) want a net with a small stem, as
resnet14_small or resnet18_small; larger ones resnet18, resnet50, … with --image-size 224.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn.functional import adaptive_avg_pool2d

from resbackbones import train
from resbackbones.core.zoo import resolve
from resbackbones.data import open_splits
from resbackbones.pretrained import class_scores
from resbackbones.vision import (
    Augment,
    ImageItems,
    ResidualForImageClassification,
    ResidualImageProcessor,
)
from tasks._run import Device, Run, conclude, resolve_device, run, run_folder


@dataclass(frozen=True)
class Config:
    data: str
    """Your images: a folder of class folders, a Parquet file or folder, or a hub id."""
    name: str | None = None
    """What to call the data in the table and the record (their folder's name)."""
    spec: str = "resnet14_small"
    """A net in resbackbones.SPECS with dims=2."""
    skip: Literal["identity", "none"] = "identity"
    """"none" trains the plain control: the same net without its skips."""
    channels: Literal[1, 3] = 3
    """3 for colour, 1 for grey."""
    image_size: int | None = None
    """Bring images to this height and width in pixels (they keep their own size)."""
    image_column: str | None = None
    """The column of the images (found by its type)."""
    label_column: str | None = None
    """The column of the labels (found by its name)."""
    seeds: tuple[int, ...] = (0,)
    """One training a seed."""
    epochs: int = 11
    """Passes over the training rows."""
    batch_size: int = 128
    """Images a step."""
    learning_rate: float = 0.1
    """Peak of the one-cycle schedule of SGD with Nesterov momentum 0.9."""
    weight_decay: float = 5e-4
    """On weights, not on norms and biases."""
    shift: float = 1 / 16
    """How far training images are moved at most, as a share of their side; with 100 epochs and more
    1/8 is usual for CIFAR."""
    label_smoothing: float = 0.1
    """Share of each label spread over all classes."""
    on_bad: Literal["error", "skip"] = "error"
    """A damaged image stops the run, or is left out and counted."""
    device: Device = "auto"
    """Where the images are kept and augmented and the net trains; auto is the GPU, if there."""
    output: Path | None = None
    """Folder for models, logs and curves (runs/classify_images/<time>)."""
    resume: bool = False
    """Go on with --output, or with the newest run."""
    record: bool = False
    """Write the result to results/classify_images/."""


def main(config: Config) -> None:
    device = resolve_device(config.device)
    spec = resolve(config.spec, in_channels=config.channels, skip=config.skip)
    options = train.Options(
        epochs=config.epochs,
        batch_size=config.batch_size,
        optimizer="sgd",
        schedule="one_cycle",
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        label_smoothing=config.label_smoothing,
        device=device,
        resume=config.resume,
    )
    size = config.image_size and {"height": config.image_size, "width": config.image_size}
    processor = ResidualImageProcessor(num_channels=config.channels, size=size)
    folder = run_folder("classify_images", config.output, config.resume)

    columns = {"input": config.image_column, "label": config.label_column}
    splits = open_splits(config.data, columns, kind="image")
    build = partial(
        ResidualForImageClassification.build,
        spec,
        labels=splits.train.labels,
        processor=processor,
    )
    build()  # what does not fit together is told before the images are read
    items = [
        ImageItems(source, processor, on_bad=config.on_bad, device=device)
        for source in (splits.train, splits.validation, splits.test)
        if source is not None
    ]
    training, validation, test = items[0], items[1], items[-1]
    simple = baseline(training, test)
    side = training[0]["pixel_values"].shape[-1]
    training.augment = Augment(flip=True, shift=round(config.shift * side))

    runs = []
    for seed in config.seeds:
        torch.manual_seed(seed)
        training.seed = seed
        model = build()
        place = folder / f"seed-{seed}"
        result = train.fit(model, training, validation, replace(options, output=place, seed=seed))
        runs.append(Run(seed, train.evaluate(model, test), result.seconds))
        model.save_pretrained(place / "model")

    conclude(
        task="classify_images",
        dataset=config.name or Path(config.data).name,
        splits=splits,
        arm=config.spec if config.skip == "identity" else f"{config.spec}-plain",
        model=model,
        example={"pixel_values": test[0]["pixel_values"].unsqueeze(0)},
        runs=runs,
        baseline=simple,
        folder=folder,
        use=USE.format(model=folder / f"seed-{config.seeds[0]}" / "model"),
        record=config.record,
        skipped=[name for some in items for name in some.skipped],
    )


def baseline(training: ImageItems, test: ImageItems) -> tuple[str, dict[str, float]]:
    """Whitened principal components (95 % of variance), 1,000 RBF features (Nystroem), ridge."""
    from sklearn.decomposition import PCA
    from sklearn.kernel_approximation import Nystroem
    from sklearn.linear_model import RidgeClassifier
    from sklearn.pipeline import make_pipeline

    def pixels(items: ImageItems) -> Any:
        rows = torch.arange(len(items)).split(1000)
        batches = [items.__getitems__(some.tolist())["pixel_values"] for some in rows]
        small = [b if max(b.shape[2:]) <= 32 else adaptive_avg_pool2d(b, 32) for b in batches]
        return torch.cat(small).flatten(1).cpu().numpy()

    x, y = pixels(training), training.labels.cpu().numpy()
    model = make_pipeline(
        PCA(0.95, whiten=True, svd_solver="covariance_eigh"),
        Nystroem(n_components=min(1000, len(x)), random_state=0),
        RidgeClassifier(),
    ).fit(x, y)
    predicted, expected = model.predict(pixels(test)), test.labels.cpu().numpy()
    return "PCA + RBF features + ridge", class_scores(expected, predicted)


USE = """
import PIL.Image, transformers
import resbackbones.vision

classify = transformers.pipeline("image-classification", model="{model}")
print(classify(PIL.Image.open("image.png"), top_k=3))
"""

if __name__ == "__main__":
    run(main, Config)
