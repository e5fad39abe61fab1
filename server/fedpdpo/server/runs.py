"""Begins a run in a state directory, or finds the one that is there."""

import uuid

from sqlalchemy import select

from fedpdpo.common.errors import BadState, Mismatch
from fedpdpo.common.run import Run
from fedpdpo.server.rows import RunRow
from fedpdpo.server.settings import ServerSettings
from fedpdpo.server.store import Store

_FIXED = ("model", "lora", "method", "num_rounds", "seed")


def open_run(store: Store, settings: ServerSettings) -> Run:
    """The run of the state directory; a new one where there is none.

    Raises Mismatch, naming each setting, where the settings are not those that the run began with;
    BadState where adapters are there but the run they belong to is not.
    """
    wanted = Run(
        run_id=uuid.uuid4().hex,
        model=settings.model,
        lora=settings.lora,
        method=settings.method,
        num_rounds=settings.rounds,
        seed=settings.seed,
    )
    with store.session() as session, session.begin():
        row = session.scalar(select(RunRow))
        if row is None:
            if store.holds_adapters():
                raise BadState(
                    f"{store.place} holds adapters, but the database knows no run; "
                    "restore it from a backup or begin anew with another --state-dir"
                )
            session.add(RunRow(run_id=wanted.run_id, spec=wanted.model_dump(mode="json")))
            return wanted
        try:
            found = Run.model_validate(row.spec)
        except ValueError as error:
            raise BadState(
                f"the run in {store.place} was begun by another version: {error}"
            ) from error
    if differences := _differences(found, wanted):
        raise Mismatch(
            f"{store.place} holds a run with other settings ({'; '.join(differences)}); "
            "give the run's own settings, or another --state-dir for a new run"
        )
    return found


def _differences(found: Run, wanted: Run) -> list[str]:
    lines = []
    for key in _FIXED:
        mine, theirs = getattr(found, key), getattr(wanted, key)
        if hasattr(mine, "model_dump"):
            for name, value in mine.model_dump().items():
                if value != (other := getattr(theirs, name)):
                    lines.append(f"{key}.{name} is {value} there and {other} here")
        elif mine != theirs:
            name = "rounds" if key == "num_rounds" else key
            lines.append(f"{name} is {mine} there and {theirs} here")
    return lines
