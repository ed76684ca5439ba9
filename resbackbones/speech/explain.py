"""What a classifier of sounds listens to: Grad-CAM over the spectrogram, and a picture of it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from resbackbones.classifier import class_heat
from resbackbones.core.backbone import modes_kept
from resbackbones.errors import InputError
from resbackbones.speech.models import ResidualForAudioClassification, heard_by

STRENGTH = 0.65  # of the colour where the heat is 1


def grad_cam(
    model: ResidualForAudioClassification,
    waveform: Any,
    label: str | int | None = None,
    *,
    stage: int = -1,
) -> Tensor:
    """Which times, and to a 2-D backbone which frequencies, of a clip speak for a class (Grad-CAM,
    Selvaraju et al. 2017, section 3; see `resbackbones.classifier.class_heat`).

    Args:
        model: in any mode; its modes, gradients and statistics stay as they are.
        waveform: one clip at the processor's sampling rate, as the processor takes it.
        label: the class, by name or number; by default the likeliest.
        stage: of the backbone, whose feature is looked at; the last one is the coarsest.

    Returns:
        float32 `(F, T)` on the CPU, over the clip's features: 1 where most speaks for the class, 0
        where nothing does. A 1-D backbone has the features of a frame as channels, so all of a
        frame are alike.

    Raises:
        InputError: no such class or stage, several clips, or what the processor refuses.
    """
    return _heat(model, _features(model, waveform), label, stage)[0].clone()


def picture(
    model: ResidualForAudioClassification,
    waveform: Any,
    label: str | int | None = None,
    *,
    stage: int = -1,
    title: str = "",
) -> Any:
    """A figure of matplotlib, as `.savefig("why.png")` writes: the features over seconds, mel bands
    named by their middle in Hz, and in colour where they speak for a class, which the title names
    with its score. Arguments as those of `grad_cam`, and what the title begins with."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

    x = _features(model, waveform)
    heat, number = _heat(model, x, label, stage)
    with modes_kept(model), torch.no_grad():
        score = float(model.eval().scores(model(x).logits)[0, number])
    features, bands = x[0].float().cpu(), heat.shape[0]
    hop = model.processor.front_end.hop / model.processor.sampling_rate
    place: Any = {
        "origin": "lower",
        "aspect": "auto",
        # A frame is drawn around the moment it is about.
        "extent": (-hop / 2, (heat.shape[1] - 0.5) * hop, -0.5, bands - 0.5),
    }
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.imshow(features.numpy(), cmap="gray", **place)
    over: Any = {"cmap": "turbo", "vmin": 0.0, "vmax": 1.0}
    axes.imshow(heat.numpy(), alpha=(STRENGTH * heat).numpy(), **over, **place)
    ticks = list(range(0, bands, max(1, bands // 8)))
    if model.processor.options["kind"] == "mfcc":
        axes.set_yticks(ticks)
        axes.set_ylabel("cepstral coefficients", fontsize=9)
    else:
        hertz = model.processor.front_end.centres.tolist()
        axes.set_yticks(ticks, [f"{hertz[tick]:,.0f}" for tick in ticks])
        axes.set_ylabel("mel bands, Hz", fontsize=9)
    axes.set_xlabel("seconds", fontsize=9)
    axes.tick_params(labelsize=8.5)
    name = list((model.config.id2label or {}).values())[number]
    about = f"{title}: " if title else ""
    axes.set_title(f"{about}{name}, {100 * score:.1f} %", fontsize=11, loc="left")
    colours = ScalarMappable(cmap="turbo")
    colours.set_clim(0, 1)
    bar = figure.colorbar(colours, ax=axes, fraction=0.04, pad=0.02)
    bar.set_label("speaks for the class", fontsize=9)
    bar.ax.tick_params(labelsize=8.5)
    return figure


def _features(model: ResidualForAudioClassification, waveform: Any) -> Tensor:
    """Features `(1, F, T)` of one clip."""
    features = model.processor(waveform, return_tensors="pt")["input_features"]
    if len(features) != 1:
        raise InputError(f"{len(features)} clips were given; explain one at a time")
    return features.to(model.device, model.dtype)


def _heat(
    model: ResidualForAudioClassification, x: Tensor, label: str | int | None, stage: int
) -> tuple[Tensor, int]:
    """The heat `(F, T)` over features `(1, F, T)`, and the class's number."""
    heat, number = class_heat(model, heard_by(model.backbone, x, None)[0], label, stage)
    return heat.expand(x.shape[1:]), number


__all__: Sequence[str] = ("grad_cam", "picture")
