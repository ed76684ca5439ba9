"""How well a language model tells what comes next."""

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from resbackbones.metrics import Mean

IGNORED = -100  # a label that counts nothing, as everywhere in transformers


def told(batch: Mapping[str, Any]) -> Tensor:
    """How many tokens a batch has a model tell: all labels but the first of each row, which nothing
    stands before, and but those of -100."""
    return (batch["labels"][:, 1:] != IGNORED).sum()


class Perplexity(Mean):
    """The mean surprise at each token told: `loss` in nats, `bits` of the same, and `perplexity`,
    e to the nats. Of characters the bits are those per character. Where n-grams answer too,
    `net_loss` is that of the net alone.

    >>> from types import SimpleNamespace
    >>> import torch
    >>> perplexity = Perplexity()
    >>> output = SimpleNamespace(loss=torch.tensor(math.log(8)))
    >>> perplexity.update(output, {"labels": torch.zeros(1, 5)})
    >>> {name: round(value, 3) for name, value in perplexity.compute().items()}
    {'loss': 2.079, 'bits': 3.0, 'perplexity': 8.0}
    """

    def __init__(self) -> None:
        super().__init__(weight=told)
        self.net = Mean("net_loss", told)

    def update(self, output: Any, batch: Mapping[str, Any]) -> None:
        super().update(output, batch)
        if (loss := getattr(output, "net_loss", None)) is not None:
            self.net.update(SimpleNamespace(loss=loss), batch)

    def merge(self, other: Any) -> None:
        super().merge(other)
        self.net.merge(other.net)

    def compute(self) -> dict[str, float]:
        nats = super().compute()[self.name]
        found = {"loss": nats, "bits": nats / math.log(2), "perplexity": math.exp(nats)}
        return found | self.net.compute() if self.net.sums["weight"] else found
