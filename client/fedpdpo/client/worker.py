"""Does what the server asks of a client, one assignment after another."""

import logging
import math
from typing import Literal

from fedpdpo.client.heart import Heart
from fedpdpo.client.link import Link
from fedpdpo.client.model.lora import SharedState, layout_of
from fedpdpo.client.model.policy import Policy
from fedpdpo.client.outcome import TrainedRound
from fedpdpo.client.progress import working
from fedpdpo.client.state import ClientState
from fedpdpo.client.trainer import Trainer
from fedpdpo.client.training.evaluation import evaluate
from fedpdpo.client.training.local_round import num_pair_visits
from fedpdpo.client.training.pairset import PairSet
from fedpdpo.common.errors import BadState, Diverged, NotOpen
from fedpdpo.common.header import Contents
from fedpdpo.common.log import fields
from fedpdpo.common.run import Run
from fedpdpo.v1 import federation_pb2 as pb

log = logging.getLogger(__name__)

#: What became of a turn.
Turn = Literal["worked", "idle", "ended"]

#: In nats a token of the chosen answers; in our trials a policy further down spoke gibberish from
#: -3 on, and spoke fluently down to -0.5.
WORRYING_SHIFT = -1.0


class Worker:
    """Does the server's assignments. `state` always holds the last round that was completed."""

    def __init__(
        self,
        policy: Policy,
        run: Run,
        state: ClientState,
        link: Link,
        heart: Heart,
        trainer: Trainer,
        *,
        train: PairSet,
        held_out: PairSet,
    ) -> None:
        self._policy = policy
        self._run = run
        self._state = state
        self._link = link
        self._heart = heart
        self._trainer = trainer
        self._train = train
        self._held_out = held_out
        self._waited_for = ""
        self._pulled: int | None = None
        self._trained: TrainedRound | None = None
        if last := state.last_round():
            self._trained, private = last
            trainer.put(private)
            log.info(fields("resumed", after_round=self._trained.number))

    def work(self) -> None:
        """Work until the run has ended."""
        while self.do(self._link.assignment()):
            pass

    def turn(self) -> Turn:
        """Do what the server asks for now, if anything, without waiting for it."""
        assignment = self._link.assignment(wait_s=0.0)
        if not self.do(assignment):
            return "ended"
        return "idle" if assignment.WhichOneof("task") == "wait" else "worked"

    def do(self, assignment: pb.GetAssignmentResponse) -> bool:
        """Do what the server asks for; gives whether more may follow."""
        match assignment.WhichOneof("task"):
            case "train":
                self._train_round(assignment.train.round)
            case "evaluate":
                self._evaluate(assignment.evaluate.adapter_version)
            case "finish":
                self._pull(assignment.finish.adapter_version)
                self._link.leave()
                log.info(fields("finished", adapter=assignment.finish.adapter_version,
                                stopped=assignment.finish.stopped,
                                state_dir=self._state.folder))  # fmt: skip
                return False
            case _:
                if assignment.wait.reason != self._waited_for:
                    self._waited_for = assignment.wait.reason
                    log.info(fields("waiting", reason=self._waited_for))
        return True

    def _pull(self, version: int) -> SharedState:
        layout = layout_of(self._policy.peft_model)
        path = self._state.adapter_path(version)
        if self._pulled != version:
            size = Contents.of(layout).num_bytes
            with self._heart.moving(f"fetching adapter {version}", num_bytes=size) as moved:
                self._link.pull(version, path, layout, moved)
            self._pulled = version
        shared = SharedState.read(path, layout)
        shared.put_into(self._policy.peft_model)
        self._state.forget_adapters_before(version)
        return shared

    def _train_round(self, number: int) -> None:
        last = self._trained
        if last is not None and last.number > number:
            raise BadState(
                f"{self._state.folder} has trained round {last.number}, the server asks for round "
                f"{number}; was the server's state restored from an old copy?"
            )
        if last is None or last.number < number:
            last = self._trained = self._trained_round(number)
        size = last.delta.stat().st_size
        try:
            with self._heart.moving(f"sending round {number}", num_bytes=size) as moved:
                self._link.push(last, layout_of(self._policy.peft_model), moved)
        except NotOpen as error:
            log.warning(fields("delta_not_taken", round=number, reason=error))
        else:
            log.info(fields("pushed", round=number, bytes=size))

    def _trained_round(self, number: int) -> TrainedRound:
        start = self._pull(number - 1)
        visits = num_pair_visits(self._run, len(self._train))
        with working(f"training round {number}", total=visits, heart=self._heart) as advance:
            point = self._trainer.train(number, advance)
        report = point.report()
        private = self._trainer.private()
        delta = SharedState.of(self._policy.peft_model).minus(start)
        values = (*private.parameters.values(), *delta.tensors.values())
        if not math.isfinite(report.loss) or not all(v.isfinite().all() for v in values):
            raise Diverged(
                f"training round {number} gave NaN or infinity in {point.dropped} of {point.steps} "
                "steps; the run's learning rates are too high for these pairs; what the round "
                "before left is kept"
            )
        self._heart.meters.trained(number, report)
        log.info(fields("trained", round=number, loss=report.loss, accuracy=report.accuracy,
                        dropped_steps=point.dropped))  # fmt: skip
        trained = self._state.save_round(
            number,
            private=private,
            delta=delta,
            num_pairs=len(self._train),
            report=report,
            fmt=self._link.format,
        )
        self._trainer.forget_unfinished()
        return trained

    def _evaluate(self, version: int) -> None:
        self._pull(version)
        pairs, method = self._held_out, self._run.method
        with working(
            f"measuring adapter {version}", total=len(pairs), heart=self._heart
        ) as advance:
            shared, personal = evaluate(self._policy, pairs, method, advance=advance)
        views = {"VIEW_GLOBAL": shared, "VIEW_PERSONALIZED": personal}
        self._heart.meters.measured(version, views)
        for view, metrics in views.items():
            log.info(fields("measured", adapter=version, view=view.removeprefix("VIEW_").lower(),
                            combined=metrics.combined_accuracy, implicit=metrics.implicit_accuracy,
                            explicit=metrics.explicit_accuracy, margin=metrics.margin,
                            loss=metrics.loss, chosen_shift=metrics.chosen_shift))  # fmt: skip
        if personal.chosen_shift < WORRYING_SHIFT:
            log.warning(fields("language_fades", adapter=version,
                               chosen_shift=f"{personal.chosen_shift:.2f} nats/token",
                               hint="set lower rates or a higher --method.anchor on the server",
                               ))  # fmt: skip
        self._link.report(version, num_pairs=len(pairs), views=views)
