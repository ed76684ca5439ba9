"""What was said: a recogniser that gives every frame a symbol or none, and is trained by CTC."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_outputs import CausalLMOutput

from resbackbones.core.backbone import Backbone, modes_kept
from resbackbones.core.context import lengths_of, valid_mask
from resbackbones.core.spec import BackboneSpec
from resbackbones.core.zoo import resolve
from resbackbones.data import InOrder
from resbackbones.errors import InputError
from resbackbones.pretrained import ResidualPreTrainedModel
from resbackbones.speech.decode import greedy
from resbackbones.speech.error_rates import ErrorRates
from resbackbones.speech.frontend import list_clips
from resbackbones.speech.hypotheses import Hypothesis
from resbackbones.speech.models import ResidualSpeechConfig, check_features, extractor_of
from resbackbones.speech.streaming import SpeechStream
from resbackbones.speech.vocabulary import CTCTokenizer, ResidualCTCProcessor, given_vocabulary

Search = Callable[[Tensor, Tensor], list[Hypothesis]]
FRAMES = 20_000  # heard at a time, padding included
IGNORED = -100  # a label that is none, as everywhere in transformers
CERTAIN = 1e4  # by which the blank's logit is above the others' where there is no sound
FEW = 50  # batches after which no net need have learned to write
NO_CHARACTER = -1  # in `references`, behind a text's end


class OnlyBlanks(UserWarning):
    """A recogniser writes nothing half-way through its training."""


class ResidualCTCConfig(ResidualSpeechConfig):
    """Configuration of the recognisers.

    Attributes:
        vocab_size: symbols, the blank among them.
        inputs_to_logits_ratio: samples of a waveform per frame of the logits, as transformers'
            pipeline asks for it.
        search: what a `BeamSearch` with the language model that was chosen for it is best given:
            `lm_unit`, `lm_weight` and `length_bonus`; None where nobody chose one.
    """

    model_type = "residual_ctc"

    vocab_size: int = 1
    pad_token_id: int | None = 0  # the blank
    inputs_to_logits_ratio: int = 1
    search: dict[str, Any] | None = None


class FrameClassifier(nn.Module):
    """Logits `(B, T, vocab_size)` in float32 of a feature `(B, channels, T)`.

    Attributes:
        linear: from a frame's channels to its logits.
    """

    pooling = "none"

    def __init__(self, channels: int, vocab_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, vocab_size)

    def forward(self, feature: Tensor) -> Tensor:
        return self.linear(feature.transpose(1, 2)).float()

    def reset_parameters(self) -> None:
        """Draw anew what tells symbols apart."""
        self.linear.reset_parameters()


class ResidualForCTC(ResidualPreTrainedModel):
    """A residual recogniser of speech: of each frame the symbol that it ends with, or the blank
    (connectionist temporal classification, Graves et al. 2006).

    Attributes:
        progress: how much of the training is done, from 0 to 1, as `fit` sets it.
        search: how texts are found in logits: by the likeliest symbol of every frame, or a
            `decode.BeamSearch(model.symbols, …)`; of its use, not of the model: not saved.
        beside: other searches, by name, whose errors `metric()` counts too.

    >>> model = ResidualForCTC.build("mel_resnet_ctc18", vocabulary=list("abc "))
    >>> batch = model.processor([torch.zeros(16000), torch.zeros(9000)], return_tensors="pt")
    >>> tuple(model(**batch).logits.shape)
    (2, 26, 5)
    """

    config_class = ResidualCTCConfig
    main_input_name = "input_features"
    processor_class = ResidualCTCProcessor
    processor_file = "processor_config.json"

    config: ResidualCTCConfig
    head: FrameClassifier

    def __init__(self, config: ResidualCTCConfig) -> None:
        super().__init__(config)
        self.progress = 1.0
        self.search: Search = greedy
        self.beside: dict[str, Search] = {}
        self._seen, self._was_half = 0, True  # batches of the first half of a training
        _check_rank(config.backbone_spec)
        self.backbone = Backbone(config.backbone_spec)
        self.head = FrameClassifier(self.backbone.channels[-1], config.vocab_size)
        self.post_init()

    @classmethod
    def build(
        cls,
        name_or_spec: str | BackboneSpec,
        *,
        vocabulary: CTCTokenizer | Sequence[str] | None = None,
        processor: ResidualCTCProcessor | None = None,
        **spec_changes: Any,
    ) -> Self:
        """Make an untrained recogniser.

        Args:
            name_or_spec: a name in `rb.SPECS`, or a spec of one dimension.
            vocabulary: from `learn_vocabulary`, or the symbols themselves, as `given_vocabulary`
                takes them; it then hears log-mel energies at 16 kHz.
            processor: how it hears and what it writes with, instead.
            spec_changes: fields of the spec to replace, as `dropout=0.1`.

        Raises:
            InputError: no vocabulary, or two; an unknown name or field; a spec of two dimensions;
                or a processor of another number of features.
        """
        spec = resolve(name_or_spec, **spec_changes)
        _check_rank(spec)
        if (vocabulary is None) == (processor is None):
            raise InputError(
                "a recogniser writes with one vocabulary; give vocabulary=, as learn_vocabulary("
                "transcripts) makes it, or processor="
            )
        if processor is None:
            assert vocabulary is not None
            if not isinstance(vocabulary, CTCTokenizer):
                vocabulary = given_vocabulary(vocabulary)
            processor = ResidualCTCProcessor(extractor_of(spec), vocabulary)
        model = cls(ResidualCTCConfig(spec=spec.to_dict(), vocab_size=len(processor.tokenizer)))
        model.check_processor(processor)
        hop = processor.feature_extractor.front_end.hop
        model.config.inputs_to_logits_ratio = model.backbone.strides[-1][0] * hop
        model.processor = processor
        return model

    def check_processor(self, processor: ResidualCTCProcessor) -> None:
        check_features(self.backbone.spec, processor.feature_extractor)
        if len(processor.tokenizer) != self.config.vocab_size:
            raise InputError(
                f"the processor writes with {len(processor.tokenizer)} symbols, but the model was "
                f"built for {self.config.vocab_size}; use the processor that it was trained with"
            )

    def forward(
        self,
        input_features: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        references: Tensor | None = None,
    ) -> CausalLMOutput:
        """Recognise speech.

        Args:
            input_features: `(B, F, T)`, as the processor makes them.
            attention_mask: `(B, T)`, 1 where a frame is real; None means everywhere.
            labels: symbols of what was said, int64 `(B, L)`, padded with -100.
            references: the texts that were said, as code points `(B, M)`, for `metric()` alone.

        Returns:
            `.logits` float32 `(B, T', V)`, of which the first is the blank's: past a recording's
            end it is all but certain. `.loss` when labels are given, as `loss` says.

        Warns:
            OnlyBlanks: half-way through a training, and after 50 batches of it, every frame of a
                batch is the blank.
        """
        lengths = lengths_of(attention_mask)
        (feature,) = self.backbone(input_features, lengths, stages=(-1,))
        logits = self.head(feature)
        if lengths is not None:
            lengths = self.output_lengths(lengths)
            past = ~valid_mask(lengths, logits.shape[1]).unsqueeze(2)
            blank = torch.arange(logits.shape[2], device=logits.device) == 0
            logits = torch.where(past, torch.where(blank, 0.0, -CERTAIN), logits)
        loss = None if labels is None else self.loss(logits, labels, lengths)
        if self.training:
            self._look(logits)
        return CausalLMOutput(loss=loss, logits=logits)

    def loss(self, logits: Tensor, labels: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The surprise at what was said, over all alignments, in nats, computed in float32: a mean
        over symbols and ends of recordings, as `weight` counts them.

        It is infinite where a recording has fewer frames than symbols, and one for the blank
        between two of a kind: leave such recordings out (`TranscriptItems` names them).

        Args:
            logits: `(B, T, V)`.
            labels: int64 `(B, L)`, padded with -100.
            lengths: real frames of each, `(B,)`; None means T.
        """
        with torch.autocast(logits.device.type, enabled=False):
            log_probs = logits.float().log_softmax(-1)
            if lengths is None:
                lengths = torch.full((len(logits),), logits.shape[1])
            real = labels != IGNORED
            total = functional.ctc_loss(
                log_probs.transpose(0, 1),
                labels[real],
                lengths.to(logits.device, torch.int64),
                real.sum(1),
                reduction="sum",
            )
        return total / (real.sum() + len(labels))

    def _look(self, logits: Tensor) -> None:
        """Half-way through a training, once, see whether anything is written."""
        half = self.progress >= 0.5
        if half and not self._was_half and self._seen >= FEW and not logits.argmax(-1).any():
            warnings.warn(
                "half-way through its training the recogniser writes nothing, as all do at first: "
                "train longer (--epochs, --least-steps), with another learning rate, or see "
                "whether the transcripts are those of the recordings",
                OnlyBlanks,
                stacklevel=3,
            )
        self._seen = 0 if half else self._seen + 1
        self._was_half = half

    def weight(self, batch: Mapping[str, Any]) -> Tensor:
        """What the loss is a mean over: symbols, and one end per recording."""
        return _symbols_and_ends(batch)

    def metric(self) -> ErrorRates:
        """What this model is evaluated by: errors of characters and words in what `search` finds,
        and in what those `beside` it do."""
        read = partial(_said_and_written, self._tokenizer())
        others = {name: ErrorRates(partial(read, search)) for name, search in self.beside.items()}
        return ErrorRates(partial(read, self.search), _symbols_and_ends, others)

    def output_lengths(self, lengths: Tensor | Sequence[int]) -> Tensor:
        """Frames of the logits of items of so many frames, int64 `(B,)`."""
        return self.backbone.output_lengths(lengths)[-1]

    def transcribe(
        self,
        clips: Any,
        sampling_rate: int | None = None,
        frames: int = FRAMES,
        search: Search | None = None,
    ) -> list[str]:
        """The texts of clips of any lengths, each heard whole.

        Args:
            clips: one or several, as the feature extractor takes them.
            sampling_rate: of the clips; another than the processor's is refused.
            frames: computed at a time at most, padding included; a longer clip is alone.
            search: how texts are found in logits, instead of the model's own way.

        Raises:
            InputError: no processor, or what it refuses.
        """
        tokenizer = self._tokenizer()
        hear = self.processor.feature_extractor
        waveforms = list_clips(clips)
        lengths = hear.front_end.frames(torch.tensor([len(waveform) for waveform in waveforms]))
        texts = [""] * len(waveforms)
        with modes_kept(self), torch.no_grad():
            self.eval()
            for rows in InOrder(len(waveforms), len(waveforms), lengths, frames)():
                heard = [waveforms[row] for row in rows]
                batch = hear(heard, sampling_rate, return_tensors="pt", device=self.device)
                found = _texts(tokenizer, self(**batch).logits, search or self.search)
                for row, text in zip(rows, found, strict=True):
                    texts[row] = text
        return texts

    def stream(self) -> SpeechStream:
        """Begin to hear a recording piece by piece, as it is spoken.

        Raises:
            InputError: no processor; a net that reads ahead, or something that looks at the whole
                recording, by name; or the model is in training mode.
        """
        self._tokenizer()
        return SpeechStream(self.processor.feature_extractor, self.backbone, self.head)

    @property
    def symbols(self) -> tuple[str, ...]:
        """What its logits are of, the blank first."""
        return self._tokenizer().symbols

    def _tokenizer(self) -> CTCTokenizer:
        if self.processor is None:
            raise InputError("the model has no processor; set model.processor to its own")
        return self.processor.tokenizer


def _check_rank(spec: BackboneSpec) -> None:
    if spec.dims != 1:
        raise InputError(
            "a recogniser needs a spec with dims=1, but this one has dims=2; build with dims=1 and "
            "in_channels=80"
        )


def _symbols_and_ends(batch: Mapping[str, Any]) -> Tensor:
    labels = batch["labels"]
    return (labels != IGNORED).sum() + len(labels)


def _texts(tokenizer: CTCTokenizer, logits: Tensor, search: Search) -> list[str]:
    """What a search finds in logits, which are the blank's where a recording has ended."""
    lengths, symbols = torch.full((len(logits),), logits.shape[1]), tokenizer.symbols
    return [found.text(symbols) for found in search(logits, lengths)]


def _said_and_written(
    tokenizer: CTCTokenizer, search: Search, output: Any, batch: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """What was said, by `references` where there are some, else by the labels; and what a search
    finds."""
    labels = batch["labels"]
    if (references := batch.get("references")) is not None:
        said = ["".join(chr(c) for c in row if c != NO_CHARACTER) for row in references.tolist()]
    else:
        # A blank behind every symbol keeps two of a kind apart.
        rows = [[each for n in row if n != IGNORED for each in (n, 0)] for row in labels.tolist()]
        said = [tokenizer.written(row) for row in rows]
    return list(zip(said, _texts(tokenizer, output.logits, search), strict=True))
