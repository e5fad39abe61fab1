"""What the demo's run gave, read from the server's database."""

import json
from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import Any

from rich.table import Table
from sqlalchemy import select

from fedpdpo.common.log import console
from fedpdpo.server.rows import EvaluationRow
from fedpdpo.server.store import Store

KINDS = ("combined", "implicit", "explicit")


def summarize(out: Path, *, wall_s: float) -> dict[str, Any]:
    """Write OUT/summary.json and give its content.

    "Before" is the first adapter, which adds nothing: every reward is zero, every pair a tie.
    """
    store = Store(out / "server")
    with store.session() as session:
        rows = session.scalars(select(EvaluationRow).order_by(EvaluationRow.version)).all()
    store.close()
    last = max(row.version for row in rows)
    clients = {
        row.client_id: {
            "num_held_out_pairs": row.num_pairs,
            "accuracy_before": _accuracy(rows, row.client_id, 0),
            "accuracy_after": _accuracy(rows, row.client_id, last),
            "accuracy_by_round": [
                _accuracy(rows, row.client_id, version) for version in range(last + 1)
            ],
            "after": {kind: row.views["VIEW_PERSONALIZED"][f"{kind}_accuracy"] for kind in KINDS},
            "after_without_private_parts": row.views["VIEW_GLOBAL"]["combined_accuracy"],
        }
        for row in rows
        if row.version == last
    }
    summary = {
        "rounds": last,
        "wall_s": round(wall_s, 1),
        "mean_accuracy_before": _mean(client["accuracy_before"] for client in clients.values()),
        "mean_accuracy_after": _mean(client["accuracy_after"] for client in clients.values()),
        "clients": clients,
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def _accuracy(rows: Any, client_id: str, version: int) -> float | None:
    """None where the client did not measure this adapter."""
    for row in rows:
        if (row.client_id, row.version) == (client_id, version):
            return float(row.views["VIEW_PERSONALIZED"]["combined_accuracy"])
    return None


def _mean(shares: Iterable[float | None]) -> float | None:
    known = [share for share in shares if share is not None]
    return mean(known) if known else None


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def show(summary: dict[str, Any], out: Path) -> None:
    """Print the summary as a table, and what to do with the files."""
    table = Table(title="held-out preference accuracy in %")
    table.add_column("client", no_wrap=True)
    for column in ("pairs", "before", "after", "implicit", "explicit", "global model"):
        table.add_column(column, justify="right")
    for name, client in summary["clients"].items():
        shares = (
            client["accuracy_before"],
            client["accuracy_after"],
            client["after"]["implicit"],
            client["after"]["explicit"],
            client["after_without_private_parts"],
        )
        pairs = str(client["num_held_out_pairs"])
        table.add_row(name, pairs, *map(_percent, shares))
    before, after = summary["mean_accuracy_before"], summary["mean_accuracy_after"]
    table.add_section()
    table.add_row("mean", "", _percent(before), _percent(after), style="bold")
    console.print(table)
    first = next(iter(summary["clients"]))
    console.print(
        f"{summary['rounds']} rounds in {summary['wall_s']:.0f} s. "
        "before: the plain model, to which every pair is a tie. "
        "after, implicit, explicit: the personal model on the last adapter. "
        "global model: the same adapter without private parts.\n\n"
        f"  {out}/summary.json    these numbers\n"
        f"  {out}/server          the run: SQLite and the global adapters\n"
        f"  {out}/CLIENT          what each client keeps to itself\n\n"
        "Talk to a personal model:\n"
        f"  .venv/bin/fedpdpo export --state-dir {out}/{first} --out {out}/{first}-model\n"
        f"  .venv/bin/fedpdpo chat --model-dir {out}/{first}-model --compare base \\\n"
        "      --continue-text --prompt 'Continue this film review: A film that'",
        highlight=False,
        soft_wrap=True,
    )
