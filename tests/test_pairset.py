"""What never changes about pairs is computed once and found again."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedpdpo.client.data.tokens import PairTokens
from fedpdpo.client.model.packing import Pack
from fedpdpo.client.model.policy import Policy
from fedpdpo.client.training.pairset import PairSet
from fedpdpo.client.training.reference import _sha256
from tiny import CPU, save_tiny_model, tiny_pairs, tiny_pairset, tiny_policy, tiny_run


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    return tiny_policy(save_tiny_model(tmp_path / "model"), tiny_run())


class Counted:
    """The pairs that the trunk and the reference have gone over since."""

    def __init__(self, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
        self.by_trunk: list[int] = []
        self.by_reference: list[int] = []
        entering, scores = policy.entering, policy.reference_scores

        def trunk(batch: Pack) -> Tensor:
            self.by_trunk += batch.indices
            return entering(batch)

        def reference(batch: Pack, states: Tensor | None = None) -> object:
            self.by_reference += batch.indices
            return scores(batch, states)

        monkeypatch.setattr(policy, "entering", trunk)
        monkeypatch.setattr(policy, "reference_scores", reference)


@pytest.fixture
def counted(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(policy, monkeypatch)


def hidden(policy: Policy, pairs: PairSet, indices: Sequence[int]) -> dict[int, Tensor]:
    """Hidden states by pair."""
    found: dict[int, Tensor] = {}
    with torch.no_grad():
        for batch, entering in pairs.packs(indices, device=CPU):
            h = policy.hidden(batch, entering)
            found |= {index: h[rows] for index, rows in zip(batch.indices, batch.rows, strict=True)}
    return found


def test_trunk_and_reference_go_over_each_pair_once_in_its_life(
    policy: Policy, tmp_path: Path, counted: Counted
) -> None:
    first = tiny_pairset(policy, tiny_pairs(), tmp_path)
    assert first.reference_margins.any()
    assert sorted(counted.by_trunk) == sorted(counted.by_reference) == list(range(12))
    again = tiny_pairset(policy, tiny_pairs(), tmp_path)
    assert torch.equal(again.reference_margins, first.reference_margins)
    assert len(counted.by_trunk) == len(counted.by_reference) == 12


def test_under_another_key_they_go_over_all_pairs_again(
    policy: Policy, tmp_path: Path, counted: Counted
) -> None:
    tiny_pairset(policy, tiny_pairs(), tmp_path)
    tiny_pairset(policy, tiny_pairs(), tmp_path, key="another model")
    assert len(counted.by_trunk) == len(counted.by_reference) == 24


def test_a_changed_pair_recomputes_only_itself(
    policy: Policy, tmp_path: Path, counted: Counted
) -> None:
    pairs = tiny_pairs()
    first = tiny_pairset(policy, pairs, tmp_path)
    before = hidden(policy, first, range(12))
    counted.by_trunk.clear()
    counted.by_reference.clear()
    pairs[5] = PairTokens(pairs[5].prompt, pairs[5].rejected, pairs[5].chosen)
    again = tiny_pairset(policy, pairs, tmp_path)
    assert counted.by_trunk == counted.by_reference == [5]
    torch.testing.assert_close(again.reference_margins[5], -first.reference_margins[5])
    kept = [number for number in range(12) if number != 5]
    assert torch.equal(again.reference_margins[kept], first.reference_margins[kept])
    after = hidden(policy, again, range(12))
    for number in kept:
        torch.testing.assert_close(after[number], before[number], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
@pytest.mark.parametrize(
    "name", ["reference-key.safetensors", "trunk-key/states.bin", "trunk-key/index.json"]
)
def test_a_damaged_file_is_computed_again(
    policy: Policy, tmp_path: Path, name: str, damage: bytes | None
) -> None:
    first = tiny_pairset(policy, tiny_pairs(), tmp_path)
    expected = hidden(policy, first, range(12))
    file = tmp_path / name
    flipped = bytearray(file.read_bytes())
    last_logp = -13 * 32 - 2  # before the digests of 12 pairs and of all
    flipped[last_logp if name.startswith("reference") else len(flipped) // 2] ^= 1
    file.unlink()
    file.write_bytes(bytes(flipped) if damage is None else damage)
    again = tiny_pairset(policy, tiny_pairs(), tmp_path)
    assert torch.equal(again.reference_margins, first.reference_margins)
    for number, states in hidden(policy, again, range(12)).items():
        torch.testing.assert_close(states, expected[number], rtol=1e-5, atol=1e-5)


def test_the_references_file_is_the_same_bytes_each_time(policy: Policy, tmp_path: Path) -> None:
    file = tmp_path / "reference-key.safetensors"
    written = set()
    for _ in range(12):
        file.unlink(missing_ok=True)
        tiny_pairset(policy, tiny_pairs(), tmp_path)
        written.add(file.read_bytes())
    assert len(written) == 1


@pytest.mark.parametrize(
    "logps",
    [
        torch.tensor(1.0, dtype=torch.float64),
        torch.ones(12, dtype=torch.float64),
        torch.ones(12, 3, dtype=torch.float64),
        torch.full((12, 2), torch.nan, dtype=torch.float64),
        torch.ones(12, 2, dtype=torch.float32),
        torch.ones(12, 2, dtype=torch.bfloat16),
    ],
)
def test_a_well_formed_file_of_something_else_is_computed_again(
    policy: Policy, tmp_path: Path, logps: Tensor
) -> None:
    first = tiny_pairset(policy, tiny_pairs(), tmp_path)
    file = tmp_path / "reference-key.safetensors"
    tensors = load_file(file) | {"logps": logps}
    sha256 = {"sha256": _sha256(tensors)} if logps.dtype != torch.bfloat16 else {}
    save_file(tensors | sha256, file, metadata={"key": "key"})
    again = tiny_pairset(policy, tiny_pairs(), tmp_path)
    assert torch.equal(again.reference_margins, first.reference_margins)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float32])
def test_a_digest_of_another_type_is_none(
    policy: Policy, tmp_path: Path, kind: torch.dtype, counted: Counted
) -> None:
    tiny_pairset(policy, tiny_pairs(), tmp_path)
    file = tmp_path / "reference-key.safetensors"
    tensors = load_file(file)
    tensors["sha256"] = tensors["sha256"].to(kind)
    save_file(tensors, file, metadata={"key": "key"})
    tiny_pairset(policy, tiny_pairs(), tmp_path)
    assert len(counted.by_reference) == 24


def test_what_a_killed_process_left_of_the_trunk_is_removed(policy: Policy, tmp_path: Path) -> None:
    tiny_pairset(policy, tiny_pairs(), tmp_path)
    left = tmp_path / "trunk-key.new"
    left.mkdir()
    (left / "states.bin").write_bytes(b"half")
    tiny_pairset(policy, tiny_pairs(), tmp_path)
    assert not left.exists()


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_over_its_budget_the_trunk_is_computed_anew_with_the_same_result(
    policy: Policy, tmp_path: Path, share: float
) -> None:
    whole = tiny_pairset(policy, tiny_pairs(), tmp_path)
    assert whole.trunk is not None
    budget = int(whole.trunk.kept_bytes * share)
    some = tiny_pairset(policy, tiny_pairs(), tmp_path, trunk_budget_bytes=budget, key="some")
    assert some.trunk is not None
    assert budget - 10_000 < some.trunk.kept_bytes <= budget
    expected = hidden(policy, whole, range(12))
    for number, states in hidden(policy, some, range(12)).items():
        torch.testing.assert_close(states, expected[number], rtol=1e-5, atol=1e-5)


def test_the_trunks_states_lie_on_the_disk_in_the_backbones_precision(
    tmp_path: Path,
) -> None:
    model = save_tiny_model(tmp_path / "model")
    sizes = []
    for dtype in (torch.float32, torch.bfloat16):
        policy = tiny_policy(model, tiny_run(), dtype=dtype)
        pairs = tiny_pairset(policy, tiny_pairs(), tmp_path, key=str(dtype))
        assert pairs.trunk is not None
        states = pairs.trunk.get(pairs.pairs[0])
        assert states is not None
        assert states.dtype == dtype
        size = (tmp_path / f"trunk-{dtype}" / "states.bin").stat().st_size
        assert pairs.trunk.kept_bytes == size
        sizes.append(size)
    assert sizes[0] == 2 * sizes[1]
