"""Times the parts of any torch training, and tells how much memory the process takes."""

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast
from unittest.mock import patch

import torch

from report import memory_bytes


class Clock:
    """Seconds spent in backward passes and in optimizer steps while measuring."""

    def __init__(self) -> None:
        self.backward_s = 0.0
        self.optimizer_s = 0.0

    @contextmanager
    def measuring(self, optimizer: Any) -> Iterator[None]:
        """Count what happens inside the block; `optimizer` is anything with a method `step`."""
        backward = cast(Callable[..., None], torch.Tensor.backward)
        step = optimizer.step

        def timed_backward(tensor: torch.Tensor, *args: Any, **options: Any) -> None:
            begun = time.perf_counter()
            backward(tensor, *args, **options)
            self.backward_s += time.perf_counter() - begun

        def timed_step(*args: Any, **options: Any) -> Any:
            begun = time.perf_counter()
            result = step(*args, **options)
            self.optimizer_s += time.perf_counter() - begun
            return result

        with (
            patch.object(torch.Tensor, "backward", timed_backward),
            patch.object(optimizer, "step", timed_step),
        ):
            yield


def resident_mib() -> float:
    """Memory that this process holds now."""
    return memory_bytes("VmRSS") / 2**20 or peak_mib()


def peak_mib() -> float:
    """The most memory that this process has held.

    The kernel's own count for this program: getrusage's begins with what the parent held.
    """
    told = memory_bytes("VmHWM") / 2**20
    return told or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
