"""How a simulation divides preferences."""

import json
from collections import Counter
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as some

from fedpdpo.client.data.preferences import Preference
from fedpdpo.common.errors import BadData
from fedpdpo.simulation.partition import Keyed, Share, divided, read_keyed
from fedpdpo.simulation.settings import Partition

LABELS = ("a", "b", "c")


def pool(num: int = 300, labels: tuple[str, ...] = LABELS) -> list[Keyed]:
    return [
        Keyed(Preference(f"{number}", " good", " bad"), labels[number % len(labels)])
        for number in range(num)
    ]


def label_shares(shares: dict[str, Share], pairs: list[Keyed]) -> list[Counter[str]]:
    key_of = {one.preference.prompt: one.key for one in pairs}
    return [Counter(key_of[pair.prompt] for pair in share.pairs) for share in shares.values()]


@given(
    how=some.builds(
        Partition,
        by=some.sampled_from(["iid", "dirichlet", "sizes", "field"]),
        field=some.just("label"),
        concentration=some.floats(0.01, 100),
        opposed=some.floats(0, 1),
        min_pairs=some.integers(2, 5),
    ),
    num_clients=some.integers(1, 40),
    seed=some.integers(0, 2**32),
)
def test_every_pair_is_one_clients_and_all_have_enough(
    how: Partition, num_clients: int, seed: int
) -> None:
    pairs = pool()
    wanted = min(num_clients, len(LABELS)) if how.by == "field" else num_clients
    shares = divided(pairs, how, num_clients=wanted, seed=seed)
    assert len(shares) == wanted
    found = Counter(pair.prompt for share in shares.values() for pair in share.pairs)
    expected = len(pairs) if how.by != "field" else wanted * 100
    assert len(found) == found.total() == expected
    assert all(len(share.pairs) >= how.min_pairs for share in shares.values())
    assert sum(share.opposed for share in shares.values()) == round(how.opposed * wanted)
    for share in shares.values():
        assert {pair.chosen for pair in share.pairs} == {" bad" if share.opposed else " good"}
    assert divided(pairs, how, num_clients=wanted, seed=seed) == shares


def test_another_seed_divides_otherwise() -> None:
    one, other = (divided(pool(), Partition(), num_clients=5, seed=seed) for seed in (0, 1))
    assert one != other


def test_labels_are_the_more_skewed_the_smaller_the_concentration_is() -> None:
    def skew(concentration: float) -> float:
        how = Partition(by="dirichlet", field="label", concentration=concentration)
        shares = label_shares(divided(pool(3000), how, num_clients=10, seed=3), pool(3000))
        return fmean(max(found.values()) / found.total() for found in shares)

    assert skew(0.05) > 0.75 > skew(1.0) > 0.45 > skew(1000.0) > 1 / 3


def test_sizes_are_the_more_skewed_the_smaller_the_concentration_is() -> None:
    def spread(concentration: float) -> float:
        how = Partition(by="sizes", concentration=concentration)
        shares = divided(pool(3000), how, num_clients=10, seed=3)
        return pstdev(len(share.pairs) for share in shares.values())

    assert spread(0.1) > 4 * spread(10.0) > 0
    iid = divided(pool(3000), Partition(), num_clients=10, seed=3)
    assert {len(share.pairs) for share in iid.values()} == {300}


def test_by_field_a_client_is_named_after_its_value_and_the_rarest_are_left_out() -> None:
    pairs = pool(90, ("ada", "bea", "not a name", "ada"))
    how = Partition(by="field", field="who")
    shares = divided(pairs, how, num_clients=0, seed=0)
    assert {name: (share.key, len(share.pairs)) for name, share in shares.items()} == {
        "ada": ("ada", 45), "bea": ("bea", 23), "client-003": ("not a name", 22),
    }  # fmt: skip
    assert list(divided(pairs, how, num_clients=2, seed=0)) == ["ada", "bea"]
    with pytest.raises(BadData, match="3 of 3 values have 4 pairs or more, and 4 clients"):
        divided(pairs, how, num_clients=4, seed=0)


def test_a_made_up_name_is_not_one_that_a_value_has() -> None:
    pairs = pool(90, ("not a name", "client-001", "client-001_"))
    shares = divided(pairs, Partition(by="field", field="who"), num_clients=0, seed=0)
    assert {share.key for share in shares.values()} == {one.key for one in pairs}
    assert sum(len(share.pairs) for share in shares.values()) == 90


def test_too_few_pairs_are_refused() -> None:
    with pytest.raises(BadData, match="30 pairs do not give 8 clients 4 each"):
        divided(pool(30), Partition(), num_clients=8, seed=0)


def written(folder: Path, **files: list[dict[str, Any]]) -> Path:
    for name, records in files.items():
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return folder


def record(**more: Any) -> dict[str, Any]:
    return {"prompt": "p", "chosen": " a", "rejected": " b"} | more


def test_keys_are_read_from_the_records_or_the_files(tmp_path: Path) -> None:
    data = written(tmp_path, ada=[record(domain="x"), record(domain=7)], bea=[record(domain="x")])
    by_field = Partition(by="field", field="domain")
    assert [one.key for one in read_keyed(data, by_field)] == ["x", "7", "x"]
    assert [one.key for one in read_keyed(data, Partition(by="files"))] == ["ada", "ada", "bea"]
    assert {one.key for one in read_keyed(data, Partition())} == {""}


def test_files_of_one_stem_are_two_clients(tmp_path: Path) -> None:
    written(tmp_path, ada=[record()] * 2, bea=[record()] * 2)
    (tmp_path / "ada.json").write_text(json.dumps([record()] * 2), encoding="utf-8")
    keyed = read_keyed(tmp_path, Partition(by="files"))
    assert [one.key for one in keyed] == [
        *["ada.json"] * 2, *["ada.jsonl"] * 2, *["bea"] * 2
    ]  # fmt: skip
    named = divided(keyed, Partition(by="files", min_pairs=2), num_clients=0, seed=0)
    assert named.keys() == {"ada.json", "ada.jsonl", "bea"}


def test_keys_are_read_from_parquet_too(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([record(domain="x"), record(domain="y")])
    pq.write_table(table, tmp_path / "ada.parquet")
    by_field = Partition(by="field", field="domain")
    assert [one.key for one in read_keyed(tmp_path, by_field)] == ["x", "y"]


def test_a_record_without_the_field_or_without_an_answer_is_told_by_its_place(
    tmp_path: Path,
) -> None:
    data = written(tmp_path, ada=[record(domain="x"), record()])
    with pytest.raises(BadData, match=r"ada\.jsonl:2: no 'domain'"):
        read_keyed(data, Partition(by="field", field="domain"))
    data = written(tmp_path, ada=[record(), {"prompt": "p", "chosen": "a"}])
    with pytest.raises(BadData, match=r"ada\.jsonl:2: .*rejected"):
        read_keyed(data, Partition())


def test_a_partition_by_field_needs_one() -> None:
    with pytest.raises(ValueError, match=r"needs --partition\.field"):
        Partition(by="dirichlet")
