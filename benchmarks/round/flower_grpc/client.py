"""A Flower client without training. Runs in Flower's environment.

python client.py PORT MIB
"""

import sys

import flwr as fl
import numpy as np

MAX_MESSAGE = 512 * 2**20
TENSORS = 16
RANK = 16


class Client(fl.client.NumPyClient):
    """Gives what was made beforehand."""

    def __init__(self, mib):
        self._delta = [np.full((RANK, mib * 2**20 // 4 // RANK // TENSORS), 1e-3, np.float32)]
        self._delta *= TENSORS

    def fit(self, parameters, config):  # noqa: ARG002, D102
        return self._delta, 10, {}


if __name__ == "__main__":
    fl.client.start_client(
        server_address=f"127.0.0.1:{sys.argv[1]}",
        client=Client(int(sys.argv[2])).to_client(),
        grpc_max_message_length=MAX_MESSAGE,
    )
