"""One arm of `tasks.benchmark`, run in a worker process: a baseline, or a net of one seed.

The nets are He et al.'s three-stage CIFAR nets (2015, section 4.2) in each domain's rank. Their
shortcuts pad with zeros, so that plain and residual nets have exactly the same parameters, and
`init="he"` draws the same initial weights for both from one seed.
"""

import functools
import math
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from resbackbones.core.layers import Stage, Stem
from resbackbones.core.spec import BackboneSpec
from tasks import _benchmark_data as data

if TYPE_CHECKING:
    from resbackbones.data import Splits

TOKENS = 32  # of a text; the baseline reads it whole
QUICK_ROWS = {"vision": 500, "speech": 450, "text": 1000}  # of training, with --quick


@dataclass(frozen=True)
class Job:
    """A baseline (no depth, no seed) or one net."""

    domain: str
    arm: str  # "baseline", "plain" or "residual"
    depth: int | None = None
    seed: int | None = None

    def __str__(self) -> str:
        if self.arm == "baseline":
            return f"{self.domain} baseline"
        return f"{self.domain} {self.arm} depth {self.depth} seed {self.seed}"


@dataclass(frozen=True)
class Settings:
    """What all arms of a run share. `data`: domain -> what `open_splits` takes, None = default."""

    data: Mapping[str, str | None]
    cache: Path = Path("runs/cache")
    quick: bool = False
    epochs: int | None = None
    train_limit: int | None = None
    on_bad: str = "error"
    device: Literal["cpu", "cuda"] = "cpu"

    def identity(self) -> dict[str, Any]:
        """What must agree for two runs to share records, as JSON."""
        names = {
            domain: where or data.default_folder(domain, self.cache).name
            for domain, where in self.data.items()
        }
        return {
            "data": names,
            "quick": self.quick,
            "epochs": self.epochs,
            "train_limit": self.train_limit,
            "on_bad": self.on_bad,
        }


def spec(domain: str, depth: int, skip: str, **changes: Any) -> BackboneSpec:
    """The net of a domain: stem, three stages of (depth - 2) / 6 basic blocks, no tail."""
    blocks = (depth - 2) // 6
    widths = (16, 24, 32) if domain == "vision" else (24, 32, 48)
    kernel = 5 if domain == "speech" else 3
    stages = tuple(
        Stage(width, blocks, stride=1 if width == widths[0] else 2, kernel=kernel)
        for width in widths
    )
    stem = Stem(widths[0], kernel)
    return BackboneSpec(stages, stem=stem, shortcut="pad", skip=skip, **changes)


@dataclass(frozen=True)
class Domain:
    """One domain's data, ready to train on, and how to make its nets and its baseline."""

    name: str
    splits: "Splits"
    training: Any
    validation: Any
    test: Any
    build: Callable[[BackboneSpec], Any]
    changes: Mapping[str, Any]  # what the data say about the spec
    baseline: Callable[[], tuple[str, Mapping[str, float]]]
    recipe: Mapping[str, Any]  # options of `fit` that differ between domains

    def about(self) -> str:
        """The data in a few words, for the report."""
        held = " (held out of train)" if self.splits.held_out else ""
        rows = [f"{len(self.training):,} training", f"{len(self.validation):,} validation{held}"]
        if self.splits.test is not None:
            rows.append(f"{len(self.test):,} test")
        skipped = len({*self.training.skipped, *self.validation.skipped, *self.test.skipped})
        return (
            f"{self.name}, {len(self.splits.train.labels)} classes, "
            f"{', '.join(rows[:-1])} and {rows[-1]} rows"
            + (f", {skipped} damaged ones left out" if skipped else "")
        )


def run(settings: Settings, job: Job) -> dict[str, Any]:
    """Run one arm; its line of `records.jsonl`."""
    import torch
    from tqdm import tqdm

    torch.set_num_threads(1)
    # Its own lock is shared between processes, and outlives a killed one.
    tqdm.set_lock(threading.RLock())
    where = settings.data[job.domain]
    limit = settings.train_limit or (QUICK_ROWS[job.domain] if settings.quick else None)
    domain = open_domain(job.domain, where, settings.cache, limit, settings.on_bad, settings.device)
    found = _baseline(domain) if job.arm == "baseline" else _net(settings, job, domain)
    return {
        "domain": job.domain,
        "arm": job.arm,
        "depth": job.depth,
        "seed": job.seed,
        "parameters": None,
        "macs": None,
        "metric": "accuracy",
        "train_loss": None,
        "gradient_ratio": None,
        "gradient_profile": None,
        "dataset": domain.name,
        "about_data": domain.about(),
        "split": "validation" if domain.splits.test is None else "test",
        "test_rows": len(domain.test),
    } | found


def _baseline(domain: Domain) -> dict[str, Any]:
    began = time.monotonic()
    name, metrics = domain.baseline()
    seconds = time.monotonic() - began
    return {
        "name": name,
        "value": float(metrics["accuracy"]),
        "seconds": seconds,
        "held_out": list(domain.splits.held_out),  # once a domain is enough
    }


def _net(settings: Settings, job: Job, domain: Domain) -> dict[str, Any]:
    import torch

    from resbackbones import count_macs, count_parameters, diagnose
    from resbackbones.core.diagnose import gradient_ratio
    from resbackbones.train import Diverged, Options, StillAtChance, evaluate, fit

    assert job.depth is not None and job.seed is not None
    skip = "identity" if job.arm == "residual" else "none"
    torch.manual_seed(job.seed)
    model = domain.build(spec(job.domain, job.depth, skip, **domain.changes)).to(settings.device)
    rows = torch.randperm(len(domain.training), generator=torch.Generator().manual_seed(job.seed))

    def there(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: x.to(settings.device) for name, x in batch.items()}

    batch = there(domain.training.__getitems__(rows[:64].tolist()))
    profile = diagnose.gradient_profile(model, batch)
    example = there(domain.test.__getitems__([0]))
    del example["labels"]
    recipe = dict(domain.recipe)
    if settings.epochs is not None:
        recipe["epochs"] = settings.epochs
    options = Options(
        **recipe,
        batch_size=64,
        schedule="one_cycle",
        clip=5.0,
        keep="last",
        # Rounding to bfloat16 would be one more difference between shallow and deep.
        precision="float32",
        seed=job.seed,
        device=settings.device,
        progress=False,
    )
    domain.training.seed = job.seed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", StillAtChance)  # here that is a finding
            result = fit(model, domain.training, options=options)
    except Diverged as error:  # costs this arm, not the run
        raise RuntimeError(str(error)) from error
    ratio = gradient_ratio(profile)
    return {
        "parameters": count_parameters(model),
        "macs": count_macs(model, example),
        "value": evaluate(model, domain.test)["accuracy"],
        "validation": evaluate(model, domain.validation)["accuracy"],
        "train_loss": result.history[-1]["train_loss"],
        "seconds": result.seconds,
        "gradient_ratio": ratio if math.isfinite(ratio) else None,
        "gradient_profile": [block.norm for block in profile],
    }


@functools.lru_cache(maxsize=3)  # a worker takes many arms of a domain
def open_domain(
    domain: str, where: str | None, cache: Path, limit: int | None, on_bad: Any, device: str
) -> Domain:
    """Open a domain's data, the default ones where `where` is None, and decode them."""
    from resbackbones.data import open_splits

    kind = {"vision": "image", "speech": "audio", "text": "text"}[domain]
    name = data.NAMES[domain] if where is None else Path(where).name
    source = str(data.default_data(domain, cache)) if where is None else where
    splits = open_splits(source, kind=kind, train_limit=limit)
    opened = {"vision": _vision, "speech": _speech, "text": _text}[domain]
    return opened(name, splits, on_bad, device)


def _vision(name: str, splits: "Splits", on_bad: Any, device: str) -> Domain:
    from resbackbones.data import read
    from resbackbones.vision import (
        ImageItems,
        ResidualForImageClassification,
        ResidualImageProcessor,
    )
    from resbackbones.vision.data import open_image
    from tasks.vision.classify_images import baseline

    first = read(splits.train.select(range(min(8, len(splits.train)))), open_image, "skip").items[0]
    channels = 1 if first.mode in ("1", "L", "I", "I;16") else 3
    scale = min(1, 64 / max(first.size))  # these nets are for small images
    width, height = (max(1, round(scale * side)) for side in first.size)
    processor = ResidualImageProcessor(
        num_channels=channels, size={"height": height, "width": width}
    )
    training, validation, test = (
        ImageItems(source, processor, on_bad=on_bad, device=device)
        for source in (splits.train, splits.validation, splits.test or splits.validation)
    )
    build = functools.partial(
        ResidualForImageClassification.build, labels=splits.train.labels, processor=processor
    )
    return Domain(
        name,
        splits,
        training,
        validation,
        test,
        build,
        {"dims": 2, "in_channels": channels},
        lambda: baseline(training, test),
        {"epochs": 6, "optimizer": "sgd", "learning_rate": 0.05},
    )


def _speech(name: str, splits: "Splits", on_bad: Any, device: str) -> Domain:
    from resbackbones.speech import (
        AudioItems,
        ResidualFeatureExtractor,
        ResidualForAudioClassification,
        read_clips,
    )
    from tasks.speech.spot_keywords import baseline

    extractor = ResidualFeatureExtractor(feature_size=40)
    clips = [
        read_clips(source, extractor.sampling_rate, on_bad)
        for source in (splits.train, splits.validation, splits.test or splits.validation)
    ]
    training, validation, test = (AudioItems(some, extractor, device=device) for some in clips)
    build = functools.partial(
        ResidualForAudioClassification.build, labels=splits.train.labels, processor=extractor
    )
    return Domain(
        name,
        splits,
        training,
        validation,
        test,
        build,
        {"dims": 1, "in_channels": 40},
        lambda: baseline(clips[0], clips[-1]),
        {"epochs": 6, "optimizer": "sgd", "learning_rate": 0.05},
    )


def _text(name: str, splits: "Splits", on_bad: Any, device: str) -> Domain:
    from resbackbones.text import ResidualForSequenceClassification, TextItems, train_tokenizer
    from tasks.text.classify_text import baseline

    texts = splits.train.dataset[splits.train.columns["input"]]
    tokenizer = train_tokenizer(
        (text for text in texts if text is not None), "word", lowercase=True, vocab_size=10_000
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that texts are cut stands in the report
        training, validation, test = (
            TextItems(source, tokenizer, TOKENS, on_bad=on_bad)
            for source in (splits.train, splits.validation, splits.test or splits.validation)
        )
    build = functools.partial(
        ResidualForSequenceClassification.build,
        labels=splits.train.labels,
        processor=tokenizer,
        head={"pooling": "mean_max"},
    )
    return Domain(
        f"{name}, first {TOKENS} words",
        splits,
        training,
        validation,
        test,
        build,
        {"dims": 1, "in_channels": 48},
        lambda: baseline(training, test),
        {"epochs": 4, "optimizer": "adamw", "learning_rate": 2e-3},
    )
