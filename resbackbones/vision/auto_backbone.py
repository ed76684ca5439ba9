"""Our nets as backbones of other people's models: transformers' `AutoBackbone`.

    config = ResidualBackboneConfig.build("resnet18", out_features=["stage2", "stage3", "stage4"])
    model = RTDetrForObjectDetection(RTDetrConfig(
        backbone_config=config,
        encoder_in_channels=[128, 256, 512],
        freeze_backbone_batch_norms=False,
    ))

DETR, Conditional, Deformable and DAB-DETR put batch norms that do not learn in the place of a
backbone's own, whatever is asked: train those from scratch with `norm="group"`. RF-DETR takes no
backbone but DINOv2, and DPT none without patches.
"""

from collections.abc import Sequence
from typing import Any, Self

from torch import Tensor
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_outputs import BackboneOutput

from resbackbones.core.backbone import Backbone
from resbackbones.core.spec import BackboneSpec
from resbackbones.core.zoo import resolve
from resbackbones.errors import InputError
from resbackbones.pretrained import ResidualConfig, ResidualPreTrainedModel


class ResidualBackboneConfig(BackboneConfigMixin, ResidualConfig):
    """Configuration of a backbone, for `backbone_config=` of another model's.

    Attributes:
        out_features: of ["stage1", "stage2", …], what the backbone gives; the last by default.
        out_indices: the same as positions, 1 for "stage1": 0 is the stem, which gives nothing.
    """

    model_type = "residual_backbone"

    def __post_init__(self, **options: Any) -> None:
        stages = (self.spec or {}).get("stages", ())
        self.stage_names = ["stem", *(f"stage{number}" for number in range(1, len(stages) + 1))]
        given = {name: options.pop(name, None) for name in ("out_features", "out_indices")}
        try:
            self.set_output_features_output_indices(**given)
        except ValueError as error:
            raise InputError(
                f"these features cannot be given ({error}); choose of {self.stage_names[1:]}"
            ) from error
        if "stem" in self.out_features and stages:
            raise InputError(
                f"the stem is no feature of this net; choose of {self.stage_names[1:]}"
            )
        super().__post_init__(**options)

    @classmethod
    def build(
        cls,
        name_or_spec: str | BackboneSpec,
        out_features: Sequence[str] | None = None,
        out_indices: Sequence[int] | None = None,
        **spec_changes: Any,
    ) -> Self:
        """A configuration from a name in `rb.SPECS` or a spec, and changes of its fields.

        Raises:
            InputError: an unknown name or field, dims other than 2, features that are none.
        """
        spec = resolve(name_or_spec, **spec_changes)
        if spec.dims != 2:
            raise InputError(
                "models of images take a backbone with dims=2, but this one has dims=1; add dims=2"
            )
        asked: dict[str, Any] = {
            "out_features": None if out_features is None else list(out_features),
            "out_indices": None if out_indices is None else list(out_indices),
        }
        return cls(spec=spec.to_dict(), **asked)


class ResidualBackbone(BackboneMixin, ResidualPreTrainedModel):
    """A residual net that gives features to other models of transformers.

    `from_pretrained` takes the net of any image model of the house, and leaves its head.

    >>> import torch
    >>> config = ResidualBackboneConfig.build("resnet18", out_features=["stage3", "stage4"])
    >>> net = ResidualBackbone(config)
    >>> net.channels, [tuple(f.shape) for f in net(torch.zeros(1, 3, 64, 64)).feature_maps]
    ([256, 512], [(1, 256, 4, 4), (1, 512, 2, 2)])
    """

    config_class = ResidualBackboneConfig
    main_input_name = "pixel_values"
    has_attentions = False
    _keys_to_ignore_on_load_unexpected = [r"^head\.", r"^pyramid\.", r"^decoder\."]  # noqa: RUF012

    config: ResidualBackboneConfig

    def __init__(self, config: ResidualBackboneConfig) -> None:
        super().__init__(config)
        self.backbone = Backbone(config.backbone_spec)
        stem = self.backbone.spec.stem
        self.num_features = [stem.channels if stem else 0, *self.backbone.channels]
        self.post_init()

    def forward(  # type: ignore[override]
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> BackboneOutput | tuple[tuple[Tensor, ...], ...]:
        """Features of images.

        Args:
            pixel_values: `(B, C, H, W)`.
            output_hidden_states: give the features of all stages beside those asked for.
            return_dict: False gives a tuple.

        Returns:
            `.feature_maps`, one `(B, channels[i], h, w)` for each of `out_features`.
        """
        features = self.backbone(pixel_values)
        named = dict(zip(self.stage_names[1:], features, strict=True))
        output = BackboneOutput(
            feature_maps=tuple(named[name] for name in self.out_features),
            hidden_states=features if output_hidden_states else None,
        )
        return output.to_tuple() if return_dict is False else output


__all__: Sequence[str] = ("ResidualBackbone", "ResidualBackboneConfig")
