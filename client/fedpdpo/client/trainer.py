"""Trains a client's rounds, saving steps on the way, so that an interrupted round goes on."""

import hashlib
import logging
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from fedpdpo.client.interrupt import Interruption
from fedpdpo.client.machine import CoreShare
from fedpdpo.client.model.lora import SharedState, layout_of
from fedpdpo.client.model.policy import Policy, private_parameters, put_private_parameters
from fedpdpo.client.state import PrivateState
from fedpdpo.client.training.crew import Crew
from fedpdpo.client.training.local_round import BEGINNING, Point, train_round
from fedpdpo.client.training.optimizer import LocalOptimizer
from fedpdpo.client.training.pairset import PairSet, Progress
from fedpdpo.client.training.reference import pair_digest
from fedpdpo.client.unfinished import Unfinished, UnfinishedRound
from fedpdpo.common.log import fields
from fedpdpo.common.run import Run

log = logging.getLogger(__name__)


class Trainer:
    """Policy, pairs and optimizer of one client, and the step saved last.

    A step is saved every `save_every_s` seconds, and when a signal asks the process to end.
    """

    def __init__(
        self,
        policy: Policy,
        run: Run,
        pairs: PairSet,
        optimizer: LocalOptimizer,
        unfinished: Unfinished,
        *,
        seed: int,
        save_every_s: float,
        crew: Crew,
        cores: CoreShare,
        interruption: Interruption,
    ) -> None:
        self._policy = policy
        self._run = run
        self._pairs = pairs
        self._optimizer = optimizer
        self._unfinished = unfinished
        self._seed = seed
        self._begun_from = ""
        self._save_every_s = save_every_s
        self._crew = crew
        self._cores = cores
        self._interruption = interruption

    def put(self, private: PrivateState) -> None:
        """Set what an earlier round left. Raises BadState where it is not this run's."""
        put_private_parameters(self._policy, private.parameters)
        self._optimizer.put_moments(private.moments)

    def private(self) -> PrivateState:
        """What the rounds so far have made of the private parts."""
        moments = self._optimizer.moments(shared=False)
        if self._run.method.lora_moments == "keep":
            moments |= self._optimizer.moments(shared=True)
        return PrivateState(private_parameters(self._policy), moments)

    def train(self, number: int, advance: Progress) -> Point:
        """Train a round from the policy's present LoRA, or go on with it where it was left.

        Raises SystemExit after saving the step where a signal came; StorageFull.
        """
        self._begun_from = SharedState.of(self._policy.peft_model).digest()
        centre = [matrix.detach().cpu().clone() for matrix in self._policy.lora()]
        start = self._resumed(number)
        self._crew.tell((number, self._state(start), centre))
        return self._train(number, start, centre, advance)

    def follow(self) -> None:
        """Train what the crew's first process trains, until it says that it is done."""
        while (told := self._crew.hear()) is not None:
            number, state, centre = told
            self._restore(state)
            self._train(number, state.point, centre, lambda _: None)

    def _train(
        self, number: int, start: Point, centre: Sequence[Tensor], advance: Progress
    ) -> Point:
        saved = time.monotonic()

        def after_step(point: Point) -> None:
            nonlocal saved
            wanted = any(self._crew.sum(self._interruption.wanted))
            due = time.monotonic() - saved >= self._save_every_s
            if self._crew.leads and (wanted or due):
                self._unfinished.save(number, self._state(point), begun_from=self._begun_from)
                saved = time.monotonic()
            if wanted:
                log.info(fields("interrupted", round=number, step=point.steps))
                self._interruption.end()

        with self._interruption.deferred():
            return train_round(
                self._policy,
                self._pairs,
                self._run,
                self._optimizer,
                seed=self._seed,
                round_number=number,
                crew=self._crew,
                centre=[matrix.to(self._policy.device) for matrix in centre],
                start=start,
                after_step=after_step,
                advance=advance,
            )

    def forget_unfinished(self) -> None:
        """Remove the step saved last: its round is complete."""
        self._unfinished.clear()

    def _resumed(self, number: int) -> Point:
        found = self._unfinished.last(number, begun_from=self._begun_from)
        if found is None:
            self._unfinished.clear()
            self._cores.take()
            return BEGINNING
        self._restore(found)
        log.info(fields("round_resumed", round=number, after_step=found.point.steps))
        return found.point

    def _state(self, point: Point) -> UnfinishedRound:
        private = self.private()
        moments = private.moments | self._optimizer.moments(shared=True)
        shared = dict(SharedState.of(self._policy.peft_model).tensors)
        threads = torch.get_num_threads()
        return UnfinishedRound(point, shared, private.parameters, moments, threads)

    def _restore(self, state: UnfinishedRound) -> None:
        self._cores.take(like=state.threads)
        model = self._policy.peft_model
        SharedState(state.shared, layout_of(model)).put_into(model)
        self.put(PrivateState(state.private, state.moments))


def round_key(run: Run, pairs: PairSet, *, seed: int, process: str) -> str:
    """Names all that the steps of a round follow from: run, seed, pairs, how they are computed."""
    digest = hashlib.sha256(
        f"{run.model_dump_json()} {seed} {pairs.tokens_per_step} {process}".encode()
    )
    for pair in pairs.pairs:
        digest.update(pair_digest(pair))
    return digest.hexdigest()
