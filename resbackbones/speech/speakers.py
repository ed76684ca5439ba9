"""Who speaks: a model that makes of each recording a vector, near those of the same voice."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional
from transformers.modeling_outputs import XVectorOutput

from resbackbones.core.backbone import Backbone, modes_kept
from resbackbones.core.heads import Embedder, Head, margin_loss
from resbackbones.core.spec import BackboneSpec
from resbackbones.core.zoo import resolve
from resbackbones.data import InOrder
from resbackbones.errors import InputError, nearest
from resbackbones.metrics import items
from resbackbones.pretrained import ResidualPreTrainedModel, label_options
from resbackbones.speech.frontend import ResidualFeatureExtractor, list_clips
from resbackbones.speech.models import (
    ResidualSpeechConfig,
    by_frequency,
    check_features,
    check_one_channel,
    extractor_of,
    heard_by,
)
from resbackbones.speech.trials import Trials
from resbackbones.speech.verification import Verification, equal_error_rate, min_detection_cost

FRAMES = 20_000  # embedded at a time, padding included


class ResidualSpeakerConfig(ResidualSpeechConfig):
    """Configuration of the speaker models.

    Attributes:
        embedding_size: numbers in a vector.
        margin: by which the angle to the own speaker is widened in training, in radians.
        scale: of the cosines that are told apart in training.
        margin_rise: share of the training over which the margin rises from 0.
        threshold: the score from which on two voices are the same; None until it is calibrated.
        calibration: what for, on how many trials, with which result.
        enrolled: names of the voices that the model keeps.
    """

    model_type = "residual_speaker"

    embedding_size: int = 192
    margin: float = 0.2
    scale: float = 30.0
    margin_rise: float = 0.3
    threshold: float | None = None
    calibration: dict[str, Any] | None = None
    enrolled: list[str] | None = None


class ResidualForAudioXVector(ResidualPreTrainedModel):
    """A residual net that tells speakers by their voices, of recordings of any length.

    It is trained to tell the speakers of its training apart (additive angular margin, Deng et al.
    2019; Xiang et al. 2019), and then compares any voices by the cosine of their vectors.

    Attributes:
        progress: how much of the training is done, from 0 to 1: what the margin rises by. `fit`
            sets it; in any other loop the margin is full from the start, unless that sets it too.
        trials: pairs of rows of the data that the model is evaluated on. Not saved.
        cohort: what other voices are like, `(C, D)`, for error rates after AS-norm too
            (`adaptive_norm`); None leaves them out. Not saved.

    >>> model = ResidualForAudioXVector.build("tc_resnet8", num_labels=10)
    >>> clips = [torch.randn(16000), torch.randn(9000)]
    >>> tuple(model.embed(clips).shape)
    (2, 192)
    >>> model.enrol("ann", clips[0])
    >>> [(name, round(score, 4)) for name, score in model.identify(clips[0])]
    [('ann', 1.0)]

    Raises:
        InputError: a configuration of a margin, scale or size out of range.
    """

    config_class = ResidualSpeakerConfig
    main_input_name = "input_features"
    processor_class = ResidualFeatureExtractor
    processor_file = "preprocessor_config.json"
    of_classes = "head.directions"

    config: ResidualSpeakerConfig
    head: Embedder
    voices: Tensor | None  # of those enrolled, unit vectors (N, D)

    def __init__(self, config: ResidualSpeakerConfig) -> None:
        super().__init__(config)
        _check(config)
        self.progress = 1.0
        self.trials: Trials | None = None
        self.cohort: Tensor | None = None
        self.backbone = Backbone(config.backbone_spec)
        check_one_channel(self.backbone.spec)
        size, speakers = config.embedding_size, len(config.id2label or {})
        self.head = Embedder(self.backbone.channels[-1], size, speakers, config.head_options)
        names = config.enrolled or []
        self.register_buffer("voices", torch.zeros(len(names), size) if names else None)
        self.post_init()

    @classmethod
    def build(
        cls,
        name_or_spec: str | BackboneSpec,
        *,
        num_labels: int | None = None,
        labels: Sequence[str] | None = None,
        head: Head | Mapping[str, Any] | None = None,
        embedding_size: int = 192,
        margin: float = 0.2,
        scale: float = 30.0,
        margin_rise: float = 0.3,
        processor: ResidualFeatureExtractor | None = None,
        **spec_changes: Any,
    ) -> Self:
        """Make an untrained model.

        Args:
            name_or_spec: a name in `rb.SPECS`, or a spec.
            num_labels, labels: how many speakers it is trained on, or their names.
            head: `Head` or its fields; by default it pools "statistics", of a 2-D backbone those of
                each frequency (`rows`) of its last feature.
            embedding_size, margin, scale, margin_rise: as in `ResidualSpeakerConfig`.
            processor: how waveforms become features; by default log-mel energies at 16 kHz, as
                many bands as a 1-D backbone has input channels, 40 for a 2-D one.
            spec_changes: fields of the spec to replace, as `in_channels=64`.

        Raises:
            InputError: no or contradicting speakers, an unknown name or field, a number out of
                range, a 2-D spec of more than one channel, or a processor of another number of
                features.
        """
        spec = resolve(name_or_spec, **spec_changes)
        processor = processor or extractor_of(spec)
        if not isinstance(head, Head):
            head = by_frequency(
                {"pooling": "statistics", **(head or {})}, spec, processor.feature_size
            )
        config = ResidualSpeakerConfig(
            spec=spec.to_dict(),
            head=Head.of(head).to_dict(),
            embedding_size=embedding_size,
            margin=margin,
            scale=scale,
            margin_rise=margin_rise,
            **label_options(num_labels, labels),
        )
        model = cls(config)
        model.check_processor(processor)
        model.processor = processor
        return model

    def check_processor(self, processor: ResidualFeatureExtractor) -> None:
        """Refuse a processor of another number of features than a 1-D backbone has channels."""
        check_features(self.backbone.spec, processor)

    def forward(
        self,
        input_features: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> XVectorOutput:
        """Embed sounds.

        Args:
            input_features: `(B, F, T)`, as the processor makes them.
            attention_mask: `(B, T)`, 1 where a frame is real; None means everywhere.
            labels: speakers of the training, int64 `(B,)`; -100 for one that is none of them.
            rows: of the items in their data set, `(B,)`, for `metric()` alone.

        Returns:
            `.embeddings` `(B, D)`, of any length; `.logits` `(B, K)`, scaled cosines with the
            speakers of the training; and `.loss` when labels are given: in training that of
            cosines with the margin, in evaluation without.
        """
        x, lengths = heard_by(self.backbone, input_features, attention_mask)
        (feature,) = self.backbone(x, lengths, stages=(-1,))
        if lengths is not None:
            lengths = self.backbone.output_lengths(lengths)[-1]
        embeddings = self.head(feature, lengths)
        cosines = self.head.cosines(embeddings)
        loss = None
        if labels is not None:
            margin = self.margin if self.training else 0.0
            loss = margin_loss(cosines, labels, margin, self.config.scale)
        return XVectorOutput(loss=loss, logits=self.config.scale * cosines, embeddings=embeddings)

    @property
    def margin(self) -> float:
        """The margin at this point of the training, in radians."""
        rise = self.config.margin_rise
        return self.config.margin * (min(1.0, self.progress / rise) if rise else 1.0)

    def metric(self) -> Verification:
        """What this model is evaluated by: error rates on its `trials`.

        Raises:
            InputError: it has none.
        """
        if self.trials is None:
            raise InputError(
                "which recordings are to be compared is not said; set model.trials, to "
                "make_trials(speakers) or read_trials(path)"
            )
        return Verification(self.trials, self.cohort)

    def weight(self, batch: Mapping[str, Any]) -> int:
        """What the loss is a mean over: the batch's items."""
        return items(batch)

    # Voices

    def embed(self, clips: Any, sampling_rate: int | None = None, frames: int = FRAMES) -> Tensor:
        """Unit vectors `(N, D)`, float32 on the CPU, of clips of any lengths, each heard whole.

        Args:
            clips: one or several, as the processor takes them.
            sampling_rate: of the clips; another than the processor's is refused.
            frames: computed at a time at most, padding included; a longer clip is alone.

        Raises:
            InputError: no processor, or what it refuses.
        """
        if self.processor is None:
            raise InputError("the model has no processor; set model.processor to hear with")
        waveforms = list_clips(clips)
        lengths = torch.tensor([len(waveform) for waveform in waveforms])
        lengths = self.processor.front_end.frames(lengths)
        found = torch.empty(len(waveforms), self.config.embedding_size)
        with modes_kept(self), torch.no_grad():
            self.eval()
            for rows in InOrder(len(waveforms), len(waveforms), lengths, frames)():
                batch = self.processor(
                    [waveforms[row] for row in rows],
                    sampling_rate,
                    return_tensors="pt",
                    device=self.device,
                )
                found[rows] = functional.normalize(self(**batch).embeddings, dim=-1).cpu()
        return found

    def enrol(self, name: str, clips: Any, sampling_rate: int | None = None) -> None:
        """Keep a voice, the mean of the unit vectors of its clips, under a name; a voice of that
        name is replaced. Voices are saved with the model. A model that is trained further hears
        otherwise: enrol anew.

        Raises:
            InputError: as `embed`, or no name.
        """
        if not isinstance(name, str) or not name:
            raise InputError(f"{name!r} is no name to enrol a voice under; give a text")
        voice = self._voice(clips, sampling_rate).to(self.device).unsqueeze(0)
        names = list(self.config.enrolled or [])
        if name in names and self.voices is not None:
            self.voices[names.index(name)] = voice[0]
            return
        self.voices = voice if self.voices is None else torch.cat([self.voices, voice])
        self.config.enrolled = [*names, name]

    def score(self, one: Any, other: Any, sampling_rate: int | None = None) -> float:
        """How alike two voices are: the cosine of their vectors, from -1 to 1.

        Args:
            one, other: a clip, several clips of one voice, or the name of an enrolled one.

        Raises:
            InputError: as `embed`, or a name that is not enrolled.
        """
        voices = [self._voice(each, sampling_rate).double() for each in (one, other)]
        return float(voices[0] @ voices[1])

    def verify(self, one: Any, other: Any, sampling_rate: int | None = None) -> tuple[bool, float]:
        """Whether two voices are the same, and their `score`.

        Raises:
            InputError: as `score`, or a model that is not calibrated.
        """
        if self.config.threshold is None:
            raise InputError(
                "the model does not know from which score on voices are the same; calibrate it on "
                "trials of your own, model.calibrate(scores, same), or ask for model.score(a, b)"
            )
        score = self.score(one, other, sampling_rate)
        return score >= self.config.threshold, score

    def identify(self, clips: Any, sampling_rate: int | None = None) -> list[tuple[str, float]]:
        """The enrolled voices and their scores with this one, the likeliest first.

        Raises:
            InputError: as `embed`, or nobody is enrolled.
        """
        if self.voices is None:
            raise InputError("nobody is enrolled; enrol voices first, model.enrol(name, clips)")
        scores = self.voices.double().cpu() @ self._voice(clips, sampling_rate).double()
        named = zip(self.config.enrolled or [], scores.tolist(), strict=True)
        return sorted(named, key=lambda each: -each[1])

    def calibrate(self, scores: Any, same: Any, prior: float | None = None) -> float:
        """Set the threshold by trials like those to come, and return it; the configuration keeps
        what it was chosen for.

        Args:
            scores: `(M,)`, as `score` gives them.
            same: bool `(M,)`, whether each is of one speaker.
            prior: None for as many misses as false alarms; else how likely a trial is of the same
                speaker, for the least cost of errors (minDCF).

        Raises:
            InputError: scores that are none, or trials of one kind only.
        """
        if prior is None:
            (value, threshold), aim = equal_error_rate(scores, same), "equal error rate"
        else:
            (value, threshold), aim = min_detection_cost(scores, same, prior), f"minDCF {prior:g}"
        of_same = int(torch.as_tensor(same).sum())
        self.config.threshold = threshold
        self.config.calibration = {
            "for": aim,
            "value": value,
            "trials": len(torch.as_tensor(same)),
            "of the same speaker": of_same,
        }
        return threshold

    def _voice(self, given: Any, sampling_rate: int | None) -> Tensor:
        """A unit vector `(D,)` on the CPU."""
        if isinstance(given, str):
            names = self.config.enrolled or []
            if given not in names or self.voices is None:
                known = nearest(given, names) if names else "enrol it first"
                raise InputError(f"no voice is enrolled as {given!r}; {known}")
            return self.voices[names.index(given)].cpu()
        return functional.normalize(self.embed(given, sampling_rate).mean(0), dim=0)


def _check(config: ResidualSpeakerConfig) -> None:
    for name, low, high in (
        ("embedding_size", 1, math.inf),
        ("margin", 0, math.pi / 2),
        ("scale", 1e-6, math.inf),
        ("margin_rise", 0, 1),
    ):
        value = getattr(config, name)
        if not isinstance(value, int | float) or not low <= value <= high or value == math.inf:
            until = "up" if high == math.inf else f"to {high:.4g}"
            raise InputError(
                f"{name}={value!r} is out of range; give a number from {low:g} {until}"
            )
