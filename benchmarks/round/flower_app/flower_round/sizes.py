"""The payload of a case: so many MiB in 16 matrices of 16 rows."""

TENSORS = 16
RANK = 16


def shape(mib: int) -> tuple[int, int]:
    """The shape of each matrix, of float32."""
    return RANK, mib * 2**20 // 4 // RANK // TENSORS
