"""How the cost of FedPDPO's engine grows with prompt, response and number of pairs."""

from collections.abc import Callable
from typing import Any

from data import even
from job import Job
from measure import run_job

BATCH_PAIRS = 4
PROMPTS = (32, 128, 512)
RESPONSES = (16, 64, 256)
NUM_PAIRS = (4, 8, 16, 32)


def growth(
    model: str, *, threads: int, again: int, quick: bool, done: Callable[[str], None]
) -> dict[str, Any]:
    """Run one epoch with one length varied at a time; `done` is told of each point."""
    points = {
        "prompt_tokens": [(length, 4, length, 64) for length in PROMPTS],
        "response_tokens": [(length, 4, 128, length) for length in RESPONSES],
        "pairs": [(num, num, 32, 16) for num in NUM_PAIRS],
    }
    found: dict[str, Any] = {"batch_pairs": BATCH_PAIRS, "epochs": 1, "data": "random tokens"}
    measured: dict[tuple[int, int, int], dict[str, Any]] = {}
    for name, asked in points.items():
        found[name] = []
        for value, num, prompt, response in asked[: 2 if quick else None]:
            sizes = (num, prompt, response)
            if sizes not in measured:
                measured[sizes] = _run(model, threads, again, *sizes)
            figures = measured[sizes]
            point = {name: value, "pairs": num, "prompt": prompt, "response": response}
            found[name].append(point | {"s_per_pair": figures["wall_s"] / num, **figures})
            done(f"{name} {value}: {figures['wall_s'] / num:.2f} s a pair")
    return found


def _run(
    model: str, threads: int, again: int, num: int, prompt: int, response: int
) -> dict[str, Any]:
    job = Job(
        model=model,
        pairs=even(num=num, prompt=prompt, response=response),
        batch_pairs=BATCH_PAIRS,
        epochs=1,
        threads=threads,
    )
    return run_job("ours.py", job, again=again)[-1]
