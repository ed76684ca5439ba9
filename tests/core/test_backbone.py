"""A backbone's promises beside padding and streams: strides become dilations, fields are what they
say, bad input is told."""

import itertools
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import resbackbones as rb


@pytest.mark.parametrize("spec", ["tc_resnet8", "preact_resnet110", "mel_resnet14"])
def test_features_of_some_stages_are_those_of_all(spec: str) -> None:
    net = rb.backbone(spec).eval()
    x = torch.randn(2, net.spec.in_channels, *(24,) * net.spec.dims)
    lengths = torch.tensor([24, 17]) if net.spec.dims == 1 else None
    every = net(x, lengths)
    for stages in [(0,), (-1,), (2, 0), range(len(every))]:
        for feature, stage in zip(net(x, lengths, stages), stages, strict=True):
            assert torch.equal(feature, every[stage])
    for stages in [(), (0, len(every)), (-len(every) - 1,)]:
        with pytest.raises(rb.InputError, match=r"give one or more from 0 to"):
            net(x, stages=stages)


def test_features_not_asked_for_are_let_go_and_those_behind_not_computed() -> None:
    net = rb.backbone("resnet20").eval()
    first: list[weakref.ref[Tensor]] = []
    held: list[bool] = []
    net.stages[0].register_forward_hook(lambda _, __, out: first.append(weakref.ref(out)))
    net.stages[2].register_forward_pre_hook(lambda *_: held.append(first[-1]() is not None))
    ran: list[nn.Module] = []
    net.stages[2].register_forward_hook(lambda module, *_: ran.append(module))
    with torch.inference_mode():
        net(torch.zeros(1, 3, 8, 8), stages=(1,))
        assert not ran
        net(torch.zeros(1, 3, 8, 8), stages=(1, 2))
        net(torch.zeros(1, 3, 8, 8), stages=(0, 2))
    assert held == [False, True] and len(ran) == 2


ATROUS = rb.BackboneSpec(
    (rb.Stage(8, 1), rb.Stage(12, 2, 2), rb.Stage(16, 2, 2, kernel=5), rb.Stage(24, 1, 2)),
    in_channels=4,
    stem=rb.Stem(8, 3, 2),
    tail=(rb.Layer(8, 3),),
)


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("skip", ["identity", "none"])
@pytest.mark.parametrize(
    "branch",
    [
        rb.Basic(),
        rb.Bottleneck(),
        rb.Separable(2),
        rb.Temporal(),
        rb.Gated(),
        rb.Inverted(),
        rb.Res2(),
    ],
    ids=lambda b: type(b).__name__,
)
def test_a_stride_turned_into_a_dilation_keeps_every_output(
    branch: rb.Branch, skip: str, dims: int
) -> None:
    spec = replace(ATROUS, branch=branch, skip=skip, dims=dims)
    torch.manual_seed(0)
    net = rb.Backbone(spec).eval()
    x = torch.randn(2, 4, *(45, 61)[:dims])
    for stride in (8, 4):
        dense = rb.Backbone(rb.with_output_stride(spec, stride)).eval()
        dense.load_state_dict(net.state_dict())
        assert dense.strides[-1] == (stride,) * dims
        every = (slice(None), slice(None), *(slice(None, None, 16 // stride),) * dims)
        with torch.no_grad():
            torch.testing.assert_close(dense(x)[-1][every], net(x)[-1], rtol=1e-5, atol=1e-5)


TAKERS = [
    {"shortcut": "average"},
    {"shortcut": "average", "order": "pre"},
    {"shortcut": "pad"},
    {"shortcut": "always"},
    {"downsample": "max"},
    {"downsample": "max", "order": "pre"},
    {"downsample": "patch", "branch": rb.Inverted()},
    {"downsample": "blur"},
    {"downsample": "blur", "branch": rb.Bottleneck(), "shortcut": "average"},
    {"downsample": "blur", "branch": rb.Gated(), "order": "pre"},
    {"stages": tuple(replace(stage, channels=8) for stage in ATROUS.stages)},
]
ONE_AXIS = {
    "stages": (*ATROUS.stages[:3], replace(ATROUS.stages[3], stride=(2, 1))),
    "shortcut": "average",
    "downsample": "blur",
}


@pytest.mark.parametrize(
    ("changes", "dims"),
    [*((changes, dims) for changes in TAKERS for dims in (1, 2)), (ONE_AXIS, 2)],
    ids=str,
)
def test_whatever_takes_a_stride_is_dilated(changes: dict, dims: int) -> None:
    """Poolings, means, blurs and patches too, and a projection that is there for its stride."""
    spec = replace(ATROUS, dims=dims, **changes)
    torch.manual_seed(0)
    net = rb.Backbone(spec).eval()
    x = torch.randn(2, 4, *(45, 61)[-dims:])
    for stride in (8, 4):
        dense = rb.Backbone(rb.with_output_stride(spec, stride)).eval()
        dense.load_state_dict(net.state_dict())
        steps = [a // b for a, b in zip(net.strides[-1], dense.strides[-1], strict=True)]
        assert dense.strides[-1] == (stride,) * dims and max(steps) > 1
        every = (slice(None), slice(None), *(slice(None, None, step) for step in steps))
        with torch.no_grad():
            torch.testing.assert_close(dense(x)[-1][every], net(x)[-1], rtol=1e-4, atol=1e-4)
        assert rb.with_output_stride(rb.with_output_stride(spec, 8), stride) == dense.spec


@pytest.mark.parametrize("dilated", [False, True])
def test_windows_leave_python_for_every_size(dilated: bool) -> None:
    """torch's poolings assume how a size divides, unless they are given whole windows."""
    stem = rb.Stem(8, pool=2, zero_padded=True, before=(rb.Layer(4, stride=2),))
    spec = replace(ATROUS, stem=stem, shortcut="average", downsample="blur", tail=())
    spec = replace(spec, norm="group", weight_standardized=True, order="pre")
    net = rb.Backbone(rb.with_output_stride(spec, 8) if dilated else spec).eval()
    sizes = ({0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(net, (torch.randn(2, 4, 120, 64),), dynamic_shapes=sizes)
    for size in (151, 90, 97):
        x = torch.randn(3, 4, size, 64)
        with torch.no_grad():
            torch.testing.assert_close(program.module()(x)[-1], net(x)[-1])


OWN = (rb.Stage(8, 1), rb.Stage(12, 1, 2), rb.Stage(16, 1, 2, dilation=3), rb.Stage(16, 1, 2))
LATE = (rb.Stage(8, 1), rb.Stage(12, 1, 4), rb.Stage(16, 1, 2))


@pytest.mark.parametrize(
    ("changes", "stride", "sentence"),
    [
        ({}, 32, "but through 2, 2, 4, 8, 16"),
        ({}, 1, "does not pass through stride 1, but"),
        ({"stages": OWN, "downsample": "max"}, 4, "is taken by a max pooling, and beside it"),
        ({"stages": OWN, "downsample": "blur"}, 4, "is taken by a blur, and beside it stands"),
        ({"stages": OWN, "shortcut": "average"}, 4, "is taken by the mean of its shortcut"),
        ({"stages": LATE, "downsample": "patch"}, 4, "is taken by patches, and .* a stride that"),
        ({"dims": 1, "downsample": "k_max"}, 4, "largest numbers, which has no dilation"),
    ],
    ids=str,
)
def test_strides_that_cannot_be_had_are_told(changes: dict, stride: int, sentence: str) -> None:
    with pytest.raises(rb.InputError, match=sentence):
        rb.with_output_stride(replace(ATROUS, **changes), stride)
    assert rb.with_output_stride(ATROUS, 16) == ATROUS


FIELDS = [
    {},
    {"downsample": "max"},
    {"branch": rb.Temporal()},
    {"shortcut": "average"},
    {"branch": rb.Inverted(), "downsample": "patch", "stem": rb.Stem(8, 4, 4)},
    {"branch": rb.Separable(2), "stem": rb.Stem(8, 7, 2, pool=2)},
    {"causal": True, "branch": rb.Gated()},
    {"skip": "none", "stages": (rb.Stage(8, 2, stride=2, dilation=3),)},
    {"downsample": "blur", "stem": rb.Stem(8, pool=2)},
    {"stem": rb.Stem(8, before=(rb.Layer(4, 5, 2), rb.Layer(6, 3, dilation=2)))},
    {"stem": rb.Stem(8, pool=4, averaged=True)},
    {"branch": rb.Res2()},
    {"branch": rb.Res2(2, activation=True), "causal": True, "norm_after_activation": True},
    {"tail": (rb.Layer(8, 3, 3, centred=False),)},
    {
        "stages": (rb.Stage(8, 1, 2), rb.Stage(16, 1, dilation=3)),
        "tail_reads": "all",
        "tail": (rb.Layer(8, 5),),
    },
    *(
        {"stages": (rb.Stage(8, 1), rb.Stage(16, 1, 1, 3, 4, 2))} | changes
        for changes in (
            {"downsample": "max"},
            {"downsample": "blur"},
            {"downsample": "patch", "branch": rb.Inverted()},
            {"shortcut": "average", "branch": rb.Basic()},
        )
    ),
]


@pytest.mark.parametrize("changes", FIELDS, ids=lambda c: "-".join(c) or "base")
def test_the_receptive_field_is_exactly_what_an_output_depends_on(changes: dict) -> None:
    spec = rb.BackboneSpec(
        (rb.Stage(8, 1), rb.Stage(16, 2, stride=2, kernel=5), rb.Stage(16, 1, stride=2)),
        dims=1, in_channels=4, stem=rb.Stem(8), activation="silu",
    )  # fmt: skip
    spec = replace(spec, **changes)
    first, last = 10_000, 0
    for seed in range(30):  # a maximum looks at one position at a time
        torch.manual_seed(seed)
        net = rb.Backbone(spec).eval().double()
        x = torch.randn(1, 4, 401, dtype=torch.float64, requires_grad=True)
        feature = net(x)[-1]
        feature[..., feature.shape[-1] // 2].sum().backward()
        seen = x.grad.abs().sum(1).squeeze(0).nonzero()
        first, last = min(first, int(seen.min())), max(last, int(seen.max()))
    assert net.receptive_field == last - first + 1


@pytest.mark.parametrize("causal", [False, True])
def test_what_is_broadcast_reads_along_time_alone(causal: bool) -> None:
    """The field is exact too where a mean over frequency stands between."""
    net = rb.backbone("bc_resnet1", causal=causal).eval().double()
    x = torch.randn(1, 1, 40, 161, dtype=torch.float64, requires_grad=True)
    net(x)[-1][..., 80].sum().backward()
    seen = x.grad.abs().sum((0, 1, 2)).nonzero().flatten()
    # A stem and a tail 5 wide, and twelve blocks of 3 at dilations 1, 2, 4 and 8.
    field = 4 + 2 * (2 * 1 + 2 * 2 + 4 * 4 + 4 * 8) + 4 + 1
    assert net.receptive_field == field == 117
    before = (field - 1) // (1 if causal else 2)
    assert [int(seen.min()), int(seen.max())] == [max(0, 80 - before), 80 + field - 1 - before]


@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        (torch.zeros(1, 1, 32, 32), r"takes \(B, 3, H, W\)"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "holds torch.uint8"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.int64), "holds torch.int64"),
        (
            torch.zeros(1, 3, 32, 32, dtype=torch.float64),
            "weights of this backbone are torch.float32",
        ),
        (torch.zeros(1, 3, 32, 32, dtype=torch.float16), r"convert it with \.to\(torch\.float32\)"),
        (np.zeros((1, 3, 32, 32)), "is a ndarray"),
        ([[0.0]], "is a list"),
        (torch.zeros(32, 32), r"has shape \(32, 32\), but this backbone takes \(B, 3, H, W\)"),
    ],
    ids=str,
)
def test_wrong_inputs_are_refused(x: object, sentence: str) -> None:
    with pytest.raises(rb.InputError, match=sentence):
        rb.backbone("resnet20")(x)


def test_rows_that_bands_do_not_divide_are_refused() -> None:
    with pytest.raises(rb.InputError, match="16 rows of frequency are left where 5 equal bands"):
        rb.backbone("bc_resnet1")(torch.zeros(1, 1, 32, 50))


def test_autocast_brings_types_together() -> None:
    net = rb.backbone("resnet20").eval()
    x = torch.zeros(1, 3, 8, 8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert net(x.bfloat16())[-1].dtype == net(x)[-1].dtype == torch.bfloat16
        with pytest.raises(rb.InputError, match=r"holds torch\.float64"):
            net(x.double())
    assert net.bfloat16()(x.bfloat16())[-1].dtype == torch.bfloat16


def test_group_norm_takes_the_groups_it_is_told() -> None:
    def groups(count: int | None) -> set[int]:
        net = rb.backbone("resnet50", norm="group", norm_groups=count)
        return {m.num_groups for m in net.modules() if isinstance(m, nn.GroupNorm)}

    assert groups(32) == {32}
    assert groups(None) == {8, 16, 32}


def test_a_sequence_is_an_image_one_row_high() -> None:
    """The same weights, the same numbers, and the row is nowhere to be seen."""
    torch.manual_seed(0)
    sequence = rb.backbone("tc_resnet8").eval()
    stages = tuple(
        replace(s, kernel=(1, s.kernel), stride=(1, s.stride)) for s in sequence.spec.stages
    )
    stem = replace(sequence.spec.stem, kernel=(1, 3))
    image = rb.backbone(replace(sequence.spec, dims=2, stages=stages, stem=stem)).eval()
    image.load_state_dict(sequence.state_dict())
    x = torch.randn(2, 40, 37)
    with torch.no_grad():
        for flat, high in zip(sequence(x), image(x[:, :, None]), strict=True):
            assert flat.ndim == 3
            torch.testing.assert_close(flat, high.squeeze(2), rtol=1e-5, atol=1e-5)


def test_gradients_under_lengths_are_those_of_the_items() -> None:
    """Against finite differences, in double precision: gathering rows for a norm and putting them
    back is code of our own."""
    torch.manual_seed(0)
    spec = rb.BackboneSpec(
        (rb.Stage(4, 1), rb.Stage(4, 1, stride=2)), in_channels=2, stem=rb.Stem(4),
        activation="tanh",
    )  # fmt: skip
    lengths = torch.tensor([9, 3, 6])
    for dims in (1, 2):
        net = rb.Backbone(replace(spec, dims=dims)).double().train()
        x = torch.randn(3, 2, *(2,) * (dims - 1), 9, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x, net=net: net(x, lengths), x, atol=1e-6)


def held_for_backward(net: rb.Backbone, x: Tensor) -> int:
    """Bytes that a forward pass keeps, parameters and input aside."""
    kept = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        net(x)
    for own in (*net.parameters(), *net.buffers(), x):
        kept.pop(own.untyped_storage()._cdata, None)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize(
    ("name", "size", "times"),
    [("resnet110", 32, 6), ("resnet50", 224, 3)],
)
def test_recomputing_keeps_a_fraction(name: str, size: int, times: float) -> None:
    with torch.device("meta"):
        net, x = rb.backbone(name).train(), torch.empty(256, 3, size, size)
    everything = held_for_backward(net, x)
    net.gradient_checkpointing = True
    assert times * held_for_backward(net, x) < everything


RECOMPUTED = rb.BackboneSpec(
    (rb.Stage(8, 6), rb.Stage(16, 3, 2)), in_channels=4, stem=rb.Stem(8, pool=2),
    tail=(rb.Layer(8),), dropout=0.2, drop_path=0.5, attention="se",
)  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"order": "pre", "downsample": "max"},
        {"norm": "group", "weight_standardized": True, "attention": "eca"},
        {"norm": "none", "init": "fixup", "shortcut": "pad"},
        {"downsample": "blur", "shortcut": "average", "branch": rb.Bottleneck()},
        {"branch": rb.Res2(), "norm_after_activation": True, "norm_affine": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("dims", [1, 2])
def test_recomputing_changes_no_number(changes: dict, dims: int) -> None:
    """Outputs, gradients, running statistics and the random state: the same to the last bit."""
    x = torch.randn(5, 4, *(8,) * (dims - 1), 24)

    def step(recompute: bool, lengths: Tensor | None) -> dict[str, Tensor]:
        torch.manual_seed(0)
        net = rb.Backbone(replace(RECOMPUTED, dims=dims, **changes)).train()
        frozen = next((m for m in net.modules() if isinstance(m, nn.BatchNorm2d)), None)
        if frozen is not None:
            frozen.eval()
        net.gradient_checkpointing = recompute
        features = net(x, lengths)
        sum(feature.square().mean() for feature in features).backward()
        norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
        assert all(norm.num_batches_tracked == (norm is not frozen) for norm in norms)
        values = dict(net.named_buffers()) | {n: p.grad for n, p in net.named_parameters()}
        features = {str(index): feature for index, feature in enumerate(features)}
        return values | features | {"random": torch.rand(1)}

    for lengths in (None, torch.tensor([24, 9, 17, 3, 24])):
        expected, found = step(False, lengths), step(True, lengths)
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert torch.equal(value, found[name]), name


def test_recomputing_is_for_training_alone() -> None:
    net = rb.Backbone(replace(RECOMPUTED, causal=True, attention="none", stem=rb.Stem(8), dims=1))
    net.gradient_checkpointing = True
    calls: list[str] = []
    for name, block in net.blocks:
        block.register_forward_pre_hook(lambda module, given, name=name: calls.append(name))
    x = torch.randn(2, 4, 12)
    net(x)[-1].sum().backward()
    assert sorted(calls) == sorted(2 * [name for name, _ in net.blocks])
    for once in (lambda: net.eval()(x)[-1].sum().backward(), lambda: net.stream().push(x)):
        calls.clear()
        once()
        assert calls == [name for name, _ in net.blocks]
    calls.clear()
    with torch.no_grad():
        net.train()(x)
    assert calls == [name for name, _ in net.blocks]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("tc_resnet8", {}),
        ("vdcnn9", {}),
        ("vdcnn9", {"downsample": "k_max"}),
        ("dpcnn", {}),
        ("tcn_char", {}),
        ("ecapa512", {}),
    ],
    ids=str,
)
def test_sequences_stay_channels_last(name: str, changes: dict) -> None:
    """A tensor that loses the layout on its way costs more than every mask."""
    net = rb.backbone(name, **changes)
    seen = []
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, i, o: seen.append(o))
    x = torch.randn(2, net.spec.in_channels, 40)
    for lengths in (None, torch.tensor([40, 22])):
        net(x, lengths)
    assert all(o.is_contiguous(memory_format=torch.channels_last) for o in seen)
    assert len(seen) == 2 * sum(isinstance(m, nn.Conv2d) for m in net.modules())


def test_names_of_modules_are_modules() -> None:
    import resbackbones.core.backbone as module

    assert module.Backbone is rb.Backbone
    assert list(itertools.islice(rb.SPECS, 1)) == ["resnet18"]
