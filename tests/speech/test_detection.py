"""Words in a long signal: the same whatever the pieces, found when they come, and their errors
counted."""

import copy
import functools
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from resbackbones.errors import InputError
from resbackbones.speech import ResidualFeatureExtractor, ResidualForAudioClassification
from resbackbones.speech.detection import Detection, Detector, Listener, smoothed
from resbackbones.speech.operating import (
    OperatingCurve,
    OperatingPoint,
    events,
    operating_curve,
)

RATE = 16000
NETS: dict[str, dict[str, Any]] = {
    "windows of a spectrogram": {"name": "mel_resnet14", "in_channels": 1, "reading": "windows"},
    "windows of features": {"name": "tc_resnet8", "reading": "windows"},
    "windows that are normalised": {"name": "tc_resnet8", "normalize": "mean_std"},
    "features": {"name": "tc_resnet8", "reading": "features"},
    "stream": {"name": "tc_resnet8", "causal": True},
}


@functools.cache
def model(name: str = "tc_resnet8", normalize: str = "none", **changes: Any) -> Any:
    torch.manual_seed(0)
    processor = ResidualFeatureExtractor(normalize=normalize)
    net = ResidualForAudioClassification.build(
        name, labels=["yes", "no", "other"], processor=processor, **changes
    ).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.3)
            torch.nn.init.normal_(module.bias, std=0.3)
    with torch.no_grad():  # scores that differ from window to window, as those of a trained net
        some = processor([signal(1, seed) for seed in range(20)], return_tensors="pt")
        logits, linear = net(some["input_features"]).logits, net.head.linear
        linear.weight.div_(logits.std(0)[:, None])
        linear.bias.sub_(logits.mean(0)).div_(logits.std(0))
    return net


def signal(seconds: float, seed: int = 0) -> Tensor:
    """Noise that swells and fades, as speech does."""
    random = torch.Generator().manual_seed(seed)
    noise = torch.randn(round(seconds * RATE), generator=random)
    loud = torch.rand(math.ceil(seconds * 5), generator=random).repeat_interleave(RATE // 5)
    return 0.3 * noise * loud[: len(noise)].square()


def listener(about: dict[str, Any], **listening: Any) -> Listener:
    changes = {k: v for k, v in about.items() if k != "reading"}
    return Listener(model(**changes), reading=about.get("reading"), **listening)


def read(listener: Any, pieces: Any) -> Any:
    found = [listener.push(piece) for piece in pieces] + [listener.finish()]
    return torch.cat(found) if isinstance(found[0], Tensor) else list(itertools.chain(*found))


@pytest.mark.parametrize("about", NETS.values(), ids=NETS)
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_pieces_give_the_bits_of_the_whole(about: dict[str, Any], data: st.DataObject) -> None:
    block = data.draw(st.integers(1, 5))
    x = signal(data.draw(st.floats(0.001, 3.0)))
    sizes = data.draw(st.lists(st.integers(0, RATE), min_size=1, max_size=8))
    edges = np.minimum(np.cumsum([0, *sizes]), len(x)).tolist()
    pieces = [x[a:b] for a, b in itertools.pairwise(edges)] + [x[edges[-1] :]]
    whole = read(listener(about, block=block, window=0.8), [x])
    assert torch.equal(read(listener(about, block=block, window=0.8), pieces), whole)
    # The last answer is the first one that has the signal's last sample.
    assert len(whole) == math.ceil((1 + len(x) // 160) / listener(about)._size)


@pytest.mark.parametrize("about", NETS.values(), ids=NETS)
def test_a_block_changes_no_score(about: dict[str, Any]) -> None:
    x = signal(4)
    alone, together = (read(listener(about, block=block), [x]) for block in (1, 7))
    assert alone.std(0).max() > 0.01
    assert (alone - together).abs().max() < 1e-5


@pytest.mark.parametrize("normalize", ["none", "mean"])
def test_windows_are_what_the_model_says_of_their_frames(normalize: str) -> None:
    x, net = signal(2.5), model(normalize=normalize)
    scores = read(Listener(net, window=0.5), [x])
    frames = 10 * len(scores)
    power, _ = net.processor.front_end.power(torch.nn.functional.pad(x, (0, RATE))[None])
    power = torch.nn.functional.pad(power[..., :frames], (51 - 10, 0))
    windows = power[0].unfold(1, 51, 10).movedim(1, 0)
    count = torch.full((len(windows),), 51)
    logits = net(net.processor.front_end.features(windows, count)).logits
    assert torch.allclose(scores, logits.softmax(-1).double(), atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_features_are_those_of_the_whole_signal(causal: bool) -> None:
    """Every frame goes through the net once, and an answer pools those of its window."""
    x, net = signal(3), model(causal=causal)
    listening = Listener(net, window=0.5, reading="stream" if causal else "features", block=2)
    scores = read(listening, [x])
    features, _ = net.processor.front_end(torch.nn.functional.pad(x, (0, 4 * RATE))[None])
    silence = torch.zeros(1, 40, 0 if causal else 400)  # more than the net reaches
    (whole,) = net.backbone(torch.cat([silence, features], -1), stages=(-1,))
    whole = whole[..., silence.shape[-1] // 8 :]
    padded = torch.nn.functional.pad(whole, (7 - 1, 0))  # a window has 7 positions, a hop 1
    for hop in (0, 3, 20, len(scores) - 1):
        expected = net.head(padded[..., hop : hop + 7]).double().softmax(-1)[0]
        assert torch.allclose(scores[hop], expected, atol=1e-5), hop
    assert len(scores) == math.ceil(301 / 8)
    assert listening.lag == (0 if causal else 0.88)


def test_a_stream_or_features_cost_a_hop_and_not_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[int] = []
    transform = torch.stft

    def counted(*arguments: Any, **options: Any) -> Tensor:
        y = transform(*arguments, **options)
        heard.append(y.shape[-1])
        return y

    monkeypatch.setattr(torch, "stft", counted)
    for kind, frames in (
        ("stream", 4 * 8),
        ("features", 4 * 8 + 96 + 88),  # as far as the net reaches
        ("windows of features", 4 * 101),
    ):
        listening, given = listener(NETS[kind], block=4, window=1.0), []
        handle = listening.model.backbone.stages[0].register_forward_pre_hook(
            lambda _, inputs, kept=given: kept.append(inputs[0].shape[0] * inputs[0].shape[-1])
        )
        heard.clear()
        scores = listening.push(signal(8))
        handle.remove()
        assert set(given) == {frames} and len(given) == len(scores) // 4
        assert sum(heard) <= 801  # no frame is transformed twice


def detector(scores: Tensor, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[Detection]:
    """What a detector of "yes" and "no" makes of these scores of hops of 0.1 s."""
    made = Detector(model(), options.pop("keywords", ["yes", "no"]), **options)
    split = len(scores) // 3
    given = iter((scores[:split], scores[split:]))
    monkeypatch.setattr(made.listener, "push", lambda samples: next(given))
    monkeypatch.setattr(made.listener, "finish", lambda: next(given))
    return made.push([]) + made.finish()


def test_smoothing_threshold_and_refractory_time(monkeypatch: pytest.MonkeyPatch) -> None:
    yes = torch.tensor([0.0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0]).double()
    scores = torch.stack([yes, 0.2 * yes, 1 - yes], 1)
    found = detector(scores, monkeypatch, threshold=0.6, smoothing=3, refractory=0.5)
    assert [(round(d.seconds, 6), d.label) for d in found] == [(0.4, "yes"), (1.6, "yes")]
    assert [d.score for d in found] == pytest.approx([2 / 3, 2 / 3])
    often = detector(scores, monkeypatch, threshold=0.6, smoothing=1, refractory=0.0)
    assert len(often) == 7  # every hop, without a refractory time
    once = detector(scores, monkeypatch, threshold=0.6, smoothing=1, refractory=5.0)
    assert len(once) == 1
    # Each word's own threshold; of two that are reached, the one further above its own.
    own = detector(scores, monkeypatch, threshold={"yes": 0.9, "no": 0.05}, smoothing=1)
    assert {d.label for d in own} == {"no"}
    assert detector(scores, monkeypatch, threshold=0.6, keywords=["no"]) == []


def test_a_refractory_time_that_a_piece_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    yes = torch.ones(12).double()
    scores = torch.stack([yes, 0 * yes, 0 * yes], 1)
    found = detector(scores, monkeypatch, smoothing=1, refractory=0.3)
    assert [round(d.seconds, 6) for d in found] == [0.1, 0.4, 0.7, 1.0]


@settings(max_examples=5, deadline=None)
@given(sizes=st.lists(st.integers(1, 20000), min_size=1, max_size=12))
def test_detections_do_not_depend_on_the_pieces(sizes: list[int]) -> None:
    x = signal(6, seed=3)

    def made() -> Detector:
        return Detector(model(), ["yes", "no"], 0.34, smoothing=2, refractory=0.4)

    whole = read(made(), [x])
    assert len(whole) > 3
    edges = np.minimum(np.cumsum([0, *sizes]), len(x)).tolist()
    pieces = [x[a:b] for a, b in itertools.pairwise(edges)] + [x[edges[-1] :]]
    assert read(made(), pieces) == whole


@given(
    st.lists(st.sampled_from([0.0, 0.2, 0.4, 0.6, 0.8, 1.0]), min_size=1, max_size=40),
    st.integers(1, 5),
    st.sampled_from([0.2, 0.6, 1.0]),
)
def test_counted_alarms_are_those_of_a_detector(
    scores: list[float], pause: int, threshold: float
) -> None:
    found = events(np.array(scores), threshold, pause)
    last = -pause
    expected = []
    for hop, score in enumerate(scores):
        if score >= threshold and hop - last >= pause:
            expected.append(hop)
            last = hop
    assert found == expected


def test_an_operating_curve_counts() -> None:
    negatives = torch.zeros(2 * 36000).double()  # two hours of hops of 0.1 s
    negatives[[100, 5000, 70000]] = torch.tensor([0.9, 0.8, 0.7], dtype=torch.float64)
    keywords = torch.tensor([0.95, 0.85, 0.75, 0.65], dtype=torch.float64)
    curve = operating_curve(keywords, [negatives[:36000], negatives[36000:]], 0.1, 1.0)
    assert curve.hours == 2
    point = curve.at(0.5)  # one in two hours
    assert (point.false_alarms, point.misses, point.per_hour) == (1, 2, 0.5)
    assert 0.8 < point.threshold <= 0.9
    assert (curve.at(1.0).false_alarms, curve.at(1.0).misses) == (2, 1)
    assert (curve.at(1.5).false_alarms, curve.at(1.5).misses) == (3, 0)
    thresholds = [point.threshold for point in curve.points]
    assert thresholds == sorted(thresholds) and curve.points[-1].false_alarms == 0
    with pytest.warns(UserWarning, match=r"2 hours .* cannot tell 0.1 false alarms"):
        none = curve.at(0.1)
    assert none.false_alarms == 0 and none.misses == 3 and none.threshold > 0.9
    assert "0 false alarms in 2 hours" in str(none)


def test_the_threshold_is_the_lowest_that_holds_above_too() -> None:
    """Where more is heard, alarms run together and can become fewer: that is no lower rate."""
    points = tuple(OperatingPoint(t, 0, 1, n, 1.0) for t, n in ((0.1, 1), (0.2, 3), (0.3, 1)))
    assert OperatingCurve(points).at(1.0).threshold == 0.3


def test_the_picture_has_the_chosen_point() -> None:
    curve = operating_curve(torch.rand(50), [torch.rand(40000)], 0.1, 1.0)
    figure = curve.draw(curve.at(3))
    (axes,) = figure.axes
    assert "per hour (1.11 hours without" in axes.get_xlabel()
    assert any("threshold" in text.get_text() for text in axes.texts)


def test_smoothing_begins_from_silence() -> None:
    scores = torch.tensor([[3.0], [6.0], [9.0], [0.0]])
    assert smoothed(scores, 3)[:, 0].tolist() == [1, 3, 6, 5]


def test_what_cannot_be_is_said() -> None:
    net = model()
    bare = copy.copy(net)
    bare.processor = None
    mean = model(normalize="mean")
    spectrogram = model("mel_resnet14", in_channels=1)
    for make, said in (
        (lambda: Listener(bare), "no processor"),
        (lambda: Listener(copy.deepcopy(net).train()), r"call \.eval\(\)"),
        (lambda: Listener(net, hop=0), "hop=0"),
        (lambda: Listener(net, window=-1.0), "window=-1.0"),
        (lambda: Listener(net, hop=1.5), "longer than the window"),
        (lambda: Listener(net, block=0), "block=0"),
        (lambda: Listener(net, reading="stream"), "causal=True"),
        (lambda: Listener(net, reading="window"), "'windows'"),
        (lambda: Listener(spectrogram, reading="features"), "finite reach"),
        (lambda: Listener(mean, reading="features"), "normalised"),
        (lambda: Detector(net, ["yep"]), "'yes'"),
        (lambda: Detector(net, []), "no keyword"),
        (lambda: Detector(net, ["yes"], {"no": 0.5}), "none for 'yes'"),
        (lambda: Detector(net, smoothing=0), "smoothing=0"),
        (lambda: Detector(net, refractory=-1), "refractory=-1"),
        (lambda: operating_curve(torch.rand(3), [], 0.1, 1.0), "needs both"),
    ):
        with pytest.raises(InputError, match=said):
            make()
    listening = Listener(net)
    with pytest.raises(InputError, match="not finite"):
        listening.push([float("nan")])
    assert len(listening.push([])) == 0 and len(listening.finish()) == 0
    with pytest.raises(InputError, match="finished"):
        listening.push([0.0])
