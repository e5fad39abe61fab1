"""A client's state directory: whole rounds, one owner, damage named."""

import errno
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedpdpo.client import vault as vault_module
from fedpdpo.client.link import Link
from fedpdpo.client.model.lora import SharedState
from fedpdpo.client.outcome import TrainedRound, TrainingReport
from fedpdpo.client.state import ClientState, PrivateState
from fedpdpo.common.errors import BadPayload, BadState, StorageFull
from fedpdpo.common.layout import LoraLayout
from tiny import tiny_run

LAYOUT = LoraLayout((("m.lora_A.weight", (2, 3)), ("m.lora_B.weight", (3, 2))))
REPORT = TrainingReport(loss=0.5, accuracy=0.75, num_steps=3, seconds=1.5)


def save(state: ClientState, number: int) -> TrainedRound:
    value = float(number)
    tensors = {name: torch.full(shape, value) for name, shape in LAYOUT.shapes}
    private = PrivateState(
        {"reward.v": torch.full((4,), value)}, {"reward.v/step": torch.tensor(1)}
    )
    delta = SharedState(tensors, LAYOUT)
    return state.save_round(number, private=private, delta=delta, num_pairs=9, report=REPORT)


def opened(folder: Path) -> ClientState:
    return ClientState(folder, client_id="ada")


def test_a_new_directory_has_no_round(tmp_path: Path) -> None:
    assert opened(tmp_path).last_round() is None


def test_the_last_round_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    save(opened(tmp_path), 1)
    saved = save(opened(tmp_path), 2)
    found = opened(tmp_path).last_round()
    assert found is not None
    trained, private = found
    assert trained == saved
    assert trained.report == REPORT
    assert torch.equal(private.parameters["reward.v"], torch.full((4,), 2.0))
    assert SharedState.read(trained.delta, LAYOUT).tensors["m.lora_A.weight"][0, 0] == 2.0


def test_the_last_two_rounds_are_kept(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        save(opened(tmp_path), number)
    kept = sorted(path.name for path in (tmp_path / "rounds").iterdir())
    assert kept == ["round-00002", "round-00003"]


def test_rounds_are_in_the_order_of_their_numbers_however_many_digits_these_have(
    tmp_path: Path,
) -> None:
    for number in (99_998, 99_999, 100_000):
        assert save(opened(tmp_path), number).delta.exists()
        opened(tmp_path).adapter_path(number).parent.mkdir(exist_ok=True)
        opened(tmp_path).adapter_path(number).touch()
        (tmp_path / f"adapters/.version-{number:05}.safetensors.{'0' * 64}.part").touch()
    found = opened(tmp_path).last_round()
    assert found is not None
    assert found[0].number == 100_000
    assert opened(tmp_path).last_adapter() == opened(tmp_path).adapter_path(100_000)
    opened(tmp_path).forget_adapters_before(100_000)
    kept = {f".version-100000.safetensors.{'0' * 64}.part", "version-100000.safetensors"}
    assert {path.name for path in (tmp_path / "adapters").iterdir()} == kept


@pytest.mark.parametrize("part", ["private", "optimizer", "delta"])
@pytest.mark.parametrize("damage", ["altered", "truncated", "missing"])
def test_a_file_that_is_not_what_was_written_is_named(
    tmp_path: Path, part: str, damage: str
) -> None:
    save(opened(tmp_path), 1)
    save(opened(tmp_path), 2)
    path = tmp_path / f"rounds/round-00002/{part}.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + (b"" if damage == "truncated" else bytes([content[-1] ^ 1])))
    if damage == "missing":
        path.unlink()
    with pytest.raises(BadState, match=rf"{part}\.safetensors is damaged.*from round-00001"):
        opened(tmp_path).last_round()


def test_a_damaged_description_is_named(tmp_path: Path) -> None:
    save(opened(tmp_path), 1)
    (tmp_path / "rounds/round-00001/state.json").write_text("{")
    with pytest.raises(BadState, match=r"state\.json is damaged"):
        opened(tmp_path).last_round()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff", b'{"client_id": "ada"}'])
def test_a_damaged_identity_is_named(tmp_path: Path, content: bytes) -> None:
    opened(tmp_path).bind(tiny_run(), model="tiny")
    (tmp_path / "client.json").write_bytes(content)
    with pytest.raises(BadState, match=r"client\.json is damaged"):
        opened(tmp_path)


def test_a_half_written_round_is_removed_and_the_one_before_it_counts(tmp_path: Path) -> None:
    save(opened(tmp_path), 1)
    partial = tmp_path / "rounds/.round-00002.partial"
    partial.mkdir()
    (partial / "private.safetensors").write_bytes(b"half")
    found = opened(tmp_path).last_round()
    assert found is not None
    assert found[0].number == 1
    assert not partial.exists()


def test_a_full_disk_leaves_the_round_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = opened(tmp_path)
    save(state, 1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(vault_module, "save_file", full)
    with pytest.raises(StorageFull, match="nothing was lost"):
        save(state, 2)
    found = opened(tmp_path).last_round()
    assert found is not None
    assert found[0].number == 1
    assert [path.name for path in (tmp_path / "rounds").iterdir()] == ["round-00001"]


def test_a_directory_belongs_to_one_client_and_one_run(tmp_path: Path) -> None:
    opened(tmp_path).bind(tiny_run(), model="tiny")
    with pytest.raises(BadState, match="belongs to client ada, not bea"):
        ClientState(tmp_path, client_id="bea")
    other = tiny_run().model_copy(update={"run_id": "1" * 32})
    with pytest.raises(BadState, match="holds the private parts of run 0000"):
        opened(tmp_path).bind(other, model="tiny")
    assert ClientState(tmp_path, client_id=None).client_id == "ada"


def test_a_client_without_a_name_gets_one_and_keeps_it(tmp_path: Path) -> None:
    state = ClientState(tmp_path, client_id=None)
    state.bind(tiny_run(), model="tiny")
    assert ClientState(tmp_path, client_id=None).client_id == state.client_id


def test_shared_state_takes_the_layouts_tensors_and_no_other() -> None:
    tensors = {name: torch.zeros(shape) for name, shape in LAYOUT.shapes}
    SharedState(tensors, LAYOUT)
    with pytest.raises(BadPayload):
        SharedState(tensors | {"head.weight": torch.zeros(2, 2)}, LAYOUT)
    with pytest.raises(BadPayload):
        SharedState({"m.lora_A.weight": torch.zeros(2, 3)}, LAYOUT)
    with pytest.raises(BadPayload):
        SharedState(tensors | {"m.lora_A.weight": torch.zeros(3, 2)}, LAYOUT)


def test_a_delta_is_the_difference_of_two_states() -> None:
    one, other = (
        SharedState({name: torch.full(shape, v) for name, shape in LAYOUT.shapes}, LAYOUT)
        for v in (3.0, 1.0)
    )
    assert all((tensor == 2.0).all() for tensor in one.minus(other).tensors.values())


def test_a_file_with_anything_private_in_it_is_never_pushed(tmp_path: Path) -> None:
    trained = save(opened(tmp_path), 1)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.2)
        link = Link(
            f"127.0.0.1:{listening.getsockname()[1]}", "ada", connect_timeout_s=0, stall_s=1
        )
        for name in ("private", "optimizer"):
            private = replace(trained, delta=trained.delta.with_name(f"{name}.safetensors"))
            with pytest.raises(BadPayload, match="which the run's LoRA lacks"):
                link.push(private, LAYOUT)
        with pytest.raises(TimeoutError):
            listening.accept()
        link.close()
