"""Everything that can go wrong by name, drawn once.

    FedPDPOError
    ├── BadSettings        a setting that is unknown, out of range or at odds with another
    ├── BadData            preference data that cannot be read as pairs
    ├── BadModel           a backbone or tokenizer that cannot be loaded or used
    ├── BadState           a state directory that is damaged, foreign or in use
    ├── Diverged           local training that gave NaN or infinity
    ├── NotIdentified      a caller whose certificate, token or session does not hold
    ├── Forbidden          a call that is not this caller's to make
    ├── BadRequest         a message whose fields are malformed
    ├── BadPayload         a payload whose tensors, chunks or values are wrong
    │   ├── TooLarge       more bytes than the layout has
    │   ├── WrongDigest    bytes that are not those announced
    │   └── CutOff         fewer bytes than were announced; those that came are kept
    ├── Stalled            a transfer on which nothing moved for a while
    ├── Superseded         a transfer that another one of the same client took over
    ├── Busy               a server that serves others first; carries when to ask again
    ├── StorageFull        a write that failed for want of space; the old state stays
    ├── StorageAway        a database or object store that does not answer, or serves another
    ├── Mismatch           another run, backbone, tokenizer or layout than the run's
    ├── NotOpen            a round that is closed, not yet open, or asked of others
    ├── NotFound           a client that has not joined, a version that is not published
    ├── AlreadyPushed      another delta of this client and round was accepted before
    └── Refused            the server refused a request; carries the server's words

Which gRPC status each becomes is told by `fedpdpo.common.statuses`.
"""


class FedPDPOError(Exception):
    """An error whose message is meant for the person at the terminal."""


class BadSettings(FedPDPOError):
    """A setting that is unknown, out of range or at odds with another."""


class BadData(FedPDPOError):
    """Preference data that cannot be read as pairs."""


class BadModel(FedPDPOError):
    """A backbone or tokenizer that cannot be loaded or used."""


class BadState(FedPDPOError):
    """A state directory that is damaged, belongs to another run or is in use."""


class Diverged(FedPDPOError):
    """Local training that gave NaN or infinity; the state before it stays."""


class NotIdentified(FedPDPOError):
    """A caller whose certificate, token or session does not hold."""


class Forbidden(FedPDPOError):
    """A call that is not this caller's to make."""


class BadRequest(FedPDPOError):
    """A message whose fields are malformed."""


class BadPayload(FedPDPOError):
    """A payload whose tensors, chunks or values are wrong."""


class TooLarge(BadPayload):
    """More bytes than the layout has."""


class WrongDigest(BadPayload):
    """Bytes that are not those announced."""


class CutOff(BadPayload):
    """Fewer bytes than were announced; those that came are kept."""


class Stalled(FedPDPOError):
    """A transfer on which nothing moved for a while."""


class Superseded(FedPDPOError):
    """A transfer that another one of the same client took over."""


class Busy(FedPDPOError):
    """A server that serves others first; `again_in_s` is when to ask again."""

    def __init__(self, message: str, *, again_in_s: float) -> None:
        super().__init__(message)
        self.again_in_s = again_in_s


class StorageFull(FedPDPOError):
    """A write that failed for want of space; the old state stays."""


class StorageAway(FedPDPOError):
    """A database or object store that does not answer, or that another server holds."""

    #: What others than the operator are told of it: where the storage is, is the operator's.
    TOLD = "the server's storage does not answer; ask again"


class HeldElsewhere(StorageAway):
    """A database whose run another server holds."""


class Mismatch(FedPDPOError):
    """Another run, backbone, tokenizer or layout than the run's."""


class NotOpen(FedPDPOError):
    """A round that is closed, not yet open, or asked of others."""


class NotFound(FedPDPOError):
    """A client that has not joined, or a version that is not published."""


class AlreadyPushed(FedPDPOError):
    """Another delta of this client and round was accepted before."""


class Refused(FedPDPOError):
    """The server refused a request; the message carries the server's words.

    `code` is the name of the gRPC status, empty where there was none.
    """

    def __init__(self, message: str, *, code: str = "") -> None:
        super().__init__(message)
        self.code = code
