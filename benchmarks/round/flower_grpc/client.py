"""A Flower client without training. Runs in Flower's environment.

python client.py PORT MIB
"""

import sys

import flwr as fl
import numpy as np
from sizes import MAX_MESSAGE, TENSORS, shape


class Client(fl.client.NumPyClient):
    """Gives what was made beforehand."""

    def __init__(self, mib):
        self._delta = [np.full(shape(mib), 1e-3, np.float32)] * TENSORS

    def fit(self, parameters, config):  # noqa: ARG002, D102
        return self._delta, 10, {}


if __name__ == "__main__":
    fl.client.start_client(
        server_address=f"127.0.0.1:{sys.argv[1]}",
        client=Client(int(sys.argv[2])).to_client(),
        grpc_max_message_length=MAX_MESSAGE,
    )
