"""Train a residual keyword spotter on your recordings.

    python -m tasks.speech.spot_keywords --data ../shared/data/speech_commands_speaker_split \\
        --name "Speech Commands speaker split, 5 minutes" --record

reached 92.4 +- 0.1 % for 12 classes of speakers never heard (MFCC by segments + SVC: 64.7 %) in
five minutes on one core, by a net that answers in about a millisecond; --spec mel_resnet14_wide
--epochs 60 reached 93.2 +- 0.7 % in eleven to fifteen.

Three protocols, whose figures do not compare, are named apart: Speech Commands' 12 classes, its 35
words, and words of your own, a folder for each. To detect words in long recordings, --negatives DIR
of other speech and noise chooses a threshold by --false-alarms per hour (half of it; the other half
counts them); --predict MODEL --listen FILE.wav tells when words were said. Without recordings, a
wake word is learned from voices of espeak-ng (GPL; the extra `wakeword`), which are not people:

    python -m tasks.speech.spot_keywords --phrase "hey robot"

With recordings of few speakers, --synthesised 300 has such voices say the words beside them. WAV,
FLAC, OGG and MP3 of any sampling rate and length are read; a recording far longer than the others
is cut, and named. Without a validation split, 10 % of the training rows are held out, by speaker
where speakers are named. mel_resnet14_wide and bc_resnet2 see a spectrogram as a picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from resbackbones.core.zoo import resolve
from resbackbones.data import Source
from resbackbones.speech import AudioItems, ResidualFeatureExtractor, read_clips
from resbackbones.speech import ResidualForAudioClassification as Model
from resbackbones.train.options import Keep, Kind, Schedule
from tasks._fields import Spec
from tasks._recipe import Experiment, Task
from tasks._using import run
from tasks.speech._baseline import baseline
from tasks.speech._listening import Listening, calibrate, explain, negatives, readable, tell, varied
from tasks.speech._protocols import named
from tasks.speech._spoken_names import with_names
from tasks.speech._wakeword import spoken


@dataclass(frozen=True, kw_only=True)
class Config(Listening):
    spec: Spec = "tc_resnet8_2"
    """A net in resbackbones.SPECS, of one dimension or of two."""
    features: Literal["log_mel", "mfcc"] = "log_mel"
    """What the net hears: as many as a 1-D net has input channels, 40 for a 2-D one."""
    sampling_rate: int = 16000
    """What recordings are resampled to, in Hz."""
    max_seconds: float | None = None
    """Longer recordings are cut there (four times the median length, at least 10 s)."""
    augment: bool = True
    """Vary training clips: place, speed, speaker, loudness, noise, blanks. It changes what voices
    and instruments sound like: where they are the classes, try --no-augment --mixup 0."""
    mixup: float | None = None
    """Most that another clip and its label may take of a training clip (Zhang 2018; 0.2; of
    --phrase 0, none)."""
    epochs: int | None = None  # type: ignore[assignment]
    """Passes over the training clips (120; of --phrase 20)."""
    batch_size: int = 128
    budget: int | None = 40_000
    optimizer: Kind = "adamw"
    schedule: Schedule = "one_cycle"
    learning_rate: float = 0.01
    weight_decay: float = 0.01
    clip: float = 5.0
    keep: Keep = "last"  # one-cycle ends at its best, and a small validation split is no judge

    def __post_init__(self) -> None:
        usual = (120, 0.2) if self.phrase is None else (20, 0.0)
        for name, value in zip(("epochs", "mixup"), usual, strict=True):
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        super().__post_init__()

    @property
    def advice(self) -> str:
        tamed = "--no-augment --mixup 0 where classes are voices or instruments, or "
        return (f"try {tamed}" if self.augment else "") + super().advice


def experiment(config: Config) -> Experiment:
    spec = resolve(config.spec, skip=config.skip)
    if spec.dims == 2:
        spec = replace(spec, in_channels=1)
    extractor = ResidualFeatureExtractor(
        config.features,
        feature_size=40 if spec.dims == 2 else spec.in_channels,
        sampling_rate=config.sampling_rate,
    )
    data, speech = config.data, None
    if config.phrase is not None:
        data, speech = spoken(config.phrase, config.hours)
    if config.negatives is not None:
        speech = negatives(config.negatives, config.sampling_rate)
    splits = replace(config, phrase=None, data=data).open("audio")
    names, problem = splits.train.target.names, config.problem_type
    build = partial(Model.build, spec, labels=names, processor=extractor, problem_type=problem)
    build()  # what does not fit together is told before the recordings are read
    listen = partial(read_clips, sampling_rate=config.sampling_rate, on_bad=config.on_bad)
    recorded = listen(splits.train, max_seconds=config.max_seconds)
    train = with_names(recorded, config.synthesised)
    alike = partial(listen, max_seconds=recorded.max_seconds)
    validation = alike(splits.validation)
    test = validation if splits.test is None else alike(splits.test)
    extractor.pad_to = max(train.seconds)  # what a listener hears at a time
    hear = partial(AudioItems, extractor=extractor, device=config.where)
    made = Experiment(
        splits,
        hear(train, **varied(config, names)),
        hear(validation),
        hear(test),
        config.weighing(build, train),
        partial(baseline, train, validation, test),
        f"The training {train.found()}.",
        calibrate=partial(calibrate, config, validation, test, speech) if speech else None,
    )
    return named(made, config.synthesised)


def items(config: Config, source: Source, processor: ResidualFeatureExtractor) -> AudioItems:
    how: dict[str, Any] = {"on_bad": config.on_bad, "max_seconds": config.max_seconds}
    return AudioItems(source, processor, device=config.where, **how)


def asked(config: Config, model: Model, inputs: Sequence[Any]) -> None:
    for file in config.listen:
        tell(model, file)
    if config.explain is not None:
        explain(model, inputs, config.explain)


USE = """
import soundfile, transformers
import resbackbones.speech

recognise = transformers.pipeline("audio-classification", model="{model}")
samples, rate = soundfile.read("clip.wav", dtype="float32", always_2d=True)
print(recognise({{"array": samples.mean(1), "sampling_rate": rate}}, top_k=3))
"""
GPU = {"spec": "mel_resnet14_wide", "batch_size": 256, "budget": 80_000}
TASK = Task(
    *("spot_keywords", "audio", Config, experiment, items, (Model,), readable, USE, GPU),
    predicted=asked,
)

if __name__ == "__main__":
    run(TASK)
