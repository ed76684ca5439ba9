"""The residual core: one block law in 1-D and 2-D, specs, backbones and diagnostics. Torch only."""

from resbackbones.core import diagnose
from resbackbones.core.backbone import Backbone, backbone, count_macs, count_parameters
from resbackbones.core.blocks import BRANCHES
from resbackbones.core.spec import REFUSALS, BackboneSpec, Layer, Stage, Stem, resolve
from resbackbones.core.zoo import SPECS

__all__ = [
    "BRANCHES",
    "REFUSALS",
    "SPECS",
    "Backbone",
    "BackboneSpec",
    "Layer",
    "Stage",
    "Stem",
    "backbone",
    "count_macs",
    "count_parameters",
    "diagnose",
    "resolve",
]
