"""The page of results: every number on it comes from the cells."""

import copy
from pathlib import Path
from typing import Any

import pytest

import page
from cell import ID_CHARS, Cell
from compare import best_baseline, lines_of
from partitions import SETTINGS
from plan import (
    GROWTH,
    GROWTH_ROWS,
    RATES,
    ROUNDS,
    ROWS,
    SEEDS,
    SWEEPS,
    Opened,
    growth_cells,
    handed_cells,
    sweep_cells,
    table_cells,
    tune_cells,
)
from report import ROOT
from said import SAID

MACHINE = {"cpu": "a processor", "cores": 2, "torch": "2"}


def result(cell: Cell, right: int) -> dict[str, Any]:
    """Two clients that rank so many of 20 pairs right after the average, one more later."""
    stages = {
        stage: {"implicit": 0.5, "explicit": 0.5, "combined": num / 20,
                "chosen_shift": -num / 100, "right": "1" * num + "0" * (20 - num)}
        for stage, num in (("after", right), ("local", right + 1))
    }  # fmt: skip
    ids = "".join(f"{number:0{ID_CHARS}x}" for number in range(20))
    client = {"pairs": 20, "train_pairs": 10, "adapter_bytes": 2**20, "ids": ids} | stages
    return {"cell": cell.told(), "clients": {"ada": client, "bea": client},
            "dtype": "float32", "device": "cpu", "prepare_s": 1.0, "seconds": 2.0}  # fmt: skip


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    """All cells: FedPDPO ranks 17 of 20 right, local-only 15, the others 12, each rate alike."""
    ranks = {"fedpdpo": 17, "local": 15}
    found: dict[str, Any] = {}
    for cells in (tune_cells(), sweep_cells()):
        found |= {cell.key: result(cell, ranks.get(cell.method, 12)) for cell in cells}
    for cell in (*growth_cells(found), *handed_cells(found), *table_cells(found, Opened({}))):
        found[cell.key] = result(cell, ranks.get(cell.method, 12))
    return {"cells": found, "setting": MACHINE}


def test_a_row_sums_up_its_seeds_and_clients(results: dict[str, Any]) -> None:
    lines = lines_of(results["cells"], "film-3")
    assert lines.keys() == ROWS.keys()
    assert lines["fedpdpo"].accuracy["after"]["combined"] == pytest.approx(17 / 20)
    assert lines["fedpdpo"].judged == pytest.approx(18 / 20)
    assert lines["fedavg"].judged == pytest.approx(12 / 20)
    assert lines["fedavg-ft"].judged == pytest.approx(13 / 20)
    assert lines["fedpdpo"].error["local"] == 0
    assert lines["fedpdpo"].chosen_shift == pytest.approx(-0.18)
    assert lines["fedavg"].chosen_shift == pytest.approx(-0.12)
    assert lines["fedpdpo"].bytes_a_round == 2 * 2**20
    assert lines["less-sharing"].bytes_a_round == lines["local"].bytes_a_round == 0
    assert best_baseline(lines).row.name == "local"


def test_a_row_is_judged_where_it_was_better_on_tune(results: dict[str, Any]) -> None:
    found = copy.deepcopy(results["cells"])
    for one in found.values():
        if one["cell"]["method"] in ("fedpdpo", "fedavg") and one["cell"]["split"] == "tune":
            for client in one["clients"].values():
                client["after"]["combined"] = 0.95
    lines = lines_of(found, "film-3")
    assert lines["fedpdpo"].stage == "after"
    assert lines["fedpdpo"].judged == pytest.approx(17 / 20)
    assert lines["fedpdpo"].chosen_shift == pytest.approx(-0.17)
    assert lines["less-head"].stage == lines["fedavg-ft"].stage == "local"
    assert lines["fedavg"].stage == "after"


def test_the_page_tells_what_the_cells_say(tmp_path: Path, results: dict[str, Any]) -> None:
    page.write(results, tmp_path / "results.md")
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "{{" not in text
    assert "ranks 90.0 % of held-out pairs" in text
    assert "each setting 80.0 %: +10.0 points" in text
    row = "| **FedPDPO** | 85.0 ± 0.0 | **90.0 ± 0.0** | 50.0 | 50.0 | 90.0 | -0.18 |"
    assert text.count(row) == len([one for one in SETTINGS.values() if one.in_table])
    probe = "| reward head alone, no federation | 60.0 ± 0.0 | **65.0 ± 0.0** |  | 50.0 |"
    assert text.count(probe) == text.count(row)
    assert "local-only DPO | +10.0 (" in text
    assert "| local-only DPO | 80.0 | 80.0 | 80.0 |" in text
    for name in ("table", "sweeps", "growth"):
        assert (tmp_path / "pictures" / f"{name}.svg").stat().st_size > 10_000
        assert f"pictures/{name}.svg" in text


def test_a_page_of_a_part_of_the_table_says_so(tmp_path: Path, results: dict[str, Any]) -> None:
    cells = {
        key: one
        for key, one in results["cells"].items()
        if one["cell"]["split"] == "tune"
        or (key.startswith("test film-3")
            and (one["cell"]["seed"] == SEEDS[0] or one["cell"]["method"] == "fedpdpo"))
    }  # fmt: skip
    page.write(results | {"cells": cells}, tmp_path / "results.md")
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "Averaged over 1 settings" in text
    assert f"So far {len(ROWS) + 2} of {len(ROWS) * 3 * 6} rows and seeds are in" in text


def test_the_page_tells_where_rows_differ_in_precision(results: dict[str, Any]) -> None:
    cells = copy.deepcopy(results["cells"])
    for key, one in cells.items():
        if key.startswith(f"test film-3 fedavg seed={SEEDS[0]}") or "test people-4 base" in key:
            one["dtype"] = "bfloat16"
    assert "In 17 of 18 settings and seeds" in page.compute(results | {"cells": cells})
    assert "In 18 of 18 settings and seeds" in page.compute(results)


def test_the_page_tells_what_models_write_and_the_base_model_once() -> None:
    def told(change: float, text: str) -> dict[str, Any]:
        return {"words": 5.0, "sentiment": 0.1 + change, "change": change,
                "change_error": 0.02, "first": [text]}  # fmt: skip

    models = {"base": told(0.0, "a film"), "warm-1": told(0.3, "a | nice\n<b>film")}
    runs = {
        f"{rounds}": {
            "cell": {"rounds": rounds},
            "models": models | {"harsh-2": told(-rounds, "bad")},
        }
        for rounds in (4, 16)
    }
    assert page.written(runs).splitlines()[2:] == [
        "| base | 0 | 5.0 | +0.100 |  | a film |",
        "| warm-1 | 4 | 5.0 | +0.400 | +0.300 ± 0.020 | a   nice &lt;b&gt;film |",
        "| harsh-2 | 4 | 5.0 | -3.900 | -4.000 ± 0.020 | bad |",
        "| warm-1 | 16 | 5.0 | +0.400 | +0.300 ± 0.020 | a   nice &lt;b&gt;film |",
        "| harsh-2 | 16 | 5.0 | -15.900 | -16.000 ± 0.020 | bad |",
    ]


def test_the_page_tells_a_newcomers_ranking_and_its_policys() -> None:
    runs = {
        f"{seed}": {
            "accuracy": {
                start: {"8": {"combined": share + seed / 10, "implicit": share - seed / 10}}
                for start, share in (("shared", 0.6), ("alone", 0.5))
            }
        }
        for seed in (1, 2)
    }
    assert page.newcomers(runs).splitlines()[2] == "| 8 | 75.0 | 65.0 | 45.0 | 35.0 |"


def test_a_page_can_be_made_before_the_table_was_run(tmp_path: Path) -> None:
    page.write({"cells": {}, "setting": MACHINE}, tmp_path / "results.md")
    assert "The table was not run yet." in (tmp_path / "results.md").read_text(encoding="utf-8")


def test_a_page_tells_of_rows_that_have_no_setting_whole(
    results: dict[str, Any], tmp_path: Path
) -> None:
    bases = {
        key: one for key, one in results["cells"].items() if key.startswith("test film-3 base")
    }
    page.write(results | {"cells": bases}, tmp_path / "results.md")
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert f"The table is complete in no setting yet; {len(SEEDS)} of its cells are in." in text


def test_the_plan_asks_each_method_for_as_much() -> None:
    cells = list(tune_cells())
    methods = {cell.method for cell in cells}
    assert methods == {row.method.name for row in ROWS.values() if row.method.trains}
    per_method = [sum(cell.method == method for cell in cells) for method in methods]
    assert set(per_method) == {len(cells) // len(methods)}
    assert {cell.split for cell in cells} == {"tune"}
    assert {cell.rounds for cell in cells} == {ROUNDS}
    assert len(RATES) * len(methods) <= len(cells)
    assert len(SEEDS) >= 3
    assert all(method in ROWS for method in GROWTH_ROWS)
    assert all(setting in SETTINGS for some in GROWTH.values() for setting, _ in some.values())


def test_every_question_has_its_sentence() -> None:
    assert SAID.keys() == SWEEPS.keys()


def test_the_readme_has_the_settings_as_the_page_has_them() -> None:
    told = (ROOT / "README.md").read_text(encoding="utf-8")
    section = told.split("\n## Results\n")[1].split("\n## ")[0].strip().splitlines()
    rows = [line for line in section if line.startswith("|")]
    assert len(rows) == 3 + len([one for one in SETTINGS.values() if one.in_table])
    assert set(rows) <= set(page.PAGE.read_text(encoding="utf-8").splitlines())
    assert len(section) <= 15
