"""`Backbone`: a spec made into a net that returns one feature per stage."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from resbackbones.core.blocks import Bias, Chain, Convolution, Residual
from resbackbones.core.context import WHOLE, Context, strided_lengths
from resbackbones.core.spec import BackboneSpec
from resbackbones.errors import InputError

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def through(
    modules: Sequence[Chain | Residual], x: Tensor, context: Context, recompute: bool = False
) -> tuple[Tensor, Context]:
    """What modules make of x one after another, and the context there.

    Args:
        recompute: keep x for the backward pass, and compute what they make of it anew there, with
            the same random numbers and without counting running statistics again.
    """

    def run(x: Tensor) -> Tensor:
        inside = context
        for module in modules:
            x = module(x, inside)
            inside = inside.strided(module.stride[-1])
        return x

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_held(modules)

    y = checkpoint(run, x, use_reentrant=False, context_fn=contexts) if recompute else run(x)
    return y, context.strided(_times(*(module.stride for module in modules))[-1])


@contextmanager
def _statistics_held(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let batch norms count into copies of their running statistics, not into their own."""
    norms = [m for module in modules for m in module.modules() if isinstance(m, NORMS[0])]
    own = [dict(norm.named_buffers()) for norm in norms]
    for norm, buffers in zip(norms, own, strict=True):
        for name, buffer in buffers.items():
            setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, buffers in zip(norms, own, strict=True):
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)


class StageBlocks(nn.Module):
    """One stage: what comes before its blocks, and the blocks.

    Asked to recompute, it keeps what goes into every group of a few blocks: about half the root of
    their number, which is where what is kept, and what one group computes anew at a time (about
    four tensors per block), come to the least together.
    """

    def __init__(self, down: Chain, blocks: Sequence[Residual]) -> None:
        super().__init__()
        self.down = down
        self.blocks = nn.ModuleList(blocks)
        self.stride = _times(down.stride, *(block.stride for block in blocks))

    def forward(self, x: Tensor, context: Context = WHOLE, recompute: bool = False) -> Tensor:
        modules: list[Chain | Residual] = [self.down, *cast("Iterable[Residual]", self.blocks)]
        size = max(1, round(math.sqrt(len(modules)) / 2)) if recompute else len(modules)
        for first in range(0, len(modules), size):
            x, context = through(modules[first : first + size], x, context, recompute)
        return x


class Backbone(nn.Module):
    """A residual backbone on `(B, in_channels, *space)`.

    Inside, every tensor is `(B, C, H, W)`: a sequence is an image one row high, its channels last
    in memory, which is what processors are fast at.

    Attributes:
        spec: what it was made from.
        channels: channels of each feature, shallow to deep; the last one is the tail's.
        gradient_checkpointing: whether training keeps what goes into every few blocks alone, and
            computes the rest anew on the way back (Chen et al. 2016): a second forward pass for a
            fraction of the memory, the same numbers. Set it at any time.
        strides: input positions that an output position of each feature stands for, one per axis.

    >>> from resbackbones.core.zoo import backbone
    >>> net = backbone("resnet20", dims=1, in_channels=40)
    >>> [tuple(f.shape) for f in net(torch.zeros(2, 40, 100))]
    [(2, 16, 100), (2, 32, 50), (2, 64, 25)]
    """

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__()
        self.spec = spec
        self.gradient_checkpointing = False
        plan, width = spec.plan, spec.in_channels
        self.stem = Chain(plan.stem, spec, width)
        width = plan.stem[-1].channels if plan.stem else width
        total = sum(len(blocks) for _, blocks in plan.stages)
        position, stride = 0, self.stem.stride
        channels, strides = [], []
        self.stages = nn.ModuleList()
        for stage, (parts, planned) in zip(spec.stages, plan.stages, strict=True):
            down = Chain(parts, spec, width)
            width = parts[-1].channels if parts else width
            blocks = []
            for block in planned:
                blocks.append(Residual(block, spec, width, position, total))
                width = stage.channels
                position += 1
            module = StageBlocks(down, blocks)
            self.stages.append(module)
            stride = _times(stride, module.stride)
            channels.append(width)
            strides.append(stride)
        if spec.tail_reads == "all":
            width = sum(channels)
        self.tail = Chain(plan.tail, spec, width)
        if plan.tail:
            channels[-1] = plan.tail[-1].channels
            strides[-1] = _times(stride, self.tail.stride)
        self.channels: tuple[int, ...] = tuple(channels)
        self.strides: tuple[tuple[int, ...], ...] = tuple(s[-spec.dims :] for s in strides)
        self.reset_parameters()

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | Sequence[int] | None = None,
        stages: Sequence[int] | None = None,
    ) -> tuple[Tensor, ...]:
        """Compute one feature per stage, shallow to deep.

        Args:
            x: `(B, in_channels, *space)`, of the net's floating-point type.
            lengths: `(B,)`, real positions of each item on the last axis; None means all.
            stages: those whose features are asked for, as (1, -1); None means all. Others are let
                go as soon as they are used, and nothing is computed behind the last one.

        Returns:
            Features `(B, channels[i], *space_i)`, `space_i = ceil(space / strides[i])`. What
            stands before an item's length is what the item alone would give (in evaluation); what
            stands past it is 0.

        Raises:
            InputError: x of another shape or type than the net's, lengths that do not fit it, or
                stages that there are not.
        """
        self._check(x)
        every = range(len(self.stages))
        if stages is not None and (
            not len(stages) or not all(-len(every) <= stage < len(every) for stage in stages)
        ):
            raise InputError(
                f"stages={tuple(stages)} of a backbone that has {len(every)}; give one or more "
                f"from 0 to {every[-1]}, or from -1 backwards"
            )
        wanted = every if stages is None else [every[stage] for stage in stages]
        return self.features(x, Context.of(x, lengths), wanted)

    def _check(self, x: Tensor) -> None:
        spec = self.spec
        space = "T" if spec.dims == 1 else "H, W"
        takes = f"this backbone takes (B, {spec.in_channels}, {space})"
        if not isinstance(x, Tensor):
            raise InputError(f"the input is a {type(x).__name__}, but {takes}; give a tensor")
        if x.ndim != spec.dims + 2 or x.shape[1] != spec.in_channels:
            raise InputError(f"the input has shape {tuple(x.shape)}, but {takes}")
        if not x.is_floating_point():
            raise InputError(
                f"the input holds {x.dtype}, but {takes} of floating-point numbers; convert it "
                "with .float(), and bring pixels of 0 to 255 to a range around 0"
            )
        weights = next((p.dtype for p in self.parameters() if p.ndim == 4), x.dtype)
        # Autocast brings the types together, but leaves double precision alone.
        on_meta = x.device.type == "meta"  # has no autocast to ask about
        cast = not on_meta and torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64
        if x.dtype != weights and not cast:
            raise InputError(
                f"the input holds {x.dtype}, but the weights of this backbone are {weights}; "
                f"convert it with .to({weights}), or the model with .to({x.dtype})"
            )

    def features(self, x: Tensor, context: Context, wanted: Sequence[int]) -> tuple[Tensor, ...]:
        """As `forward`, of an input known to fit and under a context of one's own; `wanted` stages
        are counted from 0."""
        if self.spec.dims == 1:
            x = x.unsqueeze(2)
        x = context.clear(x)
        if self.spec.dims == 1:
            x = x.contiguous(memory_format=torch.channels_last)
        # In a stream nothing is trained, and what a module remembers must not be remembered twice.
        recompute = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        x, context = through([self.stem], x, context, recompute)
        features: dict[int, Tensor] = {}
        last = len(self.stages) - 1
        through_tail = len(self.tail) > 0 and last in wanted
        side_by_side: list[Tensor] = []  # what the tail reads, where that is not the last stage's
        for index in range(max(wanted) + 1):
            stage = cast("StageBlocks", self.stages[index])
            x = stage(x, context, recompute)
            context = context.strided(stage.stride[-1])
            if index in wanted:
                features[index] = context.mask(x)
            if through_tail and self.spec.tail_reads == "all":
                side_by_side.append(x)
        if through_tail:
            if side_by_side:
                x = torch.cat(side_by_side, 1)
            x, context = through([self.tail], x, context, recompute)
            features[last] = context.mask(x)
        if self.spec.dims == 1:
            features = {index: feature.squeeze(2) for index, feature in features.items()}
        return tuple(features[index] for index in wanted)

    def stream(self) -> "Stream":
        """Begin to read an input piece by piece.

        Raises:
            InputError: the spec reads ahead, or all of the past, or the net is in training mode
                (its norms then depend on the whole input).
        """
        return Stream(self)

    @property
    def blocks(self) -> list[tuple[str, Residual]]:
        """Every residual block with its name, shallow to deep."""
        return [(n, m) for n, m in self.named_modules() if isinstance(m, Residual)]

    def output_lengths(self, lengths: Tensor | Sequence[int]) -> tuple[Tensor, ...]:
        """Real positions of each feature on the last axis, int64 `(B,)` per stage."""
        lengths = torch.as_tensor(lengths, dtype=torch.int64)
        return tuple(strided_lengths(lengths, stride[-1]) for stride in self.strides)

    @property
    def receptive_field(self) -> float:
        """Positions of the last axis that one position of the last feature depends on; infinite
        where something averages over the whole axis (attention, group norm)."""
        return self.spec.receptive_field

    @cached_property
    def parameter_difference(self) -> int:
        """Trainable parameters of this net's residual twin minus its own (the twin has the same
        spec but `skip="identity"`): what a parameter-free comparison must know."""
        with torch.device("meta"):
            twin = Backbone(replace(self.spec, skip="identity"))
            own = Backbone(self.spec)
        return count_parameters(twin) - count_parameters(own)

    def reset_parameters(self) -> None:
        """Draw every parameter anew as the spec's `init` says, and restart running statistics."""
        drawn = {m.conv for m in self.modules() if isinstance(m, Convolution)}
        for module in self.modules():
            if isinstance(module, Convolution):
                draw_he(module.conv)
            elif isinstance(module, Bias):
                nn.init.zeros_(module.value)
            elif module not in drawn and not isinstance(module, Backbone):
                # Norms, and what else torch or a part of somebody's own draws itself.
                draw = getattr(module, "reset_parameters", None)
                if draw is not None:
                    draw()
        blocks = [block for _, block in self.blocks]
        for block in blocks:
            if block.scale is not None and block.scale_start is not None:
                nn.init.constant_(block.scale, block.scale_start)
            if self.spec.init != "he":
                _start_at_zero(block.branch, self.spec.init, len(blocks))


class Stream:
    """A causal net reading one input, or a batch of them, piece by piece: the features of the
    pieces, put together on the last axis, are those of the whole.

    >>> from resbackbones.core.zoo import backbone
    >>> net = backbone("tcn_char").eval()
    >>> x = torch.randn(1, 100, 50)
    >>> stream = net.stream()
    >>> pieces = [stream.push(chunk)[-1] for chunk in x.split(7, -1)] + [stream.finish()[-1]]
    >>> torch.allclose(torch.cat(pieces, -1), net(x)[-1], atol=1e-4)
    True
    """

    def __init__(self, net: Backbone) -> None:
        spec = net.spec
        if not spec.causal:
            raise InputError(
                "this net reads ahead, so no piece would give what the whole gives; build it with "
                "causal=True to stream"
            )
        if net.receptive_field == math.inf:
            raise InputError(
                "this net reads all of the past (its receptive field is infinite), so a stream "
                "would have to keep everything; use branches of a finite reach"
            )
        if net.training:
            raise InputError("a net in training mode cannot stream; call .eval() first")
        self._net = net
        self._context = Context(memory={})
        self._last: Tensor | None = None
        self._finished = False

    @torch.no_grad()
    def push(self, chunk: Tensor) -> tuple[Tensor, ...]:
        """Read on: chunk `(B, in_channels, *space)`, of any length on the last axis.

        Returns:
            The features of the positions that became certain, one per stage, as `Backbone`'s; of no
            position where the chunk completes none.

        Raises:
            InputError: a chunk of another shape than the net takes, or of another batch than the
                ones before, or the stream is finished.
        """
        if self._finished:
            raise InputError("the stream is finished; begin another one with net.stream()")
        self._net._check(chunk)
        if self._last is not None and chunk.shape[:-1] != self._last.shape[:-1]:
            raise InputError(
                f"the chunk has shape {tuple(chunk.shape)}, but those before had "
                f"{tuple(self._last.shape)}; only the last axis may differ"
            )
        self._last = chunk[..., :0]
        return self._net.features(chunk, self._context, range(len(self._net.stages)))

    def finish(self) -> tuple[Tensor, ...]:
        """End the input, and get what was not certain before: of a causal net always no position,
        as what comes later changes nothing.

        Raises:
            InputError: nothing was pushed, or the stream is finished.
        """
        if self._last is None:
            raise InputError(
                "nothing was pushed, so there is nothing to finish; push a chunk first"
            )
        features = self.push(self._last)
        self._finished = True
        return features


def count_parameters(module: nn.Module) -> int:
    """Trainable parameters.

    >>> count_parameters(nn.Linear(3, 2))
    8
    """
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def count_macs(module: nn.Module, *example: Any) -> int:
    """Multiply-adds of the convolutions and matrix products of one forward pass.

    Args:
        example: the inputs, or one mapping of keyword inputs. Running statistics stay untouched.

    >>> count_macs(nn.Linear(3, 2), torch.zeros(1, 3))
    6
    """
    with modes_kept(module), torch.no_grad(), FlopCounterMode(display=False) as counter:
        module.eval()
        if len(example) == 1 and isinstance(example[0], Mapping):
            module(**example[0])
        else:
            module(*example)
    return counter.get_total_flops() // 2


@contextmanager
def modes_kept(module: nn.Module) -> Iterator[None]:
    """Every part of a module is in training or in evaluation mode again afterwards, as it was."""
    modes = {part: part.training for part in module.modules()}
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


def rest_frozen(module: nn.Module) -> None:
    """Put parts whose parameters are all frozen into evaluation mode: their dropout and their
    running statistics rest too."""
    for part in module.modules():
        parameters = list(part.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            for inner in part.modules():  # `eval` of a whole model would come back here for ever
                inner.training = False


def draw_he(conv: nn.Conv2d) -> None:
    """He initialisation over the outputs a weight feeds (He et al. 2015b, section 2.2); a depthwise
    convolution has no activation after it and so no gain."""
    weight = conv.weight
    fan_out = weight.shape[0] // conv.groups * weight[0, 0].numel()
    depthwise = conv.groups == weight.shape[0] and conv.groups > 1
    drawn = torch.empty_like(weight)
    with torch.no_grad():
        nn.init.normal_(drawn, std=math.sqrt((1 if depthwise else 2) / fan_out))
        if hasattr(conv, "parametrizations"):
            conv.weight = drawn  # weight norm splits it into direction and length
        else:
            weight.copy_(drawn)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def _start_at_zero(branch: nn.Module, init: str, total: int) -> None:
    """`zero_last`: the branch's last multiplication starts at 0. `fixup`: so does its last
    convolution, and those before shrink by total^(-1/(2m - 2)) (Zhang et al. 2019, section 3)."""
    convolutions = [m.conv for m in branch.modules() if isinstance(m, Convolution)]
    scaling = [m for m in branch.modules() if m in convolutions or isinstance(m, NORMS)]
    if init == "zero_last":
        nn.init.zeros_(scaling[-1].weight)
        return
    with torch.no_grad():
        for conv in convolutions[:-1]:
            conv.weight.mul_(total ** (-1 / (2 * len(convolutions) - 2)))
    nn.init.zeros_(convolutions[-1].weight)


def _times(*strides: tuple[int, int]) -> tuple[int, int]:
    high, wide = (math.prod(each) for each in zip(*strides, strict=True))
    return high, wide
