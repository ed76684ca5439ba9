"""`load_weights`: recognise a layout, compare everything, and only then change the model."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from resbackbones.errors import InputError
from resbackbones.weights.conventions import (
    adapt_channels,
    centred_orders,
    unlike_blurs,
    unlike_edges,
    unlike_modules,
    unlike_specs,
)
from resbackbones.weights.layouts import LAYOUTS, OWN, Layout
from resbackbones.weights.slots import Slot, owner, parts, slots, tensors
from resbackbones.weights.sources import Source, read

SHOWN = 3  # differences that a sentence lists
CLASSES = ("head.linear", "head")  # roles of what has a row per class
TEXT_ALONE = ("embedding.", "ngrams.", "ngram_share")  # what text models have beside net and head


class WeightsMismatch(InputError):
    """The weights are not this model's, or are no numbers; the model is as it was.

    Attributes:
        differences: one clause per difference; the sentence has the first few.
    """

    def __init__(self, sentence: str, differences: Sequence[str] = ()) -> None:
        super().__init__(sentence)
        self.differences = tuple(differences)


def load_weights(model: nn.Module, source: object) -> list[str]:
    """Load weights of this library or another one into a model, or into a bare `Backbone`.

    Read are ResNets (18 to 152, ResNeXt, wide, SE, ECA, D, blurred), pre-activated ResNets, BiTs
    and ConvNeXts of torchvision, timm and transformers, the ResNets and wide ResNets of CIFAR
    repositories, the ResNets of WeSpeaker, the ECAPA-TDNNs of SpeechBrain, the QuartzNets and
    Citrinets of NeMo, whose blank is the last class and not the first, and our own. An image net's
    stem of another number of input channels is summed (to one) or repeated and rescaled; classes of
    another number are left as they were drawn.

    Where the stride of a bottleneck stands (in its first 1x1 convolution, "v1", or in its 3x3 one,
    "v1.5", as here) cannot be told from tensors; a module, or a folder of transformers with its
    configuration, tells it, and is refused where it is another.

    A text model takes the vectors of the same tokens too. From a language model a classifier so
    takes all but its head; counted n-grams are no part of a net and are left.

    Args:
        model: what gets the weights, in place.
        source: a module, a state dict, or a path: a file of torch (`.pth`, `.pt`, `.th`, read with
            `weights_only=True`), one of safetensors, or a folder written by `save_pretrained`.

    Returns:
        Sentences: the layout that was recognised, and every adaptation made.

    Raises:
        InputError: nothing that holds weights, or in a layout that is not known.
        WeightsMismatch: the weights are another net's, or hold NaN or infinity. The model is
            unchanged, as after every error.

    >>> import torchvision, resbackbones as rb
    >>> theirs, ours = torchvision.models.resnet18(), rb.backbone("resnet18", in_channels=1)
    >>> for sentence in rb.weights.load_weights(ours, theirs):
    ...     print(sentence)
    read in the layout of ResNets of torchvision, timm and CIFAR repositories
    the classifier (fc) is left out: a bare backbone has none
    the stem takes 1 input channel(s), not 3: its weights are summed over them
    """
    backbone, head = parts(model)
    everything, targets = slots(model), tensors(model)
    if any(target.is_meta for target in targets.values()):
        raise InputError(
            "the model is on the meta device, so it can hold no weights; build it without, or "
            "call model.to_empty(device='cpu')"
        )
    body = [slot for slot in everything if not slot.in_head]
    given = _recognise(read(source), body, backbone.spec.dims == 2)
    given, vectors, told_of_vectors = _vectors(given, model)
    _check_body(given, body, targets)
    loaded: list[Slot] = []
    left: list[str] = []
    if getattr(getattr(model, "config", None), "tie_word_embeddings", False):
        if given.head:
            left = ["the head is left out: the model compares with the vectors of its tokens"]
    else:
        loaded, left = _head(given, [slot for slot in everything if slot.in_head], targets, head)
    filled = [slot for slot in [*body, *loaded] if given.find(slot) is not None]
    told = [f"read in the layout of {given.layout.title}", *_conventions(given, model, filled)]
    told += [*told_of_vectors, *left]
    orders = centred_orders(backbone, everything) if given.layout.centred else {}
    if orders:
        told.append(
            "channels are reordered: shortcuts that pad put zero channels on both sides in this "
            "layout, and at the end in this model"
        )
    values: dict[str, Tensor] = {}
    broken = []
    for slot in filled:
        name, target = given.name(slot), targets[slot.key]
        value = given.source.tensors[name].detach()
        if slot.reads_input and value.shape[1] != target.shape[1]:
            told.append(_adapted(value.shape[1], target.shape[1]))
            value = adapt_channels(value, target.shape[1])
        value = value.to(target.device, target.dtype).reshape(target.shape)
        if given.layout.blank_last and slot.in_head:
            value = value.roll(1, 0)
        for axis, order in orders.get(slot.key, ()):
            value = value.index_select(axis, order.to(value.device))
        if not bool(value.isfinite().all()):
            broken.append(name)
        values[slot.key] = value
    for key, (name, target) in vectors.items():
        targets[key] = target
        values[key] = given.source.tensors[name].detach().to(target.device, target.dtype)
        if not bool(values[key].isfinite().all()):
            broken.append(name)
    if broken:
        do = "give weights saved before their training went astray"
        raise _mismatch(given, "holds NaN or infinity", broken, do)
    with torch.no_grad():
        for key, value in values.items():
            targets[key].copy_(value)
    return told


@dataclass(frozen=True)
class _Given:
    """Weights in a layout.

    Attributes:
        names: without what stands before them all (as "module."); and what the source calls them.
        adapts: whether a stem may take another number of channels.
    """

    layout: Layout
    source: Source
    names: Mapping[str, str]
    adapts: bool

    def find(self, slot: Slot) -> str | None:
        """The source's name of a slot's tensor; None where it has none."""
        found = (self.names.get(name) for name in self.layout.candidates(slot))
        return next((name for name in found if name is not None), None)

    def name(self, slot: Slot) -> str:
        """The source's name of a tensor that it has."""
        name = self.find(slot)
        assert name is not None
        return name

    @property
    def head(self) -> list[str]:
        """The source's names of the tensors of its head."""
        return [name for bare, name in self.names.items() if bare.startswith(self.layout.head)]

    def unlike(self, slot: Slot, target: Tensor) -> str | None:
        """What keeps a tensor of the source from taking a slot; None where nothing does."""
        name = self.find(slot)
        if name is None:
            names = self.layout.candidates(slot)
            return f"it lacks {names[0] if names else 'what takes the place of ' + slot.key}"
        value, ours = self.source.tensors[name], tuple(target.shape)
        if value.is_floating_point() != target.is_floating_point():
            return f"{name} holds {value.dtype} where this model has {target.dtype}"
        there, expected = tuple(value.shape), self.layout.shape(slot, ours)
        if self.adapts and slot.reads_input and len(there) == 4:
            there = there[0], ours[1], *there[2:]
        if there in (ours, expected):
            return None
        return f"{name} has shape {tuple(value.shape)} where this model has {expected}"


def _mismatch(given: _Given, what: str, found: Sequence[str], do: str) -> WeightsMismatch:
    more = f" (and {len(found) - SHOWN} more)" if len(found) > SHOWN else ""
    return WeightsMismatch(
        f"{given.source.title} {what}: {', '.join(found[:SHOWN])}{more}; {do}", found
    )


def _recognise(source: Source, body: Sequence[Slot], adapts: bool) -> _Given:
    """Read names as the layout that explains most of a backbone.

    Raises:
        InputError: none explains any.
    """
    best: tuple[tuple[int, int], _Given | None] = ((0, 0), None)
    for names in _stripped(source.tensors):
        for layout in LAYOUTS:
            bare = {
                name.removeprefix(layout.body): real
                for name, real in names.items()
                if not (layout.beside and name.startswith(layout.beside))
            }
            given = _Given(layout, source, bare, adapts)
            explained = sum(given.find(slot) is not None for slot in body)
            known = explained, explained + len(given.head) - len(bare)
            if explained and (best[1] is None or known > best[0]):
                best = known, given
    if best[1] is None:
        raise InputError(
            f"{source.title} is in no layout that this model can be read from (it begins with "
            f"{next(iter(source.tensors))}); known are {', '.join(each.title for each in LAYOUTS)}"
        )
    return best[1]


def _stripped(names: Iterable[str]) -> Iterator[dict[str, str]]:
    """Names without the first 0, 1, … parts that they all share, and what they stand for."""
    bare = {name: name for name in names}
    yield bare
    while all("." in name for name in bare) and len({name.split(".")[0] for name in bare}) == 1:
        bare = {name.partition(".")[2]: real for name, real in bare.items()}
        yield bare


def _vectors(
    given: _Given, model: nn.Module
) -> tuple[_Given, dict[str, tuple[str, Tensor]], list[str]]:
    """What is left to read when the vectors of tokens are taken out; theirs that fit into the
    model's, by its key: their name and the model's tensor; and what there is to say."""
    if given.layout is not OWN:
        return given, {}, []
    apart = {n: real for n, real in given.names.items() if n.startswith(TEXT_ALONE)}
    rest = {n: real for n, real in given.names.items() if n not in apart}
    embedding = getattr(model, "embedding", None)
    if embedding is None:
        left = ["the vectors of tokens are left out: this model has none"] if apart else []
        return replace(given, names=rest), {}, left
    ours = embedding.state_dict(prefix="embedding.")
    fits = {}
    told = []
    for key, target in ours.items():
        theirs = given.source.tensors[apart[key]].shape if key in apart else None
        if theirs == target.shape:
            fits[key] = (apart[key], target)
            told.append(f"the vectors of {len(target):,} tokens are theirs, in their order ({key})")
        else:
            there = f"of shape {tuple(theirs)}" if theirs else "missing"
            told.append(f"{key} is left as drawn: theirs is {there}, here {tuple(target.shape)}")
    return replace(given, names=rest), fits, told


def _check_body(given: _Given, body: Iterable[Slot], targets: Mapping[str, Tensor]) -> None:
    """Compare names, shapes and kinds of numbers of all but the head.

    Raises:
        WeightsMismatch: they differ.
    """
    found, used = [], set(given.head)
    for slot in body:
        name = given.find(slot)
        if name is None and slot.leaf == "num_batches_tracked":
            continue
        used.add(name or "")
        if clause := given.unlike(slot, targets[slot.key]):
            found.append(clause)
    found += [f"it has {name}, which this model has not" for name in given.names.values()
              if name not in used]  # fmt: skip
    if found:
        raise _mismatch(given, "is of another net", found, "build the model from the spec it is of")


def _conventions(given: _Given, model: nn.Module, filled: Iterable[Slot]) -> list[str]:
    """Compare what tensors do not show, as far as it is known.

    Raises:
        WeightsMismatch: a module whose strides, dilations or activations are others.
    """
    backbone, _ = parts(model)
    theirs = given.source.module
    if theirs is None or given.source.spec is not None:
        told = unlike_specs(backbone, given.layout, given.source.spec)
        if given.layout is OWN:
            return told
        return [*told, *unlike_edges(backbone, given.layout), *unlike_blurs(backbone, None)]
    pairs = {
        given.name(slot).rpartition(".")[0]: owner(model, slot)
        for slot in filled
        if slot.leaf == "weight"
    }
    apart = tuple({name.rpartition(".")[0] for name in given.head})
    found, told = unlike_modules(backbone, theirs, pairs, apart)
    if found:
        do = "build a model that computes the same, or give the state_dict() to load it even so"
        raise _mismatch(given, "has tensors that fit, but computes something else", found, do)
    return [*told, *unlike_edges(backbone, given.layout, theirs), *unlike_blurs(backbone, theirs)]


def _head(
    given: _Given, slots: Sequence[Slot], targets: Mapping[str, Tensor], head: nn.Module | None
) -> tuple[list[Slot], list[str]]:
    """The slots of the head that are loaded: all, none, or all but the classes; and why."""
    if not given.head:
        return [], [] if head is None else ["the head is left as drawn: these weights have none"]
    if head is None:
        names = ", ".join(dict.fromkeys(name.rpartition(".")[0] for name in given.head))
        return [], [f"the classifier ({names}) is left out: a bare backbone has none"]
    if given.layout is not OWN and getattr(head, "pooling", None) != given.layout.pooling:
        what = "means" if given.layout.pooling == "mean" else given.layout.pooling.replace("_", " ")
        return [], [f"the head is left as drawn: it is no linear map of {what}, as theirs is"]
    # What is one per class has no place where classes are no part of the net.
    absent = [s for s in slots if s.role in CLASSES and not given.layout.candidates(s)]
    slots = [slot for slot in slots if slot not in absent]
    if spare := set(given.head) - {given.find(slot) for slot in slots}:
        norm = "head.norm" in given.layout.names
        advice = " (build with head={'norm': 'layer'} to load it)" if norm else ""
        return [], [f"the head is left as drawn: it has no {min(spare)}{advice}"]
    unlike = {slot: clause for slot in slots if (clause := given.unlike(slot, targets[slot.key]))}
    if not unlike:
        names = ", ".join(slot.key for slot in absent)
        left = [f"{names} is left as drawn: these weights have no classes"] if absent else []
        return list(slots), left
    kept = [slot for slot in slots if slot.role not in CLASSES]
    classes = [
        (len(given.source.tensors[name]), len(targets[slot.key]))
        for slot in unlike
        if slot not in kept and (name := given.find(slot)) is not None
    ]
    if len(classes) == len(unlike) and classes[0][0] != classes[0][1]:
        theirs, ours = classes[0]
        return kept, [f"the classes are left as drawn: theirs are {theirs}, here {ours}"]
    return [], [f"the head is left as drawn: {next(iter(unlike.values()))}"]


def _adapted(given: int, wanted: int) -> str:
    how = "summed over them" if wanted == 1 else f"repeated and rescaled by {given}/{wanted}"
    return f"the stem takes {wanted} input channel(s), not {given}: its weights are {how}"
