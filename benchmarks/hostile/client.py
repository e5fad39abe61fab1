"""A client that trains as the others do and sends something else.

    python client.py HOW OPTIONS-OF-FEDPDPO-CLIENT...

HOW: `scaled` by 100, `flipped` in sign, or `random` normal numbers.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import fedpdpo.client.state
from fedpdpo.client.cli import main

CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "scaled": lambda tensor: 100 * tensor,
    "flipped": lambda tensor: -tensor,
    "random": torch.randn_like,
}


def hostile(how: str) -> int:
    """Run a client whose deltas are changed before they are kept and sent."""
    state: Any = fedpdpo.client.state
    write = state.write_delta

    def write_changed(folder: Any, delta: Any, *arguments: Any, **named: Any) -> None:
        changed = {name: CHANGES[how](tensor) for name, tensor in delta.tensors.items()}
        write(folder, replace(delta, tensors=changed), *arguments, **named)

    state.write_delta = write_changed
    torch.manual_seed(0)
    return main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(hostile(sys.argv[1]))
