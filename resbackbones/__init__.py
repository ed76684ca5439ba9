"""resbackbones: one residual law for vision, speech and text.

`import resbackbones as rb` costs what the core costs; the rest loads on first use: `rb.data`,
`rb.deploy`, `rb.ngrams`, `rb.report`, `rb.train`, `rb.weights`, and the wings `rb.vision`,
`rb.speech` and `rb.text`. A wing registers its models with transformers' Auto classes as it loads,
so a saved model needs `import resbackbones.vision` (or `.speech`, `.text`) before transformers can
open it.
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
    Broadcast,
    Gated,
    Inverted,
    Res2,
    Separable,
    Temporal,
)
from resbackbones.core.dilating import with_output_stride
from resbackbones.core.layers import Layer, Part, Stage, Stem
from resbackbones.core.spec import BackboneSpec
from resbackbones.core.zoo import SPECS, backbone
from resbackbones.errors import InputError

if TYPE_CHECKING:
    from resbackbones import data, deploy, ngrams, report, speech, text, train, vision, weights

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
    "Broadcast",
    "Gated",
    "InputError",
    "Inverted",
    "Layer",
    "Part",
    "Res2",
    "Separable",
    "Stage",
    "Stem",
    "Temporal",
    "backbone",
    "count_macs",
    "count_parameters",
    "data",
    "deploy",
    "diagnose",
    "ngrams",
    "report",
    "speech",
    "text",
    "train",
    "vision",
    "weights",
    "with_output_stride",
]
_LAZY = ("data", "deploy", "ngrams", "report", "speech", "text", "train", "vision", "weights")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"resbackbones.{name}")
    raise AttributeError(f"module 'resbackbones' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
