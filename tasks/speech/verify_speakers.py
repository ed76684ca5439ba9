"""Train a residual net that tells voices apart, and have it compare any two recordings.

    python -m tasks.speech.verify_speakers --data ../shared/data/speech_commands_speaker_split \\
        --name "Speech Commands speaker split" --no-augment --seeds 0 1 2 --record

reached 5.9 +- 0.3 % on speakers never heard, MFCC with LDA 9.2 (validation: 3.2, augmented 6.7).

Data are recordings with a column of speakers. The net learns to tell those of train apart and is
measured on pairs of others, 20 per speaker of one voice and 20,000 of two, or a list (--trials): as
often as it takes one voice for two, it takes two for one (equal error rate). Where validation has
fewer than ten speakers, some of train are held out for it; it also sets the model's threshold.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from resbackbones.core.zoo import resolve
from resbackbones.data import NoTarget, Source
from resbackbones.speech import (
    Augment,
    ResidualFeatureExtractor,
    SpeakerItems,
    TrialItems,
    decode_audio,
    read_clips,
    spoken,
)
from resbackbones.speech import ResidualForAudioXVector as Model
from resbackbones.speech.recordings import FULL_SCALE
from resbackbones.train.options import Keep, Kind, Schedule
from tasks._fields import Recipe, Spec
from tasks._recipe import Experiment, Task
from tasks._using import run
from tasks.speech import _speakers as pairs


@dataclass(frozen=True, kw_only=True)
class Config(Recipe):
    spec: Spec = "mel_resnet14"
    """A net in resbackbones.SPECS, of two dimensions or of one."""
    pooling: Literal["statistics", "attentive_statistics"] = "statistics"
    """What becomes of the frames: their mean and deviation, or weighed ones."""
    embedding_size: int = 192
    """Numbers that a voice is told by."""
    margin: float = 0.2
    """By which the angle to the own speaker is widened in training, in radians."""
    scale: float = 30.0
    """Of the cosines that are told apart in training."""
    mels: int = 40
    """Mel bands that a 2-D net hears; a 1-D net hears as many as it has input channels."""
    sampling_rate: int = 16000
    """What recordings are resampled to, in Hz."""
    max_seconds: float | None = None
    """Longer recordings are cut there (four times the median length, at least 10 s)."""
    crop: tuple[float, float] = (1.0, 3.0)
    """Shortest and longest stretch of a recording that is trained on at a time, in seconds."""
    augment: bool = True
    """Vary training clips: place, speed, loudness, noise, blanks."""
    trials: Path | None = None
    """The pairs of the test split: a line each, "1 left right" of the same speaker, else with 0 in
    front, by rows from 0 or by paths (drawn)."""
    epochs: int = 60
    batch_size: int = 128
    budget: int | None = 40_000
    optimizer: Kind = "adamw"
    schedule: Schedule = "one_cycle"
    learning_rate: float = 0.01
    weight_decay: float = 0.01
    clip: float = 5.0
    metric: str = "eer"
    higher_is_better: bool = False
    keep: Keep = "last"  # one-cycle ends at its best, and a small validation split is no judge
    folds: int | None = 0


def experiment(config: Config) -> Experiment:
    spec = resolve(config.spec, skip=config.skip)
    if spec.dims == 2:
        spec = replace(spec, in_channels=1)
    bands = config.mels if spec.dims == 2 else spec.in_channels
    extractor = ResidualFeatureExtractor(feature_size=bands, sampling_rate=config.sampling_rate)
    splits = pairs.enough_speakers(config.open("audio", NoTarget()))
    train, chosen_by = spoken(splits.train), pairs.trials_of(splits.validation)
    asked = chosen_by if splits.test is None else pairs.trials_of(splits.test, config.trials)

    loss = {name: getattr(config, name) for name in ("embedding_size", "margin", "scale")}

    def build(**changes: Any) -> Model:
        head = {"pooling": config.pooling}
        names = train.target.names
        model = Model.build(spec, labels=names, head=head, processor=extractor, **loss, **changes)
        model.trials = chosen_by
        return model

    build()  # what does not fit together is told before the recordings are read
    listen = partial(read_clips, sampling_rate=config.sampling_rate, on_bad=config.on_bad)
    heard = listen(train, max_seconds=config.max_seconds)
    alike = partial(listen, max_seconds=heard.max_seconds)
    validation = alike(spoken(splits.validation))
    test = validation if splits.test is None else alike(spoken(splits.test))
    hear = partial(TrialItems, extractor=extractor, device=config.where)
    augment = Augment(warp=0.0, noise=0.3, noise_level=(10.0, 40.0)) if config.augment else None
    chooses, measured = hear(validation), hear(test)
    return Experiment(
        splits,
        SpeakerItems(heard, extractor, augment, crop=config.crop, device=config.where),
        chooses,
        measured,
        build,
        partial(pairs.baseline, heard, validation, test, chosen_by, asked),
        f"{len(train.target.names):,} speakers to learn from. Pairs to choose by: {chosen_by}; to "
        f"test on: {asked} (sha256 {asked.fingerprint()[:16]}). The training {heard.found()}.",
        finish=partial(pairs.calibrate, heard, chooses, asked),
    )


def items(config: Config, source: Source, model: Model) -> TrialItems:
    model.trials = pairs.trials_of(source, config.trials)
    options: dict[str, Any] = {"on_bad": config.on_bad, "max_seconds": config.max_seconds}
    return TrialItems(spoken(source), model.processor, device=config.where, **options)


def read(path: Path, processor: ResidualFeatureExtractor) -> list[Any]:
    return [(path, decode_audio(path, processor.sampling_rate).float() / FULL_SCALE)]


USE = """
import soundfile
from resbackbones.speech import ResidualForAudioXVector

model = ResidualForAudioXVector.from_pretrained("{model}")
ann, other = (soundfile.read(path)[0] for path in ("ann.wav", "other.wav"))  # at 16 kHz
print(model.verify(ann, other))  # the same voice? and how alike
"""
GPU = {"epochs": 120, "batch_size": 256, "budget": 80_000}
TASK = Task(
    *("verify_speakers", "audio", Config, experiment, items, (Model,), read, USE, GPU),
    figures=("eer", "eer_as_norm", "min_dcf_0.01", "min_dcf_0.05"),
    target=lambda model: NoTarget(),
    answer=None,
    predicted=pairs.compare,
    remarks=pairs.left_out,
    by_model=True,
    higher_is_better=False,
)

if __name__ == "__main__":
    run(TASK)
