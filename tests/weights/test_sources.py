"""Where weights may come from, and what is refused there."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import nn

import resbackbones as rb
from resbackbones.vision import ResidualForImageClassification
from tests.weights.helpers import (
    NORM,
    WIDTHS,
    assert_close,
    image,
    logits,
    perturbed,
    shallow,
    transformers_convnext,
    transformers_resnet,
)

SPEC = shallow("resnet18", WIDTHS)


@pytest.fixture
def ours() -> ResidualForImageClassification:
    return ResidualForImageClassification.build(SPEC, num_labels=7).eval()


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    return perturbed(transformers_resnet("basic"))


def save(theirs: nn.Module, path: Path) -> None:
    state = theirs.state_dict()
    match path.name:
        case "folder":
            theirs.save_pretrained(path)
        case "bare.safetensors":
            save_file(state, path)
        case "plain.pt":
            torch.save(state, path)
        case "training.pth":
            torch.save({"model": state, "optimizer": {"state": {}}, "epoch": 3}, path)


@pytest.mark.parametrize("name", ["folder", "bare.safetensors", "plain.pt", "training.pth"])
@pytest.mark.parametrize("kind", [Path, str])
def test_paths(
    ours: ResidualForImageClassification,
    theirs: nn.Module,
    tmp_path: Path,
    name: str,
    kind: Callable[[Path], object],
) -> None:
    save(theirs, tmp_path / name)
    said = rb.weights.load_weights(ours, kind(tmp_path / name))
    assert said == ["read in the layout of ResNets of transformers"]
    assert_close(logits(ours, image()), logits(theirs, image()))


def test_a_folder_tells_of_strides(tmp_path: Path) -> None:
    wide = tuple(4 * width for width in WIDTHS)
    ours = ResidualForImageClassification.build(shallow("resnet50", wide), num_labels=7)
    net = transformers_resnet("bottleneck", downsample_in_bottleneck=True)
    net.save_pretrained(tmp_path / "classes")
    net.resnet.save_pretrained(tmp_path / "bare")
    for folder in ("classes", "bare"):
        with pytest.raises(rb.weights.WeightsMismatch, match=r"has stride \(2, 2\), not \(1, 1\)"):
            rb.weights.load_weights(ours, tmp_path / folder)


def test_a_folder_of_a_convnext_without_classes(tmp_path: Path) -> None:
    spec = shallow("convnext_tiny", WIDTHS)
    ours = ResidualForImageClassification.build(spec, num_labels=7, head=NORM).eval()
    net = perturbed(transformers_convnext().convnext)
    net.save_pretrained(tmp_path)
    said = rb.weights.load_weights(ours, tmp_path)
    assert "the head is left as drawn" in said[-1]
    with torch.no_grad():
        assert_close(ours.backbone(image())[-1], net(image()).last_hidden_state)


def test_a_folder_of_ours(ours: ResidualForImageClassification, tmp_path: Path) -> None:
    other = ResidualForImageClassification.build(SPEC, num_labels=7, activation="tanh")
    other.save_pretrained(tmp_path)
    said = rb.weights.load_weights(ours, tmp_path)
    assert said[1:] == [
        "the tensors fit, but this model computes something else: activation is 'relu', not 'tanh'"
    ]
    assert torch.equal(ours.head.linear.weight, other.head.linear.weight)


def test_a_folder_without_configuration(
    ours: ResidualForImageClassification, theirs: nn.Module, tmp_path: Path
) -> None:
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    assert len(rb.weights.load_weights(ours, tmp_path)) == 1
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(rb.InputError, match=r"cannot read .*config.json .*model.safetensors alone"):
        rb.weights.load_weights(ours, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet", "depths": "deep"}))
    with pytest.raises(rb.InputError, match=r"cannot read .*config.json"):
        rb.weights.load_weights(ours, tmp_path)


class Runs:
    """What a pickle would run when it is read."""

    ran = False

    def __reduce__(self) -> tuple:
        return setattr, (Runs, "ran", True)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and then nothing", b"\x80\x04garbage"])
def test_damaged_files(
    ours: ResidualForImageClassification, tmp_path: Path, suffix: str, content: bytes
) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(rb.InputError, match=f"cannot read weights from {path}"):
        rb.weights.load_weights(ours, path)


def test_files_that_run_code(ours: ResidualForImageClassification, tmp_path: Path) -> None:
    for name, content in (("code.pt", Runs()), ("module.pt", nn.Linear(1, 1))):
        torch.save(content, tmp_path / name)
        with pytest.raises(rb.InputError, match="holds more than tensors, which could run code"):
            rb.weights.load_weights(ours, tmp_path / name)
    assert not Runs.ran


def test_what_holds_no_weights(ours: ResidualForImageClassification, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    with torch.device("meta"):
        empty = transformers_resnet("basic")
    torch.save([1, 2], tmp_path / "list.pt")
    for source, sentence in (
        (None, "a NoneType holds no weights; give a state dict, a module, or the path"),
        ({}, "the given state dict is empty"),
        ({"epoch": 3}, "the given state dict holds 'epoch', a int, among its tensors"),
        ({"model": {"a": 1}}, "the given state dict, under 'model' holds 'a', a int"),
        ({3: torch.zeros(1)}, "the given state dict holds 3"),
        (empty, "the given ResNetForImageClassification is on the meta device"),
        (tmp_path / "list.pt", "holds a list"),
        (tmp_path, "holds no model.safetensors"),
        (tmp_path / "none.pth", "there is no file or folder .*none.pth; nothing is downloaded"),
        ("microsoft/resnet-50", "there is no file or folder microsoft/resnet-50"),
    ):
        with pytest.raises(rb.InputError, match=sentence):
            rb.weights.load_weights(ours, source)
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())


def test_the_peers_own_checkpoint_loads_back(
    ours: ResidualForImageClassification, theirs: nn.Module, tmp_path: Path
) -> None:
    rb.weights.load_weights(ours, theirs)
    theirs.config.save_pretrained(tmp_path)
    save_file(rb.weights.export_weights(ours, "transformers"), tmp_path / "model.safetensors")
    back = transformers.AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(back, image()), logits(theirs, image()))
