"""Text models: an embedding of tokens, a 1-D backbone over it, and what makes an answer of its
features. Texts of different lengths can share a batch: what is padded changes nothing."""

import dataclasses
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, BatchEncoding, PreTrainedTokenizerFast
from transformers.modeling_outputs import SequenceClassifierOutput

from resbackbones.classifier import ResidualClassifier, check_top_k, classifier_options
from resbackbones.core.backbone import modes_kept
from resbackbones.core.context import lengths_of
from resbackbones.core.heads import Head
from resbackbones.core.pieces import Approximate, Pieces
from resbackbones.core.spec import BackboneSpec
from resbackbones.errors import InputError
from resbackbones.pretrained import ResidualConfig
from resbackbones.text.tokenizer import NgramTokenizer, TextTokenizer, cuts

Text = str | tuple[str, str]  # one text, or a pair of them


@dataclass(frozen=True)
class Embedding:
    """How tokens become vectors; their width is the backbone's `in_channels`.

    Attributes:
        dropout: on each number of the vectors, in training.
        word_dropout: whole tokens left out, in training (Iyyer et al. 2015, section 3.1).
        adversarial: length of the adversarial step in training, in lengths of the text's average
            vector (Miyato et al. 2017, section 3): the loss is the mean of a text's own and of its
            loss that far up the slope. The less sure the net is of a text, the shorter its step,
            as training would not start otherwise.

    Raises:
        InputError: a dropout outside 0 to 1, or a step below 0.
    """

    dropout: float = 0.0
    word_dropout: float = 0.0
    adversarial: float = 0.0

    def __post_init__(self) -> None:
        for name in ("dropout", "word_dropout"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise InputError(f"Embedding has {name}={value!r}; use a share from 0 to below 1")
        if not 0 <= self.adversarial < math.inf:
            raise InputError(
                f"Embedding has adversarial={self.adversarial!r}; use a number from 0 up, as 0.4"
            )


class ResidualTextConfig(ResidualConfig):
    """Configuration of the text models.

    Attributes:
        vocab_size: tokens the tokenizer knows.
        pad_token_id: the token of the padding, whose vector is 0.
        bos_token_id, eos_token_id: the tokens that begin and end a text; None where none does.
        ngram_buckets: numbers its character n-grams have; 0 where it gives none.
        tfidf: the share of the tokenizer's TF-IDF classifier in the logits, 0 to 1; the rest is the
            net's.
        tie_word_embeddings: whether a language model compares what comes next with the vectors of
            its embedding.
        kneser_ney: how many grams of one token, of two, … a language model's counted n-grams have;
            None where it has none.
        embedding: fields of `Embedding`.
    """

    model_type = "residual_text"

    vocab_size: int = 0
    pad_token_id: int = 0
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    ngram_buckets: int = 0
    tfidf: float = 0.0
    tie_word_embeddings: bool = False
    kneser_ney: list[int] | None = None
    embedding: dict[str, Any] | None = None


class TokenEmbedding(nn.Module):
    """Vectors `(B, channels, T)` of tokens, each the sum of the token's own vector and the mean of
    its n-grams' (where there are n-grams)."""

    def __init__(self, config: ResidualTextConfig, channels: int) -> None:
        super().__init__()
        self.options = options = Embedding(**(config.embedding or {}))
        self.tokens = nn.Embedding(config.vocab_size, channels, padding_idx=config.pad_token_id)
        self.ngrams: nn.EmbeddingBag | None = None
        if config.ngram_buckets:
            self.ngrams = nn.EmbeddingBag(
                config.ngram_buckets + 1, channels, mode="mean", padding_idx=0
            )
        self.dropout = nn.Dropout(options.dropout)
        self.word_dropout = nn.Dropout1d(options.word_dropout)
        self.reset_parameters()

    def forward(self, input_ids: Tensor, ngram_ids: Tensor | None = None) -> Tensor:
        """Look up a batch: `input_ids` `(B, T)`, `ngram_ids` `(B, T, N)` or None."""
        try:
            x = self.tokens(input_ids)
        except IndexError as error:  # on a GPU it is a failed assertion, too late to tell apart
            raise InputError(
                f"input_ids run from {int(input_ids.min())} to {int(input_ids.max())}, but the "
                f"embedding has {self.tokens.num_embeddings} tokens; use the tokenizer the model "
                "was built with (model.processor)"
            ) from error
        if self.ngrams is not None:
            if ngram_ids is None:
                raise InputError(
                    "this model needs ngram_ids beside input_ids; take both from its own tokenizer "
                    "(model.processor)"
                )
            x = x + self.ngrams(ngram_ids.flatten(0, 1)).view_as(x)
        # Dropout1d drops slices of the last axis: here, the vector of a token.
        return self.dropout(self.word_dropout(x)).transpose(1, 2)

    def reset_parameters(self) -> None:
        """Start near 0 (N(0, 0.02), as is usual for tokens): a rare token then says little, rather
        than something at random."""
        for table in (self.tokens, self.ngrams):
            if table is not None:
                nn.init.normal_(table.weight, std=0.02)
                if table.padding_idx is not None:
                    with torch.no_grad():
                        table.weight[table.padding_idx].zero_()


class ResidualForSequenceClassification(ResidualClassifier):
    """A residual text classifier over characters, bytes, words or byte-pair pieces.

    >>> from resbackbones.text import train_tokenizer
    >>> tokenizer = train_tokenizer(["who is it", "what is it"], "word")
    >>> model = ResidualForSequenceClassification.build(
    ...     "dpcnn", labels=["person", "thing"], processor=tokenizer
    ... )
    >>> batch = tokenizer(["who", "what is it"], padding=True, return_tensors="pt")
    >>> tuple(model(**batch).logits.shape)
    (2, 2)
    """

    config_class = ResidualTextConfig
    config: ResidualTextConfig
    main_input_name = "input_ids"
    processor_class = AutoTokenizer
    processor_file = "tokenizer_config.json"

    def __init__(self, config: ResidualTextConfig) -> None:
        super().__init__(config)
        spec = self.backbone.spec
        if spec.dims != 1:
            raise InputError(
                "a text classifier needs a spec with dims=1, but this one has dims=2; add dims=1 "
                "and in_channels=, the width of the embedding"
            )
        self.embedding = TokenEmbedding(config, spec.in_channels)
        self.post_init()

    @classmethod
    def build(
        cls,
        name_or_spec: str | BackboneSpec,
        *,
        processor: PreTrainedTokenizerFast,
        num_labels: int | None = None,
        labels: Sequence[str] | None = None,
        head: Head | Mapping[str, Any] | None = None,
        problem_type: str | None = None,
        embedding: Embedding | None = None,
        **spec_changes: Any,
    ) -> Self:
        """Make an untrained classifier.

        Args:
            name_or_spec: a name in `rb.SPECS`, or a spec. Its `in_channels` is the width of the
                embedding.
            processor: the tokenizer, as `train_tokenizer` makes it, or another fast tokenizer of
                transformers that pads on the right. Its TF-IDF classifier, where it has one, has
                half a share in the answers until `choose_share` finds another.
            num_labels, labels: how many classes, or their names.
            head: `Head` or its fields.
            problem_type: "multi_label_classification" where an item has any number of classes.
            embedding: dropout of the embedding; none by default.
            spec_changes: fields of the spec to replace, as `in_channels=128`.

        Raises:
            InputError: no or contradicting classes, an unknown name or field, dims other than 1, a
                tokenizer without a padding token, one that pads on the left, one that gives what
                this model does not read, or one whose TF-IDF classifier tells other classes.
        """
        options = classifier_options(
            name_or_spec, num_labels, labels, head, spec_changes, problem_type
        )
        config = ResidualTextConfig(
            **options,
            **_sizes(processor),
            tfidf=0.5 if _classes_of_tfidf(processor) else 0.0,
            embedding=dataclasses.asdict(embedding or Embedding()),
        )
        model = cls(config)
        model.check_processor(processor)
        model.processor = processor
        return model

    def check_processor(self, processor: PreTrainedTokenizerFast) -> None:
        for name, made in _sizes(processor).items():
            taken = getattr(self.config, name)
            if made != taken:
                raise InputError(
                    f"the tokenizer has {name}={made}, but the model was built for {taken}; use "
                    "the tokenizer that it was trained with"
                )
        told, classes = _classes_of_tfidf(processor), self.config.num_labels
        if self.config.tfidf and told != classes:
            raise InputError(
                f"the tokenizer's TF-IDF classifier tells {told} classes, but the model has "
                f"{classes}; set processor.tfidf to one of the same, or load the model with tfidf=0"
            )

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        ngram_ids: Tensor | None = None,
        tfidf_logits: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Classify texts.

        Args:
            input_ids: `(B, T)`, as the tokenizer makes them.
            attention_mask: `(B, T)`, 1 where a token is real, 0 in the padding behind; None means
                that all are real.
            ngram_ids: `(B, T, N)`, where the tokenizer gives them.
            tfidf_logits: `(B, K)`, where the tokenizer gives them. In evaluation they have their
                share, `config.tfidf`, in the logits; the net is trained by itself.
            labels: int64 `(B,)`, or shares of the classes, float `(B, K)`; as `loss` takes them.

        Returns:
            `.logits` `(B, K)`, and `.loss` when labels are given.

        Raises:
            InputError: ids the embedding does not have, or no `ngram_ids` or `tfidf_logits` where
                they are needed.
        """
        lengths = lengths_of(attention_mask)
        x = self.embedding(input_ids, ngram_ids)
        logits = self.classify(x, lengths)
        loss = self.loss(logits, labels)
        adversarial = self.training and self.embedding.options.adversarial
        if adversarial and loss is not None and x.requires_grad:
            step = self.adversarial_step(x, lengths, logits, loss)
            harder = self.loss(self.classify(x + step, lengths), labels)
            assert harder is not None  # as there are labels
            loss = (loss + harder) / 2
        logits = self._shared(logits, tfidf_logits)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def adversarial_step(
        self, x: Tensor, lengths: Tensor | None, logits: Tensor, loss: Tensor
    ) -> Tensor:
        """Each text's step up the slope of the loss, `(B, C, T)`, as long as
        `Embedding.adversarial` says, times how sure the net is of the text.

        Args:
            x: vectors of the tokens, `(B, C, T)`, with a gradient.
            lengths: tokens of each text, `(B,)`; None means T.
            logits, loss: what the net makes of them.
        """
        (slope,) = torch.autograd.grad(loss, x, retain_graph=True)
        with torch.no_grad():
            sure = 1 - self.doubt(logits.float())
            root = x.shape[-1] ** 0.5 if lengths is None else lengths.clamp(min=1).sqrt()
            vector = x.flatten(1).norm(dim=1) / root
            far = self.embedding.options.adversarial * sure * vector
            steep = slope.flatten(1).norm(dim=1).clamp(min=torch.finfo(slope.dtype).tiny)
            return slope * (far / steep)[:, None, None]

    def _shared(self, logits: Tensor, tfidf_logits: Tensor | None) -> Tensor:
        """The net's logits with the TF-IDF classifier's share in them, in evaluation."""
        if not self.config.tfidf or self.training:
            return logits
        if tfidf_logits is None:
            raise InputError(
                "this model needs tfidf_logits beside input_ids; take both from its own "
                "tokenizer (model.processor)"
            )
        return torch.lerp(logits, tfidf_logits.to(logits), self.config.tfidf)

    def predict(
        self,
        texts: Text | Sequence[Text],
        *,
        top_k: int | None = 5,
        batch_size: int = 32,
        chunk: int | None = None,
        overlap: int | None = None,
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        """The likeliest classes of texts, in evaluation mode, on the model's device.

        Args:
            texts: one, or a list of them; a pair of texts is a tuple.
            top_k: how many classes; None for all.
            batch_size: texts per step, at most.
            chunk: tokens that a piece of a text has, rounded up to a multiple of the net's stride.
                Texts are then read to their end, never cut at the tokenizer's `model_max_length`,
                one by one and piece by piece: beside a text's tokens, memory holds what the net
                makes of one piece. None takes a text at once, as far as the tokenizer reads it.
            overlap: tokens that pieces read beyond their own on each side. None takes as many as
                the net reaches, and so gives what the whole text gives; that needs a net which
                looks at no whole text.

        Returns:
            For each text `[{"label", "score"}, …]`, the highest score first, as a transformers
            pipeline gives it; of one text that list alone. Scores are probabilities, which sum to 1
            over all classes unless a text may have any number of them.

        Raises:
            InputError: what is no text, or has no token; no such number of classes, texts or
                tokens; an overlap without `chunk`, or `chunk` without one where the net has no
                finite reach; a model without a tokenizer.

        Warns:
            Approximate: the overlap is smaller than the reach, so that scores differ from those of
                whole texts.

        >>> from resbackbones.text import train_tokenizer
        >>> tokenizer = train_tokenizer(["who is it", "what is it"], "word", max_length=4)
        >>> model = ResidualForSequenceClassification.build(
        ...     "word_resnet6", labels=["person", "thing"], processor=tokenizer
        ... )
        >>> whole = model.predict("who is it and " * 1000, chunk=500)
        >>> sorted(answer["label"] for answer in whole)
        ['person', 'thing']
        """
        check_top_k(top_k)
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size} holds no text; give 1 or more")
        if self.processor is None:
            raise InputError("the model has no tokenizer; set model.processor to its own")
        pieces = self._pieces(chunk, overlap)
        given = _listed(texts)
        with modes_kept(self), torch.no_grad():
            self.eval()
            if pieces is not None:
                logits = [self._in_pieces(text, pieces) for text in given]
            else:
                starts = range(0, len(given), batch_size)
                logits = [self._whole(given[start : start + batch_size]) for start in starts]
        if pieces is not None and not pieces.is_exact:
            warnings.warn(
                f"the scores of texts of more than {chunk} tokens are approximate: chunks overlap "
                f"by {overlap} tokens, which is less than the net reaches",
                Approximate,
                stacklevel=2,
            )
        answers = self.answers(torch.cat(logits), top_k)
        return answers[0] if isinstance(texts, str | tuple) else answers

    def _pieces(self, chunk: int | None, overlap: int | None) -> Pieces | None:
        """How `predict` cuts texts; None where it does not."""
        if chunk is None:
            if overlap is not None:
                raise InputError(
                    f"overlap={overlap!r} is that of chunks, and texts are not cut into any; give "
                    "chunk= too, or leave it out"
                )
            return None
        reach, stride = self.backbone.spec.reaches[-1], self.backbone.strides[-1]
        return Pieces(
            [reach],
            stride,
            chunk,
            overlap,
            name="chunk",
            unit="tokens",
            why="looks at the whole text (attention, group norm, or downsample='k_max')",
        )

    def _whole(self, texts: list[Text]) -> Tensor:
        """Logits `(B, K)` of texts that pass the net at once."""
        encoded = self._encoded(texts, padding=True, truncation=cuts(self.processor))
        return self(**encoded.convert_to_tensors("pt").to(self.device)).logits

    def _in_pieces(self, text: Text, pieces: Pieces) -> Tensor:
        """Logits `(1, K)` of a text that passes the net piece by piece."""
        encoded = self._encoded([text], truncation=False, verbose=False)
        rows = {n: encoded[n][0] for n in ("input_ids", "ngram_ids") if n in encoded}
        (stride,) = self.backbone.strides[-1]

        def features() -> Iterator[Tensor]:
            for (read,), (own,) in pieces.cut([len(rows["input_ids"])]):
                inputs = {n: torch.tensor([r[read]], device=self.device) for n, r in rows.items()}
                (feature,) = self.backbone(self.embedding(**inputs), stages=(-1,))
                first, end = own.start // stride, -(-own.stop // stride)
                skipped = read.start // stride
                yield feature[..., first - skipped : end - skipped]

        logits = self.head.logits(self.head.pool_pieces(features()))
        tfidf = encoded.get("tfidf_logits")
        return self._shared(logits, None if tfidf is None else torch.tensor(tfidf))

    def _encoded(self, texts: list[Text], **options: Any) -> BatchEncoding:
        """What the tokenizer makes of texts, as lists.

        Raises:
            InputError: a text without a token.
        """
        encoded = self.processor(texts, return_attention_mask=True, **options)
        for text, real in zip(texts, encoded["attention_mask"], strict=True):
            if not any(real):
                raise InputError(f"the text {text!r:.40} has no token to go by; leave it out")
        return encoded


def _listed(texts: Text | Sequence[Text]) -> list[Text]:
    """One text, or several, as a list.

    Raises:
        InputError: something else, or none.
    """
    if not isinstance(texts, Sequence):
        raise InputError(f"{texts!r:.40} is no text; give one, or a list of them")
    listed: list[Any] = [texts] if isinstance(texts, str | tuple) else list(texts)
    if not listed:
        raise InputError("there are no texts in the list; give one or more")
    for number, text in enumerate(listed, 1):
        parts = text if isinstance(text, tuple) and len(text) == 2 else (text,)
        if not all(isinstance(part, str) for part in parts):
            raise InputError(
                f"text {number} is {text!r:.40}, no text; give strings, or, of pairs, tuples of two"
            )
    return listed


def _classes_of_tfidf(tokenizer: PreTrainedTokenizerFast) -> int:
    """How many classes a tokenizer's TF-IDF classifier tells; 0 without one."""
    tfidf = tokenizer.tfidf if isinstance(tokenizer, TextTokenizer) else None
    return 0 if tfidf is None else tfidf.classes


def _sizes(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """What a model's configuration holds of its tokenizer.

    Raises:
        InputError: a tokenizer whose output the models do not read.
    """
    extra = set(tokenizer.model_input_names) - {"input_ids", "attention_mask", "ngram_ids"}
    if extra:
        raise InputError(
            f"the tokenizer gives {', '.join(sorted(extra))}, which a text classifier does not "
            "read; set its model_input_names to input_ids and attention_mask"
        )
    if tokenizer.pad_token_id is None or tokenizer.padding_side != "right":
        raise InputError(
            f"the tokenizer has pad_token={tokenizer.pad_token!r} and padding_side="
            f"{tokenizer.padding_side!r}; it needs a padding token, put on the right"
        )
    return {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "ngram_buckets": tokenizer.ngrams.buckets if isinstance(tokenizer, NgramTokenizer) else 0,
    }
