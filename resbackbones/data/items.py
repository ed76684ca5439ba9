"""`Items`: rows that become a whole batch in one call; `draws`: their randomness."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


class Items(torch.utils.data.Dataset):
    """Rows that become a whole batch in one call; base of the wings' data sets.

    A subclass gives `__len__` and `__getitems__`, whose dict of tensors is ready for
    `model(**batch)`. A `DataLoader` calls it by itself; `collate_fn=dict` leaves the batch as is.
    So does transformers' Trainer with `data_collator=dict`, and `remove_unused_columns=False` among
    its arguments.

    Augmentation takes its randomness from `draws`, a pure function of (seed, epoch, row, position),
    and never from a shared stream. So an item looks the same whatever the batch size, the order,
    the worker or the process, and a run resumed in the middle of an epoch sees exactly what an
    uninterrupted one sees: there is no stream whose place would have to be found again.

    >>> class Noise(Items):
    ...     def __len__(self):
    ...         return 4
    ...     def __getitems__(self, rows):
    ...         return {"x": self.draws(rows, 2), "labels": torch.as_tensor(rows)}
    >>> loader = torch.utils.data.DataLoader(Noise(), batch_size=2, collate_fn=dict)
    >>> [tuple(batch["x"].shape) for batch in loader]
    [(2, 2), (2, 2)]

    Attributes:
        seed, epoch: what `draws` starts from.
        lengths: frames or tokens per item, int64 `(N,)` on the CPU, where items differ in them:
            what batches of like length are made by.
    """

    lengths: Tensor | None = None

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Draw anew from here on; called as an epoch starts."""
        self.epoch = epoch

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """A batch: tensors `(len(rows), …)` under the names of the model's inputs."""
        raise NotImplementedError

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        """One item: its tensors without the batch axis."""
        return {name: value[0] for name, value in self.__getitems__([row]).items()}

    def draws(self, rows: Sequence[int] | Tensor, count: int) -> Tensor:
        """Uniform in [0, 1), float32 `(len(rows), count)`, of this seed and epoch; see `draws`."""
        return draws(self.seed, self.epoch, rows, count)

    def fingerprint(self) -> str:
        """What tells these items from others, the same on every machine: a run is continued with
        items of the same fingerprint only."""
        return fingerprint(self._parts())

    def _parts(self) -> Iterator[bytes | str]:
        """What the fingerprint is of; a subclass with more to tell yields it after these.

        The augmentation is told by its repr, which therefore must not hold an address.
        """
        yield f"{type(self).__name__} {self.seed} {len(self)} {getattr(self, 'augment', None)!r}"
        for values in (getattr(self, "labels", None), self.lengths):
            if isinstance(values, Tensor):
                yield f"{values.dtype} {tuple(values.shape)}"
                yield values.detach().cpu().numpy().tobytes()
            else:
                yield repr(values)
        source = getattr(self, "source", None)
        yield "" if source is None else source.fingerprint()


def fingerprint(parts: Iterable[bytes | str]) -> str:
    """The sha256 of parts, none of which can pass for two.

    >>> fingerprint(["ab", "c"])[:8], fingerprint(["a", "bc"])[:8]
    ('43ee6555', '9a8acca1')
    """
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


def mixed_labels(labels: Tensor, others: Tensor, share: Tensor, classes: int) -> Tensor:
    """Labels of items that took a share of others (mixup, Zhang 2018): a share of each class, float
    `(B, classes)`.

    Args:
        labels, others: int64 `(B,)`, or already one number per class, `(B, classes)`.
        share: the others', `(B,)`.

    >>> mixed_labels(torch.tensor([0, 1]), torch.tensor([2, 1]), torch.tensor([0.25, 0.5]), 3)
    tensor([[0.7500, 0.0000, 0.2500],
            [0.0000, 1.0000, 0.0000]])
    """
    own, other = (
        each.float() if each.ndim > 1 else functional.one_hot(each, classes).float()
        for each in (labels, others)
    )
    return torch.lerp(own, other, share.unsqueeze(1))


def draws(seed: int, epoch: int, rows: Sequence[int] | Tensor, count: int) -> Tensor:
    """Uniform numbers in [0, 1), float32 `(len(rows), count)`, that depend on (seed, epoch, row,
    position) alone and are the same on every machine.

    A row gets the SplitMix64 stream (Steele, Lea and Flood 2014, "Fast splittable pseudorandom
    number generators", figure 17) that starts at the hash, by the same generator, of the rest.

    >>> draws(0, 0, [7], 2)
    tensor([[0.4597, 0.3211]])
    >>> draws(0, 0, [5, 6, 7], 1)[2]
    tensor([0.4597])
    """
    state = np.zeros(1, np.uint64)
    for value in (seed, epoch):
        state = _splitmix(state, np.array([value % 2**64], np.uint64))
    numbers = torch.as_tensor(rows, dtype=torch.int64).cpu().numpy().astype(np.uint64)
    bits = _splitmix(_splitmix(state, numbers)[:, None], np.arange(count, dtype=np.uint64))
    # The 24 bits that float32 holds exactly: nothing rounds up to 1.
    return torch.from_numpy((bits >> np.uint64(40)).astype(np.float32)) * 2**-24


def _splitmix(start: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Output number `index` of the stream that starts at `start`, both uint64."""
    bits = start + (index + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
