"""The machine that a benchmark runs on: what it is, and how busy it has been."""

import importlib.metadata
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fedpdpo.client.machine import available_cores

#: Share of all cores that other processes may take before a run counts as disturbed.
QUIET = 0.05

_STAT = Path("/proc/stat")


def setting(packages: Iterable[str]) -> dict[str, Any]:
    """What the figures depend on beside the code: machine and versions."""
    return {
        "cpu": _cpu(),
        "cores": available_cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def busy_s() -> float | None:
    """CPU seconds that all processes have taken, and that a hypervisor took away.

    None where the system does not tell.
    """
    if not _STAT.exists():
        return None
    ticks = [int(part) for part in _STAT.read_text(encoding="ascii").split()[1:9]]
    user, nice, system, _idle, _waiting, *interrupts_and_stolen = ticks
    return sum((user, nice, system, *interrupts_and_stolen)) / os.sysconf("SC_CLK_TCK")


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
