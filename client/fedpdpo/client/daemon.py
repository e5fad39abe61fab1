"""The client process: prepares once, then does what the server asks until the run has ended."""

import contextlib
from collections.abc import Sequence

from fedpdpo.client.data.preferences import Preference
from fedpdpo.client.entry import Process, enter, new_trainer
from fedpdpo.client.interrupt import Interruption
from fedpdpo.client.machine import CoreShare, Neighbours
from fedpdpo.client.model.backbone import device_of
from fedpdpo.client.preparation import (
    load_policy,
    read_pairs,
    tokens_of,
    tokens_per_step,
    trunk_cache,
)
from fedpdpo.client.settings import ClientSettings
from fedpdpo.client.training.crew import Crew
from fedpdpo.client.training.pairset import PairSet
from fedpdpo.common.errors import BadState


def run_client(settings: ClientSettings) -> None:
    """Take part in the run of a server until it has ended.

    Of several processes that were launched together the first does so, and the others train with
    it. Raises BadData, BadModel, BadState or Refused, each with what to do.
    """
    train, held_out = read_pairs(settings)
    crew = Crew(device=settings.device)
    settings = settings.model_copy(update={"device": str(device_of(crew.device))})
    with contextlib.ExitStack() as closing:
        closing.callback(crew.close)
        neighbours, interruption = Neighbours(), Interruption()
        closing.enter_context(interruption.handled())
        closing.enter_context(neighbours.present())
        process = Process(settings, crew, CoreShare(settings.threads, neighbours), interruption)
        process.cores.take()
        if crew.leads:
            enter(process, train, held_out, closing).work()
            crew.tell(None)
        else:
            _follow(process, train)


def _follow(process: Process, train: Sequence[Preference]) -> None:
    settings, crew = process.settings, process.crew
    run, model, client_id = crew.hear()
    backbone, policy = load_policy(settings, run, model, client_id)
    tokens = tokens_of(train, backbone, settings)
    policy.check(max(tokens, key=len))
    reference_logps = crew.hear()
    if len(reference_logps) != len(tokens):
        raise BadState(
            f"this process read {len(tokens)} pairs to train on, the first one "
            f"{len(reference_logps)}; give all processes of a client the same data"
        )
    trunk = trunk_cache(policy, backbone, settings, part="train")
    at_once = tokens_per_step(settings, policy)
    pairs = PairSet(tokens, reference_logps, at_once, trunk)
    new_trainer(process, policy, run, pairs, client_id=client_id).follow()
