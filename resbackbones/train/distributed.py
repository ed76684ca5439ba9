"""`World`: one process, or those that `torchrun` started, on GPUs or on CPUs."""

import atexit
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from resbackbones.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them.

    Attributes:
        rank: this one's number, from 0; number 0 writes and prints.
        size: how many there are.
        device: where this one computes.
    """

    rank: int
    size: int
    device: torch.device

    @classmethod
    def join(cls, device: str = "auto") -> "World":
        """The world that the environment speaks of: that of `torchrun`, else this process alone.

        Args:
            device: "cpu", "cuda", or "auto" for a GPU if there is one.

        Raises:
            InputError: a GPU is asked for and there is none, or fewer than processes here.
        """
        there = torch.cuda.device_count() if device != "cpu" and torch.cuda.is_available() else 0
        if device == "cuda" and not there:
            raise InputError(
                "device='cuda' needs a GPU and there is none; use --device auto or --device cpu"
            )
        rank, size, local, beside = (
            int(os.environ.get(name, default))
            for name, default in (
                ("RANK", 0),
                ("WORLD_SIZE", 1),
                ("LOCAL_RANK", 0),
                ("LOCAL_WORLD_SIZE", 1),
            )
        )
        if there and beside > there:
            raise InputError(
                f"{beside} processes cannot share {there} GPU(s) here; start as many as there are, "
                "or use --device cpu"
            )
        chosen = torch.device("cuda", local) if there else torch.device("cpu")
        if there:
            torch.cuda.set_device(chosen)
        if size > 1 and not distributed.is_initialized():
            distributed.init_process_group("nccl" if there else "gloo")
            atexit.register(distributed.destroy_process_group)
        return cls(rank, size, chosen)

    @classmethod
    def now(cls) -> "World":
        """The world that was joined before; else this process alone."""
        if not distributed.is_initialized():
            return cls(0, 1, torch.device("cpu"))
        device = torch.device("cpu")
        if distributed.get_backend() == "nccl":
            device = torch.device("cuda", torch.cuda.current_device())
        return cls(distributed.get_rank(), distributed.get_world_size(), device)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes; a GPU is not waited for."""
        if self.size > 1:
            value = value.to(self.device, non_blocking=True, copy=True)
            distributed.all_reduce(value)
        return value

    def gather(self, value: T) -> list[T]:
        """What each process has, in the order of their ranks."""
        found: list[Any] = [value] * self.size
        if self.size > 1:
            distributed.all_gather_object(found, value)
        return found

    def once(self, work: Callable[[], T]) -> T:
        """Do something in the first process alone; its result, or its error, is everybody's."""
        if self.size == 1:
            return work()
        outcome: list[Any] = [None, None]
        if self.first:
            try:
                outcome[0] = work()
            except Exception as error:
                outcome[1] = error
        distributed.broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    @torch.no_grad()
    def share(self, tensors: Iterable[Tensor]) -> None:
        """Give every process what the first one has in these."""
        if self.size > 1:
            for tensor in tensors:
                content = tensor.contiguous()
                distributed.broadcast(content, 0)
                tensor.copy_(content)
