"""Every attack, and what the server has to answer."""

from collections.abc import Callable
from dataclasses import dataclass

from attacks import floods, payloads, tokens, who
from attacks.siege import Answer, Siege


@dataclass(frozen=True)
class Case:
    """An attack, and what the server has to answer: one of some statuses, with some words."""

    attack: Callable[[Siege], Answer]
    codes: tuple[str, ...]
    words: str = ""
    by_token: bool = False

    @property
    def name(self) -> str:
        return self.attack.__name__.replace("_", " ")


OUTSIDE, WRONG = ("UNAVAILABLE",), ("INVALID_ARGUMENT",)

CASES = [
    Case(who.no_certificate, OUTSIDE),
    Case(who.no_tls, OUTSIDE),
    Case(who.self_signed, OUTSIDE),
    Case(who.foreign, OUTSIDE),
    Case(who.expired, OUTSIDE),
    Case(who.certificate_of_the_server, OUTSIDE),
    Case(who.revoked, ("UNAUTHENTICATED",), "is revoked"),
    Case(who.push_as_another, ("PERMISSION_DENIED",), "cannot speak for client ada"),
    Case(who.leave_as_another, ("PERMISSION_DENIED",), "cannot speak for client ada"),
    Case(who.stop_the_run, ("PERMISSION_DENIED",), "StopRun is not for client eve"),
    Case(who.path_as_a_name, WRONG, "client id"),
    Case(payloads.wrong_name, WRONG, "which the run's LoRA lacks"),
    Case(payloads.wrong_shape, WRONG, "the run's is F32"),
    Case(payloads.wrong_dtype, WRONG, "the run's is F32"),
    Case(payloads.nan, WRONG, "NaN or infinity"),
    Case(payloads.infinity, WRONG, "NaN or infinity"),
    Case(payloads.many_pairs, WRONG, "this run takes 1 to"),
    Case(payloads.huge_size, ("OUT_OF_RANGE",), "the run's adapter"),
    Case(payloads.size_too_small, ("OUT_OF_RANGE", *WRONG)),
    Case(payloads.wrong_digest, ("DATA_LOSS",), "SHA-256"),
    Case(payloads.header_of_100_mib, WRONG, "a header of 104857600 bytes"),
    Case(payloads.header_that_lies, WRONG, "not a valid safetensors file"),
    Case(payloads.overlapping_offsets, WRONG, "overlaps another tensor or leaves a gap"),
    Case(payloads.negative_offsets, WRONG, "malformed shape or place"),
    Case(payloads.deep_json, WRONG, "not a valid safetensors file"),
    Case(payloads.zstd_bomb, WRONG, "a zstd frame tells"),
    Case(payloads.gap_between_chunks, WRONG, "a chunk begins at byte 9"),
    Case(payloads.message_of_8_mib, ("RESOURCE_EXHAUSTED",), "larger than max"),
    Case(payloads.layout_of_60_000_tensors, ("FAILED_PRECONDITION", "RESOURCE_EXHAUSTED")),
    Case(payloads.huge_norm, ("OK",), "delta_clipped"),
    Case(floods.one_byte_a_second, ("DEADLINE_EXCEEDED",), "are too few"),
    Case(floods.half_open_streams, ("DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")),
    Case(floods.half_open_connections, ("OK",)),
    Case(floods.flood_of_joins, ("RESOURCE_EXHAUSTED",), "calls too often"),
    Case(floods.metadata_of_1_mib, ("RESOURCE_EXHAUSTED",)),
    Case(floods.garbage_after_the_handshake, ("CLOSED",)),
    Case(who.connections_while_the_certificate_changes, ("OK", "RESOURCE_EXHAUSTED")),
    Case(tokens.stolen_session, ("UNAUTHENTICATED",), "another connection", by_token=True),
    Case(tokens.replayed_session, ("UNAUTHENTICATED",), "has ended", by_token=True),
    Case(tokens.token_as_a_session, ("UNAUTHENTICATED",), "has ended", by_token=True),
    Case(tokens.token_of_3_mib, ("UNAUTHENTICATED",), "too long", by_token=True),
    Case(tokens.guessed_tokens, ("RESOURCE_EXHAUSTED",), "calls too often", by_token=True),
]
