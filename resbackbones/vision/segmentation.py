"""A class for every pixel: a 2-D backbone, a decoder and a linear map per position."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_outputs import SemanticSegmenterOutput

from resbackbones.classifier import classifier_options
from resbackbones.core.backbone import Backbone, modes_kept
from resbackbones.core.dilating import with_output_stride
from resbackbones.core.spec import BackboneSpec
from resbackbones.core.zoo import resolve
from resbackbones.errors import InputError
from resbackbones.pretrained import ResidualPreTrainedModel
from resbackbones.vision.decoders import (
    Decoder,
    decoder_of,
    decoder_to_dict,
    enlarged,
)
from resbackbones.vision.images import one_value_refusal, read_image
from resbackbones.vision.metrics import PixelConfusion, real_pixels
from resbackbones.vision.models import ResidualVisionConfig
from resbackbones.vision.processor import ResidualImageProcessor, at_size, check_channels
from resbackbones.vision.tiles import Tiles, reach_of


class ResidualSegmentationConfig(ResidualVisionConfig):
    """Configuration of the segmentation model.

    Attributes:
        decoder: `decoder_to_dict(decoder)`.
        ignore_index: the label of pixels that have no class: no part of loss and metric.
    """

    model_type = "residual_segmentation"

    decoder: dict[str, Any] | None = None
    ignore_index: int = 255


class ResidualForSemanticSegmentation(ResidualPreTrainedModel):
    """Gives every pixel of an image a class, for images of any size and number of channels.

    Attributes:
        label_smoothing: share of every label spread over all classes in training (Szegedy 2016,
            section 7).
        class_weights: what a pixel of each class counts in the training loss, float `(K,)`, as
            `classifier.class_weights` makes them; None counts all alike. These two are part of the
            training, not of the model: not saved, and without effect in evaluation.

    >>> model = ResidualForSemanticSegmentation.build("resnet20", num_labels=4, decoder="unet")
    >>> tuple(model(pixel_values=torch.zeros(2, 3, 33, 50)).logits.shape)
    (2, 4, 33, 50)
    """

    config_class = ResidualSegmentationConfig
    main_input_name = "pixel_values"
    processor_class = ResidualImageProcessor
    processor_file = "preprocessor_config.json"

    label_smoothing = 0.0
    class_weights: Tensor | None = None
    config: ResidualSegmentationConfig

    def __init__(self, config: ResidualSegmentationConfig) -> None:
        super().__init__(config)
        self.backbone = Backbone(config.backbone_spec)
        spec = self.backbone.spec
        if spec.dims != 2:
            raise InputError(
                "segmentation needs a spec with dims=2, but this one has dims=1; add dims=2"
            )
        strides: list[Any] = list(self.backbone.strides)
        self._options = decoder_of(config.decoder or "deeplabv3plus")
        self.decoder = self._options.module(spec, self.backbone.channels, strides)
        self.decoder.reset_parameters()
        self.head = nn.Conv2d(self.decoder.channels, len(config.id2label or {}), 1)
        self.post_init()

    @classmethod
    def build(
        cls,
        name_or_spec: str | BackboneSpec,
        *,
        num_labels: int | None = None,
        labels: Sequence[str] | None = None,
        decoder: str | Decoder = "deeplabv3plus",
        output_stride: int | None = None,
        ignore_index: int = 255,
        processor: ResidualImageProcessor | None = None,
        **spec_changes: Any,
    ) -> Self:
        """Make an untrained model.

        Args:
            name_or_spec: a name in `rb.SPECS`, or a spec, with dims=2.
            num_labels, labels: how many classes, or their names.
            decoder: "deeplabv3plus", "fpn", "unet", or one with its fields, as
                `DeepLabV3Plus(channels=128)`.
            output_stride: of the last feature: strides beyond it become dilations. None leaves the
                net as it is, but for 16 under DeepLabV3+.
            ignore_index: the label of pixels that have no class.
            processor: how images become pixels; by default they keep their size and go from
                0 … 255 to -1 … 1 in as many channels as the spec takes.
            spec_changes: fields of the spec to replace, as `in_channels=1`.

        Raises:
            InputError: no or contradicting classes, an unknown name or field, dims other than 2, an
                output stride the net cannot have, an `ignore_index` that is a class, a processor
                that does not fit.
        """
        spec, decoder = resolve(name_or_spec, **spec_changes), decoder_of(decoder)
        options = classifier_options(spec, num_labels, labels, None, {})
        del options["head"]
        if not isinstance(ignore_index, int) or 0 <= ignore_index < len(options["id2label"]):
            raise InputError(
                f"ignore_index={ignore_index!r} is the number of a class, or none; give a whole "
                f"number outside 0 to {len(options['id2label']) - 1}, as 255"
            )
        config = ResidualSegmentationConfig(
            **options | {"spec": _with_stride(spec, decoder, output_stride).to_dict()},
            decoder=decoder_to_dict(decoder),
            ignore_index=ignore_index,
        )
        model = cls(config)
        model.processor = processor or ResidualImageProcessor(num_channels=spec.in_channels)
        model.check_processor(model.processor)
        return model

    def check_processor(self, processor: Any) -> None:
        check_channels(processor, self.backbone.spec.in_channels)
        if processor.do_center_crop:
            raise InputError(
                "the processor cuts images, so that pixels at their rim would have no class; leave "
                "crop_size out"
            )

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None
    ) -> SemanticSegmenterOutput:
        """Give every pixel a class.

        Args:
            pixel_values: `(B, C, H, W)`, as the processor makes them.
            labels: int64 `(B, H', W')`, `config.ignore_index` where a pixel has no class; where the
                size is another than the pixels', the logits are brought to it for the loss.

        Returns:
            `.logits` `(B, K, H, W)`, and `.loss` when labels are given.

        Raises:
            InputError: labels of another shape, or that are no classes; a batch too small for a
                batch norm to be trained on.
        """
        size = pixel_values.shape[2:]
        try:
            logits = self.head(self.decoder(self.backbone(pixel_values), size))
        except ValueError as error:
            if (refusal := one_value_refusal(error, pixel_values)) is None:
                raise
            raise refusal from error
        logits = enlarged(logits.float(), self.decoder.stride, size)
        return SemanticSegmenterOutput(loss=self.loss(logits, labels), logits=logits)

    def loss(self, logits: Tensor, labels: Tensor | None) -> Tensor | None:
        """Mean cross-entropy over the pixels that have a class, 0 where none has one; None without
        labels. Class weights multiply each pixel's, and the mean stays one over pixels: so it is
        the same however a batch is split."""
        if labels is None:
            return None
        classes, ignored = logits.shape[1], self.config.ignore_index
        self._check_labels(logits, labels)
        logits = at_size(logits, labels.shape[-2:])
        weights, smoothing = None, 0.0
        if self.training:
            smoothing = self.label_smoothing
            if self.class_weights is not None:
                weights = self.class_weights = self.class_weights.to(logits.device)
                if weights.shape != (classes,):
                    raise InputError(
                        f"class_weights has shape {tuple(weights.shape)} for {classes} classes; "
                        "give one number per class"
                    )
        total = functional.cross_entropy(
            logits, labels, weights, None, ignored, None, "sum", smoothing
        )
        return total / (labels != ignored).sum().clamp(min=1)

    def _check_labels(self, logits: Tensor, labels: Tensor) -> None:
        batch, classes = logits.shape[:2]
        if labels.ndim != 3 or labels.shape[0] != batch or labels.dtype != torch.int64:
            raise InputError(
                f"labels are {labels.dtype} of shape {tuple(labels.shape)}, but {batch} image(s) "
                f"need one class per pixel: int64 of shape ({batch}, H, W)"
            )
        # A GPU is not waited for, and a graph that is being captured cannot look at values.
        if labels.device.type == "cpu" and not torch.compiler.is_compiling():
            real = labels.where(labels != self.config.ignore_index, 0)
            if labels.numel() and not 0 <= real.min() <= real.max() < classes:
                raise InputError(
                    f"labels run from {int(real.min())} to {int(real.max())}, but there are "
                    f"classes 0 to {classes - 1} and {self.config.ignore_index} for no class; "
                    "give build ignore_index= the number that means no class"
                )

    def metric(self) -> PixelConfusion:
        """What this model is evaluated by: mean intersection over union, Dice, accuracy, loss."""
        names = list((self.config.id2label or {}).values())
        return PixelConfusion(len(names), names, self.config.ignore_index)

    def weight(self, batch: Mapping[str, Any]) -> Tensor:
        """What the loss is a mean over: the batch's pixels that have a class."""
        return real_pixels(batch, self.config.ignore_index)

    @property
    def reach(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Pixels before and after its own, down and across, that a pixel's class depends on at
        most; infinite where something averages over the whole image."""
        strides: list[Any] = list(self.backbone.strides)
        return reach_of(self.backbone.spec, self._options, strides, self.decoder.stride)

    @torch.no_grad()
    def predict(
        self,
        images: Any,
        *,
        tile: int | None = None,
        overlap: int | None = None,
    ) -> list[Tensor]:
        """The class of every pixel of images, at each one's own size.

        Args:
            images: one or a list: paths, PIL images, arrays or tensors, as the processor takes.
            tile: side in pixels of the squares that an image larger than memory is cut into; None
                takes it whole. The processor must leave images their size.
            overlap: pixels that tiles read beyond their own on each side. None takes as many as a
                pixel's class depends on, and so gives what the whole image gives; that needs a net
                and a decoder which average over no whole image, as
                `DeepLabV3Plus(image_pooling=False)`.

        Returns:
            One map per image, int64 `(H, W)`, on the CPU.

        Raises:
            InputError: what is no image, `tile` with a processor that resizes, or without overlap
                where the net has no finite reach.

        Warns:
            Approximate: the overlap is smaller than the reach, so that maps differ from those of
                whole images; how much they do where tiles overlap.
        """
        many = images if isinstance(images, list | tuple) else [images]
        with modes_kept(self):
            self.eval()
            return [self._predict(image, tile, overlap) for image in many]

    def _predict(self, image: Any, tile: int | None, overlap: int | None) -> Tensor:
        image = read_image(image, self.processor)
        pixels = self.processor.process_image(image)
        size = tuple(pixels.shape[-2:])
        if tile is not None and self.processor.do_resize:
            raise InputError(
                "tile= cuts images that keep their size, but this model's processor brings them to "
                f"{dict(self.processor.size)}; leave tile out"
            )
        x = self.processor.scale(self.processor.fit(pixels)[None])
        if tile is not None:
            step: Any = self.backbone.strides[-1]
            return Tiles(self._logits, self.reach, step, tile, overlap).predict(x)
        return at_size(self._logits(x), size)[0].argmax(0).cpu()

    def _logits(self, pixels: Tensor) -> Tensor:
        return self(pixel_values=pixels.to(self.device)).logits


def _with_stride(spec: BackboneSpec, decoder: Decoder, stride: int | None) -> BackboneSpec:
    """The spec with the output stride asked for, or the decoder's where the net's is coarser."""
    if spec.dims != 2:
        return spec  # refused with its reason as the model is made
    if stride is not None:
        return with_output_stride(spec, stride)
    with torch.device("meta"):
        coarsest = max(Backbone(spec).strides[-1])
    if decoder.output_stride is None or coarsest <= decoder.output_stride:
        return spec
    try:
        return with_output_stride(spec, decoder.output_stride)
    except InputError as error:
        raise InputError(
            f"{type(decoder).__name__} wants features of stride {decoder.output_stride}: {error}; "
            f"or give output_stride={coarsest}, or another decoder, as decoder='fpn'"
        ) from error


__all__: Sequence[str] = (
    "ResidualForSemanticSegmentation",
    "ResidualSegmentationConfig",
)
