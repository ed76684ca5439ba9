"""Train a residual keyword spotter on your recordings.

    python -m tasks.speech.spot_keywords --data ../shared/data/speech_commands_speaker_split \\
        --name "Speech Commands speaker split" --seeds 0 1 2 --record

reached 92.3 +- 0.2 % for 12 classes of speakers never heard (MFCC statistics + SVC: 43.7 %), in
263 s of training a seed on one core of a 2-core Xeon.

--data is a folder of class folders, a Parquet file or folder, a hub id, or a folder written by
`save_to_disk`; WAV, FLAC, OGG and MP3 of any sampling rate. Without a validation split, 10 % of the
training rows are held out for it, by speaker where speakers are named; the test split is read once,
at the end. mel_resnet14 sees a spectrogram as a picture; tc_resnet8, tc_resnet14, matchboxnet_3x1
take the features of a frame as channels and need a fraction of the arithmetic.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from resbackbones import train
from resbackbones.core.ops import masked_mean
from resbackbones.core.zoo import resolve
from resbackbones.data import open_splits, speaker_leak
from resbackbones.pretrained import class_scores
from resbackbones.speech import (
    AudioItems,
    Augment,
    Clips,
    ResidualFeatureExtractor,
    ResidualForAudioClassification,
    read_clips,
)
from tasks._run import Device, Run, conclude, resolve_device, run, run_folder


@dataclass(frozen=True)
class Config:
    data: str
    """Your recordings: a folder of class folders, a Parquet file or folder, or a hub id."""
    name: str | None = None
    """What to call the data in the table and the record (their folder's name)."""
    spec: str = "mel_resnet14"
    """A net in resbackbones.SPECS."""
    skip: Literal["identity", "none"] = "identity"
    """"none" trains the plain control: the same net without its skips."""
    features: Literal["log_mel", "mfcc"] = "log_mel"
    """What the net hears: as many as a 1-D net has input channels, 40 for a 2-D one."""
    sampling_rate: int = 16000
    """Recordings are resampled to this many Hz."""
    audio_column: str | None = None
    """The column of the recordings (found by its type)."""
    label_column: str | None = None
    """The column of the labels (found by its name)."""
    seeds: tuple[int, ...] = (0,)
    """One training a seed."""
    epochs: int = 60
    """Passes over the training rows."""
    batch_size: int = 128
    """Clips a step."""
    learning_rate: float = 0.01
    """Peak of the one-cycle schedule of AdamW."""
    weight_decay: float = 0.01
    """On weights, not on norms and biases."""
    mixup: float = 0.2
    """Most that another clip and its label may take of a training clip (Zhang 2018); 0 is off."""
    on_bad: Literal["error", "skip"] = "error"
    """A damaged recording stops the run, or is left out and counted."""
    device: Device = "auto"
    """Where the clips are kept and augmented and the net trains; auto is the GPU, if there."""
    output: Path | None = None
    """Folder for models, logs and curves (runs/spot_keywords/<time>)."""
    resume: bool = False
    """Go on with --output, or with the newest run."""
    record: bool = False
    """Write the result to results/spot_keywords/."""


def main(config: Config) -> None:
    device = resolve_device(config.device)
    spec = resolve(config.spec, skip=config.skip)
    if spec.dims == 2:
        spec = replace(spec, in_channels=1)
    extractor = ResidualFeatureExtractor(
        config.features,
        feature_size=40 if spec.dims == 2 else spec.in_channels,
        sampling_rate=config.sampling_rate,
    )
    options = train.Options(
        epochs=config.epochs,
        batch_size=config.batch_size,
        optimizer="adamw",
        schedule="one_cycle",
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        clip=5.0,
        keep="last",  # one-cycle ends at its best, and a small validation split is no judge
        device=device,
        resume=config.resume,
    )
    folder = run_folder("spot_keywords", config.output, config.resume)

    columns = {"input": config.audio_column, "label": config.label_column}
    splits = open_splits(config.data, columns, kind="audio")
    build = partial(
        ResidualForAudioClassification.build,
        spec,
        labels=splits.train.labels,
        processor=extractor,
    )
    build()  # what does not fit together is told before the recordings are read
    sources = [s for s in (splits.train, splits.validation, splits.test) if s is not None]
    clips = [read_clips(source, config.sampling_rate, config.on_bad) for source in sources]
    if (leak := speaker_leak(sources[0], sources[-1])) is not None:
        print(f"{leak:.0%} of the clips of {sources[-1].name} are by speakers heard in training")
    simple = baseline(clips[0], clips[-1])
    training = AudioItems(clips[0], extractor, Augment(mixup=config.mixup), device=device)
    validation = AudioItems(clips[1], extractor, device=device)
    test = AudioItems(clips[-1], extractor, device=device)

    runs = []
    for seed in config.seeds:
        torch.manual_seed(seed)
        training.seed = seed
        model = build()
        place = folder / f"seed-{seed}"
        result = train.fit(model, training, validation, replace(options, output=place, seed=seed))
        runs.append(Run(seed, train.evaluate(model, test), result.seconds))
        model.save_pretrained(place / "model")

    conclude(
        task="spot_keywords",
        dataset=config.name or Path(config.data).name,
        splits=splits,
        arm=config.spec if config.skip == "identity" else f"{config.spec}-plain",
        model=model,
        example={"input_features": test[0]["input_features"].unsqueeze(0)},
        runs=runs,
        baseline=simple,
        folder=folder,
        use=USE.format(model=folder / f"seed-{config.seeds[0]}" / "model"),
        record=config.record,
        skipped=[name for some in clips for name in some.skipped],
    )


def baseline(training: Clips, test: Clips) -> tuple[str, dict[str, float]]:
    """Means and deviations of 20 MFCC over each clip, support vectors with an RBF kernel (of 10,000
    clips at most: its time grows with their square)."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    extractor = ResidualFeatureExtractor(
        "mfcc", feature_size=20, n_mels=40, sampling_rate=training.sampling_rate
    )

    def statistics(clips: Clips) -> Any:
        items, rows = AudioItems(clips, extractor), []
        for batch in torch.arange(len(items)).split(256):
            x, lengths = items.__getitems__(batch.tolist())["input_features"], items.frames[batch]
            mean = masked_mean(x, lengths)
            variance = masked_mean((x - mean.unsqueeze(2)).square(), lengths)
            rows.append(torch.cat([mean, variance.sqrt()], 1))
        return torch.cat(rows).numpy()

    model = make_pipeline(StandardScaler(), SVC(C=10))
    some = torch.randperm(len(training), generator=torch.Generator().manual_seed(0))[:10_000]
    model.fit(statistics(training)[some], training.labels[some].numpy())
    predicted, expected = model.predict(statistics(test)), test.labels.numpy()
    return "MFCC statistics + SVC", class_scores(expected, predicted)


USE = """
import soundfile, transformers
import resbackbones.speech

recognise = transformers.pipeline("audio-classification", model="{model}")
samples, rate = soundfile.read("clip.wav", dtype="float32")
print(recognise({{"array": samples, "sampling_rate": rate}}, top_k=3))
"""

if __name__ == "__main__":
    run(main, Config)
