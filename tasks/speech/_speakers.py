"""What `verify_speakers` is measured on, the simple method it has to beat, and its answers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from resbackbones import report
from resbackbones.core.context import valid_mask
from resbackbones.data import Source, Splits
from resbackbones.data.columns import plain_values
from resbackbones.data.splits import MIN_GROUPS, hold_out, joined
from resbackbones.errors import InputError
from resbackbones.speech import (
    Clips,
    TrialItems,
    Trials,
    Verification,
    make_trials,
    read_trials,
    speakers_of,
)
from resbackbones.train import evaluate
from tasks.speech._baseline import of_mfcc, slopes

COEFFICIENTS = (13, 20, 30, 40)


def enough_speakers(splits: Splits) -> Splits:
    """The splits, with a validation split of ten speakers or more that train does not have, where
    train has enough to hold some out."""
    known = set(speakers_of(splits.train)) - {None}
    own = set(speakers_of(splits.validation)) - {None}
    if (len(own) >= MIN_GROUPS and not own & known) or len(known | own) < 2 * MIN_GROUPS:
        return splits
    whole = joined(splits.train, splits.validation)
    held, how = hold_out(whole)
    rest = torch.ones(len(whole), dtype=torch.bool)
    rest[held] = False
    return replace(
        splits,
        train=whole.select(rest.nonzero()[:, 0]),
        validation=whole.select(held),
        held_out=tuple(held.tolist()),
        how=how.replace("train", "train and validation"),
    )


def trials_of(source: Source, path: Path | None = None) -> Trials:
    """Pairs of rows of a split as it was opened: those of a list, else drawn with seed 0.

    A list calls recordings by their rows, from 0, or by the ends of their paths that no other has.
    """
    numbers = list(range(len(source))) if source.numbers is None else source.numbers.tolist()
    speakers = dict(zip(numbers, speakers_of(source), strict=True))
    if path is None:
        return make_trials([speakers.get(number) for number in range(1 + max(numbers))])
    cells = plain_values(source.dataset, source.columns["input"])
    ends: dict[str, int] = {}
    twice = set()
    for number, cell in zip(numbers, cells, strict=True):
        if speakers[number] is not None:  # else nobody hears it
            parts = Path((cell or {}).get("path") or "").parts
            own = {"/".join(parts[-count:]) for count in range(1, len(parts) + 1)} | {str(number)}
            twice |= own & ends.keys()
            ends |= dict.fromkeys(own, number)
    return read_trials(path, {end: number for end, number in ends.items() if end not in twice})


def baseline(train: Clips, validation: Clips, test: Clips, chosen_by: Trials, asked: Trials) -> Any:
    """Name and answers on `test` of cosines of the statistics of MFCC: how many coefficients,
    whether with deviations and slopes, and whether in the directions that tell the training's
    speakers apart best (LDA), is what has the least equal error rate on `validation`."""
    variants = []
    for size in COEFFICIENTS:
        parts = [
            of_mfcc(clips.waveforms, clips.sampling_rate, size, _told)
            for clips in (train, validation, test)
        ]
        for rises, deviations, lda in product((False, True), repeat=3):
            columns = _columns(size, rises, deviations)
            project = _projection(parts[0][:, columns], train.labels.numpy(), lda)
            found = _answers(project(parts[1][:, columns]), validation, chosen_by)
            name = f"{'means and deviations' if deviations else 'means'} of {size} MFCC"
            name += " and slopes" * rises + ", LDA" * lda + ", cosine"
            variants.append((found.compute()["eer"], name, project, parts[2][:, columns]))
    _, name, project, heard = min(variants, key=lambda each: each[0])
    return name, _answers(project(heard), test, asked)


def _projection(x: Any, speakers: Any, lda: bool) -> Callable[[Any], Any]:
    """What standardises statistics as those of the training are, and projects them."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    steps: list[Any] = [StandardScaler()]
    if lda:
        steps.append(LinearDiscriminantAnalysis())
    return make_pipeline(*steps).fit(x, speakers).transform


def _answers(vectors: Any, clips: Clips, trials: Trials) -> Verification:
    metric = Verification(trials)
    numbers = None if clips.source is None else clips.source.numbers
    rows = torch.tensor(clips.rows)
    output = SimpleNamespace(embeddings=torch.from_numpy(np.asarray(vectors)))
    metric.update(output, {"rows": rows if numbers is None else numbers[rows]})
    return metric


def _columns(size: int, rises: bool, deviations: bool) -> list[int]:
    """Which of the statistics of `size` coefficients and slopes are taken."""
    blocks = [
        block for block in range(4) if (rises or block % 2 == 0) and (deviations or block < 2)
    ]
    return [block * size + place for block in blocks for place in range(size)]


def _told(features: Tensor, lengths: Tensor) -> Tensor:
    """Means of coefficients and of slopes, and deviations of both, `(B, 4 size)`."""
    x = features.double()
    found = []
    for values, real in ((x, valid_mask(lengths, x.shape[-1])), slopes(x, lengths)):
        share = (real / real.sum(1, keepdim=True).clamp(min=1)).unsqueeze(1)
        mean = (values * share).sum(-1)
        offset = (values - mean.unsqueeze(-1)).square() * share
        found.append((mean, offset.sum(-1).sqrt()))
    return torch.cat([each[which] for which in (0, 1) for each in found], 1)


# A trained model


def calibrate(heard: Clips, items: TrialItems, asked: Trials, model: Any) -> None:
    """Set a trained model's threshold by what chose it, and say which pairs it is measured on, and
    by which voices, those of the training, their scores are normalised."""
    metric = model.metric()
    evaluate(model, items, metric)
    model.calibrate(*metric.scores())
    model.trials = asked
    vectors = model.embed(heard.waveforms)
    sums = torch.zeros(len(heard.names), vectors.shape[1])
    model.cohort = functional.normalize(sums.index_add(0, heard.labels, vectors), dim=1)


def left_out(metric: Verification) -> Iterator[str]:
    """What was not measured."""
    if count := metric.left_out:
        yield f"{count:,} pairs are left out, as a recording of theirs could not be heard"


def compare(config: Any, model: Any, heard: Sequence[tuple[Path, Tensor]]) -> None:
    """Compare the first of some recordings with each of the others, and say whether one voice
    speaks in both."""
    if len(heard) < 2:
        raise InputError(
            f"{len(heard)} recording is compared with nothing; give two or more behind the model"
        )
    (first, voice), *others = heard
    rows = []
    for path, other in others:
        same, score = model.verify(voice, other)
        rows.append([str(path), f"{score:.3f}", "the same" if same else "another"])
    print(report.markdown_table([f"beside {first}", "score", "voice"], rows))
    told = model.config.calibration
    print(
        f"\nThe same from {model.config.threshold:.3f} on, chosen for {told['for']} on "
        f"{told['trials']:,} pairs."
    )
