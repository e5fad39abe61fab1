"""The benchmark's results: what every run measured, medians, ratios; written after each case."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from cases import CASES, MAIN, OURS, TRL, Case
from machine import QUIET
from report import Report

#: What a run's process tells as text, of which there is no median.
_TOLD = ("path",)


class Results(Report):
    """The file of this benchmark."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, cases={})

    def put_case(self, case: Case, measured: Mapping[str, Any]) -> dict[str, Any]:
        """Take a case's runs, sum them up, and write the file."""
        found = {**_described(case), **measured, **summary(case, measured)}
        cases = self.content["cases"] | {case.title: found}
        known = [one.title for one in CASES]
        ordered = {title: cases[title] for title in known if title in cases}
        top = _top(ordered)
        rest = {name: part for name, part in self.content.items() if name not in (*top, "cases")}
        self.content = top | {"cases": ordered} | rest
        self.write()
        return found

    def put_growth(self, growth: Mapping[str, Any]) -> None:
        """Take how cost grows, and write the file."""
        self.content["growth"] = growth
        self.write()


def summary(case: Case, measured: Mapping[str, Any]) -> dict[str, Any]:
    """Medians of each variant, and each one's ratios to ours.

    The medians are of quiet runs alone where there are any. `speedup` is the variant's wall time
    over ours; `memory_ratio` our peak over the variant's; `others_share` the larger one of the two.
    """
    medians = {
        name: _medians([run for run in measured["runs"] if run["variant"] == name])
        for name in case.variants
    }
    own = medians[OURS]
    ratios = {
        name: {
            "speedup": figures["wall_s"] / own["wall_s"],
            "memory_ratio": own["peak_mib"] / figures["peak_mib"],
            "others_share": max(own["others_share"], figures["others_share"]),
        }
        for name, figures in medians.items()
        if name != OURS
    }
    return {"medians": medians, "ratios": ratios}


def _medians(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    used = [run for run in runs if run["others_share"] <= QUIET] or runs
    names = [name for name in runs[0] if name not in ("variant", *_TOLD)]
    return {name: median(run[name] for run in used) for name in names} | {"runs": len(used)}


def _described(case: Case) -> dict[str, Any]:
    return {
        "data": case.data,
        "epochs": case.epochs,
        "batch_pairs": case.batch_pairs,
        "lora_layers": f"last {case.last_layers}" if case.last_layers else "all",
    }


def _top(cases: Mapping[str, Any]) -> dict[str, Any]:
    """The two figures of the main case, and the same of all against TRL's plain way."""
    main = cases.get(MAIN, {}).get("ratios", {}).get(TRL, {})
    return {
        "main_case": MAIN,
        "speedup": main.get("speedup"),
        "memory_ratio": main.get("memory_ratio"),
        "ratios": {title: case["ratios"] for title, case in cases.items()},
    }
