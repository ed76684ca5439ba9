"""Branches, parts, a spec and targets of one's own, from outside the package: all promises hold."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from datasets import Dataset, DatasetDict
from torch import Tensor, nn

import resbackbones as rb
from resbackbones.core.blocks import Convolution
from resbackbones.core.context import Context
from resbackbones.core.layers import NormActivation
from resbackbones.core.ops import masked_mean
from resbackbones.data import Column, Items, Source, Target, open_dataset, open_splits
from resbackbones.speech import ResidualForAudioClassification
from resbackbones.vision import ResidualForImageClassification


@dataclass(frozen=True)
class Hierarchy(rb.Part):
    """Channels in `scale` groups; each is convolved together with what the one before gave (Gao et
    al. 2019, section 3): no chain of convolutions."""

    channels: int
    kernel: int = 3
    dilation: int = 1
    scale: int = 4
    norm: bool = True

    @property
    def convolutions(self) -> int:
        return self.scale - 1

    def reach(self, causal: bool) -> tuple[float, float]:
        extent = (self.scale - 1) * (self.kernel - 1) * self.dilation
        return (extent, 0) if causal else (extent // 2, extent // 2)


class HierarchyModule(nn.Module):
    def __init__(self, part: Hierarchy, spec: rb.BackboneSpec, in_channels: int) -> None:
        super().__init__()
        width = part.channels // part.scale
        layer = rb.Layer(width, part.kernel, 1, part.dilation)
        self.convolutions = nn.ModuleList(
            Convolution(spec, width, layer, bias=False) for _ in range(part.scale - 1)
        )
        make = rb.MODULES[NormActivation]
        self.after = nn.ModuleList(
            make(NormActivation(width), spec, width) for _ in range(part.scale - 1)
        )

    def forward(self, x: Tensor, context: Context) -> Tensor:
        first, *rest = x.chunk(len(self.convolutions) + 1, 1)
        done, before = [first], None
        for group, convolution, after in zip(rest, self.convolutions, self.after, strict=True):
            group = group if before is None else group + before
            before = after(convolution(group, context), context)
            done.append(before)
        return torch.cat(done, 1)


@dataclass(frozen=True)
class Res2(rb.Branch):
    """1x1, a hierarchy, 1x1 (Gao et al. 2019, figure 2)."""

    scale: int = 4

    def parts(self, stage: rb.Stage, in_channels: int) -> tuple[rb.Part, ...]:
        return (
            rb.Layer(stage.channels, 1, stage.stride),
            Hierarchy(stage.channels, stage.kernel, stage.dilation, self.scale),
            rb.Layer(stage.channels, 1, activation=False),
        )


@dataclass(frozen=True)
class FrequencyMean(rb.Part):
    """The mean over frequency, seen at every frequency again (Kim et al. 2021, section 3)."""

    channels: int


class FrequencyMeanModule(nn.Module):
    def __init__(self, part: FrequencyMean, spec: rb.BackboneSpec, in_channels: int) -> None:
        super().__init__()

    def forward(self, x: Tensor, context: Context) -> Tensor:
        return x + x.mean(2, keepdim=True)


@dataclass(frozen=True)
class Broadcast(rb.Branch):
    """A convolution along frequency, then one along the mean over it."""

    def parts(self, stage: rb.Stage, in_channels: int) -> tuple[rb.Part, ...]:
        return (
            rb.Layer(stage.channels, (3, 1), stage.stride),
            FrequencyMean(stage.channels),
            rb.Layer(stage.channels, (1, 3), 1, (1, stage.dilation), activation=False),
        )


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rb.BRANCHES, "own_res2", Res2)
    monkeypatch.setitem(rb.BRANCHES, "own_broadcast", Broadcast)
    monkeypatch.setitem(rb.MODULES, Hierarchy, HierarchyModule)
    monkeypatch.setitem(rb.MODULES, FrequencyMean, FrequencyMeanModule)
    monkeypatch.setitem(rb.SPECS, "res2net10", SPEC)


SPEC = rb.BackboneSpec(
    (rb.Stage(16, 2), rb.Stage(32, 2, stride=2, dilation=2)),
    in_channels=4,
    stem=rb.Stem(16),
    branch=Res2(),
)
CASES = [
    *((dims, changes) for dims in (1, 2) for changes in (
        {}, {"order": "pre"}, {"skip": "none"}, {"causal": True}, {"norm": "group"},
        {"causal": True, "norm": "none", "init": "fixup"}, {"attention": "se", "dropout": 0.1},
    )),
    (2, {"branch": Broadcast()}),
    (2, {"branch": Broadcast(), "order": "pre", "norm": "layer"}),
]  # fmt: skip


@pytest.mark.parametrize(("dims", "changes"), CASES, ids=str)
def test_padding_gradients_and_diagnosis(dims: int, changes: dict) -> None:
    torch.manual_seed(0)
    net = rb.backbone("res2net10", dims=dims, **changes).eval()
    lengths = torch.tensor([17, 6, 11])
    x = torch.randn(3, 4, *(8,) * (dims - 1), 17)
    together = net(x, lengths)
    assert [f.shape[1] for f in together] == list(net.channels) == [16, 32]
    for index, length in enumerate(lengths.tolist()):
        alone = net(x[index : index + 1, ..., :length])
        for feature, single in zip(together, alone, strict=True):
            real = feature[index : index + 1, ..., : single.shape[-1]]
            torch.testing.assert_close(real, single, atol=1e-5, rtol=1e-5)
    sum(feature.square().mean() for feature in together).backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())
    assert rb.diagnose.gradient_profile(net, x)[0].norm > 0


@pytest.mark.parametrize("dims", [1, 2])
def test_causality_streams_and_the_receptive_field(dims: int) -> None:
    torch.manual_seed(0)
    net = rb.backbone("res2net10", dims=dims, causal=True, activation="silu").eval().double()
    x = torch.randn(1, 4, *(6,) * (dims - 1), 161, dtype=torch.float64, requires_grad=True)
    stream = net.stream()
    pieces = [stream.push(chunk)[-1] for chunk in x.split(10, -1)]
    whole = net(x)[-1]
    torch.testing.assert_close(torch.cat(pieces, -1), whole)
    whole[..., -1].sum().backward()
    seen = x.grad.abs().sum(tuple(range(x.ndim - 1))).nonzero()
    # Two blocks of three convolutions per resolution, the stem, and nothing of the future.
    assert net.receptive_field == 1 + 2 + 2 * 6 + 2 * 24 == 161 - int(seen.min())
    changed = x.detach().clone()
    changed[..., 90:] += 1
    with torch.no_grad():
        torch.testing.assert_close(net(changed)[-1][..., :45], whole.detach()[..., :45])


def test_it_is_checked_like_any_other() -> None:
    for spec in (SPEC, replace(SPEC, branch=Broadcast())):
        assert rb.BackboneSpec.from_dict(spec.to_dict()) == spec
    values = SPEC.to_dict()
    values["branch"]["scales"] = 3
    with pytest.raises(rb.InputError, match="Res2 has no field 'scales'; did you mean 'scale'"):
        rb.BackboneSpec.from_dict(values)
    with pytest.raises(rb.InputError, match="dead net"):
        rb.backbone("res2net10", skip="none", init="zero_last")
    with pytest.raises(rb.InputError, match="dims=1 needs one number"):
        replace(SPEC, branch=Broadcast(), dims=1)
    with pytest.raises(rb.InputError, match="scale='3'"):
        Res2(scale="3")


def test_a_part_without_a_module_and_a_branch_too_narrow_are_refused(monkeypatch) -> None:
    monkeypatch.delitem(rb.MODULES, Hierarchy)
    with pytest.raises(rb.InputError, match="no module is known for the part Hierarchy"):
        rb.Backbone(SPEC)

    @dataclass(frozen=True)
    class Narrow(rb.Branch):
        def parts(self, stage: rb.Stage, in_channels: int) -> tuple[rb.Part, ...]:
            return (rb.Layer(stage.channels // 2),)

    with pytest.raises(rb.InputError, match="ends in 8 channels, but its stage has 16"):
        replace(SPEC, branch=Narrow())


@pytest.mark.parametrize("dims", [1, 2])
def test_it_builds_saves_and_loads(dims: int, tmp_path: Path) -> None:
    wing = {1: ResidualForAudioClassification, 2: ResidualForImageClassification}[dims]
    model = wing.build("res2net10", num_labels=3, dims=dims).eval()
    model.save_pretrained(tmp_path)
    loaded = wing.from_pretrained(tmp_path)
    x = torch.randn(2, 4, *(20,) * dims)
    assert torch.equal(model(x).logits, loaded(x).logits)
    assert masked_mean(model.backbone(x)[-1]).shape == (2, 32)


@dataclass(frozen=True)
class Score(Target):
    """A number from 0 to 10, held out in proportion to low and high ones."""

    role: ClassVar[str] = "score"
    usual: ClassVar[tuple[str, ...]] = ("score", "rating")

    def faults(self, column: Column) -> dict[int, str]:
        return {
            row: f"has the score {cell}, which is not from 0 to 10"
            for row, cell in enumerate(column.cells)
            if cell is None or not 0 <= cell <= 10
        }

    def values(self, column: Column) -> Tensor:
        return torch.tensor(column.cells, dtype=torch.float32)

    def strata(self, values: Tensor) -> Tensor:
        return (values > 5).long()

    def describe(self, values: Tensor) -> str:
        return f"scores around {values.mean():.1f}"


@dataclass(frozen=True)
class Boxes(Target):
    """Rectangles, any number per item: no kinds, so groups or a hash decide."""

    role: ClassVar[str] = "boxes"

    def values(self, column: Column) -> list[Tensor]:
        return [torch.tensor(cell).reshape(-1, 4) for cell in column.cells]


class Scored(Items):
    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source, self.labels = source, source.targets()

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, rows: Any) -> dict[str, Tensor]:
        return {"labels": self.labels[torch.as_tensor(rows)]}


def test_a_target_of_ones_own() -> None:
    rows = {"text": [f"item {i}" for i in range(40)], "Rating": [1.5, 9.0, 2, 3] * 10}
    train = Dataset.from_dict(rows)
    splits = open_splits(DatasetDict(train=train, test=train.select([0, 1])), target=Score())
    assert splits.train.columns == {"input": "text", "score": "Rating"}
    assert (splits.validation.targets() > 5).sum() == 1 and len(splits.validation) == 4
    assert "; scores around 3.9" in splits.found()
    items = Scored(splits.train)
    assert items[0]["labels"].item() == splits.train.targets()[0]
    assert items.fingerprint() != Scored(splits.train.select(range(35, -1, -1))).fingerprint()

    bad = Dataset.from_dict({**rows, "Rating": [1.5, 9.0, 12.0, None] + [2.0, 9.0] * 18})
    message = r"row 3 of .* has the score 12.0, which is not from 0 to 10 \(and 1 more\)"
    with pytest.raises(rb.InputError, match=message):
        open_dataset(bad, target=Score())
    assert len(open_splits(bad, target=Score(), on_bad="skip").skipped) == 2
    lonely = Dataset.from_dict({**rows, "Rating": [1.0] * 39 + [9.0]})
    with pytest.raises(rb.InputError, match=r"row 40 of .* is the only one of the kind 1, and"):
        open_splits(lonely, target=Score())


def test_a_target_without_kinds() -> None:
    boxes = [[[0.0, 0.0, i, i]] * (i % 3) for i in range(40)]
    table = Dataset.from_dict({"text": [f"item {i}" for i in range(40)], "boxes": boxes})
    with pytest.raises(rb.InputError, match="no boxes column"):
        open_dataset(table, target=Boxes())
    told = {"boxes": "boxes"}
    splits = open_splits(table, told, Boxes())
    assert [len(each) for each in splits.validation.targets()] == [
        row % 3 for row in splits.held_out
    ]
    grouped = table.add_column("speaker", [f"s{i % 10}" for i in range(40)])
    held = open_splits(grouped, told, Boxes()).held_out
    assert held and {row % 10 for row in held} == {held[0] % 10} and len(held) == 4
