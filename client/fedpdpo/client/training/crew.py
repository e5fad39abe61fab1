"""The processes of one client: one a GPU, started by `accelerate launch` or `torchrun`.

The first leads: it speaks to the server and keeps the state. All hold the same model and take the
same steps: each computes its share of a step's pairs, and the gradients are added up over all.
"""

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

#: Between rounds the others wait for the server as long as the first does.
_PATIENCE = timedelta(days=30)


class Crew:
    """The processes that were launched together; only this one where none were."""

    def __init__(self, *, device: str = "auto") -> None:
        self.rank, self.size = 0, 1
        self.device = device
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import PartialState

            state = PartialState(cpu=device == "cpu", timeout=_PATIENCE)
            self.rank, self.size = state.process_index, state.num_processes
            self.device = str(state.device)

    def close(self) -> None:
        """Leave the others."""
        if self.size > 1:
            torch.distributed.destroy_process_group()

    @property
    def leads(self) -> bool:
        """Whether this process speaks to the server."""
        return self.rank == 0

    def share(self, indices: Sequence[int]) -> Sequence[int]:
        """The part of a step's pairs that is this process's; it may be empty."""
        return indices[self.rank :: self.size]

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""
        if self.size > 1:
            for tensor in tensors:
                torch.distributed.all_reduce(tensor)

    def sum(self, *values: float) -> list[float]:
        """Each value's sum over all processes."""
        if self.size == 1:
            return list(values)
        totals = torch.tensor(values, dtype=torch.float32, device=self.device)
        self.add_up([totals])
        return totals.tolist()

    def tell(self, what: Any) -> None:
        """Send something to all others; they must `hear`. Only for the first."""
        if self.size > 1:
            from accelerate.utils import broadcast_object_list

            broadcast_object_list([what])

    def hear(self) -> Any:
        """What the first tells."""
        from accelerate.utils import broadcast_object_list

        said: list[Any] = [None]
        broadcast_object_list(said)
        return said[0]
