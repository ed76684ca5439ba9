"""From what a CTC net says at each frame to texts.

greedy(logits, lengths)            the likeliest path, read
beam(logits, lengths, …)           the likeliest text, with a language model, lexicon or hot words
n_best(logits, lengths, count, …)  the likeliest texts; BeamSearch, prepared once for many batches
align(logits, lengths, targets)    when each token of a known text was said
FlashlightSearch                   torchaudio's beam search, of the extra `flashlight`
Hypothesis                         what all of them give: tokens, times, confidences, words
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from resbackbones.speech.alignment import align
from resbackbones.speech.beam import BeamSearch, beam, n_best
from resbackbones.speech.flashlight import FlashlightSearch
from resbackbones.speech.hypotheses import Hypothesis, Span, collapse, posteriors


def greedy(logits: Tensor, lengths: Tensor) -> list[Hypothesis]:
    """Read the likeliest token of each frame (best path, Graves et al. 2006, section 3.2).

    Args:
        logits: `(B, T, V)`, the blank first.
        lengths: frames of each item, whole numbers `(B,)`.

    Returns:
        One hypothesis each.

    Raises:
        InputError: as `posteriors`.

    >>> logits = torch.eye(3)[torch.tensor([[0, 1, 1, 0, 1, 2]])] * 9
    >>> found = greedy(logits, torch.tensor([6]))[0]
    >>> found.tokens, found.starts, found.ends
    ((1, 1, 2), (1, 4, 5), (3, 5, 6))
    """
    log_probs, lengths = posteriors(logits, lengths)
    best, paths = log_probs.max(-1)
    scores = best.double().sum(1)
    items = torch.arange(len(paths), device=paths.device)
    return collapse(paths, log_probs, items, scores, scores)


__all__: Sequence[str] = (
    "BeamSearch",
    "FlashlightSearch",
    "Hypothesis",
    "Span",
    "align",
    "beam",
    "greedy",
    "n_best",
)
