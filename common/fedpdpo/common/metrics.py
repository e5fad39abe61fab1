"""Held-out preference metrics, as clients measure and servers keep them."""

from dataclasses import asdict, dataclass

from fedpdpo.common.errors import BadRequest

#: No loss or margin is larger; sums over many clients stay finite.
MOST = 1e30

_SHARES = ("implicit_accuracy", "explicit_accuracy", "combined_accuracy")


@dataclass(frozen=True)
class Metrics:
    """Means over pairs; the field names are those of the wire's PreferenceMetrics.

    Raises BadRequest where a value is not finite or beyond MOST, or an accuracy is not in [0, 1].
    """

    implicit_accuracy: float
    explicit_accuracy: float
    combined_accuracy: float
    margin: float
    loss: float
    chosen_shift: float

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not abs(value) <= MOST or (name in _SHARES and not 0 <= value <= 1):
                raise BadRequest(f"the metric {name} is {value}")
