"""`fit`: an explicit loop over torch alone, for every model of the house; `evaluate` beside it."""

from resbackbones.train.checkpoint import DamagedCheckpoint
from resbackbones.train.distributed import World
from resbackbones.train.evaluation import evaluate
from resbackbones.train.loop import Diverged, Result, StillAtChance, fit
from resbackbones.train.options import Options

__all__ = [
    "DamagedCheckpoint",
    "Diverged",
    "Options",
    "Result",
    "StillAtChance",
    "World",
    "evaluate",
    "fit",
]
