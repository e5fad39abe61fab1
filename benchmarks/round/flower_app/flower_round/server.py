"""FedAvg that writes down when each round has ended."""

import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from flower_round.sizes import TENSORS, shape

app = ServerApp()


class Strategy(FedAvg):
    """FedAvg with a note at the end of a round."""

    def __init__(self, ends: Path, **settings) -> None:
        super().__init__(**settings)
        self._ends = ends

    def aggregate_train(self, server_round, replies):
        """Average, and note the time."""
        found = super().aggregate_train(server_round, replies)
        with self._ends.open("a") as file:
            file.write(f"round {server_round} {time.time()}\n")
        return found


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run all rounds."""
    config = context.run_config
    clients = int(config["clients"])
    mib = int(config["mib"])
    rng = np.random.default_rng(0)
    Strategy(
        Path(str(config["ends"])),
        fraction_evaluate=0.0,
        min_train_nodes=clients,
        min_available_nodes=clients,
    ).start(
        grid=grid,
        initial_arrays=ArrayRecord([rng.random(shape(mib), np.float32) for _ in range(TENSORS)]),
        num_rounds=int(config["rounds"]),
    )
