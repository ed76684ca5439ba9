"""Texts in, classes out. Importing this registers the models with transformers' Auto classes."""

from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from resbackbones.text.data import TextItems
from resbackbones.text.models import (
    Embedding,
    ResidualForSequenceClassification,
    ResidualTextConfig,
)
from resbackbones.text.tokenizer import Ngrams, NgramTokenizer, train_tokenizer

AutoConfig.register(ResidualTextConfig.model_type, ResidualTextConfig)
AutoTokenizer.register(ResidualTextConfig, fast_tokenizer_class=NgramTokenizer)
AutoModelForSequenceClassification.register(ResidualTextConfig, ResidualForSequenceClassification)

__all__ = [
    "Embedding",
    "NgramTokenizer",
    "Ngrams",
    "ResidualForSequenceClassification",
    "ResidualTextConfig",
    "TextItems",
    "train_tokenizer",
]
