"""GPT-2 (Radford et al. 2019), of any size, to compare language models with."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from resbackbones.core.backbone import count_parameters
from resbackbones.text import Perplexity
from resbackbones.text.metrics import told

HEADS = 8
LAYERS = 6


class GPT2(GPT2LMHeadModel):
    """transformers' own, with what `rb.train.fit` asks of a model."""

    processor: Any = None

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        self.loss_type = "ForCausalLM"  # which transformers tells by the name of a class

    def weight(self, batch: Mapping[str, Any]) -> Tensor:
        return told(batch)

    def metric(self) -> Perplexity:
        return Perplexity()

    def save_pretrained(self, save_directory: Any, **options: Any) -> None:  # type: ignore[override]
        super().save_pretrained(save_directory, **options)
        self.processor.save_pretrained(save_directory)


def gpt2(like: Any, positions: int, dropout: float = 0.0) -> GPT2:
    """An untrained one of as many parameters as another language model, give or take 2 %, which
    reads so many tokens."""
    wanted, vocabulary = count_parameters(like), like.config.vocab_size

    def made(width: int) -> GPT2:
        config = GPT2Config(
            vocab_size=vocabulary,
            n_positions=positions,
            n_embd=width,
            n_layer=LAYERS,
            n_head=HEADS,
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=dropout,
            bos_token_id=like.config.bos_token_id,
            eos_token_id=None,
            pad_token_id=like.config.pad_token_id,
        )
        return GPT2(config)

    def size(width: int) -> int:
        return LAYERS * (12 * width**2 + 13 * width) + (vocabulary + positions + 2) * width

    widths = range(HEADS, 4096, HEADS)
    model = made(min(widths, key=lambda width: abs(size(width) - wanted)))
    model.processor = like.processor
    return model
