r"""Train a residual recogniser that writes down what is said.

    python -m tasks.speech.transcribe --data ../shared/data/mboshi --name Mboshi --epochs 66

Data are recordings with a column of transcripts, in any script and language; symbols are their
characters, or pieces of words (--symbols bpe). The net gives each frame a symbol or none, trained
by CTC; a text is read off it frame by frame, or is the likeliest that a beam search finds, which
n-grams of the training texts may help (--search beam): errors of all three are told. Without --data
it learns sentences of common words that espeak-ng speaks (GPL; the extra `wakeword`): no people
speak, and no voice and no sentence is in two splits.

The character error rate is substitutions, deletions and insertions over the characters that were
said, spaces among them (Mboshi: 21.7 %, by n-grams 19.1, after 92 minutes on one core); and there
is the same of words. The baseline writes what was said in the training recording that sounds most
alike (87.8 %); a net that writes nothing has 100 %. Texts are normalised before (--text).
--predict MODEL --listen FILE writes down hours, --live FILE words as they come (--causal).
"""

import math
from dataclasses import dataclass, replace
from functools import partial

from resbackbones.core.zoo import resolve
from resbackbones.data import Transcripts
from resbackbones.speech import (
    ResidualCTCProcessor,
    ResidualFeatureExtractor,
    TranscriptItems,
    read_clips,
)
from resbackbones.speech import ResidualForCTC as Model
from resbackbones.speech.vocabulary import Symbols, Text
from resbackbones.train.options import Keep, Kind, Schedule
from tasks._fields import Spec
from tasks._recipe import Experiment, Task, each
from tasks._using import run
from tasks.speech import _sentences as sentences
from tasks.speech import _transcription as texts
from tasks.speech._hearing import Hearing, heard
from tasks.speech._searching import FIGURES, Searches, Searching, prepare


@dataclass(frozen=True, kw_only=True)
class Config(Hearing, Searching):
    spec: Spec = "mel_resnet_ctc18"
    """A net in resbackbones.SPECS, of one dimension, as quartznet5x5 or citrinet256."""
    symbols: Symbols = "character"
    """What the net writes: characters, or pieces of words ("bpe")."""
    pieces: int = 256
    """How many pieces of words."""
    text: Text = "letters"
    """How transcripts are normalised, to be learned and scored: "letters" leaves out case and
    punctuation, "as_written" nothing but spaces too many."""
    sampling_rate: int = 16000
    """What recordings are resampled to, in Hz."""
    augment: bool = True
    """Vary training recordings: speaker, loudness, noise, blanks, tempo."""
    stretch: float = 0.0
    """How much slower or faster they are at most, at the same pitch: 0.1 is a tenth."""
    dropout: float = 0.1
    """Inside the net's branches."""
    epochs: int | None = None  # type: ignore[assignment]
    """Passes over the recordings (40; over synthesised sentences 16)."""
    batch_size: int = 16
    budget: int | None = 4_000
    optimizer: Kind = "adamw"
    schedule: Schedule = "cosine"
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    clip: float = 5.0
    metric: str = "cer"
    higher_is_better: bool = False
    keep: Keep = "last"  # the rate falls to nothing, so that it ends at its best
    folds: int | None = 0

    def __post_init__(self) -> None:
        if self.data is None and not self.predict:
            object.__setattr__(self, "data", sentences.NAME)
        if self.epochs is None:
            object.__setattr__(self, "epochs", 16 if self.data == sentences.NAME else 40)
        super().__post_init__()
        texts.refuse(self)


def experiment(config: Config) -> Experiment:
    spec = resolve(config.spec, dropout=config.dropout, **config.changes)
    if config.data == sentences.NAME:
        config = replace(config, data=str(sentences.folder()))
    splits = config.open("audio", Transcripts())
    tokenizer, origin = texts.vocabulary(config, splits.train.targets())
    searches = Searches.to_train(config, tokenizer, splits.train.targets())
    rate = config.sampling_rate
    hear = ResidualFeatureExtractor(feature_size=spec.in_channels, sampling_rate=rate)
    processor = ResidualCTCProcessor(hear, tokenizer)

    build = partial(Model.build, spec, processor=processor)
    model = build()  # what does not fit together is told before the recordings are read
    # Whole: of a recording that was cut, a transcript would not be the text.
    listen = partial(read_clips, sampling_rate=rate, on_bad=config.on_bad, max_seconds=math.inf)
    train, validation, test = each(splits, listen)
    made = partial(TranscriptItems, model=model, on_bad=config.on_bad, device=config.where)
    learned = made(train, augment=texts.varied(config), budget=config.budget)
    chooses = made(validation, evaluation=True)
    return Experiment(
        splits,
        learned,
        chooses,
        made(test, evaluation=True),
        build,
        partial(texts.baseline, tokenizer, train, test),
        texts.found(config, learned, origin),
        finish=partial(searches.finish, None if splits.test is None else chooses),
        load=texts.load,
        calibrate=searches.keep,
    )


USE = """
import transformers
import resbackbones.speech

write = transformers.pipeline("automatic-speech-recognition", model="{model}")
print(write("clip.wav", return_timestamps="word"))
"""
GPU = {"epochs": 100, "batch_size": 256, "budget": 120_000, "spec": "citrinet256", "symbols": "bpe"}
TASK = Task(
    *("transcribe", "audio", Config, experiment, texts.items, (Model,), texts.read, USE, GPU),
    figures=("cer", "wer", *FIGURES, "empty", "loss"),
    target=lambda model: Transcripts(),
    answer=lambda model: lambda sound: {"transcript": model.transcribe(sound)[0]},
    predicted=heard,
    remarks=texts.remarks,
    prepare=prepare,
    by_model=True,
    higher_is_better=False,
)

if __name__ == "__main__":
    run(TASK)
