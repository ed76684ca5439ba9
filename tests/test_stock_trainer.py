"""Every model trains under a stock `transformers.Trainer`, by the same numbers as under `fit`."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from resbackbones.data import Items
from resbackbones.speech import ResidualForAudioClassification, ResidualForAudioXVector
from resbackbones.text import ResidualForSequenceClassification, train_tokenizer
from resbackbones.train import Options, fit
from resbackbones.vision import ResidualForImageClassification
from tests.vision.helpers import boxed, detector, masked, segmenter, two_stage

TEXTS = ["a good film", "a bad film", "good", "bad bad", "what a film", "no", "so good", "so bad"]


def image() -> Any:
    # Layer norm: batch statistics would differ between the halves of a batch.
    return ResidualForImageClassification.build("resnet20", num_labels=2, norm="layer")


def audio() -> Any:
    return ResidualForAudioClassification.build("tc_resnet8", num_labels=2, norm="layer")


def voices() -> Any:
    # fit would have the margin rise.
    return ResidualForAudioXVector.build("tc_resnet8", num_labels=2, norm="layer", margin_rise=0.0)


def text() -> Any:
    tokenizer = train_tokenizer(TEXTS, "word")
    return ResidualForSequenceClassification.build(
        "word_resnet6", num_labels=2, processor=tokenizer, norm="layer"
    )


class Rows(Items):
    """Eight items of a model's kind."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.arange(8) % 2
        if model.main_input_name == "input_ids":
            self.inputs = dict(model.processor(TEXTS, padding=True, return_tensors="pt"))
        else:
            shape = (3, 8, 8) if model.main_input_name == "pixel_values" else (40, 30)
            drawn = torch.randn(8, *shape, generator=generator)
            self.inputs = {model.main_input_name: drawn}

    def __len__(self) -> int:
        return 8

    def __getitems__(self, rows: Any) -> dict[str, Tensor]:
        picked = torch.as_tensor(rows)
        return {n: v[picked] for n, v in self.inputs.items()} | {"labels": self.labels[picked]}


class OneByOne(torch.utils.data.Dataset):
    """The Trainer's collator takes items, not batches."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return self.rows[row]


@pytest.mark.parametrize("build", [image, audio, voices, text])
def test_an_update_of_the_trainer_is_one_of_fit(build: Any, tmp_path: Path) -> None:
    def drawn() -> Any:
        torch.manual_seed(0)
        return no_dropout(build())

    def trained(size: int, accumulate: int, steps: int) -> tuple[Any, list[float]]:
        model = drawn()
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path), max_steps=steps, learning_rate=0.1, optim="sgd",
            per_device_train_batch_size=size, gradient_accumulation_steps=accumulate,
            lr_scheduler_type="constant", max_grad_norm=0, weight_decay=0.0, use_cpu=True,
            logging_steps=1, report_to="none", disable_tqdm=True, save_strategy="no",
        )  # fmt: skip
        trainer = transformers.Trainer(model, arguments, train_dataset=OneByOne(Rows(model)))
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return model, losses

    def fitted(epochs: int) -> tuple[Any, list[float]]:
        model = drawn()
        given = Options(
            epochs=epochs, batch_size=8, optimizer=torch.optim.SGD, learning_rate=0.1,
            schedule="constant", precision="float32", device="cpu", progress=False,
            channels_last=False,
        )  # fmt: skip
        result = fit(model, Rows(model), None, given)
        return model, [entry["train_loss"] for entry in result.history]

    ours, expected = fitted(3)
    for size, accumulate in ((8, 1), (4, 2)):
        theirs, losses = trained(size, accumulate, 3)
        # The trap is a factor of two: of the loss that is told, and of the gradient.
        assert losses == pytest.approx(expected, abs=2e-4)
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    before = drawn().state_dict()
    assert any(
        (value - before[name]).abs().max() > 1e-3 for name, value in theirs.named_parameters()
    )


def no_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


PIXELS = {
    "fcos": (detector, boxed),
    "retinanet": (lambda: detector("retinanet"), boxed),
    "two stages": (two_stage, boxed),
    "masks": (segmenter, masked),
}


@pytest.mark.parametrize(("build", "make"), PIXELS.values(), ids=PIXELS)
def test_boxes_and_masks_are_trained_evaluated_saved_and_gone_on_with(
    build: Any, make: Any, tmp_path: Path
) -> None:
    def trainer(steps: int) -> transformers.Trainer:
        model = build()
        items = make(model)
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path), max_steps=steps, learning_rate=0.01, optim="sgd",
            per_device_train_batch_size=2, per_device_eval_batch_size=4, eval_strategy="steps",
            eval_steps=1, save_steps=1, use_cpu=True, report_to="none", disable_tqdm=True,
            remove_unused_columns=False,
        )  # fmt: skip
        return transformers.Trainer(
            model, arguments, data_collator=dict, train_dataset=items, eval_dataset=items
        )

    whole = trainer(2)
    whole.train()
    model = whole.model
    (told,) = [
        e["eval_loss"] for e in whole.state.log_history if e["step"] == 2 and "eval_loss" in e
    ]
    loaded = type(model).from_pretrained(tmp_path / "checkpoint-2")
    assert loaded.config.id2label == {0: "a", 1: "b"}
    assert loaded.processor.to_dict() == model.processor.to_dict()
    batch = make(loaded).__getitems__(range(4))
    with torch.no_grad():
        assert loaded(**batch).loss.item() == pytest.approx(told, rel=1e-5)
    before = build().state_dict()
    assert [n for n, p in model.named_parameters() if torch.equal(p, before[n])] == []
    rest = trainer(2)
    rest.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    for name, value in rest.model.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name])
