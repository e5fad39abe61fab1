"""Numbers and tables as Markdown has them."""

from math import isnan


def percent(share: float) -> str:
    """A share as per cent with one decimal."""
    return f"{100 * share:.1f}"


def with_error(number: str, error: float) -> str:
    """A number with its standard error, which one seed does not tell."""
    return number if isnan(error) else f"{number} ± {percent(error)}"


def points(difference: float) -> str:
    """A difference of shares in points, signed."""
    return f"{100 * difference:+.1f}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table, its first column to the left."""
    marks = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, marks, *rows))
