"""Anything that can be opened becomes checked rows, and those become whole batches.

open_dataset(where)   one split: its rows, which column is what, what is to be predicted
open_splits(where)    train, validation and test; without a validation split, 10 % of train
open_unlabelled(where)    the same without labels and as they are, for raw text
Classes, Labels, Boxes, Masks, Transcripts, NoTarget   what is to be predicted
Target, Column        base of others; what it reads
read(source, decode)  every item decoded, the bad ones named; Rereader decodes some again
Items                 base of the wings' data sets: a whole batch in one call
Shuffled, Bucketed, InOrder   which rows make a batch: drawn, by length and budget, each once
padding_share(lengths, batches)   how much of them is padding
Stream(shards, …)     Parquet and tar files larger than memory, as whole batches
"""

from resbackbones.data.batches import Batches, Bucketed, InOrder, Shuffled, padding_share
from resbackbones.data.boxes import Boxes
from resbackbones.data.columns import Source
from resbackbones.data.items import Items, draws, mixed_labels
from resbackbones.data.labels import Labels
from resbackbones.data.masks import IGNORED, Masks, open_mask
from resbackbones.data.opening import open_dataset, open_splits, open_unlabelled
from resbackbones.data.reading import Read, Rereader, read
from resbackbones.data.shards import BadSample, Stream
from resbackbones.data.splits import Splits, joined, speaker_leak
from resbackbones.data.targets import Classes, Column, NoTarget, Target, Transcripts

__all__ = [
    "IGNORED",
    "BadSample",
    "Batches",
    "Boxes",
    "Bucketed",
    "Classes",
    "Column",
    "InOrder",
    "Items",
    "Labels",
    "Masks",
    "NoTarget",
    "Read",
    "Rereader",
    "Shuffled",
    "Source",
    "Splits",
    "Stream",
    "Target",
    "Transcripts",
    "draws",
    "joined",
    "mixed_labels",
    "open_dataset",
    "open_mask",
    "open_splits",
    "open_unlabelled",
    "padding_share",
    "read",
    "speaker_leak",
]
