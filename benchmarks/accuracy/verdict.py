"""How far FedPDPO is ahead of the others, and whether that is as far as was aimed at."""

from statistics import fmean
from typing import Any

from compare import Line, best_baseline, cells_of, paired_bootstrap, standard_error
from partitions import SETTINGS
from plan import ROWS, SEEDS, Row, judged_stage, mean_accuracy
from tabular import percent, points, table, with_error

OURS = ROWS["fedpdpo"]

#: Trains a reward head and no policy.
PROBE = ROWS["reward-alone"]

#: Aimed at, as differences of shares: ahead of the best baseline on average (the paper's figure)
#: and where pairs are few; ahead of FedAvg-DPO where tastes are opposite.
PAPERS, FEW_PAIRS, OPPOSITE = 0.048, 0.08, 0.15
FEW = 48

#: The lines of each setting by row.
Table = dict[str, dict[str, Line]]


def headline(found: dict[str, Any], lines: Table) -> str:
    """FedPDPO ahead of the best baseline, averaged over the settings."""
    if not lines:
        begun = sum(one["cell"]["split"] == "test" for one in found.values())
        if begun:
            return f"The table is complete in no setting yet; {begun} of its cells are in."
        return "The table was not run yet."
    ours = fmean(some[OURS.name].judged for some in lines.values())
    theirs = fmean(best_baseline(some).judged for some in lines.values())
    ahead = fmean(gaps(found, lines).values())
    return (
        f"Averaged over {len(lines)} settings FedPDPO ranks {percent(ours)} % of held-out pairs as "
        f"their owners do, the best baseline of each setting {percent(theirs)} %: "
        f"{points(ahead)} points. {alone(found, lines)}{missing(found, lines)}"
    )


def by_setting(lines: Table) -> str:
    """FedPDPO beside plain DPO, shared and not, and each setting's best baseline."""
    if not lines:
        return ""
    rows, shares = [], []
    for setting, some in lines.items():
        best = best_baseline(some)
        judged = [some["fedavg"], some["local"], best, some[OURS.name]]
        shares.append([one.judged for one in judged])
        fedavg, local, theirs, ours = map(percent, shares[-1])
        title = SETTINGS[setting].title
        rows.append([title, fedavg, local, f"{theirs} {best.row}", f"**{ours}**"])
    means = [percent(fmean(column)) for column in zip(*shares, strict=True)]
    rows.append(["mean", *means[:-1], f"**{means[-1]}**"])
    head = ["ranked right, %", "FedAvg-DPO", "local-only DPO", "best baseline", "FedPDPO"]
    return table(head, rows)


def overview(lines: Table) -> str:
    """Each row over all settings: how it ranks where it is judged, and what its policy learnt."""
    if not lines:
        return ""
    rows = []
    for row in ROWS.values():
        some = [each[row.name] for each in lines.values()]
        policy = percent(fmean(one.accuracy["after"]["implicit"] for one in some))
        bold = "**" if row is OURS else ""
        rows.append([
            f"{bold}{row}{bold}",
            f"{bold}{percent(fmean(one.judged for one in some))}{bold}",
            "" if row is PROBE else policy,
            percent(fmean(one.worst for one in some)),
            f"{fmean(one.seconds for one in some):.0f}",
        ])  # fmt: skip
    head = ["method", "ranks right, %", "its policy alone, %", "worst client, %", "seconds"]
    return table(head, rows)


def alone(found: dict[str, Any], lines: Table) -> str:
    """What sharing adds to private parts, and what these do without it."""
    row = ROWS["less-sharing"]
    without, probe = (
        percent(fmean(some[name].judged for some in lines.values()))
        for name in (row.name, PROBE.name)
    )
    each = [gap(found, name, row) for name in lines]
    apart = [low for _, low, _ in each if low > 0]
    return (
        f"The same private parts without a federation reach {without} %, so sharing adds "
        f"{points(fmean(mean for mean, *_ in each))}: in {len(apart)} of {len(lines)} settings by "
        "more than other test pairs might change. A reward head alone, on the frozen model and "
        f"without a federation, reaches {probe} %."
    )


def missing(found: dict[str, Any], lines: Table) -> str:
    """A warning while the table has fewer cells than it is to have."""
    wanted = len(ROWS) * len(SEEDS) * sum(one.in_table for one in SETTINGS.values())
    run = sum(len(cells_of(found, row, name)) for name in lines for row in ROWS.values())
    if run == wanted:
        return ""
    return (
        f" So far {run} of {wanted} rows and seeds are in; with fewer than {len(SEEDS)} seeds a "
        "row's standard error is too small, or none."
    )


def gap(found: dict[str, Any], setting: str, other: Row) -> tuple[float, float, float]:
    """By how much FedPDPO is ahead of a row, and the middle 95 % of the bootstrap."""
    stages = judged_stage(found, OURS), judged_stage(found, other)
    cells = cells_of(found, OURS, setting), cells_of(found, other, setting)
    return paired_bootstrap(*cells, stages=stages)


def gaps(found: dict[str, Any], lines: Table) -> dict[str, float]:
    """By how much FedPDPO is ahead of each setting's best baseline."""
    return {name: gap(found, name, best_baseline(some).row)[0] for name, some in lines.items()}


def gap_error(found: dict[str, Any], setting: str, other: Row) -> float:
    """The standard error over seeds of what FedPDPO is ahead of a row."""
    ours, theirs = (cells_of(found, row, setting) for row in (OURS, other))
    stages = judged_stage(found, OURS), judged_stage(found, other)
    return standard_error([
        mean_accuracy(ours[seed], stages[0]) - mean_accuracy(theirs[seed], stages[1])
        for seed in ours.keys() & theirs.keys()
    ])  # fmt: skip


def apart(found: dict[str, Any], lines: Table) -> str:
    """FedPDPO beside the best baseline and each row less a part, setting by setting."""
    if not lines:
        return ""
    parts = [row for row in ROWS.values() if row.method.kind == "ablation"]
    rows: list[list[str]] = []
    for setting, some in lines.items():
        best = best_baseline(some).row
        cells = [SETTINGS[setting].title, str(best)]
        for row in (best, *parts):
            mean, low, high = gap(found, setting, row)
            cells.append(f"{points(mean)} ({points(low)} to {points(high)})")
        rows.append(cells)
    return table(["setting", "best baseline", "ahead of it", *map(str, parts)], rows)


def policies(lines: Table) -> str:
    """How much each policy learnt: the accuracy of the implicit reward, after the last average."""
    names = ("fedavg", "local", OURS.name, "less-head", "less-bottleneck", "less-sharing")
    shown = [ROWS[name] for name in names]
    rows = [
        [SETTINGS[setting].title,
         *(percent(some[row.name].accuracy["after"]["implicit"]) for row in shown)]
        for setting, some in lines.items()
    ]  # fmt: skip
    return table(["setting", *map(str, shown)], rows) if rows else ""


def aims(found: dict[str, Any], lines: Table) -> str:
    """What was aimed at before the table was run, and what was measured."""
    if not lines:
        return ""
    ahead = gaps(found, lines)
    mean = fmean(ahead.values())
    errors = {name: gap_error(found, name, best_baseline(lines[name]).row) for name in lines}
    behind = [name for name in lines if ahead[name] < 0 and not ahead[name] >= -errors[name]]
    nearest = min(ahead, key=lambda name: ahead[name])
    rows = [
        [f"{points(PAPERS)} points on the best baseline, averaged over the settings",
         points(mean), told(mean >= PAPERS)],
        ["behind it by more than a standard error in no setting",
         f"{with_error(points(ahead[nearest]), errors[nearest])} where it is nearest "
         f"({SETTINGS[nearest].title})", told(not behind)],
        [f"{points(FEW_PAIRS)} on it in every setting where clients have {FEW} pairs or fewer: "
         "all have",
         f"in {sum(one >= FEW_PAIRS for one in ahead.values())} of {len(ahead)}; "
         f"{points(mean)} on average", told(min(ahead.values()) >= FEW_PAIRS)],
    ]  # fmt: skip
    if (opposite := "conflict-4") in lines:
        shared = gap(found, opposite, ROWS["fedavg"])[0]
        rows.append([
            f"{points(OPPOSITE)} on FedAvg-DPO where tastes are opposite",
            points(shared), told(shared >= OPPOSITE),
        ])  # fmt: skip
    return table(
        ["aim", "measured", "reached so far" if missing(found, lines) else "reached"], rows
    )


def told(reached: bool) -> str:
    """In a word."""
    return "yes" if reached else "no"
