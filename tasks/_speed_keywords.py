"""Keyword spotters for `tasks.speed`: how long each takes for a second of sound, untrained."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

import resbackbones as rb
from resbackbones import report
from resbackbones.speech import ResidualForAudioClassification
from tasks.speech import spot_keywords

NETS = (
    *("tc_resnet8", "tc_resnet8_1_5", "tc_resnet8_2"),
    *("tc_resnet14", "tc_resnet14_1_5"),
    *("matchboxnet_3x1", "matchboxnet_3x2", "matchboxnet_6x2"),
    *("bc_resnet1", "bc_resnet1_5", "bc_resnet2", "bc_resnet3", "bc_resnet6", "bc_resnet8"),
    *("res8_narrow", "res8", "res15_narrow", "res15"),
    *("mel_resnet14", "mel_resnet14_wide"),
)
DEFAULT = str(spot_keywords.Config(data="").spec)
WORDS = 12
SECONDS = 1
FOLDED = " folded"
IN_A_ROW = 10  # answers that are timed together, as another net's leave the caches cold

TRAINED = "5 minutes"  # how the name of the data ends where every net learned for so long
RECORDS = Path("results")

Seconds = Mapping[str, Sequence[float]]


def spotters() -> dict[str, ResidualForAudioClassification]:
    """By name; "ours" is the default of `tasks.speech.spot_keywords`."""
    names = {"ours": DEFAULT} | {name: name for name in NETS if name != DEFAULT}
    return {
        name: ResidualForAudioClassification.build(spec, num_labels=WORDS).eval()
        for name, spec in names.items()
    }


def features(model: ResidualForAudioClassification) -> dict[str, Any]:
    """What a model hears in a second of noise."""
    return dict(model.processor([torch.randn(SECONDS * 16_000)], return_tensors="pt"))


def turns(device: str) -> Iterator[tuple[tuple[int, ...], int, dict[str, Callable[[], object]]]]:
    """The multiply-adds of a round, and some answers of each, from features to logits."""
    nets: dict[str, Any] = spotters()
    nets |= {name + FOLDED: rb.deploy.fold(net) for name, net in nets.items()}
    work = IN_A_ROW * sum(rb.count_macs(net, features(net)) for net in nets.values())

    @torch.inference_mode()
    def answer(net: Any, heard: Mapping[str, Any]) -> object:
        return [net(**heard).logits.cpu() for _ in range(IN_A_ROW)]

    yield (
        (SECONDS,),
        work,
        {
            name: partial(
                answer, net.to(device), {n: x.to(device) for n, x in features(net).items()}
            )
            for name, net in nets.items()
        },
    )


def accuracies() -> dict[str, str]:
    """What nets reached that were trained for five minutes each, where there are records of it."""
    return {
        record.arm: report.format_metric(record.metric, record.mean)
        for record in (report.load_records(RECORDS) if RECORDS.is_dir() else [])
        if record.task == spot_keywords.TASK.name and record.dataset.endswith(TRAINED)
    }


def table(timings: Sequence[tuple[tuple[int, ...], Seconds, Seconds]], close: str) -> list[str]:
    """What was measured, the quickest first; nothing where nothing was."""
    if not timings:
        return []
    ((_, seconds, _),) = timings
    took = {name: statistics.median(times) / IN_A_ROW for name, times in seconds.items()}
    nets: dict[str, Any] = spotters()
    reached = accuracies()
    rows = [
        [
            f"{DEFAULT} (default)" if name == "ours" else name,
            report.format_count(rb.count_parameters(nets[name])),
            report.format_count(rb.count_macs(nets[name], features(nets[name]))),
            reached.get(DEFAULT if name == "ours" else name, "-"),
            f"{1000 * took[name]:.2f}",
            f"{1000 * took[name + FOLDED]:.2f}",
        ]
        for name in sorted(nets, key=took.__getitem__)
    ]
    header = ["net", "parameters", "MACs", "accuracy", "ms", "ms, folded"]
    return [
        report.markdown_table(header, rows, left=1),
        f"The time of an answer to a second of sound, from features to logits, of {IN_A_ROW} in a "
        f"row, of the net and of what rb.deploy.fold makes of it; fp32, {close} Accuracies are of "
        "the records of trainings of five minutes.",
    ]
