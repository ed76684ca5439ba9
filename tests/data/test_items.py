"""Whole batches in one call, and randomness that is a pure function of where it is used."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from resbackbones.data import Items, draws
from resbackbones.data.items import _splitmix


class Noise(Items):
    def __len__(self) -> int:
        return 10

    def __getitems__(self, rows: Any) -> dict[str, torch.Tensor]:
        return {"x": self.draws(rows, 3), "labels": torch.as_tensor(rows)}


def test_items_make_batches_and_single_items() -> None:
    items = Noise(seed=3)
    batches = list(torch.utils.data.DataLoader(items, batch_size=4, collate_fn=dict))
    assert [len(batch["labels"]) for batch in batches] == [4, 4, 2]
    assert items[5]["x"].shape == (3,)
    assert torch.equal(items[5]["x"], batches[1]["x"][1])
    assert torch.equal(items[5]["x"], draws(3, 0, [5], 3)[0])
    items.set_epoch(1)
    assert torch.equal(items[5]["x"], draws(3, 1, [5], 3)[0])
    for method in (lambda: len(Items()), lambda: Items()[0]):
        with pytest.raises(NotImplementedError):
            method()


class Told(Noise):
    """Items that have all that a fingerprint may be of."""

    def __init__(self, **changed: Any) -> None:
        super().__init__(changed.pop("seed", 0))
        self.augment: Any = ("noise", 0.5)
        self.labels: Any = torch.arange(10)
        self.lengths = torch.full((10,), 7)
        self.source: Any = Origin("a")
        vars(self).update(changed)


class Told2(Told):
    pass


class More(Told):
    def _parts(self) -> Any:
        yield from super()._parts()
        yield "16 kHz"


@dataclass
class Origin:
    content: str

    def fingerprint(self) -> str:
        return self.content


def test_a_fingerprint_tells_items_apart() -> None:
    others: list[Items] = [
        Told(seed=1),
        Told(augment=None),
        Told(labels=torch.arange(10).flip(0)),
        Told(labels=torch.arange(10, dtype=torch.int32)),
        Told(labels=torch.arange(10).reshape(2, 5)),
        Told(labels=["a"] * 10),
        Told(labels=["a"] * 9 + ["b"]),
        Told(lengths=None),
        Told(source=Origin("b")),
        Told(source=None),
        Told2(),
        More(),
        Noise(),
    ]
    found = {items.fingerprint() for items in [Told(), *others]}
    assert len(found) == 1 + len(others)
    same = Told()
    same.set_epoch(3)
    assert same.fingerprint() == Told().fingerprint()


def test_a_fingerprint_is_the_same_on_every_machine() -> None:
    assert Told().fingerprint()[:16] == "a78db58138479531"


def test_draws_are_splitmix64() -> None:
    # The published generator's first outputs from seed 1234567.
    stream = _splitmix(np.array([1234567], np.uint64), np.arange(3, dtype=np.uint64))
    assert stream.tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_draws_depend_on_nothing_else() -> None:
    rows = torch.tensor([9, 2, 2**40, 0])
    whole = draws(-1, 5, rows, 6)
    assert whole.dtype == torch.float32 and whole.shape == (4, 6)
    assert torch.equal(whole[[2, 0]], draws(-1, 5, [2**40, 9], 6))
    assert torch.equal(whole[:, :2], draws(-1, 5, rows, 2))
    torch.manual_seed(1)
    assert torch.equal(whole, draws(-1, 5, rows, 6))
    assert draws(0, 0, [], 2).shape == (0, 2)
    assert draws(0, 0, [1], 0).shape == (1, 0)


def test_draws_are_uniform_and_unrelated() -> None:
    n = 100_000
    rows = torch.arange(n)
    here = draws(0, 0, rows, 2)
    others = [draws(0, 0, rows + 1, 1), draws(0, 1, rows, 1), draws(1, 0, rows, 1)]
    others += [draws(0, 2, rows, 1), draws(2, 0, rows, 1), draws(1, 1, rows, 1)]
    for column in (*here.T, *(other[:, 0] for other in others)):
        assert 0 <= column.min() and column.max() < 1
        counts = torch.histc(column, 100, 0, 1)
        chi2 = ((counts - n / 100) ** 2 / (n / 100)).sum()
        assert 50 < chi2 < 165  # 99 degrees of freedom: beyond 4 deviations on either side
    together = torch.stack([*here.T, *(other[:, 0] for other in others)])
    correlation = torch.corrcoef(together.double()) - torch.eye(len(together))
    assert correlation.abs().max() < 4.5 / n**0.5
    square = torch.histogramdd(here, [10, 10], range=[0.0, 1.0, 0.0, 1.0]).hist
    assert ((square - n / 100) ** 2 / (n / 100)).sum() < 165
