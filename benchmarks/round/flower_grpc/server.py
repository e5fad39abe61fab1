"""Flower's gRPC server with its FedAvg, for clients without training. Runs in Flower's environment.

python server.py PORT CLIENTS MIB ROUNDS
"""

import sys
import time

import flwr as fl
import numpy as np
from sizes import MAX_MESSAGE, TENSORS, shape


class Strategy(fl.server.strategy.FedAvg):
    """FedAvg that says when each round has ended."""

    def aggregate_fit(self, server_round, results, failures):  # noqa: D102
        found = super().aggregate_fit(server_round, results, failures)
        print(f"failed {len(failures)}" if failures else f"round {server_round} {time.time()}",
              flush=True)  # fmt: skip
        return found


if __name__ == "__main__":
    port, clients, mib, rounds = map(int, sys.argv[1:])
    zeros = [np.zeros(shape(mib), np.float32)] * TENSORS
    fl.server.start_server(
        server_address=f"127.0.0.1:{port}",
        config=fl.server.ServerConfig(num_rounds=rounds),
        grpc_max_message_length=MAX_MESSAGE,
        strategy=Strategy(
            fraction_evaluate=0.0,
            min_fit_clients=clients,
            min_available_clients=clients,
            initial_parameters=fl.common.ndarrays_to_parameters(zeros),
        ),
    )
