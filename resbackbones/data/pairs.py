"""Masks beside images, in folders of their own or under names of their own, matched by name."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from resbackbones.data.images import Images, by_split, image_sets
from resbackbones.data.paths import Opened, listed_names, one_sentence, split_of, told, walk
from resbackbones.errors import InputError

# Folders of masks: `train_masks`, `trainannot`, `SegmentationClass`; and of neither.
MASKS = r"(ground[_ -]?truths?|gt|masks?|labels?|annotations?|annots?|segmentations?)"
MASK_FOLDER = re.compile(
    rf"(?:^|.*[_ -]){MASKS}$|^(?:train|val|valid|test)annot$|^segmentationclass"
)
NEITHER = "segmentationobject"  # of Pascal VOC: which object a pixel is of
# What may stand between a mask's name and its image's: cat.jpg, cat_mask.png.
SUFFIX = re.compile(rf"[_.-](?:{MASKS}|seg|l|p)$")
# What in a folder's name says no more than what is in it.
CONTENT = re.compile(
    rf"[_ -]?(?:{MASKS}|images?|imgs?|jpegimages|pictures?|photos?|segmentationclass\w*)$"
)


def open_pairs(path: Path) -> Opened | None:
    """Images, each with a mask of the same name: in folders beside one another (`images` and
    `masks`, `train` and `trainannot`, `JPEGImages` and `SegmentationClass`), or in one (`cat.jpg`
    and `cat_mask.png`). None where nothing is called like masks.

    Raises:
        InputError: folders of masks without a mask of any image; two masks of one image.
    """
    if not path.is_dir():
        return None
    with one_sentence(path):
        files = walk(path)
    every = [file for file in Images(files).paths if NEITHER not in map(str.lower, file.parts)]
    masks = [file for file in every if any(map(_is_mask_folder, file.parts[:-1]))]
    images = [file for file in every if file not in set(masks)]
    if not masks:  # in one folder
        stems = {(file.parent, file.stem.lower()) for file in every}
        masks = [file for file in every if (file.parent, _image_stem(file)) in stems - {_key(file)}]
        images = [file for file in every if file not in set(masks)]
    if not masks:
        return None
    mask_of = _matched(path, images, masks)
    if not mask_of:
        first = f"{images[0]} and {masks[0]}" if images else f"{masks[0]}, and no image"
        raise InputError(
            f"{path} holds {len(masks):,} masks, but none is called like one of {len(images):,} "
            f"images (the first: {first}); give an image and its mask the same name"
        )
    bare = [image for image in images if image not in mask_of]
    used = set(mask_of.values())
    lost = [mask for mask in masks if mask not in used]
    parts, said = by_split(list(mask_of), image_sets(path, files, "Segmentation"), _split)
    notes = [
        "Read as images with a mask each, matched by name",
        *told(bare, "image has no mask, left out", "images have no mask, left out"),
        *told(lost, "mask is of no image", "masks are of no image"),
        *said,
    ]
    import datasets

    splits = {
        split: datasets.Dataset.from_dict(
            {"image": [*map(str, part)], "mask": [str(mask_of[image]) for image in part]}
        )
        for split, part in parts.items()
    }
    return Opened(str(path), splits, path, listed_names(path), tuple(notes))


def _is_mask_folder(name: str) -> bool:
    """
    >>> [_is_mask_folder(name) for name in ("trainannot", "train_labels", "Masks", "image", "seg")]
    [True, True, True, False, False]
    """
    return MASK_FOLDER.match(name.lower()) is not None


def _key(file: Path) -> tuple[Path, str]:
    return file.parent, file.stem.lower()


def _image_stem(mask: Path) -> str:
    """What the image of a mask may be called: without its suffix.

    >>> _image_stem(Path("cat_mask.png")), _image_stem(Path("0001TP_006690_L.png"))
    ('cat', '0001tp_006690')
    """
    return SUFFIX.sub("", mask.stem.lower())


def _place(file: Path) -> tuple[str, ...]:
    """A file's folders without what says whether they are of images or of masks.

    >>> _place(Path("a/train_images/0.jpg")) == _place(Path("a/trainannot/0.png")) == ("a", "train")
    True
    """
    names = (CONTENT.sub("", folder.lower()) for folder in file.parts[:-1])
    return tuple(name for name in names if name)


def _split(file: Path) -> str | None:
    return split_of(Path(*_place(file), file.name))


def _matched(root: Path, images: Sequence[Path], masks: Iterable[Path]) -> dict[Path, Path]:
    """Image -> its mask: of its name, else of its name and a suffix; in its place or, where folders
    of images and of masks are nowhere alike, in its split."""
    by_name: dict[str, list[Path]] = defaultdict(list)
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for mask in masks:
        by_name[mask.stem.lower()].append(mask)
        if (stem := _image_stem(mask)) != mask.stem.lower():
            by_stem[stem].append(mask)
    found: dict[Path, Path] = {}
    ways: tuple[Callable[[Path], Any], ...] = (_place, _split)
    for where in ways:
        for image in images:
            for known in (by_name, by_stem):
                near = [m for m in known.get(image.stem.lower(), ()) if where(m) == where(image)]
                if len(near) > 1:
                    raise InputError(
                        f"{root / image} has two masks ({near[0]} and {near[1]}); keep one of them"
                    )
                if near:
                    found[image] = near[0]
                    break
        if found:
            break
    return found
