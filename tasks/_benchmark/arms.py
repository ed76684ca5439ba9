"""One arm of `tasks.benchmark`, run in a worker process: a baseline, or a net of one seed.

The nets are He et al.'s three-stage CIFAR nets (2015, section 4.2) in each domain's rank. Their
shortcuts pad with zeros, so that plain and residual nets have exactly the same parameters, and
`init="he"` draws the same initial weights for both from one seed.
"""

import functools
import importlib
import math
import threading
import time
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from resbackbones import count_macs, count_parameters, diagnose
from resbackbones.core.layers import Stage, Stem
from resbackbones.core.spec import BackboneSpec
from resbackbones.report import rows_digest
from resbackbones.train import StillAtChance, evaluate, feed, fit
from resbackbones.train.options import Device
from tasks._benchmark import data
from tasks._fields import Recipe
from tasks._recipe import Experiment

Domain = Literal["vision", "speech", "text"]
TOKENS = 32  # of a text; the baseline reads it whole
SIDE = 64  # pixels of an image, at most: the nets are for small ones
# The recipe of a domain, and what is other than its defaults: plain training, nothing varied.
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "vision": ("tasks.vision.classify_images", {"augment": False, "learning_rate": 0.05}),
    "speech": (
        "tasks.speech.spot_keywords",
        {"augment": False, "optimizer": "sgd", "learning_rate": 0.05, "budget": None},
    ),
    "text": (
        "tasks.text.classify_text",
        {"ngrams": "no", "min_frequency": 1, "vocab_size": 10_000, "max_length": TOKENS}
        | {"epochs": 4, "most_tokens": 0, "tfidf": False}
        | dict.fromkeys(("dropout", "embedding_dropout", "word_dropout"), 0.0),
    ),
}
SHARED = {
    "batch_size": 64,
    "epochs": 6,
    "least_updates": 1,
    "optimizer_arguments": {"fused": True},
    "weight_decay": 0.0,
    "label_smoothing": 0.0,
    "schedule": "one_cycle",
    "clip": 5.0,
    "keep": "last",
    # Rounding to bfloat16 would be one more difference between shallow and deep.
    "precision": "float32",
    "progress": False,
}
QUICK_ROWS = {"vision": 500, "speech": 450, "text": 1000}  # of training, with --quick


@dataclass(frozen=True)
class Job:
    """A baseline (no depth, no seed) or one net."""

    domain: str
    arm: str  # "baseline", "plain" or "residual"
    depth: int | None = None
    seed: int | None = None

    @classmethod
    def of(cls, record: dict[str, Any]) -> "Job":
        """Whose a line of `records.jsonl` is."""
        return cls(record["domain"], record["arm"], record["depth"], record["seed"])

    def __str__(self) -> str:
        of_net = "" if self.depth is None else f" depth {self.depth} seed {self.seed}"
        return f"{self.domain} {self.arm}{of_net}"


@dataclass(frozen=True)
class Settings:
    """What all arms of a run share."""

    domains: tuple[Domain, ...] = ("vision", "speech", "text")
    """Which of the three to run."""
    vision: str | None = None
    """Your images: a hub id, a folder of class folders, a Parquet file or folder."""
    speech: str | None = None
    """Your recordings, likewise."""
    text: str | None = None
    """Your texts, likewise (or CSV, JSONL)."""
    quick: bool = False
    """About a minute: fewer seeds, less depth and data. A look, not a claim."""
    epochs: int | None = None
    """Passes over the training rows (6; text 4)."""
    train_limit: int | None = None
    """Train on at most this many rows per domain, chosen at random (all; with --quick fewer)."""
    on_bad: Literal["error", "skip"] = "error"
    """A damaged item stops the run, or is left out and counted."""
    device: Device = "auto"
    """Where items are kept and augmented and the nets train; auto is the GPU, if there."""
    cache: Path = Path("runs/cache")
    """Where the default data are kept once they are made."""

    def identity(self) -> dict[str, Any]:
        """What must agree for two runs to share records, as JSON."""
        names = {
            domain: getattr(self, domain) or data.default_folder(domain, self.cache).name
            for domain in self.domains
        }
        shared = ("quick", "epochs", "train_limit", "on_bad")
        return {"data": names, **{name: getattr(self, name) for name in shared}}


def spec(domain: str, depth: int) -> BackboneSpec:
    """The residual net of a domain: stem, three stages of (depth - 2) / 6 basic blocks, no tail."""
    widths = (16, 24, 32) if domain == "vision" else (24, 32, 48)
    kernel = 5 if domain == "speech" else 3
    stages = tuple(
        Stage(width, (depth - 2) // 6, stride=1 if width == widths[0] else 2, kernel=kernel)
        for width in widths
    )
    channels, dims = {"vision": (3, 2), "speech": (40, 1), "text": (48, 1)}[domain]
    stem = Stem(widths[0], kernel)
    return BackboneSpec(stages, stem=stem, shortcut="pad", dims=dims, in_channels=channels)


def run(settings: Settings, job: Job) -> dict[str, Any]:
    """Run one arm; its line of `records.jsonl`."""
    torch.set_num_threads(1)
    # Its own lock is shared between processes, and outlives a killed one.
    tqdm.set_lock(threading.RLock())
    config, made = opened(settings, job.domain)
    found = _baseline(made) if job.arm == "baseline" else _net(config, made, job)
    return {
        **asdict(job),
        **dict.fromkeys(("parameters", "macs", "train_loss", "gradient_ratio", "gradient_profile")),
        "metric": "accuracy",
        "dataset": config.name,
        "about_data": f"{config.name}, {_about(made)}",
        "split": "validation" if made.splits.test is None else "test",
        "test_rows": len(made.test),
    } | found


@functools.lru_cache(maxsize=3)  # a worker takes many arms of a domain
def opened(settings: Settings, domain: str) -> tuple[Recipe, Experiment]:
    """The domain's recipe on its data, with its shallowest residual net."""
    from resbackbones.vision import choose_size

    module, own = RECIPES[domain]
    recipe: Any = importlib.import_module(module)
    where = getattr(settings, domain)
    name = Path(where).name if where else data.NAMES[domain]
    config = recipe.Config(
        data=where or str(data.default_data(domain, settings.cache)),
        name=name + f", first {TOKENS} words" * (domain == "text"),
        spec=spec(domain, 8),
        train_limit=settings.train_limit or (QUICK_ROWS[domain] if settings.quick else None),
        on_bad=settings.on_bad,
        device=settings.device,
        **{**SHARED, **own, **({"epochs": settings.epochs} if settings.epochs else {})},
    )
    if domain == "vision" and max(choose_size(config.open("image").train)[0].values()) > SIDE:
        config = replace(config, image_size=SIDE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that texts are cut stands in the report
        return config, recipe.experiment(config)


def _about(made: Experiment) -> str:
    """The data in a few words, for the report."""
    assert made.validation is not None
    held = " (held out of train)" if made.splits.held_out else ""
    rows = [f"{len(made.train):,} training", f"{len(made.validation):,} validation{held}"]
    if made.splits.test is not None:
        rows.append(f"{len(made.test):,} test")
    skipped = f", {len(made.skipped)} damaged ones left out" if made.skipped else ""
    classes = len(made.splits.train.target.names)
    return f"{classes} classes, {', '.join(rows[:-1])} and {rows[-1]} rows{skipped}"


def _baseline(made: Experiment) -> dict[str, Any]:
    began = time.monotonic()
    name, confusion = made.baseline()
    return {
        "name": name,
        "value": confusion.compute()["accuracy"],
        "seconds": time.monotonic() - began,
        "held_out": rows_digest(made.splits.held_out),  # once per domain is enough
    }


def _net(config: Recipe, made: Experiment, job: Job) -> dict[str, Any]:
    assert job.depth is not None and job.seed is not None
    torch.manual_seed(job.seed)
    skip = "identity" if job.arm == "residual" else "none"
    model = made.build(stages=spec(job.domain, job.depth).stages, skip=skip).to(config.where)
    rows = torch.randperm(len(made.train), generator=torch.Generator().manual_seed(job.seed))
    batch = feed.there(made.train.__getitems__(rows[:64].tolist()), config.where)
    profile = diagnose.gradient_profile(model, batch)
    example = feed.there(made.test.__getitems__([0]), config.where)
    del example["labels"]
    made.train.seed = job.seed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StillAtChance)  # here that is a finding
        result = fit(model, made.train, options=replace(config, seed=job.seed))
    ratio = diagnose.gradient_ratio(profile)
    return {
        "parameters": count_parameters(model),
        "macs": count_macs(model, example),
        "value": evaluate(model, made.test)["accuracy"],
        "validation": evaluate(model, made.validation)["accuracy"],
        "train_loss": result.history[-1]["train_loss"],
        "seconds": result.seconds,
        "gradient_ratio": ratio if math.isfinite(ratio) else None,
        "gradient_profile": [block.norm for block in profile],
    }
