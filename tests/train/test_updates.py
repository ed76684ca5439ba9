"""What one update is: the same however its batch is split; what decays, is clipped, frozen,
averaged."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resbackbones.data import Shuffled
from resbackbones.train import evaluate, fit
from tests.train.helpers import (
    Blobs,
    Sentences,
    assert_equal,
    language_model,
    options,
    sgd,
    tiny,
    weights,
    without_chance,
)


def assert_close(one: nn.Module | Mapping[str, Tensor], other: nn.Module) -> None:
    found = one.state_dict() if isinstance(one, nn.Module) else one
    for name, value in other.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("count", [32, 35, 41])
def test_accumulated_batches_make_the_update_of_one_large_batch(count: int) -> None:
    """41: batches of 7 and 6 items in one update."""
    small, large = without_chance(), without_chance()
    data = Blobs(count)
    result = fit(small, data, None, sgd(batch_size=7, accumulate=math.ceil(count / 7)))
    expected = fit(large, data, None, sgd(batch_size=count))
    assert [entry["step"] for entry in result.history] == [1]
    assert_close(small, large)
    assert result.history[0]["train_loss"] == pytest.approx(expected.history[0]["train_loss"])


def test_two_batches_of_8_are_one_of_16_in_every_update() -> None:
    small, large = without_chance(), without_chance()
    fit(small, Blobs(64), None, sgd(batch_size=8, accumulate=2))
    fit(large, Blobs(64), None, sgd(batch_size=16))
    assert_close(small, large)


def test_an_update_of_nothing_that_counts_changes_nothing() -> None:
    """As of a batch of masks none of whose pixels has a class."""
    model = without_chance()
    model.weight = lambda batch: int((batch["labels"] > 0).sum())  # type: ignore[assignment]
    result = fit(model, Blobs(8), None, sgd(batch_size=1))
    assert result.history[0]["step"] == 8
    assert all(value.isfinite().all() for value in weights(model).values())


TOKENS: dict[str, Any] = {"epochs": 2, "learning_rate": 1.0, "metric": "loss", "keep": "last"}


def test_every_token_weighs_the_same_however_a_batch_is_split() -> None:
    halves, whole = language_model(), language_model()
    first = fit(halves, Sentences(), None, sgd(batch_size=8, accumulate=2, **TOKENS))
    second = fit(whole, Sentences(), None, sgd(batch_size=16, **TOKENS))
    assert_close(halves, whole)
    for ours, theirs in zip(first.history, second.history, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-6)
    # The halves hold different numbers of tokens: a mean of their means would be another update.
    counts = [int(Sentences().lengths[rows].sum()) for rows in Shuffled(64, 8, 2)(0, 0)[:2]]  # type: ignore[index]
    assert counts[0] != counts[1]


def test_an_update_is_what_it_would_be_by_hand() -> None:
    """Also the last one, which has one batch where others have two."""
    model, data, expected = without_chance(), Blobs(48), without_chance()

    def thirds(seed: int, epoch: int, rank: int = 0, world: int = 1) -> list[list[int]]:
        return [list(range(16)), list(range(16, 32)), list(range(32, 48))]

    fit(model, data, None, sgd(accumulate=2), batches=thirds)
    for rows in (range(32), range(32, 48)):
        expected(**data.__getitems__(rows)).loss.backward()
        with torch.no_grad():
            for parameter in expected.parameters():
                parameter -= 0.1 * parameter.grad
                parameter.grad = None
    assert_close(model, expected)


def test_only_weights_decay() -> None:
    model = tiny()
    model.scale = nn.Parameter(torch.ones(4, 1, 1))
    before = weights(model)
    given = sgd(learning_rate=1e-20, weight_decay=1e19, batch_size=50)  # no gradient shows
    fit(model, Blobs(), None, given)
    decayed = [k for k, v in before.items() if not v.allclose(model.state_dict()[k], rtol=1e-3)]
    assert [k for k in decayed if "running" not in k and "tracked" not in k] == [
        "net.0.weight",
        "net.5.weight",
    ]
    torch.testing.assert_close(model.net[5].weight, 0.9 * before["net.5.weight"])


def test_the_norm_of_the_gradient_is_clipped() -> None:
    model = without_chance()
    before = weights(model)
    fit(model, Blobs(), None, sgd(batch_size=50, learning_rate=1.0, clip=0.01))
    moved = [model.state_dict()[name] - value for name, value in before.items()]
    length = torch.stack([each.square().sum() for each in moved]).sum().sqrt()
    assert length.item() == pytest.approx(0.01, rel=1e-3)


def test_the_history_tells_the_rate_of_each_epoch() -> None:
    result = fit(tiny(), Blobs(), None, options(epochs=2, schedule="linear", warmup=0.0))
    assert [e["learning_rate"] for e in result.history] == pytest.approx([0.01 * 8 / 14, 0.01 / 14])


def test_what_is_frozen_stays_as_it_is_running_statistics_included() -> None:
    model = tiny()
    before = weights(model)
    for frozen in (model.net[0], model.net[1]):
        frozen.requires_grad_(False)
    trained = []
    model.net[1].register_forward_hook(lambda module, *_: trained.append(module.training))
    fit(model, Blobs(), Blobs(), options(weight_decay=0.1, moving_average=0.5))
    same = [name for name, value in model.state_dict().items() if torch.equal(value, before[name])]
    assert same == [name for name in before if name.startswith(("net.0", "net.1"))]
    assert set(trained) == {False}


def test_the_average_is_what_is_evaluated_and_kept() -> None:
    """Its last updates are recomputed from the weights after each."""
    seen: list[dict[str, Tensor]] = []
    model = tiny()

    class Watched(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            super().step(closure)
            seen.append(weights(model))

    expected = weights(model)
    data = Blobs(40, noise=0.0)
    given = sgd(optimizer=Watched, moving_average=0.8, epochs=4)
    result = fit(model, data, data, given)
    for number, now in enumerate(seen, start=1):
        share = 1 - min(0.8, (1 + number) / (10 + number))
        for name, value in now.items():
            real = value.is_floating_point()
            expected[name] = expected[name].lerp(value, share) if real else value
        if number == 5 * result.best["epoch"]:
            break
    assert_close(expected, model)
    assert number > 5 and result.metrics == evaluate(model, data)
    plain = tiny()
    fit(plain, data, data, sgd(epochs=4))
    with pytest.raises(AssertionError):
        assert_equal(plain, model)
