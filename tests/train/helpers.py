"""What the tests of training share: tiny models and data, and processes that are killed or work
together."""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import pickle
import signal
import socket
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput, ImageClassifierOutputWithNoAttention

from resbackbones import train as training
from resbackbones.data import Items
from resbackbones.metrics import Confusion, Mean, Metric
from resbackbones.train import Options

# Models


class TinyConfig(PreTrainedConfig):
    model_type = "tiny"


class TinyForImageClassification(PreTrainedModel):
    """A convolution, batch norm, dropout and a linear map, on `(B, 1, 4, 4)`."""

    config_class = TinyConfig
    label_smoothing = 0.0

    def __init__(self, config: TinyConfig, dropout: float = 0.2) -> None:
        super().__init__(config)
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(64, config.num_labels or 2),
        )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        pass

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None
    ) -> ImageClassifierOutputWithNoAttention:
        logits = self.net(pixel_values).float()
        loss = None
        if labels is not None:
            smoothing = self.label_smoothing if self.training else 0.0
            loss = functional.cross_entropy(logits, labels, label_smoothing=smoothing)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)

    def metric(self) -> Metric:
        return Confusion(self.config.num_labels or 2)


def tiny(seed: int = 0, num_labels: int = 2, dropout: float = 0.2, **config: Any) -> Any:
    torch.manual_seed(seed)
    return TinyForImageClassification(TinyConfig(num_labels=num_labels, **config), dropout)


def without_chance(seed: int = 0) -> Any:
    """A model whose items do not depend on each other, in training too."""
    model = tiny(seed)
    model.net[1], model.net[3] = nn.Identity(), nn.Identity()
    return model


def real_tokens(batch: Mapping[str, Any]) -> Tensor:
    return (batch["labels"] != -100).sum()


class TinyLanguageModel(nn.Module):
    """The next token from the last one; its loss is a mean over real tokens, padding is -100."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 11))

    def forward(self, input_ids: Tensor, labels: Tensor) -> CausalLMOutput:
        logits = self.net(input_ids)
        loss = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        return CausalLMOutput(loss=loss, logits=logits)

    def weight(self, batch: Mapping[str, Any]) -> Tensor:
        return real_tokens(batch)

    def metric(self) -> Metric:
        return Mean(weight=real_tokens)


def language_model() -> TinyLanguageModel:
    torch.manual_seed(0)
    return TinyLanguageModel()


# Data


class Blobs(Items):
    """Two classes of 4x4 images that differ in their mean, with noise drawn anew each epoch."""

    def __init__(self, count: int = 50, noise: float = 1.0, seed: int = 0) -> None:
        super().__init__(seed)
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(count) % 2
        self.images = 0.5 * torch.randn(count, 1, 4, 4, generator=generator)
        self.images += self.labels[:, None, None, None]
        self.noise = noise

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        noise = self.draws(rows, 16).view(-1, 1, 4, 4) - 0.5
        picked = self.images[torch.as_tensor(rows)]
        return {
            "pixel_values": picked + self.noise * noise,
            "labels": self.labels[torch.as_tensor(rows)],
        }


class WithoutLabels(Blobs):
    def __getitems__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        return {"pixel_values": super().__getitems__(rows)["pixel_values"]}


class OneByOne(Dataset):
    """An ordinary data set of items."""

    def __init__(self, items: Items) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int) -> dict[str, Any]:
        item = self.items[row]
        return {"pixel_values": item["pixel_values"].numpy(), "label": int(item["labels"])}


class Sentences(Items):
    """Tokens that count up, 1 to 12 of them, padded to 12."""

    def __init__(self, count: int = 64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.lengths = torch.randint(1, 13, (count,), generator=generator)
        self.starts = torch.randint(0, 11, (count,), generator=generator)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        picked = torch.as_tensor(rows)
        tokens = (self.starts[picked, None] + torch.arange(13)) % 11
        assert self.lengths is not None
        real = torch.arange(12) < self.lengths[picked, None]
        return {"input_ids": tokens[:, :-1], "labels": tokens[:, 1:].where(real, -100)}


class Interrupted(Exception):
    pass


def interrupt() -> None:
    raise Interrupted


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Interrupting(Blobs):
    """Calls something as a batch of an epoch is fetched."""

    def __init__(
        self, at: tuple[int, int] | None, then: Callable[[], Any] = interrupt, count: int = 50
    ) -> None:
        super().__init__(count)
        self.at, self.then, self.batches = at, then, -1

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.batches = -1

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        self.batches += 1
        if (self.epoch, self.batches) == self.at:
            self.then()
        return super().__getitems__(rows)

    def fingerprint(self) -> str:
        return Blobs(len(self)).fingerprint()


# Options

QUICK = Options(
    epochs=3,
    batch_size=8,
    least_updates=1,
    learning_rate=0.01,
    precision="float32",
    progress=False,
    device="cpu",
)
RUN = dataclasses.replace(
    QUICK,
    epochs=4,
    accumulate=2,  # 7 batches in 4 updates, each with two batches
    checkpoint_steps=3,
    optimizer="sgd",
    learning_rate=0.05,
    schedule="one_cycle",
    weight_decay=0.01,
    clip=1.0,
    label_smoothing=0.1,
)


def options(**changes: Any) -> Options:
    return dataclasses.replace(QUICK, **changes)


def sgd(**changes: Any) -> Options:
    plain: dict[str, Any] = {"optimizer": torch.optim.SGD, "schedule": "constant"}
    return options(**(plain | {"epochs": 1, "learning_rate": 0.1} | changes))


# What came of it


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_equal(one: nn.Module | Mapping[str, Tensor], other: nn.Module) -> None:
    """Bit for bit."""
    ours = one.state_dict() if isinstance(one, nn.Module) else one
    theirs = other.state_dict()
    assert list(ours) == list(theirs)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def entries(result: training.Result) -> list[dict[str, float]]:
    """A history without what no two runs share."""
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in result.history]


def log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def state(checkpoint: Path) -> dict[str, Any]:
    return torch.load(checkpoint / "state.pt", weights_only=True)


def one_sentence(error: pytest.ExceptionInfo[Any]) -> str:
    text = str(error.value)
    assert "\n" not in text and not text.endswith(".") and ". " not in text and ";" in text
    return text


# Other processes: forked from one that has imported all this already


def _begin(work: Callable[..., Any], arguments: Any, environment: Any, answer: Any) -> None:
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)  # of workers, as everywhere on Linux
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=training.StillAtChance)
    try:
        found = work(*arguments), None
    except BaseException:
        found = None, traceback.format_exc()
    answer.send_bytes(
        pickle.dumps(found)
    )  # a connection's own pickles leave tensors where they are


def start(work: Callable[..., Any], *arguments: Any, **environment: str) -> tuple[Any, Any]:
    """A process, and where its answer will come from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_begin, args=(work, arguments, environment, there))
    process.start()
    there.close()
    return process, here


def run_until_killed(work: Callable[..., Any], *arguments: Any) -> None:
    process, answer = start(work, *arguments)
    process.join(120)
    said = "it went on to its end"
    with contextlib.suppress(EOFError):
        said = str(pickle.loads(answer.recv_bytes())) if answer.poll() else said
    assert process.exitcode == -signal.SIGKILL, said


def together(work: Callable[..., Any], *arguments: Any, size: int = 2) -> list[Any]:
    """What each of so many processes that know of each other, as those of `torchrun`, gave; None
    for one that was killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    size_here = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    started = [
        start(work, *arguments, RANK=str(rank), LOCAL_RANK=str(rank), **size_here, **address)
        for rank in range(size)
    ]
    answers = []
    for process, answer in started:
        try:
            assert answer.poll(120), "it gave no answer"
            found, error = pickle.loads(answer.recv_bytes())
        except EOFError:
            found, error = None, None  # killed
        process.join(20)
        assert error is None, error
        answers.append(found)
    return answers
