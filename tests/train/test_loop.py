"""`fit` and `evaluate`: whole runs, what they leave behind, and what goes wrong on the way."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resbackbones import train as training
from resbackbones.errors import InputError
from resbackbones.train import Diverged, Options, StillAtChance, evaluate, feed, fit
from resbackbones.train.precision import has_bfloat16
from tests.train.helpers import (
    Blobs,
    Interrupted,
    Interrupting,
    Sentences,
    TinyConfig,
    TinyForImageClassification,
    assert_equal,
    checkpoints,
    language_model,
    log,
    one_sentence,
    options,
    state,
    tiny,
    weights,
    without_chance,
)

# A whole run


def test_a_run_learns_and_tells_what_it_did(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model, held_out = tiny(), Blobs(40, seed=1)
    before = evaluate(model, held_out)
    result = fit(model, Blobs(), held_out, options(output=tmp_path, epochs=4))
    assert result.metrics["accuracy"] > 0.9 > before["accuracy"]
    assert result.metrics == evaluate(model, held_out)
    assert not any(module.training for module in model.modules()) and result.parameters == 178
    assert [entry["epoch"] for entry in result.history] == [1, 2, 3, 4]
    assert [entry["step"] for entry in result.history] == [7, 14, 21, 28]
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]
    assert result.best == max(result.history, key=lambda entry: entry["accuracy"])
    assert 0 < result.history[0]["seconds"] < result.seconds == result.history[-1]["seconds"]
    assert log(tmp_path) == result.history
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == [".lock", "checkpoint-28", "curve.png", "log.jsonl"]
    assert capfd.readouterr() == ("", "")


def test_progress_is_a_line_an_epoch(capfd: pytest.CaptureFixture[str]) -> None:
    fit(tiny(), Blobs(), Blobs(), options(epochs=2, progress=True))
    shown = capfd.readouterr()
    lines = shown.err.strip().splitlines()
    assert shown.out == "" and len(lines) == 2
    assert lines[1].startswith("epoch 2/2  loss 0.")
    assert "  validation accuracy " in lines[1] and lines[1].endswith(" 0 s left")


def test_epochs_that_take_no_time_share_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    fit(tiny(), Blobs(), Blobs(), options(epochs=40, progress=True))
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) < 20 and lines[-1].startswith("epoch 40/40")


@pytest.mark.parametrize(("lengths", "said"), [([5] * 64, 0), ([*range(50, 114)], 1)])
def test_a_share_of_padding_is_told_where_there_is_some(lengths: list[int], said: int) -> None:
    class Sentences(Blobs):
        def __len__(self) -> int:
            return len(lengths)

    items = Sentences()
    items.lengths = torch.tensor(lengths)
    told = feed.plan(items, Options(batch_size=8, budget=1000), 1)[1]
    assert len([line for line in told if "are padding" in line]) == said


def test_without_output_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fit(tiny(), Blobs(), Blobs(), options(epochs=1))
    assert list(tmp_path.iterdir()) == []


def test_the_seed_decides() -> None:
    def trained(seed: int) -> nn.Module:
        model = tiny()
        fit(model, Blobs(), None, options(epochs=1, seed=seed))
        return model

    assert_equal(trained(1), trained(1))
    assert not torch.equal(trained(1).net[0].weight, trained(2).net[0].weight)  # type: ignore


def test_without_evaluation_the_last_weights_stay() -> None:
    result = fit(tiny(), Blobs(), None, options())
    assert result.metrics == {} and result.best == result.history[-1]
    assert "accuracy" not in result.best


class Told:
    """A metric that knows its figure beforehand."""

    def __init__(self, value: float) -> None:
        self.value = value

    def update(self, output: Any, batch: Any) -> None:
        pass

    def compute(self) -> dict[str, float]:
        return {"accuracy": self.value}


class Sliding(TinyForImageClassification):
    """Its accuracy is told by a script, one value an evaluation (the first is the trial)."""

    script: Iterator[float]

    def metric(self) -> Any:
        return Told(next(self.script))


def sliding(*values: float) -> Any:
    torch.manual_seed(0)
    model = Sliding(TinyConfig(num_labels=2))
    model.script = iter([0.0, *values])
    return model


@pytest.mark.parametrize(
    ("keep", "higher_is_better", "epoch"),
    [("best", True, 2), ("best", False, 3), ("last", True, 4)],
)
def test_the_kept_weights_are_those_of_the_kept_epoch(
    keep: Any, higher_is_better: bool, epoch: int
) -> None:
    model, shorter = sliding(0.5, 0.7, 0.4, 0.7), sliding(0.5, 0.7, 0.4, 0.7)
    given = options(epochs=4, schedule="constant", keep=keep, higher_is_better=higher_is_better)
    result = fit(model, Blobs(), Blobs(), given)
    fit(shorter, Blobs(), Blobs(), dataclasses.replace(given, epochs=epoch, keep="last"))
    assert_equal(model, shorter)
    assert result.metrics["accuracy"] == result.history[epoch - 1]["accuracy"]
    assert result.best["epoch"] == (2 if higher_is_better else 3)


def test_evaluations_can_be_rarer() -> None:
    model = sliding(0.1, 0.2, 0.3)
    result = fit(model, Blobs(), Blobs(), options(epochs=5, evaluate_every=2))
    evaluated = [entry["epoch"] for entry in result.history if "accuracy" in entry]
    assert evaluated == [2, 4, 5]


def test_patience_ends_a_run(tmp_path: Path) -> None:
    given = options(output=tmp_path, epochs=9, patience=2)
    model = sliding(0.5, 0.7, 0.6, 0.7, 0.9)
    result = fit(model, Blobs(), Blobs(), given)
    assert [entry["accuracy"] for entry in result.history] == [0.5, 0.7, 0.6, 0.7]
    # A finished run is finished, and is told again as it was.
    again = sliding()
    assert fit(again, Blobs(), Blobs(), dataclasses.replace(given, resume=True)) == result
    assert_equal(model, again)
    assert len(log(tmp_path)) == 4 and checkpoints(tmp_path) == ["checkpoint-28"]


def test_the_best_epoch_and_the_patience_survive(tmp_path: Path) -> None:
    given = options(output=tmp_path, epochs=9, patience=3, resume=True)
    with pytest.raises(Interrupted):
        fit(sliding(0.5, 0.7, 0.6), Interrupting((3, 1)), Blobs(), given)
    result = fit(sliding(0.6, 0.65), Blobs(), Blobs(), given)
    assert [entry["accuracy"] for entry in result.history] == [0.5, 0.7, 0.6, 0.6, 0.65]
    assert result.best["epoch"] == 2 and result.metrics["accuracy"] == 0.7


# What goes wrong on the way


class Poisoned(Blobs):
    """From one epoch on, an input is infinite."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.from_epoch = epoch

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        batch = super().__getitems__(rows)
        if self.epoch >= self.from_epoch:
            batch["pixel_values"][0] = math.inf
        return batch


def spoiling(at: int) -> type[torch.optim.SGD]:
    """Spoils a weight in update number `at`, the last of an epoch, which no training loss sees."""
    updates = itertools.count(1)

    class Spoiling(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            super().step(closure)
            if next(updates) == at:
                with torch.no_grad():
                    self.param_groups[0]["params"][0].mul_(math.nan)

    return Spoiling


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(Diverged) as error:
        fit(tiny(), Poisoned(2), None, options(output=tmp_path, epochs=9, checkpoint_steps=5))
    said = one_sentence(error)
    assert "the training loss became nan between steps 14 and " in said
    assert "learning rate 0.00" in said and "lower learning_rate" in said
    assert "checkpoint-14 is good" in said
    assert checkpoints(tmp_path) == ["checkpoint-10", "checkpoint-14"]
    found = state(tmp_path / "checkpoint-14")["model"].values()
    assert all(value.isfinite().all() for value in found)
    assert len(log(tmp_path)) == 2


def test_a_run_that_diverged_is_a_failure_and_no_bad_input() -> None:
    assert issubclass(Diverged, RuntimeError) and not issubclass(Diverged, InputError)
    with pytest.raises(Diverged, match=r"at learning rate 1e\+30; try a lower learning_rate"):
        fit(
            without_chance(),
            Blobs(),
            Blobs(),
            options(optimizer="sgd", learning_rate=1e30, schedule="constant"),
        )


@pytest.mark.parametrize(
    ("accuracies", "epochs"),
    [((0.9, 0.5), 1), (None, 2)],  # the best, else the last good ones
)
def test_a_run_that_diverged_gives_the_weights_back(accuracies: Any, epochs: int) -> None:
    data = Blobs() if accuracies else None
    given = options(schedule="constant", optimizer=torch.optim.SGD)
    model, good = sliding(*(accuracies or ())), sliding(*(accuracies or ()))
    with pytest.raises(Diverged):
        fit(model, Blobs(), data, dataclasses.replace(given, optimizer=spoiling(21)))
    fit(good, Blobs(), data, dataclasses.replace(given, epochs=epochs))
    assert_equal(model, good)


def test_a_run_that_diverged_at_once_gives_the_first_weights_back() -> None:
    model = tiny()
    with pytest.raises(Diverged):
        fit(model, Poisoned(0), None, options())
    assert_equal(model, tiny())


def test_no_checkpoint_holds_a_weight_that_is_no_number(tmp_path: Path) -> None:
    given = options(output=tmp_path, optimizer=spoiling(21))
    with pytest.raises(Diverged, match="a weight was no finite number after step 21") as error:
        fit(tiny(), Blobs(), None, given)
    one_sentence(error)
    assert checkpoints(tmp_path) == ["checkpoint-14", "checkpoint-7"]


def test_a_metric_that_is_no_number_is_no_best(tmp_path: Path) -> None:
    result = fit(sliding(math.nan, 0.4, math.nan), Blobs(), Blobs(), options(output=tmp_path))
    assert result.best["epoch"] == 2 and result.metrics["accuracy"] == 0.4
    assert [entry["accuracy"] for entry in log(tmp_path)] == [None, 0.4, None]  # JSON has no NaN


def test_guessing_is_noticed() -> None:
    with pytest.warns(StillAtChance) as warned:
        fit(tiny(), Blobs(), None, options(epochs=10, learning_rate=0.0, chance_share=0.25))
    (warning,) = warned
    said = str(warning.message)
    assert said.startswith("after 50 of 70 steps the training loss is ") and "(0.693)" in said
    assert "\n" not in said


def test_a_single_epoch_that_only_guesses_is_noticed_within_it() -> None:
    with pytest.warns(StillAtChance, match="after 50 of 125 steps"):
        fit(tiny(), Blobs(1000), None, options(epochs=1, learning_rate=0.0, chance_share=0.4))


def test_an_error_leaves_everything_whole(tmp_path: Path) -> None:
    model = tiny()
    model.label_smoothing = 0.3
    model.train()
    model.net[1].eval()
    before = {module: module.training for module in model.modules()}
    given = options(output=tmp_path, label_smoothing=0.1, accumulate=3)
    with pytest.raises(Interrupted):
        fit(model, Interrupting((1, 2)), Blobs(), given)
    assert {module: module.training for module in model.modules()} == before
    assert model.label_smoothing == 0.3
    assert all(parameter.grad is None for parameter in model.parameters())
    fit(model, Blobs(), Blobs(), dataclasses.replace(given, resume=True))  # the folder is free


# The model, during and after


class Spy(TinyForImageClassification):
    """Remembers how it was called: training, type of its features, label smoothing."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__(config)
        self.seen: list[tuple[bool, torch.dtype, float]] = []

    def forward(self, pixel_values: Tensor, *arguments: Any, **options: Any) -> Any:
        feature = self.net[0](pixel_values)
        self.seen.append((self.training, feature.dtype, self.label_smoothing))
        return super().forward(pixel_values, *arguments, **options)


def spy() -> Any:
    return Spy(TinyConfig(num_labels=2))


@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16"])
def test_training_computes_in_its_precision_and_evaluation_in_float32(precision: Any) -> None:
    model = spy()
    fit(model, Blobs(), Blobs(), options(precision=precision, epochs=1))
    low = precision == "bfloat16" or (precision == "auto" and has_bfloat16("cpu"))
    expected = torch.bfloat16 if low else torch.float32
    assert {dtype for mode, dtype, _ in model.seen if mode} == {expected}
    assert {dtype for mode, dtype, _ in model.seen if not mode} == {torch.float32}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    model.seen.clear()
    evaluate(model, Blobs(), precision="bfloat16")
    assert {dtype for _, dtype, _ in model.seen} == {torch.bfloat16}


def test_t9_no_update_waits_for_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    update, looks = training.loop._Run.update, []
    look = training.loop._Run.look

    def asked(*arguments: Any) -> Any:
        raise AssertionError("a GPU would be waited for")

    def watched(*arguments: Any) -> None:
        with monkeypatch.context() as patch:
            for name in ("item", "tolist", "__bool__", "__float__", "__int__"):
                patch.setattr(Tensor, name, asked)
            update(*arguments)

    monkeypatch.setattr(training.loop._Run, "update", watched)
    monkeypatch.setattr(training.loop._Run, "look", lambda run: looks.append(1) or look(run))
    given = options(epochs=1, batch_size=2, clip=1.0, moving_average=0.9, optimizer="sgd")
    fit(language_model(), Sentences(38), None, given)
    assert len(looks) == 2  # of 19 steps, after the 10th and the last


def test_the_model_is_left_as_it_was_but_for_its_weights() -> None:
    model = spy()
    model.label_smoothing = 0.3
    config = model.config.to_dict()
    fit(model, Blobs(), Blobs(), options(label_smoothing=0.1, epochs=1))
    assert {smoothing for mode, _, smoothing in model.seen if mode} == {0.1}
    assert model.label_smoothing == 0.3
    assert model.config.to_dict() == config
    assert "forward" not in vars(model)  # nothing was wrapped around it


@pytest.mark.parametrize("channels_last", [True, False])
def test_weights_lie_channels_last_while_training(channels_last: bool) -> None:
    model = tiny()
    model.net.insert(1, nn.Conv2d(4, 4, 3, padding=1))
    contiguous = set()

    class Looking(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            contiguous.add(model.net[1].weight.is_contiguous())
            return super().step(closure)

    given = options(optimizer=Looking, epochs=1, channels_last=channels_last)
    fit(model, Blobs(), None, given)
    assert contiguous == {not channels_last}
    assert model.net[1].weight.is_contiguous()


def test_evaluate_computes_what_the_model_says() -> None:
    model, data = tiny(), Blobs(37)
    model.train()
    model.net[1].eval()
    before, modes = weights(model), [module.training for module in model.modules()]
    generator = torch.get_rng_state()
    found = evaluate(model, data, batch_size=5)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generator)
    assert_equal(before, model)
    model.eval()
    batch = data.__getitems__(range(37))
    expected = model.metric()
    expected.update(model(**batch), batch)
    assert found == pytest.approx(expected.compute(), abs=1e-5)
    switch: Any = torch.backends.cudnn
    inside = []
    model.net.register_forward_hook(
        lambda *_: inside.append((switch.allow_tf32, switch.conv.fp32_precision))
    )
    switches = switch.allow_tf32, switch.conv.fp32_precision, switch.rnn.fp32_precision
    evaluate(model, data)
    assert {allowed for allowed, _ in inside} == {False}
    assert {precision for _, precision in inside} <= {"none", "ieee"}
    assert (switch.allow_tf32, switch.conv.fp32_precision, switch.rnn.fp32_precision) == switches
    with pytest.raises(InputError, match="precision='float16' is not known"):
        evaluate(model, data, precision="float16")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="TinyLanguageModel is not evaluated by 'accuracy'"):
        fit(language_model(), Sentences(), Sentences(), options())


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_a_gpu_trains_and_resumes_without_being_waited_for(tmp_path: Path) -> None:
    given = options(
        device="cuda", precision="auto", output=tmp_path, checkpoint_steps=2, resume=True
    )
    with pytest.raises(Interrupted):
        fit(tiny(), Interrupting((1, 3)), Blobs(), given)
    model = tiny()
    result = fit(model, Blobs(), Blobs(), given)
    assert next(model.parameters()).device.type == "cuda"
    assert result.metrics["accuracy"] > 0.8
    assert result.metrics == evaluate(model, Blobs())
    update = training.loop._Run.update

    def watched(*arguments: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            update(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.loop._Run, "update", watched)
        fit(model, Blobs(), None, Options(epochs=1, device="cuda", progress=False, accumulate=2))
