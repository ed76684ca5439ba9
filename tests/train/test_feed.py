"""What a step is fed: every epoch anew, from any data set, in batches of the planned sizes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset, Subset

from resbackbones.data import Stream
from resbackbones.errors import InputError
from resbackbones.train import evaluate, feed, fit
from tests.train.helpers import (
    Blobs,
    Interrupted,
    OneByOne,
    Sentences,
    TinyLanguageModel,
    assert_equal,
    checkpoints,
    language_model,
    one_sentence,
    options,
    tiny,
)


class Told(Blobs):
    """Remembers the epochs it was told, and the rows of each batch."""

    def __init__(self, count: int = 50) -> None:
        super().__init__(count)
        self.epochs: list[int] = []
        self.batches: list[list[int]] = []

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.epochs.append(epoch)

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        self.batches.append(list(rows))
        return super().__getitems__(rows)


def test_every_epoch_is_told_to_all_that_the_data_is_made_of() -> None:
    data = [Told(20), Told(20), Told(20)]
    fit(tiny(), ConcatDataset([data[0], Subset(data[1], range(9)), data[2]]), None, options())
    assert [each.epochs for each in data] == [[0, 1, 2]] * 3


def test_an_epoch_sees_every_row_once_in_batches_of_equal_size() -> None:
    data = Told(33)
    fit(tiny(), data, None, options(epochs=2, batch_size=16))
    first, *batches = data.batches
    assert first == [0] and [len(batch) for batch in batches] == [11] * 6
    for epoch in (batches[:3], batches[3:]):
        assert sorted(row for batch in epoch for row in batch) == list(range(33))
    assert batches[:3] != batches[3:]


def test_few_items_make_smaller_batches_and_that_is_said_once(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data = Told(200)
    given = options(epochs=2, batch_size=64, least_updates=20, progress=True, output=tmp_path)
    result = fit(tiny(), data, None, given)
    assert result.history[0]["step"] == 20 and max(map(len, data.batches)) == 10
    said = capfd.readouterr().err
    assert said.count("batches of 10 items, not 64") == 1 and "--least-updates" in said
    fit(tiny(), Blobs(200), None, options(batch_size=10, least_updates=20, progress=True))
    assert "batches of" not in capfd.readouterr().err


def test_a_budget_bounds_each_batch_and_the_padding_is_said(
    capfd: pytest.CaptureFixture[str],
) -> None:
    seen: list[tuple[int, int]] = []

    class Measuring(TinyLanguageModel):
        def forward(self, input_ids: Tensor, labels: Tensor) -> Any:
            seen.append((len(labels), int((labels != -100).sum(1).max())))
            return super().forward(input_ids, labels)

    given = options(budget=48, batch_size=16, metric="loss", epochs=1, progress=True)
    whole = Sentences()
    for data in (whole, Subset(whole, range(40)), ConcatDataset([whole, whole])):
        seen.clear()
        fit(Measuring(), data, data, given)
        assert all(count * longest <= 48 for count, longest in seen)
        assert max(count for count, _ in seen) > 4  # 48 / 12: short ones share larger batches
        said = capfd.readouterr().err
        assert said.count(" of the positions in batches are padding") == 1


def test_without_a_budget_the_padding_is_said_too(capfd: pytest.CaptureFixture[str]) -> None:
    given = options(batch_size=16, metric="loss", epochs=1, progress=True)
    fit(language_model(), Sentences(), None, given)
    said = capfd.readouterr().err
    assert said.count(" of the positions in batches are padding (a --budget puts items") == 1
    fit(tiny(), Blobs(64), None, options(epochs=1, progress=True))
    assert "padding" not in capfd.readouterr().err


def test_batches_can_be_given(capfd: pytest.CaptureFixture[str]) -> None:
    def pairs(seed: int, epoch: int, rank: int = 0, world: int = 1) -> list[list[int]]:
        return [[epoch, 7], [3, 9]]

    data = Told()
    fit(tiny(), data, None, options(least_updates=20, batch_size=64, progress=True), batches=pairs)
    assert data.batches[1:] == [[0, 7], [3, 9], [1, 7], [3, 9], [2, 7], [3, 9]]
    assert "batches of" not in capfd.readouterr().err


def test_a_last_batch_of_one_item_does_not_break_batch_norm() -> None:
    model = tiny()
    model.net[0].stride, model.net[5] = (4, 4), nn.Linear(4, 2)  # one position per channel
    fit(model, Blobs(17), None, options(batch_size=16, epochs=1))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_items_one_by_one_train_like_whole_batches(workers: int) -> None:
    one, other = tiny(), tiny()
    data = Blobs(noise=0.0)
    first = fit(one, OneByOne(data), OneByOne(data), options(epochs=1, workers=workers))
    second = fit(other, data, data, options(epochs=1))
    assert_equal(one, other)
    assert first.metrics == second.metrics


class Drawing(Dataset):
    """An ordinary data set whose items are drawn from the global generators."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        drawn = torch.rand(1, 4, 4) + float(np.random.rand())
        return {"pixel_values": drawn, "labels": torch.tensor(row % 2)}


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_drawn_in_a_worker_is_drawn_anew_in_each_epoch(workers: int) -> None:
    seen: list[Tensor] = []
    model = tiny()
    model.net[0].register_forward_hook(lambda module, inputs, _: seen.append(inputs[0].clone()))
    for _ in range(2):
        fit(model, Drawing(), None, options(epochs=2, workers=workers))
    assert [len(each) for each in seen] == [4] * 4
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2]) and torch.equal(seen[1], seen[3])


# Streams


def decode(sample: dict[str, Any]) -> dict[str, Tensor]:
    if sample["__epoch__"] == 1 and sample["number"] == STOP.get(0):
        raise Interrupted
    label = sample["number"] % 2
    return {
        "pixel_values": torch.full((1, 4, 4), label + sample["number"] / 100),
        "labels": torch.tensor(label),
    }


STOP: dict[int, int] = {}


def stream(folder: Path) -> Stream:
    folder.mkdir(exist_ok=True)
    for shard in range(2):
        numbers = list(range(shard * 21, shard * 21 + 21))
        table = pyarrow.table({"number": numbers})
        pyarrow.parquet.write_table(table, folder / f"{shard}.parquet", row_group_size=5)
    return Stream(folder, decode, collate=torch.utils.data.default_collate, shuffle=10)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_stream_trains_and_resumes_exactly(tmp_path: Path) -> None:
    data = stream(tmp_path / "shards")
    whole, with_workers, resumed = tiny(), tiny(), tiny(seed=7)
    given = options(epochs=2, accumulate=2)
    result = fit(whole, data, None, given)
    assert [entry["step"] for entry in result.history] == [3, 6]  # 6 batches of 7
    fit(with_workers, data, None, options(epochs=2, accumulate=2, workers=2))
    assert_equal(with_workers, whole)
    cut = options(epochs=2, accumulate=2, output=tmp_path / "run", checkpoint_steps=1, resume=True)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError, match="row 10 of"):
        patch.setitem(STOP, 0, 30)
        fit(tiny(), data, None, cut)
    assert checkpoints(tmp_path / "run")[-1] != "checkpoint-6"
    fit(resumed, data, None, cut)
    assert_equal(resumed, whole)


def test_a_stream_says_itself_what_makes_a_batch(tmp_path: Path) -> None:
    for changes, batches in (({"budget": 9}, None), ({}, lambda *place: [[0]])):
        with pytest.raises(ValueError, match="a Stream says itself") as error:
            fit(tiny(), stream(tmp_path), None, options(**changes), batches=batches)
        one_sentence(error)


def test_evaluation_keeps_to_its_budget() -> None:
    data = Sentences()
    whole = evaluate(language_model(), data)
    assert evaluate(language_model(), data, budget=24) == pytest.approx(whole, abs=1e-5)
    assert feed.positions(Subset(data, [5, 1])).tolist() == data.lengths[[5, 1]].tolist()  # type: ignore[union-attr,index]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_bad_input_is_one_sentence_from_a_worker_too(workers: int) -> None:
    class Gone(Blobs):
        def __getitems__(self, rows: Sequence[int]) -> dict[str, Tensor]:
            if len(rows) > 1:
                raise InputError("cat.png cannot be read now; leave the files as they are")
            return super().__getitems__(rows)

    with pytest.raises(InputError) as error:
        fit(tiny(), Gone(), None, options(epochs=1, workers=workers))
    assert str(error.value) == "cat.png cannot be read now; leave the files as they are"
