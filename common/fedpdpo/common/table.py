"""Draws the status of a run for a terminal."""

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedpdpo.v1 import metrics_pb2, operator_pb2


def status_table(seen: operator_pb2.GetStatusResponse) -> RenderableType:
    """A headline, a table of clients, and a table of accuracies by version."""
    return Group(_headline(seen), _clients(seen), _accuracies(seen))


def _headline(seen: operator_pb2.GetStatusResponse) -> Text:
    phase = operator_pb2.Phase.Name(seen.phase).removeprefix("PHASE_").lower()
    text = Text.assemble(
        ("run ", "dim"),
        seen.run.run_id[:8],
        ("  model ", "dim"),
        seen.run.model,
        ("  phase ", "dim"),
        (phase + (" (paused)" if seen.paused else ""), "bold"),
        (f"  round {seen.round}" if seen.round else ""),
        ("  adapter ", "dim"),
        f"{seen.adapter_version}/{seen.run.num_rounds}",
    )
    if seen.waiting_for:
        text.append(f"\nwaiting for {seen.waiting_for}", "yellow")
    return text


def _clients(seen: operator_pb2.GetStatusResponse) -> Table:
    table = Table(header_style="dim")
    table.add_column("client", no_wrap=True)
    for column in ("pairs", "sent", "received", "seen", "doing", ""):
        table.add_column(column)
    for client in seen.clients:
        if client.left:
            doing = "left"
        elif client.client_id in seen.pushed:
            doing = f"delta of round {seen.round} is in"
        else:
            doing = client.activity
        said = Text(doing)
        for remark in client.remarks:
            said.append(f"\n{remark}", "yellow")
        table.add_row(
            client.client_id,
            str(client.num_train_pairs),
            decimal(client.bytes_received),
            decimal(client.bytes_sent),
            f"{client.last_seen_s:.0f} s ago",
            said,
            ProgressBar(total=1.0, completed=client.progress, width=20) if client.activity else "",
        )
    return table


def _accuracies(seen: operator_pb2.GetStatusResponse) -> Table:
    table = Table(title="held-out preference accuracy in %: combined (implicit, explicit)")
    table.add_column("adapter", justify="right")
    table.add_column("view")
    names = [client.client_id for client in seen.clients]
    for name in names:
        table.add_column(name, justify="right")
    table.add_column("mean", justify="right", style="bold")
    found: dict[
        tuple[int, metrics_pb2.View.ValueType], dict[str, metrics_pb2.PreferenceMetrics]
    ] = {}
    for row in seen.evaluations:
        for item in row.evaluations:
            found.setdefault((row.adapter_version, item.view), {})[row.client_id] = item.metrics
    for (version, view), by_client in sorted(found.items()):
        mean = sum(metrics.combined_accuracy for metrics in by_client.values()) / len(by_client)
        table.add_row(
            str(version),
            metrics_pb2.View.Name(view).removeprefix("VIEW_").lower(),
            *(_accuracy(by_client.get(name)) for name in names),
            f"{100 * mean:.1f}",
        )
    return table


def _accuracy(metrics: metrics_pb2.PreferenceMetrics | None) -> str:
    if metrics is None:
        return "-"
    return (
        f"{100 * metrics.combined_accuracy:.1f} "
        f"({100 * metrics.implicit_accuracy:.0f}, {100 * metrics.explicit_accuracy:.0f})"
    )
