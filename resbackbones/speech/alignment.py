"""When each token of a known text was said: the best path through it, of many utterances at once
(Graves 2012, section 7.5)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from resbackbones.errors import InputError
from resbackbones.speech.hypotheses import (
    BLANK,
    SEPARATORS,
    Hypothesis,
    collapse,
    posteriors,
)


def align(
    logits: Tensor,
    lengths: Tensor,
    targets: Sequence[str] | Sequence[Sequence[int]] | Sequence[Tensor],
    vocabulary: Sequence[str] | None = None,
) -> list[Hypothesis]:
    """Find the likeliest path of each utterance that is read as its text.

    Args:
        logits: `(B, T, V)`, the blank first.
        lengths: frames of each, whole numbers `(B,)`.
        targets: for each the numbers of its tokens; or its text, each character of which is a
            token.
        vocabulary: the tokens by their numbers; needed for texts.

    Returns:
        A `Hypothesis` each, of exactly these tokens.

    Raises:
        InputError: as `posteriors`; a token that is none, or more tokens than frames, where those
            that repeat need a blank between them; by the item.
    """
    log_probs, lengths = posteriors(logits, lengths, vocabulary)
    if len(targets) != len(logits):
        raise InputError(
            f"there are {len(targets)} texts for {len(logits)} items of logits; give one each"
        )
    rows = [_numbers(item, target, vocabulary) for item, target in enumerate(targets)]
    counts = torch.tensor([len(row) for row in rows], dtype=torch.int64, device=logits.device)
    labels = pad_sequence(rows, batch_first=True) if rows else torch.zeros(0, 0, dtype=torch.int64)
    labels = labels.to(logits.device)
    inside = torch.arange(labels.shape[1], device=labels.device) < counts[:, None]
    wrong = inside & ((labels <= BLANK) | (labels >= logits.shape[-1]))
    if bool(wrong.any()):
        item, place = wrong.nonzero()[0].tolist()
        raise InputError(
            f"token {place} of item {item} is {int(labels[item, place])}, but those that can be "
            f"said run from 1 to {logits.shape[-1] - 1}, as 0 is the blank"
        )
    repeats = (inside[:, 1:] & (labels[:, 1:] == labels[:, :-1])).sum(1)
    short = (counts + repeats > lengths).nonzero()[:, 0].tolist()
    if short:
        item = short[0]
        raise InputError(
            f"item {item} has {int(lengths[item])} frames, but its {int(counts[item])} tokens with "
            f"{int(repeats[item])} repeats need {int(counts[item] + repeats[item])}; give the text "
            "of this recording, or use a model with more frames per second"
        )
    items = torch.arange(len(logits), device=logits.device)
    paths, scores = best_paths(log_probs, lengths, labels, counts, items)
    never = scores.isinf().nonzero()[:, 0].tolist()
    if never:
        raise InputError(
            f"no path of item {never[0]} through its text has a probability above 0; its logits "
            "rule out a token of it"
        )
    return collapse(paths, log_probs, items, scores, scores)


def best_paths(
    log_probs: Tensor, lengths: Tensor, labels: Tensor, counts: Tensor, items: Tensor
) -> tuple[Tensor, Tensor]:
    """The likeliest path that is read as each row of labels (Viterbi).

    Args:
        log_probs, lengths: as `posteriors` gives them, `(B, T, V)` and `(B,)`.
        labels: int64 `(N, L)`, what is behind each row's end is not looked at.
        counts: how many labels each row has, int64 `(N,)`.
        items: which of the B each row is of, int64 `(N,)`.

    Returns:
        A token per frame, int64 `(N, T)`, and the logarithms of the paths' probabilities, float64
        `(N,)`; -inf where there is no path.
    """
    rows, frames = len(labels), log_probs.shape[1]
    symbols = torch.full((rows, 2 * labels.shape[1] + 1), BLANK, device=labels.device)
    symbols[:, 1::2] = labels  # a blank before, between and behind
    no_jump = torch.ones_like(symbols, dtype=torch.bool)
    no_jump[:, 3::2] = labels[:, 1:] == labels[:, :-1]  # over the blank between two that differ
    reached = torch.full(symbols.shape, -torch.inf, dtype=torch.float64, device=labels.device)
    reached[:, 0] = 0  # before the first frame
    moves = []
    inside = torch.arange(frames, device=labels.device)[:, None] < lengths[items]
    for frame in range(frames):
        step = functional.pad(reached, (1, 0), value=-torch.inf)[:, :-1]
        jump = functional.pad(reached, (2, 0), value=-torch.inf)[:, : symbols.shape[1]]
        jump = jump.masked_fill(no_jump, -torch.inf)
        best, move = torch.stack([reached, step, jump]).max(0)
        best = best + log_probs[items, frame].gather(1, symbols)
        now = inside[frame, :, None]
        reached = torch.where(now, best, reached)
        moves.append(move.masked_fill(~now, 0).to(torch.uint8))
    ends = torch.stack([2 * counts, (2 * counts - 1).clamp(min=0)], 1)
    scores, which = reached.gather(1, ends).max(1)
    state = ends.gather(1, which[:, None])
    paths = torch.full((rows, frames), BLANK, device=labels.device)
    for frame in reversed(range(frames)):
        paths[:, frame] = symbols.gather(1, state)[:, 0]
        state = state - moves[frame].gather(1, state).long()
    return paths.masked_fill(~inside.T, BLANK), scores


def _numbers(item: int, target: object, vocabulary: Sequence[str] | None) -> Tensor:
    """The numbers of a text's tokens, int64 `(L,)`."""
    if not isinstance(target, str):
        return torch.as_tensor(target, dtype=torch.int64).reshape(-1)
    if vocabulary is None:
        raise InputError("targets are texts, but what their tokens are is not; give vocabulary")
    ids = {token: number for number, token in enumerate(vocabulary) if number != BLANK}
    if any(token[:1] == SEPARATORS[1] and token[1:] for token in ids):
        raise InputError(
            "a text can be parted into byte pairs in many ways; give the numbers of its tokens as "
            "the model's tokenizer has them"
        )
    if SEPARATORS[1] in ids:
        target = target.replace(*SEPARATORS)
    unknown = [character for character in target if character not in ids]
    if unknown:
        raise InputError(
            f"the text of item {item} has {unknown[0]!r}, which is no token of the model; write it "
            "as the model's texts were written"
        )
    return torch.tensor([ids[character] for character in target], dtype=torch.int64)


__all__: Sequence[str] = ("align", "best_paths")
