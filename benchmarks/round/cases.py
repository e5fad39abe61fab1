"""What the benchmark compares: federations of so many clients with adapters of so many MiB."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One federation. Every client is a process of its own."""

    clients: int
    mib: int

    @property
    def title(self) -> str:
        """The case as it is shown: clients x MiB."""
        return f"{self.clients}x{self.mib}"


CASES = (Case(4, 16), Case(8, 16), Case(8, 64), Case(32, 4))

FLOOR = "floor"
OURS = "ours"
SECURED = "ours_mtls"
FLOWER = "flower"
ENGINE = "flower_engine"

#: What runs a case, in this order: the first is the yardstick.
SYSTEMS = (FLOOR, OURS, SECURED, FLOWER, ENGINE)

#: Rounds that are timed, after one that is not. Flower's deployment engine takes most of a minute.
ROUNDS = {FLOOR: 5, OURS: 5, SECURED: 5, FLOWER: 3, ENGINE: 2}
