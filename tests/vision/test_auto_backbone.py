"""Our nets inside other people's models: one step of each trains every weight of the backbone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import resbackbones as rb
from resbackbones.vision import (
    ResidualBackbone,
    ResidualBackboneConfig,
    ResidualForImageClassification,
    ResidualForObjectDetection,
)

# Strides 4, 8, 16, 32.
SPEC = rb.BackboneSpec(
    (rb.Stage(16, 1), rb.Stage(24, 1, 2), rb.Stage(32, 1, 2), rb.Stage(40, 1, 2)),
    stem=rb.Stem(8, 7, 2, pool=2),
)
LABELS = [
    {"class_labels": torch.tensor([0, 1]), "boxes": torch.tensor([[0.5, 0.5, 0.3, 0.4]] * 2)},
    {"class_labels": torch.tensor([2]), "boxes": torch.tensor([[0.3, 0.6, 0.2, 0.2]])},
]
DETR = dict(
    num_labels=3, num_queries=5, d_model=32, encoder_layers=1, decoder_layers=1,
    encoder_ffn_dim=16, decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2,
    use_timm_backbone=False, use_pretrained_backbone=False,
)  # fmt: skip
RT = dict(
    num_labels=3, num_queries=5, d_model=32, encoder_hidden_dim=32, encoder_layers=1,
    decoder_layers=2, encoder_ffn_dim=16, decoder_ffn_dim=16, encoder_attention_heads=2,
    decoder_attention_heads=2, encoder_in_channels=[24, 32, 40], decoder_in_channels=[32, 32, 32],
    num_denoising=0, freeze_backbone_batch_norms=False,
)  # fmt: skip
ONE, THREE, FOUR = ["stage4"], ["stage2", "stage3", "stage4"], [f"stage{n}" for n in range(1, 5)]


def boxes() -> dict[str, Any]:
    return {"labels": LABELS}


def segments() -> dict[str, Any]:
    return {
        "mask_labels": [torch.rand(2, 64, 64).round(), torch.rand(1, 64, 64).round()],
        "class_labels": [torch.tensor([0, 1]), torch.tensor([2])],
    }


def pixels() -> dict[str, Any]:
    return {"labels": torch.randint(3, (2, 64, 64))}


def mask2former(backbone: Any) -> Any:
    return transformers.Mask2FormerConfig(
        backbone_config=backbone, num_labels=3, feature_size=32, mask_feature_size=32,
        hidden_dim=32, encoder_layers=1, decoder_layers=2, num_attention_heads=2, num_queries=5,
        dim_feedforward=16, encoder_feedforward_dim=16, train_num_points=64,
    )  # fmt: skip


def maskformer(backbone: Any) -> Any:
    decoder = transformers.DetrConfig(**DETR, backbone_config=backbone)
    return transformers.MaskFormerConfig(
        backbone_config=backbone, decoder_config=decoder, num_labels=3, fpn_feature_size=32,
        mask_feature_size=32,
    )  # fmt: skip


# The model's class, its configuration on ours, the features it takes, its labels, and whether it
# leaves batch norms as they are.
MODELS: dict[str, tuple[str, Callable[[Any], Any], list[str], Callable[[], Any], bool]] = {
    "detr": (
        "DetrForObjectDetection",
        lambda b: transformers.DetrConfig(backbone_config=b, **DETR),
        ONE, boxes, False,
    ),
    "conditional_detr": (
        "ConditionalDetrForObjectDetection",
        lambda b: transformers.ConditionalDetrConfig(backbone_config=b, **DETR),
        ONE, boxes, False,
    ),
    "deformable_detr": (
        "DeformableDetrForObjectDetection",
        lambda b: transformers.DeformableDetrConfig(
            backbone_config=b, **DETR | {"decoder_layers": 2}
        ),
        THREE, boxes, False,
    ),
    "rt_detr": (
        "RTDetrForObjectDetection",
        lambda b: transformers.RTDetrConfig(backbone_config=b, **RT),
        THREE, boxes, True,
    ),
    "rt_detr_v2": (
        "RTDetrV2ForObjectDetection",
        lambda b: transformers.RTDetrV2Config(backbone_config=b, **RT),
        THREE, boxes, True,
    ),
    "d_fine": (
        "DFineForObjectDetection",
        lambda b: transformers.DFineConfig(backbone_config=b, **RT),
        THREE, boxes, True,
    ),
    "upernet": (
        "UperNetForSemanticSegmentation",
        lambda b: transformers.UperNetConfig(
            backbone_config=b, num_labels=3, hidden_size=16, auxiliary_in_channels=32,
            auxiliary_channels=16, pool_scales=(1, 2),
        ),
        FOUR, pixels, True,
    ),
    "maskformer": (
        "MaskFormerForInstanceSegmentation", maskformer, FOUR, segments, True
    ),
    "mask2former": (
        "Mask2FormerForUniversalSegmentation", mask2former, FOUR, segments, True
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_a_step_trains_all_of_the_backbone(name: str) -> None:
    torch.manual_seed(0)
    model_class, configure, features, labels, keeps_norms = MODELS[name]
    norm = "batch" if keeps_norms else "group"
    backbone = ResidualBackboneConfig.build(SPEC, out_features=features, norm=norm)
    model = getattr(transformers, model_class)(configure(backbone)).train()
    (net,) = (m for m in model.modules() if isinstance(m, ResidualBackbone))
    norms = {type(m) for m in net.modules() if type(m).__name__.endswith(("Norm2d", "GroupNorm"))}
    assert norms == {nn.BatchNorm2d if keeps_norms else nn.GroupNorm}
    before = {name: value.clone() for name, value in net.named_parameters()}
    model(pixel_values=torch.randn(2, 3, 64, 64), **labels()).loss.backward()
    torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0).step()
    still = [name for name, value in net.named_parameters() if torch.equal(value, before[name])]
    assert still == []


def test_the_auto_classes_know_it(tmp_path: Path) -> None:
    config = ResidualBackboneConfig.build(SPEC, out_features=["stage2", "stage4"])
    net = transformers.AutoBackbone.from_config(config).eval()
    assert type(net) is ResidualBackbone
    assert net.channels == [24, 40] and net.out_indices == [2, 4]
    x = torch.randn(1, 3, 64, 96)
    output = net(x, output_hidden_states=True)
    assert len(output.hidden_states) == 4
    for ours, expected in zip(output.feature_maps, net.backbone(x)[1::2], strict=True):
        assert torch.equal(ours, expected)
    assert net(x, return_dict=False)[0][1].shape == (1, 40, 2, 3)
    net.save_pretrained(tmp_path)
    again = ResidualBackbone.from_pretrained(tmp_path)
    assert again.out_features == ["stage2", "stage4"]
    assert torch.equal(again(x).feature_maps[1], output.feature_maps[1])
    indices = ResidualBackboneConfig.build(SPEC, out_indices=(1, 3))
    assert indices.out_features == ["stage1", "stage3"]
    assert ResidualBackboneConfig.build(SPEC).out_features == ["stage4"]


@pytest.mark.parametrize("kind", [ResidualForImageClassification, ResidualForObjectDetection])
def test_the_net_of_a_trained_model(kind: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = kind.build(SPEC, num_labels=3)
    model.save_pretrained(tmp_path)
    net = ResidualBackbone.from_pretrained(tmp_path, out_features=["stage3", "stage4"])
    assert net.channels == [32, 40]
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, net.backbone.state_dict()[name]), name


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"out_features": ["stage5"]}, r"cannot be given .* choose of \['stage1'"),
        ({"out_features": ["stage2", "stage1"]}, "same order"),
        ({"out_features": ["stem"]}, "the stem is no feature"),
        ({"out_indices": [0, 1]}, "the stem is no feature"),
        ({"dims": 1}, "take a backbone with dims=2"),
    ],
)
def test_wrong_features_are_refused(arguments: dict, sentence: str) -> None:
    with pytest.raises(rb.InputError, match=sentence):
        ResidualBackboneConfig.build(SPEC, **arguments)
