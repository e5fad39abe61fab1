"""What never changes about pairs is computed once and found again."""

from pathlib import Path

import pytest
import torch

from fedpdpo.client.policy import Policy
from tiny import CPU, save_tiny_model, tiny_pairs, tiny_pairset, tiny_policy, tiny_run


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    return tiny_policy(save_tiny_model(tmp_path / "model"), tiny_run())


def never(*_: object) -> None:
    raise AssertionError("the reference was computed again")


def test_reference_margins_are_taken_from_disk_under_the_same_key(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tiny_pairset(policy, tiny_pairs(), tmp_path)
    assert first.reference_margins.any()
    monkeypatch.setattr(policy, "reference_scores", never)
    again = tiny_pairset(policy, tiny_pairs(), tmp_path)
    assert torch.equal(again.reference_margins, first.reference_margins)
    with pytest.raises(AssertionError, match="computed again"):
        tiny_pairset(policy, tiny_pairs(), tmp_path, key="another")


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_damaged_reference_is_computed_again(
    policy: Policy, tmp_path: Path, damage: bytes | None
) -> None:
    first = tiny_pairset(policy, tiny_pairs(), tmp_path)
    file = tmp_path / "reference.safetensors"
    file.write_bytes(file.read_bytes()[:-3] if damage is None else damage)
    again = tiny_pairset(policy, tiny_pairs(), tmp_path)
    assert torch.equal(again.reference_margins, first.reference_margins)


def test_over_its_budget_the_trunk_is_computed_anew_with_the_same_result(
    policy: Policy, tmp_path: Path
) -> None:
    kept = tiny_pairset(policy, tiny_pairs(), tmp_path)
    anew = tiny_pairset(policy, tiny_pairs(), tmp_path, trunk_cache_bytes=0, key="anew")
    assert kept.kept_bytes > 0
    assert anew.kept_bytes == 0
    with torch.no_grad():
        for (one, entering), (other, nothing) in zip(
            kept.packs([3, 1, 2], device=CPU), anew.packs([3, 1, 2], device=CPU), strict=True
        ):
            assert nothing is None
            torch.testing.assert_close(
                policy.hidden(one, entering), policy.hidden(other), rtol=1e-5, atol=1e-5
            )
