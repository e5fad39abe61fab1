"""Clients without training: they fetch, report, and send a delta made beforehand, by the real link.

At the end prints for each client and round when its delta was counted.

    python untrained.py PORT MIB FOLDER FIRST LAST [TLS]

TLS is a folder with a folder of credentials for each client.
"""

import sys
import threading
import time
from pathlib import Path

import numpy as np

from fedpdpo.client.channel import AccessSettings
from fedpdpo.client.link import Link
from fedpdpo.client.outcome import TrainedRound, TrainingReport
from fedpdpo.common.header import Contents
from fedpdpo.common.layout import LoraLayout
from fedpdpo.common.metrics import Metrics
from fedpdpo.common.tensorfile import write_tensors

TENSORS = 16
RANK = 16
PATIENCE_S = 600.0
METRICS = Metrics(0.5, 0.5, 0.5, 0.0, 0.7, 0.0)
REPORT = TrainingReport(loss=0.5, accuracy=0.5, num_steps=1, seconds=1.0)


def layout_of(mib: int) -> LoraLayout:
    """An adapter of so many MiB, in 16 matrices or in matrices of 16 MiB."""
    num = max(TENSORS, mib // 16)
    shape = (RANK, mib * 2**20 // 4 // RANK // num)
    return LoraLayout(tuple((f"m.{number:03}.lora_B.weight", shape) for number in range(num)))


def client_name(number: int) -> str:
    """What a client is called."""
    return f"client{number:04}"


class Client(threading.Thread):
    """One client, until the run has ended."""

    def __init__(self, port: int, mib: int, folder: Path, tls: Path | None) -> None:
        super().__init__(name=folder.name)
        self.counted_at_s: dict[int, float] = {}
        self._layout = layout_of(mib)
        self._folder = folder
        folder.mkdir(parents=True)
        self._link = Link(
            f"127.0.0.1:{port}",
            folder.name,
            connect_timeout_s=PATIENCE_S,
            stall_s=PATIENCE_S,
            access=AccessSettings(tls=tls),
        )

    def run(self) -> None:
        """Join and do what the server asks."""
        layout, link, delta = self._layout, self._link, self._folder / "delta.safetensors"
        link.get_run()
        link.join(
            backbone_fingerprint="b" * 64,
            tokenizer_fingerprint="c" * 64,
            layout=layout,
            num_train_pairs=10,
            num_eval_pairs=1,
        )
        values = np.ones(layout.shapes[0][1], np.float32)
        write_tensors(delta, Contents.of(layout), ((name, values) for name, _ in layout.shapes))
        while True:
            task = link.assignment()
            match task.WhichOneof("task"):
                case "evaluate":
                    version = task.evaluate.adapter_version
                    link.pull(version, self._folder / "adapter.safetensors", layout)
                    link.report(version, num_pairs=1, views={"VIEW_GLOBAL": METRICS})
                case "train":
                    link.push(TrainedRound(task.train.round, 10, REPORT, delta), layout)
                    self.counted_at_s[task.train.round] = time.time()
                case "finish":
                    link.leave()
                    link.close()
                    return


if __name__ == "__main__":
    port, mib, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    numbers = range(int(sys.argv[4]), int(sys.argv[5]))
    tls = Path(sys.argv[6]) if len(sys.argv) > 6 else None
    clients = [
        Client(port, mib, folder / name, tls / name if tls else None)
        for name in map(client_name, numbers)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
        told = (f"{number}:{at_s}" for number, at_s in client.counted_at_s.items())
        print(client.name, *told, flush=True)
