"""An adapter of 3 GiB there and back: neither side holds it in memory."""

import shutil
import sys
from pathlib import Path

import pytest

import untrained
from fedpdpo.common.tensorfile import TensorReader
from processes import stage, until
from report import memory_bytes
from untrained import layout_of

pytestmark = [pytest.mark.large, pytest.mark.timeout(900)]

SIZE_MIB = 3 * 1024
MOST_MIB_ABOVE_IDLE = 200
DISK_MIB = 6 * SIZE_MIB


def test_an_adapter_of_3_gib_moves_in_little_memory(tmp_path: Path) -> None:
    if shutil.disk_usage(tmp_path).free < DISK_MIB * 2**20:
        pytest.skip(f"needs {DISK_MIB // 1024} GiB of disk")
    try:
        with stage(tmp_path) as on:
            server, port = on.server("--min-clients", 1, "--rounds", 1)
            held = {server: Held(server.process.pid)}
            command = (untrained.__file__, port, SIZE_MIB, tmp_path, 0, 1)
            client = on.start(sys.executable, *command, log="client")
            server.says("client_joined")
            held[client] = Held(client.process.pid)
            until(lambda: [one.look() for one in held.values()] and not client.runs, "3 GiB",
                  patience_s=800)  # fmt: skip
            assert client.ends() == 0, client.output
            assert server.ends() == 0, server.output
            print({program.log.stem: one.above_idle_mib for program, one in held.items()})
            for program, one in held.items():
                assert one.above_idle_mib < MOST_MIB_ABOVE_IDLE, program.log
        (adapter,) = (tmp_path / "server" / "adapters").glob("version-00001.*")
        reader = TensorReader(adapter)
        assert all((reader.read(name) == 1.0).all() for name, _ in layout_of(SIZE_MIB).shapes)
    finally:
        for path in tmp_path.rglob("*.safetensors"):
            path.unlink()


class Held:
    """What memory a process holds, beside what it held at first."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._idle = self._peak = memory_bytes("VmRSS", pid)

    def look(self) -> bool:
        """Note the peak so far; the kernel keeps it."""
        self._peak = max(self._peak, memory_bytes("VmHWM", self._pid))
        return True

    @property
    def above_idle_mib(self) -> float:
        return (self._peak - self._idle) / 2**20
