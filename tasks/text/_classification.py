"""What the recipes of text classifiers share: their fields, and what is trained on what."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from resbackbones.core.zoo import resolve
from resbackbones.data import Source, Target, joined
from resbackbones.errors import InputError
from resbackbones.metrics import Metric
from resbackbones.text import (
    Embedding,
    Ngrams,
    TextItems,
    TfidfClassifier,
    load_vectors,
    train_tokenizer,
)
from resbackbones.text import ResidualForSequenceClassification as Model
from resbackbones.train import World
from resbackbones.train.options import Arguments, Keep, Kind, Schedule
from tasks._classification import Classification
from tasks._fields import Spec
from tasks._recipe import Experiment, each
from tasks.text._baseline import NAME, baseline, fit, part_of_the_answer, share_out, texts
from tasks.text._pretrained import Pretrained

SHORT = 64  # words of half the texts, up to which n-grams and adversarial training pay
ADVERSARIAL = 0.4  # of short texts
PER_WORD = 8  # numbers that the n-grams of a word have, at least, up to those of Ngrams()
FEWEST = 4  # epochs of texts however long
ENOUGH = 100  # validation rows to choose a share by
GPU = {"batch_size": 256, "budget": 131_072, "learning_rate": 4e-3}


@dataclass(frozen=True, kw_only=True)
class TextClassification(Classification):
    pair_column: str | None = None
    """The column of the second texts, where each item is a pair of them."""
    spec: Spec = "word_resnet6"
    """A net in resbackbones.SPECS with dims=1, as word_resnet6, vdcnn9 or dpcnn."""
    tokenizer: Literal["word", "bpe", "unigram", "character", "byte"] = "word"
    """What a token is; its vocabulary is learned from the training texts."""
    vocab_size: int | None = None
    """Different tokens at most (as many as the kind of token usually has)."""
    min_frequency: int | None = None
    """Words that stand fewer times in the training texts are unknown ones (2: what is learned of a
    word seen once is how to recognise its text; with --vectors 1)."""
    ngrams: Literal["auto", "yes", "no"] = "auto"
    """Add the character n-grams of each word to its vector: of tokenizer word, where half the texts
    have up to 64 words."""
    vectors: Path | None = None
    """Start from word vectors: a file of GloVe, fastText or word2vec, or the folder of a static
    embedding model; the net takes their width (tokenizer word)."""
    max_length: int = 512
    """Tokens of a text at most; the rest is cut off, and how often is said."""
    tfidf: bool = True
    """Answer by the net and by the baseline, NB-SVM on TF-IDF, each with the share that
    does best on the validation rows, or half of it where they are fewer than 100 (--no-tfidf: by
    the net alone)."""
    dropout: float = 0.5
    """On what the head sees."""
    embedding_dropout: float = 0.4
    """On the numbers of the token vectors."""
    word_dropout: float = 0.1
    """Share of tokens left out in training."""
    adversarial: float | None = None
    """Length of the adversarial step, in lengths of a token vector: train on each text as it is and
    moved so far up the slope of the loss (0.4 where half the texts have up to 64 words; else 0, not
    at all, which takes half the time)."""
    layer_decay: float | None = None  # type: ignore[assignment]
    """The rate of each residual block, as a share of that of the next deeper one (with --weights
    0.8, else 1)."""
    unfreezing: float | None = None  # type: ignore[assignment]
    """Share of the updates over which layers begin to learn, from the head to the embedding (with
    --weights 0.3, else 0: all from the start)."""
    all_rows: bool = False
    """Train on the validation rows too. They choose nothing here (the last weights are kept, and
    the baseline has half a share), but then there is no curve to watch."""
    explain: Path | None = None
    """With --predict: write a page of HTML here that shows which words spoke for each answer."""
    epochs: int = 12
    budget: int | None = 32_768
    most_tokens: int = 12_000_000
    """Tokens that a training reads about: of long texts it takes fewer epochs than --epochs, but
    four at least (0: as many as it says)."""
    optimizer: Kind = "adamw"
    optimizer_arguments: Arguments = field(default_factory=lambda: {"fused": True})  # large tables
    schedule: Schedule = "one_cycle"
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    label_smoothing: float = 0.05
    clip: float = 5.0
    keep: Keep = "last"  # one-cycle ends at its best, and a small validation split is no judge

    def __post_init__(self) -> None:
        tuned = self.weights is not None
        for name, usual in (("layer_decay", 0.8 if tuned else 1.0), ("unfreezing", 0.3 * tuned)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, usual)
        super().__post_init__()
        if tuned:
            told = "spec", "tokenizer", "vocab_size", "min_frequency", "ngrams", "vectors"
            Pretrained.refuse(self, told)
        if self.explain is not None and not self.predict:
            raise InputError("--explain is of answers; give it with --predict, or leave it out")
        if self.tokenizer in ("byte", "unigram") and self.min_frequency is not None:
            raise InputError(
                f"--min-frequency is not for --tokenizer {self.tokenizer}, which knows all; leave "
                "it out"
            )

    @property
    def arm(self) -> str:
        found = Pretrained.find(self.weights)
        return super().arm if found is None else super().arm.replace(str(self.spec), found.name, 1)

    @property
    def variant(self) -> str:
        tfidf = "-pretrained" * (self.weights is not None) + "-tfidf" * self.tfidf
        return super().variant + tfidf + ("-all-rows" if self.all_rows else "")

    def columns(self, target: Target) -> dict[str, str | None]:
        return {**super().columns(target), "pair": self.pair_column}

    def learned_tokenizer(self, found: Sequence[str], short: bool) -> Any:
        """A tokenizer of these texts."""
        words = self.tokenizer == "word"
        options: dict[str, Any] = {"vocab_size": self.vocab_size}
        options["min_frequency"] = self.min_frequency
        if words:
            options["lowercase"] = True
            options["min_frequency"] = self.min_frequency or (1 if self.vectors else 2)
        ngrams = None
        if self.ngrams == "yes" or (self.ngrams == "auto" and words and short):
            different = len({word for text in found for word in str(text).lower().split()})
            # The table of few words is small, and so quick to train.
            ngrams = Ngrams(buckets=min(Ngrams.buckets, 2 ** (different * PER_WORD).bit_length()))
        return train_tokenizer(
            found,
            self.tokenizer,
            ngrams=ngrams,
            max_length=self.max_length,
            **{name: value for name, value in options.items() if value is not None},
        )


def are_short(found: Sequence[str]) -> bool:
    """Whether half of these texts have up to 64 words."""
    lengths = sorted(len(str(text).split()) for text in found)
    return not lengths or lengths[len(lengths) // 2] <= SHORT


def experiment(config: TextClassification, target: Target | None = None) -> Experiment:
    saved = Pretrained.find(config.weights)
    spec = resolve(config.spec if saved is None else saved.spec, skip=config.skip)
    splits = config.open("text", target)
    if config.all_rows and splits.test is None:
        raise InputError(
            "--all-rows trains on the validation rows, and there is no test split to measure on; "
            "leave --all-rows out"
        )
    source = joined(splits.train, splits.validation) if config.all_rows else splits.train
    # A row without a text is the items' to name.
    given = [text for column in texts(source) for text in column if text is not None]
    short_texts = are_short(given)
    if saved is None:
        tokenizer = config.learned_tokenizer(given, short_texts)
    else:
        tokenizer = saved.tokenizer(config.max_length)
    train, validation, test = each(
        replace(splits, train=source), lambda part: items(config, part, tokenizer)
    )
    balanced = config.class_weights == "balanced"
    tfidf: TfidfClassifier | None = None
    if config.tfidf:
        if config.fold is None and World.now().first:
            print(f"{NAME} …", flush=True)
        tfidf = part_of_the_answer(train, {validation, test}, tokenizer, balanced)
    vectors = None if config.vectors is None else load_vectors(config.vectors, tokenizer)
    if vectors is not None:
        spec = replace(spec, in_channels=vectors.values.shape[1])
    adversarial = config.adversarial
    if adversarial is None:
        adversarial = ADVERSARIAL if short_texts else 0.0
    make = partial(
        Model.build,
        labels=splits.train.target.names,
        problem_type=config.problem_type,
        processor=tokenizer,
        head={"pooling": "mean_max", "dropout": config.dropout},
        embedding=Embedding(config.embedding_dropout, config.word_dropout, adversarial),
    )

    def build(**changes: Any) -> Model:
        model = make(spec, **changes)
        if vectors is not None:
            vectors.copy_into(model)
        return model

    chosen_by = None if config.all_rows else validation
    # Of a cross-validation, what is held out is what is measured: it chooses nothing.
    judged = config.tfidf and not config.all_rows and config.fold is None
    judged &= len(validation) >= ENOUGH
    short, middle, long = (train.lengths.sort().values[[0, len(train) // 2, -1]]).tolist()
    found = f"{len(tokenizer):,} tokens; texts of {short} to {long}, half of them up to {middle}."
    found += f" Adversarial steps of {adversarial} (--adversarial)." if adversarial else ""
    found += f" {vectors}." if vectors is not None else ""

    def simple() -> tuple[str, Metric]:
        return baseline(tfidf or fit(train, balanced), test)

    weighed = config.weighing(build, train)
    size: dict[str, Any] = {"batch_size": config.evaluation_batch_size, "budget": config.budget}
    most = max(FEWEST, config.most_tokens // int(train.lengths.sum()))
    return Experiment(
        *(splits, train, chosen_by, test, weighed, simple, found),
        finish=partial(share_out, validation=validation, **size) if judged else None,
        most_epochs=most if config.most_tokens else None,
    )


def items(config: TextClassification, source: Source, tokenizer: Any) -> TextItems:
    return TextItems(source, tokenizer, on_bad=config.on_bad)
