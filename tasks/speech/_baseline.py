"""The simple method that a net of recordings has to beat: MFCC by segments, support vectors."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from resbackbones.core.context import valid_mask
from resbackbones.metrics import Confusion, MultiLabel
from resbackbones.speech import Clips, ResidualFeatureExtractor
from resbackbones.speech.recordings import chunks
from tasks._baseline import answers, fitted, quality

SEGMENTS = 8
REACH = 3  # frames from the middle of a slope to its ends
COSTS = (1.0, 3.0, 10.0)
MOST = 10_000  # clips that are learned from: the time grows with their square


def baseline(train: Clips, validation: Clips, test: Clips) -> tuple[str, Confusion | MultiLabel]:
    """Name and answers on `test` of support vectors with an RBF kernel on the means and deviations
    of 13 MFCC and their slopes in 8 parts of a clip; the cost is chosen on `validation`, or
    the middle one where that is `test`. Where a clip has any number of classes, each is told from
    the rest."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    some = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:MOST]
    x, y = _features(train, some.tolist()), train.labels[some].numpy()
    models = [
        fitted(make_pipeline(StandardScaler(), SVC(C=cost, cache_size=1000)), x, y)
        for cost in (COSTS if validation is not test else COSTS[1:2])  # else it would flatter
    ]
    checked = _features(validation), validation.labels.numpy(), test.names
    best = max(models, key=lambda model: quality(model, *checked))
    known = answers(best, _features(test), test.labels.numpy(), test.names)
    return "MFCC by segments + SVC", known


def _features(clips: Clips, rows: list[int] | None = None) -> Any:
    waveforms = [clips.waveforms[row] for row in (range(len(clips)) if rows is None else rows)]
    return of_mfcc(waveforms, clips.sampling_rate, 13, by_segments)


def of_mfcc(
    waveforms: list[Tensor], sampling_rate: int, size: int, tell: Callable[[Tensor, Tensor], Tensor]
) -> Any:
    """What `tell` makes of `size` MFCC `(B, size, T)` and their frames `(B,)`, a row per clip."""
    extractor = ResidualFeatureExtractor(
        "mfcc", feature_size=size, n_mels=40, sampling_rate=sampling_rate
    )
    parts = []
    for first, last in chunks([len(waveform) for waveform in waveforms]):
        heard = extractor(waveforms[first:last], return_tensors="pt")
        parts.append(tell(heard["input_features"], heard["attention_mask"].sum(1)))
    return torch.cat(parts).numpy()


def slopes(x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """How features `(B, F, T)` rise from `REACH` frames before to as many behind, and where all of
    that is in the clip, `(B, T)`."""
    time = x.shape[-1]
    ahead = functional.pad(x, (0, REACH))[..., REACH:]
    behind = functional.pad(x, (REACH, 0))[..., :time]
    return ahead - behind, (torch.arange(time) >= REACH) & valid_mask(lengths - REACH, time)


def by_segments(features: Tensor, lengths: Tensor) -> Tensor:
    """Means and deviations of features `(B, F, T)`, of which `lengths` `(B,)` frames are real, and
    of their slopes in equal parts of each clip, `(B, 4 F SEGMENTS)`. A clip of fewer frames than
    parts has frames in several of them."""
    x = features.double()
    rises, inside = slopes(x, lengths)
    x = torch.cat([x, rises * inside.unsqueeze(1)], 1)

    edges = torch.arange(SEGMENTS + 1) * lengths.unsqueeze(1)
    first = edges[:, :-1] // SEGMENTS
    last = -(-edges[:, 1:] // SEGMENTS)  # rounded up: a frame on an edge is in both parts
    count = (last - first).unsqueeze(1)

    def mean(values: Tensor) -> Tensor:
        total = functional.pad(values.cumsum(-1), (1, 0))
        bounds = (edge.unsqueeze(1).expand(-1, x.shape[1], -1) for edge in (last, first))
        after, before = (total.gather(2, bound) for bound in bounds)
        return (after - before) / count

    middle = mean(x)
    variance = (mean(x.square()) - middle.square()).clamp(min=0)
    return torch.cat([middle, variance.sqrt()], 1).flatten(1).float()
