r"""Train a residual text classifier on your texts.

    python -m tasks.text.classify_text --data ../shared/data/trec --name TREC-6 --seeds 0 1 2 \
        --all-rows --record

reached 90.1 +- 1.2 %, level with TF-IDF + linear SVC on the same rows (90.2 %), in 204 s of
training per seed on one core of an EPYC without bfloat16; without --all-rows 88.5 (89.4) %.

Without a validation split, 10 % of the training rows are held out for it; the test split is read
once, at the end. Words with character n-grams suit small data.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from resbackbones.core.zoo import resolve
from resbackbones.data import Source, Target, joined
from resbackbones.errors import InputError
from resbackbones.text import Embedding, Ngrams, TextItems, load_vectors, train_tokenizer
from resbackbones.text import ResidualForSequenceClassification as Model
from resbackbones.train.options import Arguments, Keep, Kind, Schedule
from tasks._classification import Classification
from tasks._recipe import Experiment, Spec, Task, each
from tasks._using import run
from tasks.text._baseline import baseline, texts
from tasks.text._lines import explain, read


@dataclass(frozen=True, kw_only=True)
class Config(Classification):
    pair_column: str | None = None
    """The column of the second texts, where each item is a pair of them."""
    spec: Spec = "word_resnet6"
    """A net in resbackbones.SPECS with dims=1, as word_resnet6, vdcnn9 or dpcnn."""
    tokenizer: Literal["word", "bpe", "unigram", "character", "byte"] = "word"
    """What a token is; its vocabulary is learned from the training texts."""
    vocab_size: int | None = None
    """Different tokens at most (as many as the kind of token usually has)."""
    ngrams: bool = True
    """Add the character n-grams of each word to its vector (tokenizer word)."""
    vectors: Path | None = None
    """Start from word vectors: a file of GloVe, fastText or word2vec, or the folder of a static
    embedding model; the net takes their width (tokenizer word)."""
    max_length: int = 256
    """Tokens of a text at most; the rest is cut off, and how often is said."""
    dropout: float = 0.5
    """On what the head sees."""
    embedding_dropout: float = 0.4
    """On the numbers of the token vectors."""
    word_dropout: float = 0.1
    """Share of tokens left out in training."""
    all_rows: bool = False
    """Train on the validation rows too. They choose nothing here (the last weights are kept), but
    then there is no curve to watch."""
    explain: Path | None = None
    """With --predict: write a page of HTML here that shows which words spoke for each answer."""
    epochs: int = 12
    optimizer: Kind = "adamw"
    optimizer_arguments: Arguments = field(default_factory=lambda: {"fused": True})  # large tables
    schedule: Schedule = "one_cycle"
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    label_smoothing: float = 0.05
    clip: float = 5.0
    keep: Keep = "last"  # one-cycle ends at its best, and a small validation split is no judge

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.explain is not None and not self.predict:
            raise InputError("--explain is of answers; give it with --predict, or leave it out")

    @property
    def arm(self) -> str:
        return super().arm + ("-all-rows" if self.all_rows else "")

    def columns(self, target: Target) -> dict[str, str | None]:
        return {**super().columns(target), "pair": self.pair_column}


def experiment(config: Config) -> Experiment:
    spec = resolve(config.spec, skip=config.skip)
    splits = config.open("text")
    if config.all_rows and splits.test is None:
        raise InputError(
            "--all-rows trains on the validation rows, and there is no test split to measure on; "
            "leave --all-rows out"
        )
    source = joined(splits.train, splits.validation) if config.all_rows else splits.train
    words = config.tokenizer == "word"
    options: dict[str, Any] = {"lowercase": True} if words else {}
    tokenizer = train_tokenizer(
        # A row without a text is the items' to name.
        (text for column in texts(source) for text in column if text is not None),
        config.tokenizer,
        ngrams=Ngrams() if words and config.ngrams else None,
        max_length=config.max_length,
        **options | ({"vocab_size": config.vocab_size} if config.vocab_size else {}),
    )
    train, validation, test = each(
        replace(splits, train=source), lambda part: items(config, part, tokenizer)
    )
    vectors = None if config.vectors is None else load_vectors(config.vectors, tokenizer)
    if vectors is not None:
        spec = replace(spec, in_channels=vectors.values.shape[1])
    make = partial(
        Model.build,
        labels=splits.train.target.names,
        problem_type=config.problem_type,
        processor=tokenizer,
        head={"pooling": "mean_max", "dropout": config.dropout},
        embedding=Embedding(config.embedding_dropout, config.word_dropout),
    )

    def build(**changes: Any) -> Model:
        model = make(spec, **changes)
        if vectors is not None:
            vectors.copy_into(model)
        return model

    chosen_by = None if config.all_rows else validation
    short, middle, long = (train.lengths.sort().values[[0, len(train) // 2, -1]]).tolist()
    found = f"{len(tokenizer):,} tokens; texts of {short} to {long}, half of them up to {middle}."
    found += f" {vectors}." if vectors is not None else ""
    simple = partial(baseline, train, chosen_by, test)
    weighed = config.weighing(build, train)
    return Experiment(splits, train, chosen_by, test, weighed, simple, found)


def items(config: Config, source: Source, tokenizer: Any) -> TextItems:
    return TextItems(source, tokenizer, on_bad=config.on_bad)


USE = """
import transformers
import resbackbones.text

classify = transformers.pipeline("text-classification", model="{model}")
print(classify(["a text of yours", "and another"], top_k=3))
"""
GPU = {"batch_size": 256, "learning_rate": 4e-3}
TASK = Task(
    *("classify_text", "text", Config, experiment, items, (Model,), read, USE, GPU),
    predicted=explain,
)

if __name__ == "__main__":
    run(TASK)
