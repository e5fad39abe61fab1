"""Ditto (Li et al. 2021, arXiv:2012.04221): beside the shared LoRA each client trains its own.

The own one goes on from round to round and is pulled to the global one it was given, by MU / 2
times the squared distance; it is what the client deploys.
"""

from typing import Any

from fedpdpo.client.model.lora import SharedState, layout_of
from fedpdpo.client.preparation import client_seed
from fedpdpo.client.training.local_round import train_round
from fedpdpo.client.training.optimizer import LocalOptimizer
from methods import ALONE, MU
from virtual import VirtualClient


class DittoClient(VirtualClient):
    """A client of FedAvg with a LoRA of its own."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        method = self.run.method.model_copy(update={"proximal": MU} | ALONE)
        self._own_run = self.run.model_copy(update={"method": method})
        self._optimizer = LocalOptimizer(self.policy, method)
        self._own: SharedState | None = None

    def after_training(self, number: int) -> None:
        """Train the own LoRA for an epoch, pulled to the adapter that the round began from."""
        peft_model = self.policy.peft_model
        begun_from = self.take_global(number - 1)
        centre = [begun_from.tensors[name] for name, _ in layout_of(peft_model).shapes]
        (self._own or begun_from).put_into(peft_model)
        train_round(self.policy, self.sets["train"], self._own_run, self._optimizer,
                    seed=client_seed(self.run.seed, self.name), round_number=number,
                    centre=centre)  # fmt: skip
        self._own = SharedState.of(peft_model)

    def take_last(self) -> None:
        """Stand where the run ended: the own LoRA."""
        if self._own is None:
            raise RuntimeError("no round was trained")
        self._own.put_into(self.policy.peft_model)

    def train_once_more(self) -> None:
        """A further epoch of the own LoRA, pulled to the last average."""
        self.after_training(self.run.num_rounds + 1)
