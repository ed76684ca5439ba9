"""The peers that our nets are timed against compute the same, and the recipe tells the ratios."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import resbackbones as rb
from tasks import speed
from tasks._running import run
from tasks._speed_peers import PEERS, copy_weights


def time_nets(*arguments: object) -> None:
    run(speed.main, speed.Config, [str(argument) for argument in arguments])


def disturb(net: nn.Module) -> None:
    """Draw all numbers anew around what they are, so that none stands for another one, and turn
    dropout off."""
    with torch.no_grad():
        for value in net.state_dict().values():
            if value.is_floating_point():
                value.add_(0.1 * torch.rand_like(value))
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
@pytest.mark.parametrize("name", PEERS)
def test_a_peer_computes_what_our_net_does(name: str, training: bool) -> None:
    torch.manual_seed(0)
    ours, peer = rb.backbone(name).double(), PEERS[name]().double()
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
    monkeypatch.setattr(speed, "has_bf16", lambda: bf16)
    monkeypatch.setitem(speed.SEQUENCES, "tc_resnet14", (2, 21))
    out = tmp_path / "new" / "speed.json"
    time_nets(
        "--nets", "tc_resnet14", "resnet50", "--rounds", 2, "--image-size", 32, "--output", out
    )
    printed = capsys.readouterr().out
    header, _, row = (line for line in printed.splitlines()[:3])
    assert header.count("|") == row.count("|") == 11
    assert row.startswith("| tc_resnet14 | 2 x 40 x 21 |") and row.count(" - ") == 4 * (not bf16)
    assert "| resnet50 | 4 x 3 x 32 x 32 |" in printed
    assert ("no bf16 arithmetic" in printed) is not bf16

    written = json.loads(out.read_text(encoding="utf-8"))
    assert written["threads"] == 1 and written["hardware"]["cpu"] and written["versions"]["torch"]
    kinds = [(t["net"], t["step"], t["precision"]) for t in written["timings"]]
    assert len(kinds) == len(set(kinds)) == (6 if bf16 else 4)
    for timing in written["timings"]:
        others = {"theirs", "lengths"} if timing["net"] == "tc_resnet14" else {"theirs"}
        assert set(timing["ratios"]) == others and set(timing["seconds"]) == others | {"ours"}
        assert all(len(values) == 2 for values in timing["seconds"].values())


def test_a_peer_that_computes_something_else_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = speed.PEERS["tc_resnet14"]
    monkeypatch.setitem(speed.PEERS, "tc_resnet14", lambda: nn.Sequential(broken(), nn.Tanh()))
    with pytest.raises(
        RuntimeError, match=r"tc_resnet14 and of its peer differ by .* of the largest"
    ):
        time_nets("--nets", "tc_resnet14")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--nets", "tc_resnet8"], "did you mean 'tc_resnet14'?"),
        (["--nets"], "--nets names no net"),
        (["--rounds", "0"], "--rounds is 0; give 1 or more"),
        (["--image-size", "8"], "--image-size is 8; give 32 or more"),
        (["--output", "."], "cannot write . (Is a directory)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence(
    arguments: list[str], sentence: str, refused: Callable[..., str]
) -> None:
    assert sentence in refused(time_nets, *arguments)
