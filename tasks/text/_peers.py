"""Convolutional nets of texts without shortcuts, as they were published, to compare ours with.

Each trains like a model of the house: `rb.train.fit(KimCNN(len(tokenizer), labels), train)`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_outputs import SequenceClassifierOutput

from resbackbones.core.context import valid_mask
from resbackbones.core.ops import masked_max
from resbackbones.metrics import Confusion

SPECIAL = 3  # tokens of a character tokenizer before its characters: padding, unknown, beginning
READ = 1014  # characters that CharCNN reads
LARGEST = 3.0  # length of a class's weights in KimCNN


class _Peer(nn.Module):
    """What `rb.train.fit` asks of a classifier, around `logits` `(B, K)` of `input_ids` `(B, T)`
    and of how many of each row are real."""

    def __init__(self, labels: Sequence[str]) -> None:
        super().__init__()
        self.labels = tuple(labels)

    def logits(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Classify texts: `input_ids` and `attention_mask` `(B, T)`, padded on the right, and
        `labels` int64 `(B,)`, with which there is a `.loss`."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        logits = self.logits(input_ids, mask.sum(-1))
        loss = None if labels is None else functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def metric(self) -> Confusion:
        return Confusion(len(self.labels), self.labels)


class KimCNN(_Peer):
    """Windows of 3, 4 and 5 word vectors, 100 maps of each, and the maximum of every map over the
    text (Kim 2014, section 2, with vectors from random). A window holds one word of the text at
    least, and zeros past its ends. No class's weights are longer than 3."""

    def __init__(
        self,
        vocab_size: int,
        labels: Sequence[str],
        channels: int = 300,
        maps: int = 100,
        widths: Sequence[int] = (3, 4, 5),
    ) -> None:
        super().__init__(labels)
        self.embedding = nn.Embedding(vocab_size, channels)
        nn.init.uniform_(self.embedding.weight, -0.25, 0.25)
        self.windows = nn.ModuleList(
            nn.Conv1d(channels, maps, width, padding=width - 1) for width in widths
        )
        self.widths = tuple(widths)
        self.dropout = nn.Dropout(0.5)
        self.linear = nn.Linear(maps * len(widths), len(self.labels))

    def logits(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        real = valid_mask(lengths, input_ids.shape[1]).unsqueeze(2)
        x = (self.embedding(input_ids) * real).transpose(1, 2)
        maxima = [
            masked_max(functional.relu(window(x)), lengths + width - 1)
            for window, width in zip(self.windows, self.widths, strict=True)
        ]
        weight = torch.renorm(self.linear.weight, 2, 0, LARGEST)
        return functional.linear(self.dropout(torch.cat(maxima, 1)), weight, self.linear.bias)


class CharCNN(_Peer):
    """Six convolutions over one-hot characters and two dense layers (Zhang et al. 2015, section 2,
    the small one). It reads the last 1014 characters of a text, from the last one back, and zeros
    behind them.

    The paper lists its 70 characters; here they are those of the tokenizer,
    `train_tokenizer(texts, "character", vocab_size=73, lowercase=True)`.
    """

    codes: Tensor

    def __init__(
        self, labels: Sequence[str], characters: int = 70, maps: int = 256, dense: int = 1024
    ) -> None:
        super().__init__(labels)
        codes = functional.pad(torch.eye(characters), (0, 0, SPECIAL, 0))  # special ones are zeros
        self.register_buffer("codes", codes, persistent=False)
        layers: list[nn.Module] = []
        width, left = characters, READ
        for kernel, pool in ((7, 3), (7, 3), (3, 1), (3, 1), (3, 1), (3, 3)):
            layers += [nn.Conv1d(width, maps, kernel), nn.ReLU()]
            layers += [nn.MaxPool1d(pool)] if pool > 1 else []
            width, left = maps, (left - kernel + 1) // pool
        layers.append(nn.Flatten())
        width *= left
        for _ in range(2):
            layers += [nn.Linear(width, dense), nn.ReLU(), nn.Dropout(0.5)]
            width = dense
        self.layers = nn.Sequential(*layers, nn.Linear(width, len(self.labels)))
        for layer in self.layers:
            if isinstance(layer, nn.Conv1d | nn.Linear):
                nn.init.normal_(layer.weight, std=0.05)

    def logits(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        places = lengths.unsqueeze(1) - 1 - torch.arange(READ, device=lengths.device)
        read = input_ids.gather(1, places.clamp(min=0)).masked_fill(places < 0, 0)
        return self.layers(functional.embedding(read, self.codes).transpose(1, 2))
