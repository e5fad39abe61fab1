"""How fast this machine multiplies float32 matrices, in GFLOP/s: the yardstick of the benchmark.

Reads {"threads", "hidden", "inner"} and gives the median rate of a large square product, which is
called the machine's rate, and of the model's own products on T tokens. Results go into memory that
is there already, so that only the product is timed. A product (m, k) x (k, n) counts as 2 m k n.
"""

import json
import sys
import time
from statistics import median

import torch

from job import write_result

SQUARE = 2048
SQUARE_S = 3.0
OWN_S = 0.5
TOKENS = 512


def main() -> None:
    """Read what to measure, measure, write the rates."""
    asked = json.load(sys.stdin)
    torch.set_num_threads(asked["threads"])
    hidden, inner = asked["hidden"], asked["inner"]
    own = {
        "up": (TOKENS, hidden, inner),
        "down": (TOKENS, inner, hidden),
        "square": (TOKENS, hidden, hidden),
    }
    write_result(
        {
            "machine": rate((SQUARE, SQUARE, SQUARE), for_s=SQUARE_S),
            "own": {name: rate(shape, for_s=OWN_S) for name, shape in own.items()},
        }
    )


def rate(shape: tuple[int, int, int], *, for_s: float) -> float:
    """The median rate of a product over some seconds, in GFLOP/s."""
    m, k, n = shape
    left, right, out = torch.randn(m, k), torch.randn(k, n), torch.empty(m, n)
    torch.mm(left, right, out=out)
    seconds = []
    end = time.perf_counter() + for_s
    while time.perf_counter() < end:
        begun = time.perf_counter()
        torch.mm(left, right, out=out)
        seconds.append(time.perf_counter() - begun)
    return 2e-9 * m * k * n / median(seconds)


if __name__ == "__main__":
    main()
