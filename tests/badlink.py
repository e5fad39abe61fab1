"""A link between two network namespaces that is slow, late and loses packets.

    python badlink.py SPACE ADDRESS SPACE ADDRESS DELAY_S LOSS BYTES_PER_S

Makes a tun device in each namespace, named by the kernel there (`tun0` is the first), and carries
packets between the two. It needs root and /dev/net/tun, but no netem, which many kernels lack.
Says `up` when the link is there.
"""

import contextlib
import ctypes
import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import sys
import time
from pathlib import Path

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_CLONE_NEWNET = 0x40000000
_MTU = 1400
_BACKLOG_S = 0.5


def tun(space: str, address: str, peer: str) -> int:
    """Make a device in a namespace and give what reads and writes its packets."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path(f"/var/run/netns/{space}").open("rb") as there:
        if libc.setns(there.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {space}")
    device = os.open("/dev/net/tun", os.O_RDWR)
    made = fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH14x", b"tun%d", _IFF_TUN | _IFF_NO_PI))
    name = made[:16].rstrip(b"\0").decode()
    for command in (
        ("addr", "add", address, "peer", peer, "dev", name),
        ("link", "set", name, "up", "mtu", str(_MTU)),
    ):
        subprocess.run(["ip", *command], check=True)
    return device


def carry(ends: tuple[int, int], *, delay_s: float, loss: float, bytes_per_s: float) -> None:
    """Carry packets between two devices, for ever."""
    other = dict(zip(ends, reversed(ends), strict=True))
    free_at = dict.fromkeys(ends, 0.0)
    under_way: list[tuple[float, int, int, bytes]] = []
    draw = random.Random(0)
    number = 0
    while True:
        now = time.monotonic()
        while under_way and under_way[0][0] <= now:
            _, _, end, packet = heapq.heappop(under_way)
            with contextlib.suppress(OSError):  # a device that is down loses what arrives
                os.write(end, packet)
        wait_s = max(0.0, under_way[0][0] - now) if under_way else 1.0
        for end in select.select(ends, [], [], wait_s)[0]:
            packet = os.read(end, 65536)
            now = time.monotonic()
            free_at[end] = max(free_at[end], now) + len(packet) / bytes_per_s
            if draw.random() >= loss and free_at[end] - now < _BACKLOG_S:
                number += 1
                heapq.heappush(under_way, (free_at[end] + delay_s, number, other[end], packet))


if __name__ == "__main__":
    one, one_address, two, two_address, *numbers = sys.argv[1:]
    devices = (tun(one, one_address, two_address), tun(two, two_address, one_address))
    print("up", flush=True)
    delay, lost, speed = map(float, numbers)
    carry(devices, delay_s=delay, loss=lost, bytes_per_s=speed)
