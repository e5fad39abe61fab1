"""Who are the clients of a setting: what each of them prefers, drawn by a seed."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from worlds import FILM, SPLITS, Pair, pools

CROSS = ("sentiment", "truthful", "math", "harmless", "pandalm", "chat_zh")

SOME_DOMAINS = ("sentiment", "truthful", "harmless")

#: Characters of a pair where texts are long, and in Chinese; longer ones are left out.
SHORT = 640
SHORT_IN = {"chat_zh": 360}

#: A client's pairs by split, and what draws all clients by a seed from a folder of pools.
Client = dict[str, list[Pair]]
Draw = Callable[[int, Path], dict[str, Client]]


@dataclass(frozen=True)
class Setting:
    """A federation's clients and their data; `in_table` says whether it belongs to the table."""

    name: str
    title: str
    pools: frozenset[str]
    draw: Draw
    max_tokens: int = 256
    in_table: bool = True

    def clients(self, seed: int, folder: Path) -> dict[str, Client]:
        """Each client's pairs to train on, tune on and test on; the same for the same seed."""
        return self.draw(seed, folder)


def warm_shares(seed: int, num_clients: int, concentration: float = 0.3) -> NDArray[np.float64]:
    """The share of each client's pairs in which it prefers the warm sentence."""
    rng = np.random.default_rng(seed)
    shares: NDArray[np.float64] = rng.dirichlet((concentration,) * 2, num_clients)[:, 0]
    return shares


def film(num_clients: int, *, pairs: int, concentration: float = 0.3, held_out: int = 48) -> Draw:
    """Clients of one world whose tastes differ: label skew.

    Of a client's pairs a share has the warm sentence preferred and the rest the harsh one, drawn
    from a Dirichlet distribution over the two with this concentration: the smaller, the fewer are
    of two minds.
    """

    def draw(seed: int, folder: Path) -> dict[str, Client]:
        warm = warm_shares(seed, num_clients, concentration)
        free = {split: list(found) for split, found in pools(FILM, folder).items()}
        shuffle = random.Random(seed)
        for found in free.values():
            shuffle.shuffle(found)
        clients = {}
        for number in range(num_clients):
            client: Client = {}
            for split in SPLITS:
                wanted = pairs if split == "train" else held_out
                at = number * wanted
                some = [free[split][one % len(free[split])] for one in range(at, at + wanted)]
                num_warm = round(float(warm[number]) * wanted)
                client[split] = [
                    pair if place < num_warm else pair.swapped() for place, pair in enumerate(some)
                ]
            clients[f"film-{number + 1:02d}"] = client
        return clients

    return draw


def tastes(wanted: Sequence[str], *, pairs: int, held_out: int = 48) -> Draw:
    """Clients of one world, each of one mind: warm or harsh."""
    alike = film(len(wanted), pairs=pairs, held_out=held_out)

    def draw(seed: int, folder: Path) -> dict[str, Client]:
        clients = {}
        warm = {pair.chosen for found in pools(FILM, folder).values() for pair in found}
        for number, (client, taste) in enumerate(
            zip(alike(seed, folder).values(), wanted, strict=True), start=1
        ):
            clients[f"{taste}-{number}"] = {
                split: [
                    pair if (pair.chosen in warm) == (taste == "warm") else pair.swapped()
                    for pair in some
                ]
                for split, some in client.items()
            }
        return clients

    return draw


def domains(names: Sequence[str], *, pairs: int, held_out: int = 48, short: bool = False) -> Draw:
    """One client a domain; with `short` of those pairs that need no cutting."""

    def draw(seed: int, folder: Path) -> dict[str, Client]:
        clients = {}
        for name in names:
            most = SHORT_IN.get(name, SHORT) if short else 10**6
            found = {
                split: [pair for pair in some if pair.num_chars <= most]
                for split, some in pools(name, folder).items()
            }
            clients[name] = _some(found, seed, pairs=pairs, held_out=held_out)
        return clients

    return draw


def annotators(name: str, *, pairs: int, held_out: int = 48, most_chars: int = 10**6) -> Draw:
    """One client a person. Nobody trains on an answer that somebody is tested on."""

    def draw(seed: int, folder: Path) -> dict[str, Client]:
        found = pools(name, folder)
        held = {
            answer
            for split in ("tune", "test")
            for pair in found[split]
            for answer in (pair.chosen, pair.rejected)
        }
        people = sorted({pair.annotator for pair in found["train"]})
        clients = {}
        for person in people:
            own = {
                split: [
                    pair
                    for pair in some
                    if pair.annotator == person
                    and (split != "train" or _fits(pair, held, most_chars))
                ]
                for split, some in found.items()
            }
            clients[person] = _some(own, seed, pairs=pairs, held_out=held_out)
        return clients

    return draw


def debaters(name: str, *, pairs: int, held_out: int, most_chars: int) -> Draw:
    """One client a person, of the pairs to train on: tuned on two of each seven sides of debates.

    Nobody trains on these sides, though perhaps on the other side of the same debate.
    """

    def draw(seed: int, folder: Path) -> dict[str, Client]:
        found = [pair for pair in pools(name, folder)["train"] if pair.num_chars <= most_chars]
        sides = sorted({pair.prompt for pair in found})
        held = {side for place, side in enumerate(sides) if place % 7 in (1, 4)}
        clients = {}
        for person in sorted({pair.annotator for pair in found}):
            own = [pair for pair in found if pair.annotator == person]
            split = {
                "train": [pair for pair in own if pair.prompt not in held],
                "tune": [pair for pair in own if pair.prompt in held],
                "test": [],
            }
            clients[person] = _some(split, seed, pairs=pairs, held_out=held_out)
        return clients

    return draw


def _fits(pair: Pair, held: set[str], most_chars: int) -> bool:
    return pair.num_chars <= most_chars and held.isdisjoint((pair.chosen, pair.rejected))


def _some(found: Client, seed: int, *, pairs: int, held_out: int) -> Client:
    """The held-out pairs are the same for every seed; those to train on are drawn by it."""
    client = {}
    for split in SPLITS:
        drawn = list(found[split])
        random.Random(seed if split == "train" else 0).shuffle(drawn)
        client[split] = drawn[: pairs if split == "train" else held_out]
    return client


def _of_films(name: str, title: str, draw: Draw, *, in_table: bool = False) -> Setting:
    return Setting(name, title, frozenset({FILM}), draw, in_table=in_table)


#: The settings of the table, and others for sweeps, growth and generations.
SETTINGS = {
    one.name: one
    for one in (
        _of_films("film-3", "intra-domain, 3 clients", film(3, pairs=48), in_table=True),
        _of_films("film-10", "intra-domain, 10 clients", film(10, pairs=24, held_out=32),
                  in_table=True),
        Setting("cross-6", "cross-domain, 6 clients", frozenset(CROSS),
                domains(CROSS, pairs=24, held_out=32, short=True), max_tokens=320),
        Setting("conflict-4", "opposite tastes, 4 personas", frozenset({"persona_say"}),
                annotators("persona_say", pairs=48)),
        Setting("people-4", "4 people", frozenset({"ukp_big4"}),
                annotators("ukp_big4", pairs=32, most_chars=SHORT)),
        Setting("people-16", "16 people", frozenset({"ukp_users_xt"}),
                annotators("ukp_users_xt", pairs=16, held_out=16, most_chars=SHORT)),
        Setting("people-16-tune", "16 people, on tune", frozenset({"ukp_users_xt"}),
                debaters("ukp_users_xt", pairs=16, held_out=16, most_chars=SHORT), in_table=False),
        Setting("cross-3", "cross-domain, 3 clients", frozenset(SOME_DOMAINS),
                domains(SOME_DOMAINS, pairs=24, held_out=32), max_tokens=160, in_table=False),
        _of_films("film-4-tastes", "4 film clients of one mind each",
                  tastes(("warm", "warm", "harsh", "harsh"), pairs=48)),
        *(_of_films(f"film-{k}-of-24", f"{k} film clients", film(k, pairs=24))
          for k in (2, 5, 10, 20)),
        *(_of_films(f"film-5-of-{pairs}", f"5 film clients of {pairs} pairs", film(5, pairs=pairs))
          for pairs in (8, 16, 32, 64)),
        *(_of_films(f"film-5-dirichlet-{a:g}", f"5 film clients, Dirichlet({a:g})",
                    film(5, pairs=24, concentration=a)) for a in (0.1, 0.3, 1.0, 10.0)),
    )
}  # fmt: skip
