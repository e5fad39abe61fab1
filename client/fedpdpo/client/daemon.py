"""The client process: prepares once, then does what the server asks until the run has ended."""

import contextlib
import hashlib
import logging
from pathlib import Path

import torch

from fedpdpo.client.backbone import Backbone, device_of, load_backbone
from fedpdpo.client.evaluation import evaluate
from fedpdpo.client.holdout import split
from fedpdpo.client.link import Heart, Link
from fedpdpo.client.lora import SharedState, layout_of
from fedpdpo.client.optimizer import optimizer_for, private_moments, put_private_moments
from fedpdpo.client.pairset import PairSet, prepare
from fedpdpo.client.policy import Policy, private_parameters, put_private_parameters
from fedpdpo.client.preferences import Preference, digest_of, read_preferences
from fedpdpo.client.progress import working
from fedpdpo.client.settings import ClientSettings
from fedpdpo.client.state import ClientState, PrivateState, TrainedRound
from fedpdpo.client.tokens import PairTokens, pair_tokens
from fedpdpo.client.training import num_pair_visits, train_round
from fedpdpo.common.errors import BadState
from fedpdpo.common.files import held
from fedpdpo.common.log import fields
from fedpdpo.common.run import Run

log = logging.getLogger(__name__)


def run_client(settings: ClientSettings) -> None:
    """Take part in the run of a server until it has ended.

    Raises BadData, BadModel, BadState or Refused, each with what to do.
    """
    train, held_out = read_pairs(settings)
    device = device_of(settings.device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    with held(settings.state_dir), contextlib.ExitStack() as closing:
        state = ClientState(settings.state_dir, client_id=settings.client_id)
        link = Link(settings.server, state.client_id, connect_timeout_s=settings.connect_timeout_s)
        closing.callback(link.close)
        run = link.get_run()
        model = settings.model or run.model
        state.bind(run, model=model)
        backbone = load_backbone(model, device=device, dtype=getattr(torch, settings.dtype))
        log.info(
            fields("backbone", model=model, fingerprint=backbone.fingerprint, device=device,
                   dtype=settings.dtype, threads=torch.get_num_threads())
        )  # fmt: skip
        policy = Policy(backbone, run, private_seed=_seed(run.seed, state.client_id))
        run = link.join(
            backbone_fingerprint=backbone.fingerprint,
            tokenizer_fingerprint=backbone.tokenizer_fingerprint,
            layout=layout_of(policy.peft_model),
            num_train_pairs=len(train),
            num_eval_pairs=len(held_out),
        )
        state.bind(run, model=model)
        log.info(fields("joined", server=settings.server, run=run.run_id, client=state.client_id))
        heart = closing.enter_context(Heart(link, every_s=settings.heartbeat_s))
        pair_sets = []
        for part, preferences in (("train", train), ("eval", held_out)):
            reference = _Reference(state.reference_path(part), preferences, backbone, settings)
            pair_sets.append(_prepared(policy, reference, settings, heart, check=part == "train"))
        Worker(policy, run, state, link, heart, *pair_sets).work()


def read_pairs(
    settings: ClientSettings,
) -> tuple[tuple[Preference, ...], tuple[Preference, ...]]:
    """The pairs to train on and those held out. Raises BadData."""
    loaded = read_preferences(settings.data, skip_bad_records=settings.skip_bad_records)
    skipped = list(loaded.skipped)
    if settings.eval_data is None:
        train, held_out = split(loaded.preferences, share=settings.eval_share)
    else:
        train = loaded.preferences
        other = read_preferences(settings.eval_data, skip_bad_records=settings.skip_bad_records)
        held_out = other.preferences
        skipped += other.skipped
    for line in skipped[:20]:
        log.warning(fields("skipped", record=line))
    log.info(fields("data", train_pairs=len(train), eval_pairs=len(held_out), skipped=len(skipped)))
    return train, held_out


class _Reference:
    """Pairs as tokens, and where and under which key their reference margins are kept."""

    def __init__(
        self,
        path: Path,
        preferences: tuple[Preference, ...],
        backbone: Backbone,
        settings: ClientSettings,
    ) -> None:
        self.path = path
        self.pairs: list[PairTokens] = [
            pair_tokens(one, backbone.tokenizer, max_tokens=settings.max_tokens)
            for one in preferences
        ]
        if cut := sum(pair.truncated for pair in self.pairs):
            log.warning(fields("cut", pairs=cut, max_tokens=settings.max_tokens))
        content = [
            backbone.fingerprint,
            backbone.tokenizer_fingerprint,
            settings.dtype,
            str(settings.max_tokens),
            digest_of(preferences),
            *(one.digest for one in preferences),
        ]
        self.key = hashlib.sha256("\n".join(content).encode()).hexdigest()


def _prepared(
    policy: Policy, reference: _Reference, settings: ClientSettings, heart: Heart, *, check: bool
) -> PairSet:
    if check:
        policy.check(max(reference.pairs, key=len))
    with working("preparing", total=len(reference.pairs), heart=heart) as advance:
        return prepare(
            policy,
            reference.pairs,
            tokens_per_pack=settings.tokens_per_pack,
            trunk_cache_bytes=int(settings.trunk_cache_gib * 2**30),
            reference_file=reference.path,
            reference_key=reference.key,
            advance=advance,
        )


class Worker:
    """Does the server's assignments. `state` always holds the last round that was completed."""

    def __init__(
        self,
        policy: Policy,
        run: Run,
        state: ClientState,
        link: Link,
        heart: Heart,
        train: PairSet,
        held_out: PairSet,
    ) -> None:
        self._policy = policy
        self._run = run
        self._state = state
        self._link = link
        self._heart = heart
        self._train = train
        self._held_out = held_out
        self._optimizer = optimizer_for(policy, run.method)
        self._trained: TrainedRound | None = None
        if last := state.last_round():
            self._trained, private = last
            put_private_parameters(policy, private.parameters)
            put_private_moments(self._optimizer, policy, private.moments)
            log.info(fields("resumed", after_round=self._trained.number))

    def work(self) -> None:
        """Work until the run has ended."""
        waited_for = ""
        while True:
            assignment = self._link.assignment()
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
                    return
                case _:
                    if assignment.wait.reason != waited_for:
                        waited_for = assignment.wait.reason
                        log.info(fields("waiting", reason=waited_for))

    def _pull(self, version: int) -> SharedState:
        layout = layout_of(self._policy.peft_model)
        path = self._state.adapter_path(version)
        self._link.pull(version, path, layout)
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
        self._link.push(last)
        log.info(fields("pushed", round=number, bytes=last.delta.stat().st_size))

    def _trained_round(self, number: int) -> TrainedRound:
        start = self._pull(number - 1)
        method = self._run.method
        visits = num_pair_visits(method, len(self._train))
        with working(f"training round {number}", total=visits, heart=self._heart) as advance:
            report = train_round(
                self._policy,
                self._train,
                method,
                self._optimizer,
                seed=_seed(self._run.seed, self._state.client_id),
                round_number=number,
                advance=advance,
            )
        log.info(fields("trained", round=number, loss=report.loss, accuracy=report.accuracy))
        return self._state.save_round(
            number,
            private=PrivateState(
                private_parameters(self._policy), private_moments(self._optimizer, self._policy)
            ),
            delta=SharedState.of(self._policy.peft_model).minus(start),
            num_pairs=len(self._train),
            report=report,
        )

    def _evaluate(self, version: int) -> None:
        self._pull(version)
        pairs, method = self._held_out, self._run.method
        with working(
            f"measuring adapter {version}", total=len(pairs), heart=self._heart
        ) as advance:
            shared, personal = evaluate(self._policy, pairs, method, advance=advance)
        views = {"VIEW_GLOBAL": shared, "VIEW_PERSONALIZED": personal}
        for view, metrics in views.items():
            log.info(fields("measured", adapter=version, view=view.removeprefix("VIEW_").lower(),
                            combined=metrics.combined_accuracy, implicit=metrics.implicit_accuracy,
                            explicit=metrics.explicit_accuracy, margin=metrics.margin,
                            loss=metrics.loss))  # fmt: skip
        self._link.report(version, num_pairs=len(pairs), views=views)


def _seed(run_seed: int, client_id: str) -> int:
    digest = hashlib.sha256(f"{run_seed}/{client_id}".encode()).digest()
    return int.from_bytes(digest[:7], "big")
