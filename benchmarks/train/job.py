"""What one process of the benchmark is to train, and how it reads and answers."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Job:
    """Pairs as token ids (prompt, chosen, rejected) and how to train on them.

    `last_layers` 0 puts LoRA into all layers. `precompute`, whether the reference is computed
    beforehand, is for TRL alone; `private` and `head` for FedPDPO alone.
    """

    model: str
    pairs: list[list[list[int]]]
    batch_pairs: int
    epochs: int
    threads: int
    last_layers: int = 0
    beta: float = 0.1
    learning_rate: float = 2e-4
    lora_rank: int = 16
    lora_alpha: int = 32
    tokens_per_step: int = 640
    precompute: bool = False
    private: bool = False
    head: Literal["full", "lowrank", "frozen"] = "frozen"


def read_job() -> Job:
    """The job that stands on standard input as JSON."""
    return Job(**json.load(sys.stdin))


def write_result(result: Mapping[str, Any]) -> None:
    """Write what was measured as JSON to the file that the first argument names.

    Not to standard output, which training libraries print to.
    """
    Path(sys.argv[1]).write_text(json.dumps(result), encoding="utf-8")
