"""How fast is ours beside what people use, and how much memory does it take?

    python -m tasks.speed --only resnet50 fcos              # without it, everything
    python -m tasks.speed --only images --threads 2
    python -m tasks.speed --output runs/speed.json          # keeps the time of every call

The sequence nets are measured against the same written by hand with `nn.Conv1d` and
`nn.BatchNorm1d` without masks, and against themselves with `lengths` of T / 2 to T positions;
resnet50 and fcos, on a pyramid of a ResNet-18, against torchvision's. Both sides have the same
weights, and must give the same output before anything is timed. Then their calls take turns, so
that whatever else the machine does slows all of them: each round gives one ratio, and the tables
show medians. A training step is a forward pass, a loss (of a backbone, the mean square of its
output), a backward pass and a step of SGD; in evaluation, fcos also chooses boxes. Its images are
normalised already, and torchvision's transform of images, which is part of its FCOS, leaves them as
they are.

The peak memory of a call is the most bytes that tensors take at once beyond those there before: no
weights, but gradients. On a CPU it is the running sum of what torch.profiler tells of every
allocation, the same in every run; what oneDNN allocates past torch is not in it. On a GPU it is
torch.cuda.max_memory_allocated.

images are 10,000 PNGs of 32x32 pixels: how many per second reach the step, in batches of 256, from
`ImageItems` in this process, with the augmentation of tasks.vision.classify_images. Beside them the
same images as transformers' examples have them, each decoded and transformed by itself, with as
many workers as there are threads (where there are several).

texts are as many tokens in every text: our default classifier, n-grams of words and masks included,
beside Kim's CNN and untrained transformers in the sizes of MiniLM-L6 and DistilBERT. Tokenizing is
left out, but for one column: ours from text to answer, as the recipe has it, TF-IDF included.
decoding is greedy writing of 256 tokens by a language model in the shape of ours, with its exact
memory, beside transformers' GPT-2 of as many parameters, with its cache. keywords are nets that
spot them, in a second of sound; recognition are nets that write down what is said, from features to
logits of ten seconds, beside the same written by hand with `nn.Conv1d`.
"""

import dataclasses
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

import resbackbones as rb
from resbackbones import report
from resbackbones.data import open_dataset
from resbackbones.errors import InputError, nearest
from resbackbones.train import feed
from resbackbones.train.precision import has_bfloat16
from resbackbones.vision import (
    Augment,
    ImageItems,
    ResidualForObjectDetection,
    ResidualImageProcessor,
)
from resbackbones.vision.boxes import select
from tasks import _speed_decoding, _speed_keywords, _speed_recognition, _speed_texts
from tasks._running import run
from tasks._speed_peers import PEERS, check_alike, copy_weights, fcos, image_by_image, noise
from tasks.vision import classify_images

Step = Literal["evaluation", "training", "loading"]
Precision = Literal["fp32", "bf16"]
Call = Callable[[], object]

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
STEPS: dict[Step, int] = {"evaluation": 1, "training": 3}  # and what one costs, in forward passes
SEQUENCES = {  # items and positions
    "quartznet5x5": (8, 400),
    "tc_resnet14": (64, 101),
    "matchboxnet_3x2": (32, 128),
    "dpcnn": (32, 100),
    "vdcnn9": (8, 512),
    "tcn": (16, 80),
}
VISION = ("resnet50", "fcos")
MODELS = {
    "texts": _speed_texts,
    "decoding": _speed_decoding,
    "keywords": _speed_keywords,
    "recognition": _speed_recognition,
}
NAMES = (*PEERS, "fcos", "images", *MODELS)
IMAGES = 4
CLASSES = 20  # of objects
LOADED = 10_000  # images
SIDE = 32  # of each of them, in pixels
BATCH = 256
LOADING = 3_000_000  # multiply-adds that take as long as it takes to make one image ready by itself
WARM_UP = 2


@dataclass(frozen=True)
class Config:
    only: tuple[str, ...] = NAMES
    """What to measure: some nets, "images", "texts", "decoding", "keywords" or "recognition"."""
    rounds: int = 15
    """Ratios that a median is of, after two rounds of warming up."""
    image_size: int = 128
    """Height and width in pixels of the images that resnet50 and fcos see: 32, 64 or a multiple of
    128, so that each level of torchvision's pyramid has the stride that it is meant to have."""
    threads: int = 1
    """Threads of this processor."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the nets are, and the images are brought to."""
    output: Path | None = None
    """JSON file for the time of every call, the hardware, the versions and the command."""


def main(config: Config) -> None:
    check(config)
    torch.set_num_threads(config.threads)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler tells that it starts
    bf16 = has_bfloat16(config.device)
    try:
        timings = list(measure(config, PRECISIONS if bf16 else PRECISIONS[:1]))
    except KeyboardInterrupt:
        print("interrupted: nothing is kept", file=sys.stderr)
        raise SystemExit(130) from None
    print(tables(timings, config))
    if not bf16 and set(config.only) & set(SEQUENCES):
        print("\nThis processor has no bf16 arithmetic, so the bf16 columns are left out (-).")
    if config.output is not None:
        write(timings, config.output)
        print(f"\nThe time of every call is in {config.output}.")


def check(config: Config) -> None:
    """Refuse at once what would fail after minutes."""
    if not config.only:
        raise InputError(f"--only names nothing; give some of {', '.join(NAMES)}")
    for name in config.only:
        if name not in NAMES:
            raise InputError(f"--only: {name!r} is not measured here; {nearest(name, NAMES)}")
    for option in ("rounds", "threads"):
        if getattr(config, option) < 1:
            raise InputError(f"--{option} is {getattr(config, option)}; give 1 or more")
    size = config.image_size
    if size not in (32, 64) and (size < 128 or size % 128):
        raise InputError(f"--image-size is {size}; give 32, 64 or a multiple of 128")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda needs a GPU and there is none; leave it out")
    if config.output is not None:
        try:
            config.output.parent.mkdir(parents=True, exist_ok=True)
            config.output.open("a").close()
        except OSError as error:
            raise InputError(
                f"cannot write {config.output} ({error.strerror}); give another file with --output"
            ) from error


# What takes turns


@dataclass(frozen=True)
class Side:
    """A net, and what is done with it."""

    net: nn.Module
    evaluate: Callable[[], Any]
    loss: Callable[[], Tensor]


@dataclass(frozen=True)
class Case:
    """One kind of call of one net, or of the images."""

    name: str
    shape: tuple[int, ...]
    step: Step
    precision: Precision
    work: int
    """Of a round, in multiply-adds."""
    ready: Callable[[], dict[str, Call]]
    """Gives what takes turns, as `Timing` names it, when the case's own turn comes."""


def cases(name: str, config: Config, precisions: Sequence[Precision]) -> list[Case]:
    """Build both sides of what has this name.

    Raises:
        RuntimeError: they do not compute the same, so that their times would say nothing.
    """
    if name == "images":
        return [loading(config)]
    if name in MODELS:
        return [
            Case(name, shape, "evaluation", "fp32", macs, partial(dict, turns))
            for shape, macs, turns in MODELS[name].turns(config.device)
        ]
    torch.manual_seed(0)
    sides, x = detectors(config) if name == "fcos" else backbones(name, config)
    macs = rb.count_macs(sides["ours"].net.eval(), x)
    shape, device = tuple(x.shape), config.device
    return [
        Case(
            *(name, shape, step, precision, macs * times * len(sides)),
            partial(calls, sides, step, precision, device),
        )
        for precision in (precisions if name in SEQUENCES else precisions[:1])
        for step, times in STEPS.items()
    ]


def backbones(name: str, config: Config) -> tuple[dict[str, Side], Tensor]:
    """Our net and its peer, and their input."""
    ours, theirs = rb.backbone(name).eval(), PEERS[name]().eval()
    copy_weights(ours, theirs)
    batch, *space = SEQUENCES.get(name, (IMAGES, config.image_size, config.image_size))
    x = torch.randn(batch, ours.spec.in_channels, *space).to(config.device)

    def side(net: nn.Module, *inputs: Tensor) -> Side:
        def output() -> Tensor:
            return net(*inputs, stages=(-1,))[0] if net is ours else net(*inputs)

        return Side(net.to(config.device), output, lambda: output().float().square().mean())

    sides = {"theirs": side(theirs, x), "ours": side(ours, x)}
    if name in SEQUENCES:
        sides["lengths"] = side(ours, x, torch.linspace(space[0] / 2, space[0], batch).long())
    with torch.inference_mode():
        check_alike(name, sides["ours"].evaluate(), sides["theirs"].evaluate())
    return sides, x


def detectors(config: Config) -> tuple[dict[str, Side], Tensor]:
    """Our FCOS and torchvision's, and their input."""
    size = config.image_size
    ours = ResidualForObjectDetection.build("resnet18", num_labels=CLASSES)
    theirs: Any = fcos(CLASSES, size).to(config.device)
    ours.to(config.device)  # type: ignore[arg-type]
    copy_weights(ours, theirs)
    x = torch.randn(IMAGES, 3, size, size).to(config.device)
    corners = size * torch.rand(IMAGES, 5, 2) / 2
    boxes = torch.cat([corners, corners + size * (0.1 + 0.4 * torch.rand(IMAGES, 5, 2))], 2)
    boxes, classes = boxes.to(config.device), torch.arange(5, device=config.device)
    labels = [{"boxes": each, "class_labels": classes} for each in boxes]
    targets = [{"boxes": each, "labels": classes} for each in boxes]

    def our_loss() -> Tensor:
        loss = ours(x, labels=labels).loss
        assert loss is not None
        return loss

    sides = {
        "theirs": Side(
            theirs,
            lambda: theirs([*x]),
            lambda: torch.stack([*theirs([*x], targets).values()]).sum(),
        ),
        "ours": Side(ours, lambda: select(ours(x), theirs.score_thresh), our_loss),
    }
    with torch.no_grad():
        check_alike("fcos", *(sides[name].loss() for name in ("ours", "theirs")))
    return sides, x


def calls(sides: dict[str, Side], step: Step, precision: Precision, device: str) -> dict[str, Call]:
    """One evaluation or one training step of each."""
    return {name: call(side, step, precision, device) for name, side in sides.items()}


def call(side: Side, step: Step, precision: Precision, device: str) -> Call:
    side.net.train(step == "training")
    optimizer = torch.optim.SGD(side.net.parameters(), 1e-4)
    bf16 = partial(torch.autocast, device, torch.bfloat16, enabled=precision == "bf16")

    @torch.inference_mode()
    def evaluate() -> None:
        with bf16():
            side.evaluate()

    def train() -> None:
        with bf16():
            loss = side.loss()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()  # last, so that nothing but weights is there before the next call

    return evaluate if step == "evaluation" else train


def loading(config: Config) -> Case:
    """An epoch of images, ours and one by one."""
    rows = noise(LOADED, SIDE)
    shift = round(classify_images.Config.shift * SIDE)
    augment, processor = Augment(flip=True, shift=shift), ResidualImageProcessor()
    items = ImageItems(open_dataset(rows), processor, augment, device=config.device)
    chosen = torch.randperm(LOADED, generator=torch.Generator().manual_seed(0)).split(BATCH)
    batches = [each.tolist() for each in chosen]
    workers = config.threads if config.threads > 1 else 0
    by_itself = DataLoader(
        image_by_image(rows, shift),
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
    )

    def arrive(load: Callable[[], Iterable[Any]]) -> None:
        for batch in load():
            feed.there(batch, torch.device(config.device))

    turns: dict[str, Call] = {
        "theirs": partial(arrive, lambda: by_itself),
        "ours": partial(arrive, partial(feed.load, items, 0, batch_sampler=batches)),
    }
    shape = (LOADED, 3, SIDE, SIDE)
    return Case("images", shape, "loading", "fp32", LOADED * LOADING, lambda: turns)


# Measuring


@dataclass(frozen=True)
class Timing:
    """Of one case: seconds per variant ("ours", "theirs" and, of a sequence net, "lengths": ours
    with lengths) and round; of nets of images, each variant's peak memory in bytes."""

    name: str
    shape: tuple[int, ...]
    step: Step
    precision: Precision
    seconds: dict[str, list[float]]
    peaks: dict[str, int]

    @property
    def ratios(self) -> dict[str, list[float]]:
        """The time of every other variant over ours, round by round."""
        return {
            name: [a / b for a, b in zip(times, self.seconds["ours"], strict=True)]
            for name, times in self.seconds.items()
            if name != "ours"
        }


def measure(config: Config, precisions: Sequence[Precision]) -> Iterator[Timing]:
    """Time every case."""
    plan = [case for name in config.only for case in cases(name, config, precisions)]
    rounds = WARM_UP + config.rounds
    total = rounds * sum(case.work for case in plan)
    look = "{desc}{percentage:3.0f}% |{bar}| {elapsed} < {remaining}"
    # Counted in multiply-adds, as a round of one net takes a hundred times as long as another's.
    with tqdm(total=total, smoothing=0, bar_format=look, disable=None) as bar:
        for case in plan:
            bar.set_description(f"{case.name}, {case.step} in {case.precision}")
            turns = case.ready()
            seconds: dict[str, list[float]] = {variant: [] for variant in turns}
            for _ in range(rounds):
                for variant, run_once in turns.items():
                    seconds[variant].append(time_of(run_once, config.device))
                bar.update(case.work)
            seconds = {variant: times[WARM_UP:] for variant, times in seconds.items()}
            seen = turns if case.name in VISION else {}
            peaks = {variant: peak_memory(once, config.device) for variant, once in seen.items()}
            yield Timing(case.name, case.shape, case.step, case.precision, seconds, peaks)


def time_of(run_once: Call, device: str) -> float:
    """Seconds that a call takes, on a GPU until its work is done."""
    start = time.perf_counter()
    run_once()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_memory(run_once: Call, device: str) -> int:
    """The most bytes that tensors take at once during a call, beyond those there before.

    >>> def steps() -> None:
    ...     a, b = torch.empty(1000), torch.empty(2000)
    ...     del a
    ...     c = torch.empty(500)
    >>> peak_memory(steps, "cpu")
    12000
    """
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run_once()
        return torch.cuda.max_memory_allocated() - before
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        run_once()
    assert profile.kineto_results is not None
    found = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    found.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate((event.nbytes() for event in found), initial=0))


# Telling


def tables(timings: Sequence[Timing], config: Config) -> str:
    """The medians: a table of the sequence nets, one of those of images and one of the images, each
    with what it means."""
    found = {
        (timing.name, variant, timing.step, timing.precision): statistics.median(ratios)
        for timing in timings
        for variant, ratios in timing.ratios.items()
    }
    shapes = {timing.name: " x ".join(map(str, timing.shape)) for timing in timings}
    kinds = [(step, precision) for precision in PRECISIONS for step in STEPS]
    heads = [f"{step} {precision}" for step, precision in kinds]
    threads = "one thread" if config.threads == 1 else f"{config.threads} threads"
    close = f"median of {config.rounds} rounds, {threads}."
    told = []
    rows = [
        [
            net,
            shape,
            *(
                f"{found[net, variant, *kind]:.2f}" if (net, variant, *kind) in found else "-"
                for variant in ("theirs", "lengths")
                for kind in kinds
            ),
        ]
        for net, shape in shapes.items()
        if net in SEQUENCES
    ]
    if rows:
        header = ["net", "input", *heads, *(f"lengths: {head}" for head in heads)]
        told += [
            report.markdown_table(header, rows, left=2),
            "The time of the net written by hand over ours, above 1 where ours is faster; under "
            f'"lengths", the time of ours with lengths over without; {close}',
        ]
    memory = {(t.name, t.step): t.peaks["ours"] / t.peaks["theirs"] for t in timings if t.peaks}
    rows = [
        [
            net,
            shapes[net],
            *(f"{1 / found[net, 'theirs', step, 'fp32']:.3f}" for step in STEPS),
            *(f"{memory[net, step]:.3f}" for step in STEPS),
        ]
        for net in VISION
        if net in shapes
    ]
    if rows:
        header = ["net", "input", *heads[:2], *(f"memory: {head}" for head in heads[:2])]
        told += [
            report.markdown_table(header, rows, left=2),
            "The time of ours over torchvision's, below 1 where ours is faster; under "
            f'"memory", the peak memory of ours over torchvision\'s; {close}',
        ]
    for timing in timings:
        if timing.step == "loading":
            rates = {
                name: timing.shape[0] / statistics.median(timing.seconds[name])
                for name in ("ours", "theirs")
            }
            ratio = found["images", "theirs", "loading", "fp32"]
            row = ["images", shapes["images"], *(f"{rate:,.0f}" for rate in rates.values())]
            header = ["", "epoch", "ours, images/s", "one by one, images/s", "ratio"]
            told += [
                report.markdown_table(header, [[*row, f"{ratio:.1f}"]], left=2),
                f"Images per second that reach the step, in batches of {BATCH}; under "
                f'"ratio", the time one by one over that of ours; {close}',
            ]
    for name, module in MODELS.items():
        of_models = [(t.shape, t.seconds, t.ratios) for t in timings if t.name == name]
        told += module.table(of_models, close)
    return "\n\n".join(told)


def write(timings: Sequence[Timing], path: Path) -> None:
    """Write what was measured, and on what, as JSON."""
    content: dict[str, Any] = {
        "timings": [dataclasses.asdict(timing) | {"ratios": timing.ratios} for timing in timings],
        "threads": torch.get_num_threads(),
        "hardware": report.hardware(),
        "versions": report.versions(),
        "commit": report.commit(),
        "command": report.command(),
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main, Config)
