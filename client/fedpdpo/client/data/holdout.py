"""Holding preferences out of training, to measure on."""

from collections.abc import Sequence
from operator import itemgetter

from fedpdpo.client.data.preferences import Preference
from fedpdpo.common.errors import BadData

Part = tuple[Preference, ...]


def split(preferences: Sequence[Preference], *, share: float) -> tuple[Part, Part]:
    """Part preferences into those trained on and those held out, each sorted by digest.

    About `share` of them, at least one and never all, are held out. The split is a function of the
    set alone, whatever its order. Pairs of one prompt stay together; where each prompt has more
    pairs than are to be held out, only equal pairs do, and where even that leaves none, none do.
    Raises BadData for fewer than 2 preferences or a share outside 0 to 1.
    """
    if not 0 < share < 1:
        raise BadData(f"the share held out is {share}; it must lie between 0 and 1")
    if len(preferences) < 2:
        raise BadData(
            f"{len(preferences)} preferences cannot be split; add some, or give --eval-data"
        )
    ordered = sorted(((one.digest, one) for one in preferences), key=itemgetter(0))
    room = min(max(1, round(share * len(preferences))), len(preferences) - 1)
    digests = [digest for digest, _ in ordered]
    prompts = [preference.prompt_digest for _, preference in ordered]
    held = _whole_groups(prompts, room) or _whole_groups(digests, room) or set(range(room))
    train = tuple(pair for at, (_, pair) in enumerate(ordered) if at not in held)
    return train, tuple(pair for at, (_, pair) in enumerate(ordered) if at in held)


def _whole_groups(keys: Sequence[str], room: int) -> set[int]:
    """Find the positions of whole groups of equal keys that fit into `room`, lowest key first."""
    groups: dict[str, list[int]] = {}
    for at, key in enumerate(keys):
        groups.setdefault(key, []).append(at)
    taken: set[int] = set()
    for key in sorted(groups):
        if len(taken) + len(groups[key]) <= room:
            taken.update(groups[key])
    return taken
