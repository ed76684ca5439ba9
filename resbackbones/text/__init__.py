"""Texts in, classes or more text out. Importing this registers the models with the Auto classes."""

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from resbackbones.core.pieces import Approximate
from resbackbones.ngrams import KneserNey
from resbackbones.text.data import TextItems
from resbackbones.text.explain import Attribution, attribute, attribution_page
from resbackbones.text.generation import Memory, ResidualForCausalLM
from resbackbones.text.metrics import Perplexity
from resbackbones.text.models import (
    Embedding,
    ResidualForSequenceClassification,
    ResidualTextConfig,
)
from resbackbones.text.step import Step
from resbackbones.text.tfidf import TfidfClassifier, choose_share
from resbackbones.text.tokenizer import Ngrams, NgramTokenizer, TextTokenizer, train_tokenizer
from resbackbones.text.vectors import WordVectors, load_vectors
from resbackbones.text.windows import TokenRow, TokenWindows, running_text, tokenize

AutoConfig.register(ResidualTextConfig.model_type, ResidualTextConfig)
# Each is found by its name; the last also where a folder names none.
for _tokenizer in (NgramTokenizer, TextTokenizer):
    AutoTokenizer.register(ResidualTextConfig, _tokenizer, exist_ok=True)
AutoModelForCausalLM.register(ResidualTextConfig, ResidualForCausalLM)
AutoModelForSequenceClassification.register(ResidualTextConfig, ResidualForSequenceClassification)

__all__ = [
    "Approximate",
    "Attribution",
    "Embedding",
    "KneserNey",
    "Memory",
    "NgramTokenizer",
    "Ngrams",
    "Perplexity",
    "ResidualForCausalLM",
    "ResidualForSequenceClassification",
    "ResidualTextConfig",
    "Step",
    "TextItems",
    "TextTokenizer",
    "TfidfClassifier",
    "TokenRow",
    "TokenWindows",
    "WordVectors",
    "attribute",
    "attribution_page",
    "choose_share",
    "load_vectors",
    "running_text",
    "tokenize",
    "train_tokenizer",
]
