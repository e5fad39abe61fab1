"""Spans for OpenTelemetry, and how they are joined across the wire.

They go nowhere until its SDK is set up, as `opentelemetry-instrument fedpdpo-server` does.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager

from opentelemetry import propagate, trace
from opentelemetry.trace import Span, SpanKind

from fedpdpo.common.version import __version__

_tracer = trace.get_tracer("fedpdpo", __version__)


def span(name: str, **attributes: str | int | float) -> AbstractContextManager[Span]:
    """A span of this process's own work, below the one that is open, if one is."""
    told = {f"fedpdpo.{key}": value for key, value in attributes.items()}
    return _tracer.start_as_current_span(name, attributes=told)


def served(
    method: str, metadata: Iterable[tuple[str, str | bytes]]
) -> AbstractContextManager[Span]:
    """A span of a call that this process answers, below the caller's."""
    carrier = {key: value for key, value in metadata if isinstance(value, str)}
    name = method.rpartition("/")[2]
    return _tracer.start_as_current_span(
        name, context=propagate.extract(carrier), kind=SpanKind.SERVER
    )


def carried() -> list[tuple[str, str]]:
    """The metadata by which a call tells the span that is open; none where there is none."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return list(carrier.items())
