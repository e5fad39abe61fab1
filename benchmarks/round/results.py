"""The benchmark's results: every run, medians, ratios; written after each case."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from cases import CASES, ENGINE, FLOOR, FLOWER, OURS, SECURED, SYSTEMS, Case
from machine import setting
from report import Report

PACKAGES = ("grpcio", "protobuf", "numpy", "fedpdpo")
FIGURES = ("round_s", "cpu_s", "moved_mib", "server_peak_mib")


class Results(Report):
    """The file of this benchmark."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, cases={})

    def put_case(self, case: Case, runs: Sequence[Mapping[str, Any]]) -> None:
        """Take a case's runs, sum them up, and write the file."""
        found = {"clients": case.clients, "mib": case.mib, "setting": setting(PACKAGES),
                 **summary(runs), "runs": list(runs)}  # fmt: skip
        cases = self.content["cases"] | {case.title: found}
        self.content["cases"] = {one.title: cases[one.title] for one in CASES if one.title in cases}
        self.write()

    def put_crowd(self, found: Mapping[str, Any]) -> None:
        """Take what the crowd saw, and write the file."""
        self.content["crowd"] = {"setting": setting(PACKAGES), **found}
        self.write()


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians of each system's runs; our round over the floor's, Flower's over ours, and so on."""
    medians: dict[str, Any] = {}
    for system in SYSTEMS:
        done = [run for run in runs if run["system"] == system and "failed" not in run]
        if done:
            medians[system] = {name: median(run[name] for run in done) for name in FIGURES}
    ratios = {}
    for name, over, under in (
        ("of_floor", OURS, FLOOR),
        ("mtls", SECURED, OURS),
        ("flower", FLOWER, OURS),
        ("flower_engine", ENGINE, OURS),
    ):
        if over in medians and under in medians:
            ratios[name] = medians[over]["round_s"] / medians[under]["round_s"]
    return {"ratios": ratios, "medians": medians}
