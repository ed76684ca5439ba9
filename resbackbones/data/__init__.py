"""Anything labelled becomes checked rows, and those become whole batches.

open_dataset(where)   one split: its rows, which column is what, the label names
open_splits(where)    train, validation and test; without a validation split, 10 % of train
read(source, decode)  every item decoded, the bad ones named
Items                 base of the wings' data sets: a whole batch in one call
"""

from resbackbones.data.items import Items, draws, mixed_labels
from resbackbones.data.opening import (
    Source,
    Splits,
    joined,
    open_dataset,
    open_splits,
    speaker_leak,
)
from resbackbones.data.reading import Read, read

__all__ = [
    "Items",
    "Read",
    "Source",
    "Splits",
    "draws",
    "joined",
    "mixed_labels",
    "open_dataset",
    "open_splits",
    "read",
    "speaker_leak",
]
