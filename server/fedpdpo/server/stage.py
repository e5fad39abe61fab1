"""How far a run is, in memory: what the database says, without asking it each time."""

from dataclasses import dataclass, field

from fedpdpo.server.rounds import Phase, Turnout


@dataclass
class Stage:
    """A mirror of the run's rows: read at the start, and kept after each durable change.

    `version` is the newest adapter, `measured` who has measured it; `round_number` the open round
    (0: none), `sampled` whom it asked, `answered` whose delta for it is here, `arrived` how many
    deltas count in it. Only to be changed under the federation's lock.
    """

    phase: Phase
    version: int | None
    paused: bool
    joined: set[str]
    left: set[str]
    measured: set[str]
    round_number: int = 0
    closing: bool = False
    sampled: frozenset[str] = frozenset()
    answered: set[str] = field(default_factory=set)
    arrived: int = 0

    @property
    def ended(self) -> bool:
        """Whether the run is finished or stopped."""
        return self.phase in (Phase.FINISHED, Phase.STOPPED)

    def note_joined(self, client_id: str) -> None:
        """Note that a client is in the run."""
        self.joined.add(client_id)
        self.left.discard(client_id)

    def note_left(self, client_id: str) -> None:
        """Note that a client has left."""
        self.joined.discard(client_id)
        self.left.add(client_id)

    def note_measured(self, client_id: str, version: int) -> None:
        """Note that a client has measured an adapter."""
        if version == self.version:
            self.measured.add(client_id)

    def note_answered(
        self, client_id: str, round_number: int, *, counts_in: int, instead: int = 0
    ) -> None:
        """Note that a client's delta for a round is here, and in which average it is.

        There it is `instead` of so many others.
        """
        if round_number == self.round_number:
            self.answered.add(client_id)
        if counts_in == self.round_number:
            self.arrived += 1 - instead

    def turnout(self, *, stuck: set[str]) -> Turnout:
        """Who was asked in the open round, who answered, who left or is stuck; what came."""
        return Turnout(
            sampled=self.sampled,
            pushed=frozenset(self.answered),
            gone=frozenset(self.left | stuck),
            arrived=self.arrived,
        )
