"""The results as tables on the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from machine import QUIET


def ratios_table(cases: Mapping[str, Any]) -> Table:
    """Every variant of every case, with its ratios to ours."""
    table = Table(title="training: FedPDPO's engine and TRL's DPOTrainer", box=SIMPLE)
    table.add_column("case / epochs", no_wrap=True)
    for column in ("wall s", "pairs/s", "peak MiB", "loss", "speedup", "memory", "of rate"):
        table.add_column(column, justify="right", no_wrap=True)
    for title, case in cases.items():
        table.add_row(title, style="bold")
        for name, figures in case["medians"].items():
            ratios = case["ratios"].get(name)
            table.add_row(
                f"  {name}",
                f"{figures['wall_s']:.1f}",
                f"{figures['pairs_per_s']:.2f}",
                f"{figures['peak_mib']:.0f}",
                f"{figures['loss']:.4f}",
                _speedup(ratios) if ratios else "",
                f"{ratios['memory_ratio']:.2f}" if ratios else "",
                _of_rate(figures) if "flops" in figures else "",
            )
    table.caption = (
        "speedup: the variant's wall time over ours; memory: our peak over the variant's; of rate: "
        "unavoidable operations a second over this machine's rate of matrix products; "
        "~ where other processes disturbed it"
    )
    return table


def _disturbed(*others_shares: float) -> str:
    return "~" if max(others_shares) > QUIET else ""


def _speedup(ratios: Mapping[str, float]) -> str:
    return f"{_disturbed(ratios['others_share'])}{ratios['speedup']:.2f} x"


def _of_rate(figures: Mapping[str, float]) -> str:
    mark = _disturbed(figures["others_share"], figures["rate_others_share"])
    return f"{mark}{100 * figures['share_of_matmul_rate']:.0f} %"


def growth_table(growth: Mapping[str, Any]) -> Table:
    """Seconds a pair by what was varied."""
    table = Table(title="FedPDPO's engine: seconds a pair", box=SIMPLE)
    for column in ("varied", "pairs", "prompt", "response", "s a pair", "peak MiB"):
        table.add_column(column, justify="right")
    for name in ("prompt_tokens", "response_tokens", "pairs"):
        for point in growth[name]:
            table.add_row(
                name.replace("_", " "),
                *(str(point[key]) for key in ("pairs", "prompt", "response")),
                f"{_disturbed(point['others_share'])}{point['s_per_pair']:.2f}",
                f"{point['peak_mib']:.0f}",
            )
        table.add_section()
    return table
