"""Recognisers of speech for `tasks.speed`: how long each computes for a second of sound, untrained,
ours and the same written by hand with `nn.Conv1d`, as NeMo has it."""

import statistics
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import resbackbones as rb
from resbackbones import report
from resbackbones.speech import ResidualForCTC
from resbackbones.train.precision import autocast, has_bfloat16
from tasks._speed_peers import RECOGNISERS, check_alike, copy_weights

NETS = tuple(RECOGNISERS)
SECONDS = 10
LETTERS = [*string.ascii_lowercase, "'", " "]
BF16 = ", bf16"  # behind the name of a variant

Seconds = Mapping[str, Sequence[float]]


def recogniser(name: str) -> ResidualForCTC:
    """Ours."""
    return ResidualForCTC.build(name, vocabulary=LETTERS).eval()


def by_hand(ours: ResidualForCTC, name: str) -> nn.Module:
    """The same with `nn.Conv1d`, from features to logits `(B, V, T)`."""
    symbols = nn.Conv1d(ours.backbone.channels[-1], ours.config.vocab_size, 1)
    theirs = nn.Sequential(RECOGNISERS[name](), symbols).eval()
    copy_weights(ours, theirs)
    return theirs


def features(model: ResidualForCTC) -> Tensor:
    """What a model hears in noise."""
    batch = model.processor([torch.randn(SECONDS * 16_000)], return_tensors="pt")
    heard: Tensor = batch["input_features"]
    return heard


def turns(device: str) -> Iterator[tuple[tuple[int, int], int, dict[str, Callable[[], object]]]]:
    """Per net, as its place in `NETS` and seconds: the multiply-adds of a round, and one answer of
    each, in fp32 and, where the processor has it, in bf16.

    Raises:
        RuntimeError: ours and the one by hand do not compute the same.
    """

    @torch.inference_mode()
    def answer(net: Callable[[Tensor], Any], heard: Tensor, precision: str) -> Any:
        with autocast(device, precision):
            return net(heard)

    precisions = {"float32": ""} | ({"bfloat16": BF16} if has_bfloat16(device) else {})
    for place, name in enumerate(NETS):
        torch.manual_seed(0)
        model: Any = recogniser(name)
        heard, macs = features(model).to(device), rb.count_macs(model, features(model))
        nets = {"theirs": by_hand(model, name).to(device), "ours": model.to(device)}
        logits = (answer(net, heard, "float32") for net in nets.values())
        theirs, ours = next(logits), next(logits).logits
        check_alike(name, ours, theirs.transpose(1, 2))
        found: dict[str, Callable[[], object]] = {
            side + behind: partial(answer, net, heard, precision)
            for precision, behind in precisions.items()
            for side, net in nets.items()
        }
        yield (place, SECONDS), macs * len(found), found


def table(timings: Sequence[tuple[tuple[int, ...], Seconds, Seconds]], close: str) -> list[str]:
    """What was measured; nothing where nothing was."""
    if not timings:
        return []
    rows = []
    for (place, length), seconds, _ in timings:
        model: Any = recogniser(NETS[place])
        row = [
            NETS[place],
            report.format_count(rb.count_parameters(model)),
            report.format_count(rb.count_macs(model, features(model)) / SECONDS),
        ]
        for behind in ("", BF16):
            ours, theirs = seconds.get(f"ours{behind}"), seconds.get(f"theirs{behind}")
            if ours is None or theirs is None:
                row += ["-"] * 3
                continue
            ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
            row += [f"{statistics.median(each) / length:.4f}" for each in (ours, theirs)]
            row += [f"{ratio:.2f}"]
        rows.append(row)
    heads = [f"{head} {kind}" for kind in ("fp32", "bf16") for head in ("ours", "by hand", "ratio")]
    header = ["net", "parameters", "MACs/s", *heads]
    return [
        report.markdown_table(header, rows, left=1),
        "Seconds of computation per second of sound (real-time factor), of one recording of "
        f'{SECONDS} s from features to logits; under "ratio", the time of the net written by '
        f"hand over ours, above 1 where ours is faster; {close}",
    ]
