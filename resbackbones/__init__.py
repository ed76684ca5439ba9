"""resbackbones: one residual law for vision, speech and text.

`import resbackbones as rb` costs what the core costs; `rb.train`, `rb.data` and `rb.report`
load on first use, and `import resbackbones.vision` (or `.speech`, `.text`) brings in that wing.
"""

import importlib
from typing import TYPE_CHECKING, Any

from resbackbones.core import diagnose
from resbackbones.core.backbone import Backbone, count_macs, count_parameters
from resbackbones.core.blocks import MODULES
from resbackbones.core.branches import (
    BRANCHES,
    Basic,
    Bottleneck,
    Branch,
    Gated,
    Inverted,
    Separable,
    Temporal,
)
from resbackbones.core.layers import Layer, Part, Stage, Stem
from resbackbones.core.spec import BackboneSpec
from resbackbones.core.zoo import SPECS, backbone, with_output_stride
from resbackbones.errors import InputError

if TYPE_CHECKING:
    from resbackbones import data, report, train

__version__ = "0.1.0"
__all__ = [
    "BRANCHES",
    "MODULES",
    "SPECS",
    "Backbone",
    "BackboneSpec",
    "Basic",
    "Bottleneck",
    "Branch",
    "Gated",
    "InputError",
    "Inverted",
    "Layer",
    "Part",
    "Separable",
    "Stage",
    "Stem",
    "Temporal",
    "backbone",
    "count_macs",
    "count_parameters",
    "data",
    "diagnose",
    "report",
    "train",
    "with_output_stride",
]
_LAZY = ("data", "report", "train")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"resbackbones.{name}")
    raise AttributeError(f"module 'resbackbones' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
