"""How fast are our nets beside the same nets written by hand, on one thread of this processor?

    python -m tasks.speed                              # every net: 6 minutes on a 2-core EPYC
    python -m tasks.speed --nets tc_resnet14 vdcnn9    # some
    python -m tasks.speed --output runs/speed.json     # keeps the time of every call

The sequence nets are measured against `nn.Conv1d` and `nn.BatchNorm1d` without masks, and against
themselves with `lengths` of T / 2 to T positions; resnet50 against torchvision's. Both sides have
the same weights, and must give the same output before anything is timed. Then their calls take
turns, so that whatever else the machine does slows all of them: each round gives one ratio, and the
tables show medians. A training step is a forward pass, the mean square of its output, and a
backward pass.
"""

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

import resbackbones as rb
from resbackbones import report
from resbackbones.errors import InputError, nearest
from tasks._running import run
from tasks._speed_peers import PEERS, copy_weights

Step = Literal["evaluation", "training"]
Precision = Literal["fp32", "bf16"]

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
IMAGES = 4
WARM_UP = 2
TOLERANCE = 1e-4  # of the largest output


@dataclass(frozen=True)
class Config:
    nets: tuple[str, ...] = tuple(PEERS)
    """Which nets to measure."""
    rounds: int = 15
    """Ratios that a median is of, after two rounds of warming up."""
    image_size: int = 128
    """Height and width of resnet50's images in pixels."""
    output: Path | None = None
    """JSON file for the time of every call, the hardware, the versions and the command."""


def main(config: Config) -> None:
    check(config)
    torch.set_num_threads(1)
    bf16 = has_bf16()
    try:
        timings = list(measure(config, PRECISIONS if bf16 else PRECISIONS[:1]))
    except KeyboardInterrupt:
        print("interrupted: nothing is kept", file=sys.stderr)
        raise SystemExit(130) from None
    print(tables(timings, config.rounds))
    if not bf16:
        print("\nThis processor has no bf16 arithmetic, so the bf16 columns are left out (-).")
    if config.output is not None:
        write(timings, config.output)
        print(f"\nThe time of every call is in {config.output}.")


def check(config: Config) -> None:
    """Refuse at once what would fail after minutes."""
    if not config.nets:
        raise InputError(f"--nets names no net; give some of {', '.join(PEERS)}")
    for name in config.nets:
        if name not in PEERS:
            raise InputError(
                f"--nets: {name!r} is not written by hand here; {nearest(name, PEERS)}"
            )
    if config.rounds < 1:
        raise InputError(f"--rounds is {config.rounds}; give 1 or more")
    if config.image_size < 32:
        raise InputError(f"--image-size is {config.image_size}; give 32 or more")
    if config.output is not None:
        try:
            config.output.parent.mkdir(parents=True, exist_ok=True)
            config.output.open("a").close()
        except OSError as error:
            raise InputError(
                f"cannot write {config.output} ({error.strerror}); give another file with --output"
            ) from error


def has_bf16() -> bool:
    """Whether this processor computes bf16; emulated, it is far slower than fp32."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


# Measuring


@dataclass(frozen=True)
class Timing:
    """One kind of call of one net: seconds per variant ("ours", "theirs" and, of a sequence net,
    "lengths": ours with lengths) and round."""

    net: str
    shape: tuple[int, ...]
    step: Step
    precision: Precision
    seconds: dict[str, list[float]]

    @property
    def ratios(self) -> dict[str, list[float]]:
        """The time of every other variant over ours, round by round."""
        return {
            name: [a / b for a, b in zip(times, self.seconds["ours"], strict=True)]
            for name, times in self.seconds.items()
            if name != "ours"
        }


@dataclass(frozen=True)
class Pair:
    """Our net and its peer, with equal weights, and the input of both."""

    ours: rb.Backbone
    theirs: nn.Module
    x: Tensor
    macs: int

    @property
    def variants(self) -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
        """What takes turns: each a net and its inputs."""
        found: dict[str, tuple[nn.Module, tuple[Tensor, ...]]] = {
            "theirs": (self.theirs, (self.x,)),
            "ours": (self.ours, (self.x,)),
        }
        if self.x.ndim == 3:
            batch, _, positions = self.x.shape
            lengths = torch.linspace(positions / 2, positions, batch).long()
            found["lengths"] = self.ours, (self.x, lengths)
        return found


def prepare(name: str, image_size: int) -> Pair:
    """Build both nets.

    Raises:
        RuntimeError: they do not compute the same, so that their times would say nothing.
    """
    torch.manual_seed(0)
    ours, theirs = rb.backbone(name).eval(), PEERS[name]().eval()
    copy_weights(ours, theirs)
    batch, *space = SEQUENCES.get(name, (IMAGES, image_size, image_size))
    x = torch.randn(batch, ours.spec.in_channels, *space)
    with torch.inference_mode():
        expected = theirs(x)
        error = (ours(x)[-1] - expected).abs().max() / expected.abs().max()
    if not error <= TOLERANCE:
        raise RuntimeError(
            f"the outputs of {name} and of its peer differ by {error:.1e} of the largest, more "
            f"than {TOLERANCE:.0e}; make tasks/_speed_peers.py compute what our net does"
        )
    return Pair(ours, theirs, x, rb.count_macs(ours, x))


def measure(config: Config, precisions: Sequence[Precision]) -> Iterator[Timing]:
    """Time every kind of call of every net."""
    pairs = {name: prepare(name, config.image_size) for name in config.nets}
    plan = [
        (name, step, precision)
        for name in pairs
        for precision in (precisions if name in SEQUENCES else PRECISIONS[:1])
        for step in STEPS
    ]
    work = [pairs[name].macs * STEPS[step] * len(pairs[name].variants) for name, step, _ in plan]
    rounds = WARM_UP + config.rounds
    look = "{desc}{percentage:3.0f}% |{bar}| {elapsed} < {remaining}"
    # Counted in multiply-adds, as a round of one net takes a hundred times as long as another's.
    with tqdm(total=rounds * sum(work), smoothing=0, bar_format=look, disable=None) as bar:
        for (name, step, precision), amount in zip(plan, work, strict=True):
            bar.set_description(f"{name}, {step} in {precision}")
            pair = pairs[name]
            pair.ours.train(step == "training")
            pair.theirs.train(step == "training")
            calls = {
                variant: call(net, inputs, step, precision)
                for variant, (net, inputs) in pair.variants.items()
            }
            seconds: dict[str, list[float]] = {variant: [] for variant in calls}
            for _ in range(rounds):
                for variant, run_once in calls.items():
                    start = time.perf_counter()
                    run_once()
                    seconds[variant].append(time.perf_counter() - start)
                bar.update(amount)
            seconds = {variant: times[WARM_UP:] for variant, times in seconds.items()}
            yield Timing(name, tuple(pair.x.shape), step, precision, seconds)


def call(
    net: nn.Module, inputs: tuple[Tensor, ...], step: Step, precision: Precision
) -> Callable[[], None]:
    """What is timed: one evaluation or one training step."""

    def forward() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            y = net(*inputs)
        return y if isinstance(y, Tensor) else y[-1]

    @torch.inference_mode()
    def evaluate() -> None:
        forward()

    def train() -> None:
        net.zero_grad()
        forward().float().square().mean().backward()

    return evaluate if step == "evaluation" else train


# Telling


def tables(timings: Sequence[Timing], rounds: int) -> str:
    """The medians: one table of the sequence nets, one of resnet50, each with what it means."""
    found = {
        (timing.net, variant, timing.step, timing.precision): statistics.median(ratios)
        for timing in timings
        for variant, ratios in timing.ratios.items()
    }
    shapes = {timing.net: " x ".join(map(str, timing.shape)) for timing in timings}
    kinds = [(step, precision) for precision in PRECISIONS for step in STEPS]
    heads = [f"{step} {precision}" for step, precision in kinds]
    close = f"median of {rounds} rounds, one thread."
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
    if "resnet50" in shapes:
        ratios = [1 / found["resnet50", "theirs", step, "fp32"] for step in STEPS]
        row = ["resnet50", shapes["resnet50"], *(f"{ratio:.2f}" for ratio in ratios)]
        told += [
            report.markdown_table(["net", "input", *heads[:2]], [row], left=2),
            f"The time of ours over torchvision's, below 1 where ours is faster; {close}",
        ]
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
