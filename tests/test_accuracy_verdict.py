"""Whether the results page says of FedPDPO what the cells say."""

from typing import Any

import pytest

from cell import ID_CHARS
from compare import lines_of
from plan import ROWS, SEEDS, table_cell, tune_cells
from verdict import Table, aims, apart, by_setting, headline, overview, policies

SETTING = "conflict-4"
PAIRS = 100


def result(share: float) -> dict[str, Any]:
    """A cell of one client who ranks such a share of the pairs right, at both stages."""
    right = round(share * PAIRS)
    stage = dict.fromkeys(("implicit", "explicit", "combined"), share) | {
        "chosen_shift": 0.0,
        "right": "1" * right + "0" * (PAIRS - right),
    }
    ids = "".join(f"{number:0{ID_CHARS}x}" for number in range(PAIRS))
    client = {"after": stage, "local": stage, "adapter_bytes": 1, "ids": ids}
    return {"clients": {"ada": client}, "seconds": 1.0}


def table_of(*, ours: float, baseline: float) -> tuple[dict[str, Any], Table]:
    """All cells of a setting, and its lines. The rows but FedPDPO and Ditto rank half right."""
    shares = {"fedpdpo": ours, "ditto": baseline}
    found = {cell.key: result(0.5) for cell in tune_cells()}
    for name, row in ROWS.items():
        for seed in SEEDS:
            found[table_cell(found, row, SETTING, seed).key] = result(shares.get(name, 0.5))
    return found, {SETTING: lines_of(found, SETTING)}


@pytest.mark.parametrize(
    ("ours", "baseline", "answers"),
    [
        (0.90, 0.70, ["yes", "yes", "yes", "yes"]),
        (0.76, 0.70, ["yes", "yes", "no", "yes"]),
        (0.60, 0.58, ["no", "yes", "no", "no"]),
        (0.60, 0.70, ["no", "no", "no", "no"]),
    ],
)
def test_an_aim_is_reached_where_the_cells_say_so(
    ours: float, baseline: float, answers: list[str]
) -> None:
    rows = aims(*table_of(ours=ours, baseline=baseline)).splitlines()[2:]
    assert [row.split(" | ")[-1].strip(" |") for row in rows] == answers
    assert f"| {100 * (ours - baseline):+.1f} |" in rows[0]


def test_the_page_is_headed_by_what_fedpdpo_is_ahead_of_the_best_baseline() -> None:
    found, lines = table_of(ours=0.8, baseline=0.7)
    assert "80.0 %" in headline(found, lines)
    assert "the best baseline of each setting 70.0 %: +10.0 points." in headline(found, lines)
    assert f"So far {len(ROWS) * len(SEEDS)} of" in headline(found, lines)
    assert "| Ditto | +10.0 (" in apart(found, lines)


def test_what_a_policy_learnt_is_the_implicit_reward_after_the_last_average() -> None:
    found, _ = table_of(ours=0.8, baseline=0.7)
    for seed in SEEDS:
        told = found[table_cell(found, ROWS["less-bottleneck"], SETTING, seed).key]
        told["clients"]["ada"]["after"] = told["clients"]["ada"]["after"] | {"implicit": 0.53}
    head, _, row = policies({SETTING: lines_of(found, SETTING)}).splitlines()
    shares = dict(zip(head.split(" | "), row.split(" | "), strict=True))
    assert shares[str(ROWS["less-bottleneck"])] == "53.0"
    assert shares["FedPDPO"] == "80.0"
    assert shares["FedAvg-DPO"] == "50.0"


def test_the_overview_has_each_rows_mean_and_each_settings_best_baseline() -> None:
    found, lines = table_of(ours=0.8, baseline=0.7)
    for seed in SEEDS:
        cell = found[table_cell(found, ROWS["ditto"], SETTING, seed).key]
        cell["clients"]["ada"] = result(0.9)["clients"]["ada"]
    both = {SETTING: lines_of(found, SETTING)} | {"people-4": lines[SETTING]}
    rows = overview(both).splitlines()
    assert "| **FedPDPO** | **80.0** | 80.0 | 80.0 | 1 |" in rows
    assert "| Ditto | 80.0 | 80.0 | 80.0 | 1 |" in rows
    assert "| reward head alone, no federation | 50.0 |  | 50.0 | 1 |" in rows
    assert by_setting(both).splitlines()[2:] == [
        "| opposite tastes, 4 personas | 50.0 | 50.0 | 90.0 Ditto | **80.0** |",
        "| 4 people | 50.0 | 50.0 | 70.0 Ditto | **80.0** |",
        "| mean | 50.0 | 50.0 | 80.0 | **80.0** |",
    ]
