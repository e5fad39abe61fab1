"""Where benchmarks keep their results."""

from pathlib import Path

import pytest

from report import BenchmarkError, Report


def test_results_are_written_by_one_benchmark_at_a_time_and_stay_for_the_next(
    tmp_path: Path,
) -> None:
    path = tmp_path / "results" / "some.json"
    first = Report(path, cells={})
    with pytest.raises(BenchmarkError, match="another benchmark"):
        Report(path, cells={})
    first.content["cells"]["a"] = 1
    first.write()
    del first
    assert Report(path, cells={}).content == {"cells": {"a": 1}}


def test_runs_of_other_settings_are_not_shown_beside_new_ones(tmp_path: Path) -> None:
    report = Report(tmp_path / "some.json", runs={"a": 1})
    report.of(method={"beta": 0.1})
    assert report.content["runs"] == {}
    report.content["runs"] = {"a": 2}
    report.of(method={"beta": 0.1})
    assert report.content["runs"] == {"a": 2}
    report.of(method={"beta": 0.2})
    assert report.content == {"runs": {}, "method": {"beta": 0.2}}
