"""What ours is timed against computes the same, and the recipe tells the ratios."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import resbackbones as rb
from resbackbones import report
from resbackbones.data import open_dataset
from resbackbones.vision import ImageItems, ResidualImageProcessor
from tasks import _speed_decoding, _speed_keywords, _speed_recognition, _speed_texts, speed
from tasks._running import run
from tasks._speed_peers import PEERS, RECOGNISERS, copy_weights, image_by_image, noise
from tasks.speech import spot_keywords


def time_speed(*arguments: object) -> None:
    run(speed.main, speed.Config, [str(argument) for argument in arguments])


def disturb(net: nn.Module) -> None:
    """Draw all numbers anew around what they are, so that none stands for another one, and turn
    dropout off."""
    with torch.no_grad():
        for value in net.state_dict().values():
            if value.is_floating_point():
                value.add_(0.1 * torch.rand_like(value) - 0.05)
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def outcome(net: nn.Module, x: Tensor, training: bool) -> list[Tensor]:
    """The last feature, and the gradients of the input and of every parameter."""
    x = x.clone().requires_grad_()
    net.train(training).zero_grad()
    y = net(x)
    y = y if isinstance(y, Tensor) else y[-1]
    y.square().mean().backward()
    gradients = [parameter.grad for parameter in net.parameters()]
    return [y.detach(), *(g for g in (x.grad, *gradients) if g is not None)]


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("name", [*PEERS, "quartznet10x5", "citrinet256", "mel_resnet_ctc18"])
def test_a_peer_computes_what_our_net_does(name: str, training: bool) -> None:
    torch.manual_seed(0)
    ours, peer = rb.backbone(name).double(), (PEERS | RECOGNISERS)[name]().double()
    disturb(ours)
    disturb(peer)
    copy_weights(ours, peer)
    x = torch.randn(2, ours.spec.in_channels, *(50,) * ours.spec.dims, dtype=torch.float64)
    got, expected = outcome(ours, x, training), outcome(peer, x, training)
    assert len(got) == len(expected) == 2 + len(list(peer.parameters()))
    for a, b in zip(got, expected, strict=True):
        assert b.abs().max() > 0
        torch.testing.assert_close(a.reshape(b.shape), b, rtol=0, atol=1e-9 * float(b.abs().max()))


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_measures_and_tells(
    bf16: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(speed, "has_bfloat16", lambda device: bf16)
    monkeypatch.setitem(speed.SEQUENCES, "tc_resnet14", (2, 21))
    out = tmp_path / "new" / "speed.json"
    time_speed(
        "--only", "tc_resnet14", "resnet50", "--rounds", 2, "--image-size", 32, "--output", out
    )
    printed = capsys.readouterr().out
    header, _, row = (line for line in printed.splitlines()[:3])
    assert header.count("|") == row.count("|") == 11
    assert row.startswith("| tc_resnet14 | 2 x 40 x 21 |") and row.count(" - ") == 4 * (not bf16)
    assert "| resnet50 | 4 x 3 x 32 x 32 |" in printed
    assert ("no bf16 arithmetic" in printed) is not bf16

    written = json.loads(out.read_text(encoding="utf-8"))
    assert written["threads"] == 1 and written["hardware"]["cpu"] and written["versions"]["torch"]
    kinds = [(t["name"], t["step"], t["precision"]) for t in written["timings"]]
    assert len(kinds) == len(set(kinds)) == (6 if bf16 else 4)
    for timing in written["timings"]:
        others = {"theirs", "lengths"} if timing["name"] == "tc_resnet14" else {"theirs"}
        assert set(timing["ratios"]) == others and set(timing["seconds"]) == others | {"ours"}
        assert all(len(values) == 2 for values in timing["seconds"].values())
        assert set(timing["peaks"]) == (
            {"ours", "theirs"} if "resnet" in timing["name"][:6] else set()
        )


def test_tells_of_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "LOADED", 20)
    monkeypatch.setattr(speed, "BATCH", 8)
    out = tmp_path / "speed.json"
    time_speed("--only", "fcos", "images", "--rounds", 1, "--image-size", 32, "--output", out)
    rows = [line.strip("| ").split("|") for line in capsys.readouterr().out.splitlines()]
    told = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows if len(row) > 1}
    shape, *ratios = told["fcos"]
    assert shape == "4 x 3 x 32 x 32" and len(ratios) == 4 and all(float(r) > 0 for r in ratios)
    epoch, ours, theirs, ratio = told["images"]
    assert epoch == "20 x 3 x 32 x 32" and float(ratio) > 0
    assert int(ours.replace(",", "")) > 0 and int(theirs.replace(",", "")) > 0

    timings = json.loads(out.read_text(encoding="utf-8"))["timings"]
    assert [(t["name"], t["step"]) for t in timings] == [
        ("fcos", "evaluation"), ("fcos", "training"), ("images", "loading"),
    ]  # fmt: skip
    for timing in timings:
        assert set(timing["peaks"]) == ({"ours", "theirs"} if timing["name"] == "fcos" else set())
        (seconds,) = timing["seconds"]["ours"]
        assert timing["ratios"]["theirs"] == [timing["seconds"]["theirs"][0] / seconds]
        if timing["name"] == "images":
            assert ours == f"{20 / seconds:,.0f}"


def test_tells_of_texts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_speed_texts, "TOKENS", (3, 7))
    monkeypatch.setattr(_speed_texts, "BATCHES", (1, 2))
    small = {name: net for name, net in _speed_texts.classifiers().items() if name != "DistilBERT"}
    monkeypatch.setattr(_speed_texts, "classifiers", lambda: small)
    out = tmp_path / "speed.json"
    time_speed("--only", "texts", "--rounds", 2, "--output", out)
    header, _, *rows = capsys.readouterr().out.split("\n\n")[0].splitlines()
    others = ["Kim's CNN", "MiniLM-L6", _speed_texts.WHOLE]
    told = [cell.strip() for cell in header.strip("| ").split("|")]
    assert told == ["texts x tokens", "ours, ms", *others]
    shapes = [row.split("|")[1].strip() for row in rows]
    assert shapes == ["1 x 3", "2 x 3", "1 x 7", "2 x 7"]
    timings = json.loads(out.read_text(encoding="utf-8"))["timings"]
    assert [t["shape"] for t in timings] == [[1, 3], [2, 3], [1, 7], [2, 7]]
    assert all(list(t["ratios"]) == others for t in timings)
    first = timings[0]["seconds"]["ours"]
    assert float(rows[0].strip("| ").split("|")[1]) == pytest.approx(500 * sum(first), abs=0.06)


def test_tells_how_fast_language_models_write(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    nets = _speed_decoding.writers()
    sizes = {name: rb.count_parameters(net) for name, net in nets.items()}
    assert sizes["ours"] == sizes[_speed_decoding.COUNTED]
    assert 8.7e6 < sizes["ours"] < 9e6 and abs(sizes["GPT-2"] / sizes["ours"] - 1) < 0.02
    assert nets["GPT-2"].config.n_positions >= 1024 + 256
    monkeypatch.setattr(_speed_decoding, "PROMPTS", (1, 3))
    monkeypatch.setattr(_speed_decoding, "NEW", 2)
    monkeypatch.setattr(_speed_decoding, "writers", lambda: nets)
    time_speed("--only", "decoding", "--rounds", 1)
    header, _, *rows = capsys.readouterr().out.split("\n\n")[0].splitlines()
    told = [cell.strip() for cell in header.strip("| ").split("|")]
    assert told[2:] == [_speed_decoding.COUNTED, "GPT-2"]
    assert [row.split("|")[1].strip() for row in rows] == ["1 + 2", "3 + 2"]


def test_tells_how_long_keyword_spotters_take(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_speed_keywords, "NETS", ("tc_resnet8", "bc_resnet1"))
    monkeypatch.setattr(_speed_keywords, "RECORDS", tmp_path)
    for data, accuracy in (("words", 0.5), ("words, 5 minutes", 0.25)):
        record = report.result_record(
            task="spot_keywords", dataset=data, protocol="", arm="tc_resnet8", metric="accuracy",
            seeds=[0], values=[accuracy], seconds=[300.0], parameters=1, macs=1,
        )  # fmt: skip
        report.save_record(record, tmp_path)
    time_speed("--only", "keywords", "--rounds", 1)
    header, _, *rows = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert [cell.strip() for cell in header.strip("| ").split("|")][1:] == [
        "parameters", "MACs", "accuracy", "ms", "ms, folded",
    ]  # fmt: skip
    told = {row.split("|")[1].strip(): row.strip("| ").split("|") for row in rows}
    default = spot_keywords.Config(data="").spec
    assert set(told) == {f"{default} (default)", "tc_resnet8", "bc_resnet1"}
    assert told["bc_resnet1"][1].strip() == "9.23 k"
    assert [told[name][3].strip() for name in ("tc_resnet8", "bc_resnet1")] == ["25.0 %", "-"]
    times = [float(cells[4]) for cells in told.values()]
    assert times == sorted(times) and times[0] > 0


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_tells_how_long_recognisers_compute(
    bf16: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_speed_recognition, "has_bfloat16", lambda device: bf16)
    monkeypatch.setattr(_speed_recognition, "NETS", ("mel_resnet_ctc18", "quartznet5x5"))
    monkeypatch.setattr(_speed_recognition, "SECONDS", 2)
    out = tmp_path / "speed.json"
    time_speed("--only", "recognition", "--rounds", 2, "--output", out)
    header, _, *rows = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert header.count("ours") == header.count("by hand") == header.count("ratio") == 2
    timings = json.loads(out.read_text(encoding="utf-8"))["timings"]
    for row, timing, name in zip(rows, timings, _speed_recognition.NETS, strict=True):
        told, parameters, _, *figures = (cell.strip() for cell in row.strip("| ").split("|"))
        net = _speed_recognition.recogniser(name)
        assert told == name and parameters == f"{rb.count_parameters(net) / 1e6:.3g} M"
        assert figures[3:] == ["-"] * 3 or bf16
        ours, theirs, ratio = map(float, figures[:3])
        seconds = timing["seconds"]
        assert set(seconds) == {"ours", "theirs"} | {
            f"{side}, bf16" for side in ("ours", "theirs") if bf16
        }
        assert ours == pytest.approx(sum(seconds["ours"]) / 4, abs=6e-5)
        assert theirs > 0 and ratio == pytest.approx(sum(timing["ratios"]["theirs"]) / 2, abs=6e-3)


def test_a_recogniser_that_computes_something_else_is_not_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = RECOGNISERS["mel_resnet_ctc18"]
    monkeypatch.setattr(_speed_recognition, "NETS", ("mel_resnet_ctc18",))
    monkeypatch.setitem(RECOGNISERS, "mel_resnet_ctc18", lambda: nn.Sequential(broken(), nn.Tanh()))
    with pytest.raises(RuntimeError, match="mel_resnet_ctc18 and of its peer differ by"):
        time_speed("--only", "recognition")


def test_classifiers_of_texts_have_the_published_sizes() -> None:
    """DistilBERT (Sanh et al. 2019): 66 million, with the two layers before its classes and those;
    MiniLM-L6-H384: 22.7 million with a pooler, and 2 classes."""
    nets = _speed_texts.classifiers()
    assert rb.count_parameters(nets["DistilBERT"]) == 66_362_880 + 768 * 769 + 2 * 769
    assert rb.count_parameters(nets["MiniLM-L6"]) == 22_713_216 + 2 * 385


def test_torchvisions_detector_computes_what_ours_does() -> None:
    sides, _ = speed.detectors(speed.Config(image_size=32))
    ours, theirs = sides["ours"].net, sides["theirs"].net
    torch.manual_seed(0)
    disturb(ours)
    copy_weights(ours, theirs)
    gradients = []
    for side in sides.values():
        side.loss().backward()
        gradients.append([parameter.grad for parameter in side.net.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert a is not None and b is not None  # every layer is trained
        torch.testing.assert_close(a, b, rtol=0, atol=1e-3 * float(b.abs().max()) + 1e-9)


def test_images_one_by_one_come_as_ours_do() -> None:
    rows = noise(4, 8)
    still = image_by_image(rows, 0).__getitems__([2, 0])
    items = ImageItems(open_dataset(rows), ResidualImageProcessor())
    expected = items.__getitems__([2, 0])
    for got, pixels, label in zip(still, *expected.values(), strict=True):
        turned = got["pixel_values"].flip(2)
        assert any(torch.allclose(one, pixels, atol=1e-6) for one in (got["pixel_values"], turned))
        assert got["labels"] == label


def test_peak_memory_is_what_is_there_at_once() -> None:
    kept = [torch.empty(7)]

    def steps() -> None:
        first, second = torch.empty(1000), torch.empty(2000)
        del first
        third = torch.empty(900)
        assert second.numel() > third.numel()
        kept[:] = [torch.empty(10)]

    assert [speed.peak_memory(steps, "cpu") for _ in range(3)] == [4 * 3000] * 3
    assert speed.peak_memory(kept.clear, "cpu") == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_peak_memory_of_a_gpu() -> None:
    def steps() -> None:
        first, second = (torch.empty(count, device="cuda") for count in (1024, 2048))
        del first
        torch.empty_like(second[:512])

    assert speed.peak_memory(steps, "cuda") == 4 * 3072


def test_a_gpu_that_is_not_there_is_refused(no_gpu: None, refused: Callable[..., str]) -> None:
    assert "--device cuda needs a GPU" in refused(time_speed, "--device", "cuda")


def test_a_peer_that_computes_something_else_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = speed.PEERS["tc_resnet14"]
    monkeypatch.setitem(speed.PEERS, "tc_resnet14", lambda: nn.Sequential(broken(), nn.Tanh()))
    with pytest.raises(
        RuntimeError, match=r"tc_resnet14 and of its peer differ by .* of the largest"
    ):
        time_speed("--only", "tc_resnet14")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--only", "tc_resnet8"], "did you mean 'tc_resnet14'?"),
        (["--only"], "--only names nothing"),
        (["--rounds", "0"], "--rounds is 0; give 1 or more"),
        (["--image-size", "8"], "--image-size is 8; give 32, 64 or a multiple of 128"),
        (["--image-size", "96"], "--image-size is 96; give 32, 64 or a multiple of 128"),
        (["--threads", "0"], "--threads is 0; give 1 or more"),
        (["--output", "."], "cannot write . (Is a directory)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence(
    arguments: list[str], sentence: str, refused: Callable[..., str]
) -> None:
    assert sentence in refused(time_speed, *arguments)
