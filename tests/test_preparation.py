"""What a client does with its data before the first round, as its settings say."""

import json
import logging
from contextlib import closing
from pathlib import Path

import pytest

from fedpdpo.client.heart import Heart
from fedpdpo.client.link import Link
from fedpdpo.client.preparation import prepare_all, read_pairs, tokens_of
from fedpdpo.client.settings import ClientSettings
from fedpdpo.client.training.pairset import PairSet
from fedpdpo.common.errors import BadData
from tiny import save_tiny_model, tiny_backbone, tiny_policy, tiny_records, tiny_run


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Ten pairs with a bad record between them."""
    file = tmp_path / "prefs.jsonl"
    lines = [json.dumps(one) for one in tiny_records(seed=0, num=10, taste="warm")]
    file.write_text("\n".join([*lines[:3], "{}", *lines[3:]]), encoding="utf-8")
    return file


def settings(data: Path, **values: object) -> ClientSettings:
    folder = data.parent / "state"
    return ClientSettings.model_validate(
        {"server": "localhost:1", "data": data, "state_dir": folder} | values
    )


def test_a_bad_record_ends_the_client_unless_it_is_to_be_skipped(
    data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(BadData, match="--skip-bad-records goes on without it"):
        read_pairs(settings(data))
    caplog.set_level(logging.INFO)
    train, held_out = read_pairs(settings(data, skip_bad_records=True, eval_share=0.3))
    assert len(train) + len(held_out) == 10
    assert not {*train} & {*held_out}
    assert f"{data}:4" in caplog.text
    assert "skipped=1" in caplog.text


def test_with_pairs_to_measure_on_all_others_are_trained_on(data: Path) -> None:
    other = data.with_name("other.jsonl")
    other.write_text(data.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(BadData, match=r"prefs\.jsonl:4"):
        read_pairs(settings(data, eval_data=other))
    train, held_out = read_pairs(settings(data, eval_data=other, skip_bad_records=True))
    assert len(train) == len(held_out) == 10


def kept(data: Path, gib: float) -> dict[str, PairSet]:
    """Pairs prepared with so much disk for the trunk's states."""
    folder = save_tiny_model(data.parent / "model")
    policy, backbone = tiny_policy(folder, tiny_run()), tiny_backbone(folder)
    chosen = settings(data, trunk_cache_gib=gib, skip_bad_records=True)
    train, _ = read_pairs(chosen)
    tokens = tokens_of(train, backbone, chosen)
    chosen.state_dir.mkdir(exist_ok=True)
    parts = {"train": tokens[:6], "eval": tokens[6:]}
    with closing(Link(chosen.server, "ada", connect_timeout_s=0, stall_s=1)) as link:
        return prepare_all(policy, backbone, parts, chosen, Heart(link, every_s=60.0))


def test_the_disk_for_the_trunk_is_that_of_all_parts_together(data: Path) -> None:
    sizes = {}
    whole = kept(data, 1.0)
    for part, pairs in whole.items():
        assert pairs.trunk is not None
        sizes[part] = pairs.trunk.kept_bytes
    assert sizes["eval"] > 0
    budget = sizes["train"] + sizes["eval"] // 2
    for gib, most in ((0.0, 0), (budget / 2**30, budget)):
        found = kept(data, gib)
        in_use = [pairs.trunk.kept_bytes for pairs in found.values() if pairs.trunk is not None]
        assert len(in_use) == 2
        assert sum(in_use) <= most
        assert in_use[0] == (sizes["train"] if most else 0)
        assert [pairs.reference_logps.tolist() for pairs in found.values()] == [
            pairs.reference_logps.tolist() for pairs in whole.values()
        ]
