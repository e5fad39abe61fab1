"""Divides preferences among clients. Everything follows from the pairs' order and a seed.

Label skew and sizes are those of Li et al., arXiv:2102.02079: each label, or the whole, is divided
by shares from a Dirichlet distribution over the clients.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedpdpo.client.data.preferences import Preference, preference_from
from fedpdpo.client.data.records import Flaw, files_in, records_in
from fedpdpo.common.errors import BadData
from fedpdpo.common.run import is_client_id
from fedpdpo.simulation.settings import Partition

_CLIENTS = 10


@dataclass(frozen=True)
class Keyed:
    """A preference and what it is divided by."""

    preference: Preference
    key: str


@dataclass(frozen=True)
class Share:
    """A client's pairs; `key` is what they have in common, where they were divided by it."""

    pairs: list[Preference]
    key: str
    opposed: bool


Parts = list[list[Keyed]]


def read_keyed(path: Path, how: Partition) -> list[Keyed]:
    """All preferences of a file or folder with their keys. Raises BadData at the first bad one."""
    found = []
    files = files_in(path)
    stems = Counter(file.stem for file in files)
    for file in files:
        by_file = file.stem if stems[file.stem] == 1 else file.name
        for record in records_in(file, also=[how.field] if how.field else []):
            if isinstance(record, Flaw):
                raise BadData(f"{record.place}: {record.reason}")
            try:
                preference = preference_from(record.value)
            except BadData as error:
                raise BadData(f"{record.place}: {error}") from error
            found.append(Keyed(preference, _key(record.value, how, by_file, record.place)))
    return found


def _key(value: object, how: Partition, by_file: str, place: str) -> str:
    if how.by == "files":
        return by_file
    if not how.field:
        return ""
    key = value.get(how.field) if isinstance(value, Mapping) else None
    if key is None:
        raise BadData(f"{place}: no {how.field!r}, by which --partition.field divides")
    return str(key)


def divided(
    pairs: Sequence[Keyed], how: Partition, *, num_clients: int, seed: int
) -> dict[str, Share]:
    """Each client's pairs, by its name; every pair is one client's.

    `num_clients` 0 means ten, or one for each key where `how.by` is field or files; with fewer than
    keys the rarest are left out. Raises BadData where the pairs do not suffice.
    """
    rng = np.random.default_rng(seed)
    shuffled = [pairs[number] for number in rng.permutation(len(pairs))]
    by_key: dict[str, list[Keyed]] = {}
    for one in sorted(shuffled, key=lambda pair: pair.key):
        by_key.setdefault(one.key, []).append(one)
    if how.by in ("field", "files"):
        parts = _by_key(by_key, num_clients, how)
    else:
        parts = _drawn(shuffled, list(by_key.values()), how, num_clients or _CLIENTS, rng)
        _level(parts, how.min_pairs)
    opposed = set(rng.permutation(len(parts))[: round(how.opposed * len(parts))].tolist())
    digits = max(3, len(str(len(parts))))
    shares = {}
    for place, part in enumerate(parts):
        own = [one.preference for one in part]
        key = part[0].key if how.by in ("field", "files") else ""
        name = key if is_client_id(key) else f"client-{place + 1:0{digits}}"
        while name != key and name in by_key:
            name += "_"
        if place in opposed:
            own = [replace(pair, chosen=pair.rejected, rejected=pair.chosen) for pair in own]
        shares[name] = Share(own, key, place in opposed)
    return shares


def _drawn(
    shuffled: list[Keyed],
    groups: Parts,
    how: Partition,
    num_clients: int,
    rng: np.random.Generator,
) -> Parts:
    if len(shuffled) < num_clients * how.min_pairs:
        raise BadData(
            f"{len(shuffled)} pairs do not give {num_clients} clients {how.min_pairs} each"
        )
    concentrations = np.full(num_clients, how.concentration)
    match how.by:
        case "iid":
            return [shuffled[place::num_clients] for place in range(num_clients)]
        case "sizes":
            return _cut(shuffled, rng.dirichlet(concentrations))
        case _:
            parts: Parts = [[] for _ in range(num_clients)]
            for group in groups:
                for part, some in zip(
                    parts, _cut(group, rng.dirichlet(concentrations)), strict=True
                ):
                    part.extend(some)
            return parts


def _by_key(by_key: Mapping[str, list[Keyed]], num_clients: int, how: Partition) -> Parts:
    """A client for each key that has pairs enough, the most frequent first."""
    whole = [part for part in by_key.values() if len(part) >= how.min_pairs]
    if len(whole) < max(1, num_clients):
        raise BadData(
            f"{len(whole)} of {len(by_key)} values have {how.min_pairs} pairs or more, and "
            f"{num_clients or 1} clients are wanted"
        )
    whole.sort(key=len, reverse=True)
    return whole[: num_clients or None]


def _cut(pairs: list[Keyed], shares: NDArray[np.float64]) -> Parts:
    """Pairs cut at these shares, which add up to 1."""
    ends = [round(float(end) * len(pairs)) for end in np.cumsum(shares)]
    ends[-1] = len(pairs)
    return [pairs[begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


def _level(parts: Parts, least: int) -> None:
    """Let those who have the most give to those who have too few."""
    for part in parts:
        while len(part) < least:
            part.append(max(parts, key=len).pop())
