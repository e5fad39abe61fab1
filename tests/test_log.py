"""Log lines: for people, and as JSON for programs."""

import json
import logging
from pathlib import Path

import pytest

from fedpdpo.common.log import fields, start_logging


def test_a_line_for_people_tells_the_event_and_its_values(
    log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    start_logging()
    log.info(fields("pushed", round=2, loss=0.123456, path=Path("/a b"), empty=""))
    assert capsys.readouterr().err.endswith(
        "INFO pushed round=2 loss=0.1235 path='/a b' empty=''\n"
    )


def test_a_json_line_holds_the_same_whole(
    log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    start_logging(form="json")
    log.info(fields("pushed", round=2, loss=0.123456, path=Path("/a b"), why=OSError("no room")))
    log.warning("plain %s", 1)
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert first.pop("at") < second.pop("at")
    assert first == {"level": "INFO", "logger": "fedpdpo.test", "event": "pushed", "round": 2,
                     "loss": 0.123456, "path": "/a b", "why": "OSError: no room"}  # fmt: skip
    assert second == {"level": "WARNING", "logger": "fedpdpo.test", "event": "plain 1"}
