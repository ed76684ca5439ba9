"""From files to batches: the same pixels as at inference, bad images named."""

import multiprocessing
import pickle
import re
from pathlib import Path
from typing import Any

import datasets
import PIL.Image
import pytest
import torch
from torch.utils.data import DataLoader

import resbackbones as rb
from resbackbones.classifier import MULTI_LABEL
from resbackbones.data import Labels, Source, open_dataset
from resbackbones.vision import Augment, ImageItems, ResidualImageProcessor, choose_size
from tests.vision.helpers import images, pil, source_of

GREY = ResidualImageProcessor(num_channels=1)


@pytest.mark.parametrize("memory", [1 << 30, 0], ids=["in memory", "by the batch"])
@pytest.mark.parametrize(
    "processor",
    [
        ResidualImageProcessor(),
        GREY,
        ResidualImageProcessor(size={"height": 8, "width": 8}),
        ResidualImageProcessor(
            size={"shortest_edge": 12},
            crop_size={"height": 8, "width": 8},
            image_mean=[0.4, 0.5, 0.6],
            image_std=[0.2, 0.3, 0.4],
        ),
    ],
    ids=["as they are", "grey", "resized", "cropped"],
)
def test_training_sees_what_inference_sees(processor, memory: int) -> None:
    source = images()
    items = ImageItems(source, processor, memory=memory)
    batch = items.__getitems__([7, 2])
    expected = processor([pil(source, 7), pil(source, 2)], return_tensors="pt").pixel_values
    assert torch.equal(batch["pixel_values"], expected)
    assert batch["labels"].tolist() == [1, 2]


@pytest.mark.parametrize("memory", [1 << 30, 0], ids=["in memory", "by the batch"])
def test_damaged_images_are_named_or_left_out(memory: int) -> None:
    source = images(damage=(0, 4, 6))
    with pytest.raises(rb.InputError, match=re.escape(source.row_name(0))):
        ImageItems(source, GREY, memory=memory)
    items = ImageItems(source, GREY, on_bad="skip", memory=memory)
    kept = [1, 2, 3, 5, 7, 8, 9, 10, 11]
    assert items.rows == kept and len(items) == 9
    assert [name.partition(": ")[0] for name in items.skipped] == [
        source.row_name(row) for row in (0, 4, 6)
    ]
    assert items.source.row_name(3) == source.row_name(5)
    # Each of the good ones with its own pixels and label, in any order and more than once.
    order = [8, 3, 3, 0, 6]
    batch = items.__getitems__(order)
    expected = GREY([pil(source, kept[i]) for i in order], return_tensors="pt").pixel_values
    assert torch.equal(batch["pixel_values"], expected)
    assert batch["labels"].tolist() == [kept[i] % 3 for i in order]


@pytest.mark.parametrize("memory", [1 << 30, 0], ids=["in memory", "by the batch"])
def test_nothing_but_damaged_images(memory: int) -> None:
    with pytest.raises(rb.InputError, match="can be read"):
        ImageItems(images(3, damage=(0, 1, 2)), GREY, on_bad="skip", memory=memory)


def test_an_image_that_goes_away_is_named(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{number}.png") for number in range(4)]
    for path in paths:
        PIL.Image.new("L", (8, 8)).save(path)
    items = ImageItems(source_of(paths), GREY, memory=0)
    (tmp_path / "2.png").unlink()
    items.__getitems__([0, 1, 3])
    with pytest.raises(rb.InputError, match=r"2\.png could be read before, but cannot be read now"):
        items.__getitems__([3, 2])


def test_pixels_are_kept_where_they_fit() -> None:
    source = images()
    needed = 12 * 3 * 10 * 14
    assert ImageItems(source, ResidualImageProcessor(), memory=needed).pixels is not None
    assert ImageItems(source, ResidualImageProcessor(), memory=needed - 1).pixels is None


@pytest.mark.parametrize("memory", [1 << 30, 0], ids=["in memory", "by the batch"])
def test_images_of_many_sizes_need_a_size(memory: int) -> None:
    both = datasets.concatenate_datasets([images().dataset, images(size=(9, 8, 3)).dataset])
    sentence = "is 8x9 pixels where others are 14x10; bring all to one size, as with --image-size"
    with pytest.raises(rb.InputError, match=sentence):
        ImageItems(open_dataset(both), GREY, memory=memory)
    size, _ = choose_size(open_dataset(both))
    items = ImageItems(open_dataset(both), ResidualImageProcessor(size=size), memory=memory)
    assert items.__getitems__([0, 23])["pixel_values"].shape == (2, 3, 32, 32)


def test_a_fingerprint_is_of_whatever_makes_the_batches() -> None:
    source = images()

    def fingerprint(source: Source = source, processor: Any = GREY, **options: Any) -> str:
        return ImageItems(source, processor, **options).fingerprint()

    same = fingerprint()
    assert fingerprint() == fingerprint(memory=0) == same
    others = [
        fingerprint(seed=1),
        fingerprint(augment=Augment()),
        fingerprint(source.select(range(11))),
        fingerprint(images(damage=(3,)), on_bad="skip"),
        fingerprint(processor=ResidualImageProcessor(num_channels=1, size={"shortest_edge": 8})),
    ]
    assert len({same, *others}) == 6


def test_threads_are_kept_and_every_process_has_its_own() -> None:
    items = ImageItems(images(), GREY, memory=0)
    expected = items.__getitems__(list(range(12)))
    pool = items.reread.threads()
    items.__getitems__([1])
    assert items.reread.threads() is pool
    again = pickle.loads(pickle.dumps(items))
    assert again.reread._pool == (0, None)
    assert torch.equal(again.__getitems__([3])["pixel_values"], expected["pixel_values"][3:4])
    # A fork has the pool, and none of its threads: it would wait for ever.
    context = multiprocessing.get_context("fork")
    loader = DataLoader(
        items, batch_size=4, num_workers=1, collate_fn=dict, timeout=60,
        multiprocessing_context=context,
    )  # fmt: skip
    found = torch.cat([batch["pixel_values"] for batch in loader])
    assert torch.equal(found, expected["pixel_values"])


@pytest.mark.parametrize("memory", [1 << 30, 0], ids=["in memory", "by the batch"])
def test_any_number_of_classes_per_image(memory: int) -> None:
    rows = images().dataset.remove_columns("label")
    tags = [["a", "b"], [], ["c"], ["a"]] * 3
    source = open_dataset(rows.add_column("tags", tags), target=Labels())
    items = ImageItems(source, GREY, memory=memory)
    assert items.num_classes == 3 and items.labels.shape == (12, 3)
    batch = items.__getitems__([5, 4, 2])
    assert batch["labels"].tolist() == [[0, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert batch["labels"].dtype == torch.float32
    plain = items.fingerprint()
    for mix in ({"mixup": 0.4}, {"cutmix": 1.0}):
        items.augment = Augment(**mix)
        labels = items.__getitems__(range(12))["labels"]
        assert labels.min() >= 0 and labels.max() <= 1
        shared = (labels > 0) & (labels < 1)  # some took a share of another image's classes
        assert shared.any() and labels.shape == (12, 3)
        assert items.fingerprint() != plain
    model = rb.vision.ResidualForImageClassification.build(
        "resnet20", labels=source.target.names, problem_type=MULTI_LABEL, in_channels=1
    )
    assert model(**items.__getitems__(range(12))).loss.isfinite()
