"""How fast this machine multiplies float32 matrices, in GFLOP/s: the yardstick of the benchmark.

Reads {"threads"} and gives the median rate of a large square product. Results go into memory that
is there already, so that only the product is timed, by the library that the engine takes. A product
(m, k) x (k, n) counts as 2 m k n.
"""

import json
import sys
import time
from statistics import median

import torch

from fedpdpo.client.model.products import prefer_onednn
from job import write_result

SIZE = 2048
SECONDS = 3.0


def main() -> None:
    """Read what to measure, measure, write the rate."""
    torch.set_num_threads(json.load(sys.stdin)["threads"])
    prefer_onednn()
    write_result({"machine": rate()})


def rate() -> float:
    """The median rate of a square product over some seconds, in GFLOP/s."""
    left, right, out = torch.randn(SIZE, SIZE), torch.randn(SIZE, SIZE), torch.empty(SIZE, SIZE)
    torch.mm(left, right, out=out)
    seconds = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        begun = time.perf_counter()
        torch.mm(left, right, out=out)
        seconds.append(time.perf_counter() - begun)
    return 2e-9 * SIZE**3 / median(seconds)


if __name__ == "__main__":
    main()
