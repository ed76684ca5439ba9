"""Schedules and parameter groups."""

from typing import Any

import pytest
import torch
from torch import nn

from resbackbones.errors import InputError
from resbackbones.train import fit
from resbackbones.train.optimizers import WARMUP, make_optimizer, parameter_groups, schedule
from resbackbones.vision import ResidualForImageClassification
from tests.train.helpers import options, tiny


def rates(name: str, steps: int = 100, **changes: Any) -> list[float]:
    given = options(schedule=name, **changes)
    return [2.0 * schedule(step, steps, given) for step in range(steps)]


def test_the_schedules_have_their_shapes() -> None:
    cosine, linear = rates("cosine"), rates("linear", warmup=0.1)
    assert max(cosine) == cosine[5] == 2.0 and 0 < cosine[0] < cosine[4] < 2.0
    assert cosine[52] == pytest.approx(1.0, abs=0.03) and 0 < cosine[-1] < 0.01
    assert linear[10] == 2.0 and linear[55] == pytest.approx(1.0) and linear[0] == 2 / 11
    assert rates("constant") == [2.0] * 100
    assert rates("constant", warmup=0.02)[:3] == pytest.approx([2 / 3, 4 / 3, 2])
    for steps in range(1, 30):
        for name in WARMUP:
            for warmup in (None, 0.0, 0.1, 1.0):
                assert all(0 < rate <= 2.0 for rate in rates(name, steps, warmup=warmup))


def test_one_cycle_is_that_of_torch() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 2.0, total_steps=1000, cycle_momentum=False
    )
    expected = []
    for _ in range(1000):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert rates("one_cycle", 1000) == pytest.approx(expected, abs=0.01)


def rate_of(model: nn.Module, **changes: Any) -> dict[str, float]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, options(learning_rate=1.0, **changes))
    return {names[p]: group["initial_lr"] for group in groups for p in group["params"]}


def test_each_block_has_its_rate() -> None:
    model = ResidualForImageClassification.build("resnet20", num_labels=3)
    found = rate_of(model, layer_decay=0.5)
    assert set(found) == {name for name, _ in model.named_parameters()}
    ordered = list(dict.fromkeys(found[name] for name, _ in model.named_parameters()))
    assert ordered == [0.5 ** (10 - layer) for layer in range(11)]  # stem, 9 blocks, head
    assert {rate for name, rate in found.items() if name.startswith("head")} == {1.0}
    assert set(rate_of(model).values()) == {1.0}


def test_embeddings_belong_to_the_stem_and_what_is_between_blocks_to_the_one_before() -> None:
    backbone = ResidualForImageClassification.build("resnet20", num_labels=3).backbone
    blocks = [m for m in backbone.modules() if type(m).__name__ == "Residual"][:2]
    net = nn.Sequential(
        nn.Linear(2, 2), blocks[0], nn.Linear(2, 2), blocks[1], nn.Linear(2, 2), nn.Embedding(2, 2)
    )
    found = rate_of(net, layer_decay=0.5)
    assert [found[f"{index}.weight"] for index in (0, 2, 4, 5)] == [0.125, 0.25, 1.0, 0.125]


def test_frozen_parameters_are_in_no_group() -> None:
    model = tiny()
    model.net[0].requires_grad_(False)
    groups = make_optimizer(model, options(weight_decay=0.1)).param_groups
    inside = {parameter for group in groups for parameter in group["params"]}
    assert inside == {p for p in model.parameters() if p.requires_grad}
    assert [group["weight_decay"] for group in groups] == [0.0, 0.1]


def test_layers_begin_to_learn_one_after_the_other() -> None:
    torch.manual_seed(0)
    model = ResidualForImageClassification.build("resnet20", num_labels=3)
    groups = parameter_groups(model, options(unfreezing=0.5))
    names = {parameter: name for name, parameter in model.named_parameters()}
    opens = {names[p]: group["opens"] for group in groups for p in group["params"]}
    ordered = list(dict.fromkeys(opens[name] for name in names.values()))
    assert ordered == [0.5 * (10 - layer) / 10 for layer in range(11)]  # stem, 9 blocks, head
    rows = [{"pixel_values": torch.randn(3, 8, 8), "labels": n % 3} for n in range(8)]
    before = {name: value.clone() for name, value in model.named_parameters()}
    settings = options(unfreezing=1.0, epochs=5, batch_size=8, weight_decay=0.1, device="cpu")
    fit(model, rows, None, settings)  # five updates: the first half of the net comes too late
    changed = {name for name, value in model.named_parameters() if not value.equal(before[name])}
    late = {name for name, share in opens.items() if 2 * share > 0.8}
    assert changed == set(before) - late and late and changed


@pytest.mark.parametrize("name", ["layer_decay", "unfreezing"])
def test_layers_need_blocks(name: str) -> None:
    with pytest.raises(InputError, match=rf"{name}=0\.5 is per residual block"):
        make_optimizer(tiny(), options(**{name: 0.5}))
