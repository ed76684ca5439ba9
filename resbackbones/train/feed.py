"""What a step is fed: batches of any data set, from any place of an epoch on."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from transformers import default_data_collator

from resbackbones.data.batches import Batches, Bucketed, Shuffled, padding_share
from resbackbones.errors import InputError
from resbackbones.train.options import Options


def load(dataset: Any, workers: int, seed: int = 0, **options: Any) -> Iterator[Any]:
    """The batches of torch's own loader, of items one by one or of whole batches. What a data set
    draws at random in a worker, if it does, comes from the seed.

    Raises:
        InputError: what the data set says, from a worker too.
    """
    loader = DataLoader(
        dataset,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=workers > 0 and torch.cuda.is_available(),  # without, items may be on the GPU
        generator=torch.Generator().manual_seed(seed),  # the global one is the model's
        **options,
    )
    return _in_a_sentence(iter(loader))  # begun here, so that workers fetch from now on


def _in_a_sentence(batches: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from batches
    except InputError as error:
        # torch puts a worker's traceback around the sentence, which stands last.
        sentence = str(error).strip().splitlines()[-1]
        raise InputError(sentence.removeprefix(f"{InputError.__module__}.InputError: ")) from error


def collate(items: Any) -> Mapping[str, Any]:
    """A whole batch as it is, a list of items stacked."""
    return items if isinstance(items, Mapping) else default_data_collator(items)


def there(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch on a device: its tensors, and those in lists of dictionaries (boxes)."""
    return {name: _there(value, device) for name, value in batch.items()}


def _there(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return there(value, device)
    if isinstance(value, list):
        return [_there(each, device) for each in value]
    return value


def plan(
    train: Any, options: Options, world: int, given: Batches | None = None
) -> tuple[Batches | None, list[str]]:
    """Which rows make a batch, None where a stream says it itself; and what a person should know
    of it."""
    if given is not None or hasattr(train, "part"):
        return given, []
    items, said = len(train), []
    size = options.fitting_batch(items, world)
    if size < min(options.batch_size, items):
        said.append(
            f"batches of {size} items, not {options.batch_size}: an epoch of {items} has few "
            "updates (--least-updates)"
        )
    batches: Batches
    if options.budget is None:
        batches, told = Shuffled(items, size, options.accumulate), positions(train)
    else:
        told = lengths(train, options.budget)
        batches = Bucketed(told, size, options.budget, options.accumulate)
    share = "0.0%" if told is None else f"{padding_share(told, batches(0, 0)):.1%}"
    if share != "0.0%":
        less = " (a --budget puts items of like length together)" if options.budget is None else ""
        said.append(f"{share} of the positions in batches are padding{less}")
    return batches, said


def parts(dataset: Any) -> Sequence[Any]:
    """The data sets that one is made of: that of a `Subset`, those of a `ConcatDataset`."""
    inner = getattr(dataset, "dataset", None)
    return [inner] if inner is not None else getattr(dataset, "datasets", [])


def set_epoch(dataset: Any, epoch: int) -> None:
    """Tell a data set the epoch, and all that it is made of."""
    if hasattr(dataset, "set_epoch"):
        dataset.set_epoch(epoch)
    for part in parts(dataset):
        set_epoch(part, epoch)


def positions(dataset: Any) -> Tensor | None:
    """Frames or tokens per item, `(N,)`, where a data set or all that it is made of tell them."""
    if (told := getattr(dataset, "lengths", None)) is not None:
        return told
    found = [positions(part) for part in parts(dataset)]
    inside = [each for each in found if each is not None]
    if not inside or len(inside) < len(found):
        return None
    together, indices = torch.cat(inside), getattr(dataset, "indices", None)
    return together if indices is None else together[torch.as_tensor(indices)]


def lengths(dataset: Any, budget: int) -> Tensor:
    """The same, for batches of so many positions.

    Raises:
        InputError: the data set does not tell them.
    """
    if (told := positions(dataset)) is None:
        raise InputError(
            f"budget={budget} needs the lengths of the items, which {type(dataset).__name__} does "
            "not tell; leave budget out"
        )
    return told


def count(dataset: Any, purpose: str) -> int:
    """How many items there are.

    Raises:
        InputError: nobody knows, or none.
    """
    if not hasattr(dataset, "__len__"):
        raise InputError(
            f"a {type(dataset).__name__} has no length to {purpose}; give a data set with len()"
        )
    if len(dataset) == 0:
        raise InputError(f"there is nothing to {purpose}; give a data set with items")
    return len(dataset)


def first_batch(dataset: Any, kind: str) -> Mapping[str, Any]:
    """A batch of one item, to see what it holds.

    Raises:
        InputError: it has no labels.
    """
    (batch,) = load(Subset(dataset, [0]), 0)
    if "labels" not in batch:
        raise InputError(
            f"{kind} items have no labels, only {', '.join(batch)}; give each item a label"
        )
    return batch
