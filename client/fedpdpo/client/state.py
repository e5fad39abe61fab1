"""The private state of a client on its own disk.

    STATE_DIR/client.json                       the client's name and the run that it belongs to
    STATE_DIR/rounds/round-00003/               what round 3 left: all of it or none
        private.safetensors                     head, bottleneck and reward head, sealed with a key
        optimizer.safetensors                   their moments, sealed too
        delta.safetensors                       the LoRA delta as it is sent
        residual.safetensors                    what its encoding left out, if it did
        state.json                              round, report and the digests of the others
    STATE_DIR/adapters/version-00003.safetensors  global adapters
    STATE_DIR/unfinished/                       the step saved last of the round in training
    STATE_DIR/reference.safetensors             the reference's log-probabilities, computed once
    STATE_DIR/trunk-train/, trunk-eval/         what the frozen layers make of the pairs

A round's folder is renamed into place when it is complete, so a process that dies at any moment
leaves the last complete round. The round before it is kept as well.
"""

import json
import re
import secrets
import shutil
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from fedpdpo.client.feedback import write_delta
from fedpdpo.client.model.lora import SharedState
from fedpdpo.client.outcome import TrainedRound, TrainingReport
from fedpdpo.client.vault import Vault
from fedpdpo.common.encoding import DeltaFormat
from fedpdpo.common.errors import BadState
from fedpdpo.common.files import sha256_of, whole_file, whole_folder
from fedpdpo.common.run import Closed, Run, check_client_id
from fedpdpo.common.settings import explain

_KEPT_ROUNDS = 2
_PARTS = ("private", "optimizer", "delta")
_EXACT = DeltaFormat()
_PLAIN = Vault()


class Identity(Closed):
    """Whose private parts these are, where the backbone lies, and the run that they belong to."""

    client_id: str
    model: str
    run: Run

    @classmethod
    def read(cls, path: Path) -> "Identity":
        """Read a JSON file. Raises BadState where it is damaged."""
        try:
            return cls.model_validate(_read_json(path))
        except ValidationError as error:
            raise BadState(f"{path} is damaged ({explain(error, cls)})") from error


@dataclass(frozen=True)
class PrivateState:
    """What never leaves the client: tensors of the private parts and their moments."""

    parameters: dict[str, Tensor]
    moments: dict[str, Tensor]


class ClientState:
    """One client's state directory, which this process holds.

    Raises BadState where it belongs to another client or run, or is damaged.
    """

    def __init__(self, folder: Path, *, client_id: str | None, vault: Vault = _PLAIN) -> None:
        self.folder = folder
        self.vault = vault
        path = folder / "client.json"
        self.identity = Identity.read(path) if path.exists() else None
        known = self.identity.client_id if self.identity else None
        if known and client_id and known != client_id:
            raise BadState(
                f"{folder} belongs to client {known}, not {client_id}; give another --state-dir"
            )
        default = f"{socket.gethostname().partition('.')[0][:48]}-{secrets.token_hex(3)}"
        self.client_id = check_client_id(known or client_id or default)
        for partial in folder.rglob(".*.partial"):
            shutil.rmtree(partial) if partial.is_dir() else partial.unlink()

    def bind(self, run: Run, *, model: str) -> None:
        """Tie the directory to a run. Raises BadState where it is tied to another one."""
        known = self.identity.run.run_id if self.identity else run.run_id
        if known != run.run_id:
            raise BadState(
                f"{self.folder} holds the private parts of run {known}, but the server drives run "
                f"{run.run_id}; give another --state-dir for the new run"
            )
        self.identity = Identity(client_id=self.client_id, model=model, run=run)
        with whole_file(self.folder / "client.json") as partial:
            partial.write_text(self.identity.model_dump_json(indent=2), encoding="utf-8")

    # --- rounds -------------------------------------------------------------------------------

    def _round_folders(self) -> list[Path]:
        return sorted((self.folder / "rounds").glob("round-*"), key=_number)

    def save_round(
        self,
        number: int,
        *,
        private: PrivateState,
        delta: SharedState,
        num_pairs: int,
        report: TrainingReport,
        fmt: DeltaFormat = _EXACT,
    ) -> TrainedRound:
        """Keep what a round left, durably and as a whole; the delta as it travels.

        Raises StorageFull.
        """
        folder = self.folder / "rounds" / f"round-{number:05d}"
        earlier = self._round_folders()
        with whole_folder(folder) as partial:
            self.vault.save(private.parameters, partial / "private.safetensors")
            self.vault.save(private.moments, partial / "optimizer.safetensors")
            write_delta(partial, delta, fmt, before=earlier[-1] if earlier else None)
            state = {
                "round": number,
                "num_pairs": num_pairs,
                "report": asdict(report),
                "sha256": {
                    path.stem: sha256_of(path).hex()
                    for path in sorted(partial.glob("*.safetensors"))
                },
            }
            (partial / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")
        for old in self._round_folders()[:-_KEPT_ROUNDS]:
            shutil.rmtree(old)
        return self._trained(folder, state)

    def last_round(self) -> tuple[TrainedRound, PrivateState] | None:
        """The last complete round and what it left; None before the first one.

        Raises BadState, naming the file, where a digest is not the one written beside it.
        """
        folders = self._round_folders()
        if not folders:
            return None
        folder = folders[-1]
        state = _read_json(folder / "state.json")
        digests = state.get("sha256")
        written = digests if isinstance(digests, dict) else {}
        for part in {**dict.fromkeys(_PARTS), **written}:
            path = folder / f"{Path(part).name}.safetensors"
            try:
                intact = sha256_of(path).hex() == written.get(part)
            except OSError:
                intact = False
            if not intact:
                kept = [before.name for before in folders[:-1]] or ["the beginning"]
                before = f"; without {folder} it goes on from {kept[-1]}"
                raise BadState(f"{path} is damaged or missing; restore it from a backup{before}")
        private = PrivateState(
            self.vault.load(folder / "private.safetensors"),
            self.vault.load(folder / "optimizer.safetensors"),
        )
        return self._trained(folder, state), private

    @staticmethod
    def _trained(folder: Path, state: dict[str, Any]) -> TrainedRound:
        try:
            report = TrainingReport(**state["report"])
            delta = folder / "delta.safetensors"
            return TrainedRound(int(state["round"]), int(state["num_pairs"]), report, delta)
        except (KeyError, TypeError, ValueError) as error:
            raise BadState(f"{folder / 'state.json'} is damaged; restore it") from error

    # --- other files --------------------------------------------------------------------------

    def adapter_path(self, version: int) -> Path:
        """Where a global adapter lies or will lie."""
        return self.folder / "adapters" / f"version-{version:05d}.safetensors"

    def last_adapter(self) -> Path:
        """The newest global adapter. Raises BadState where none was pulled yet."""
        found = sorted((self.folder / "adapters").glob("version-*.safetensors"), key=_number)
        if not found:
            raise BadState(f"{self.folder} holds no global adapter yet; let a round finish first")
        return found[-1]

    def forget_adapters_before(self, version: int) -> None:
        """Remove global adapters older than a version, and what came of such ones."""
        for path in (self.folder / "adapters").glob("*version-*"):
            found = re.match(r"\.?version-(\d+)\.safetensors", path.name)
            if found and int(found[1]) < version:
                path.unlink()


def _number(path: Path) -> int:
    """The number at the end of a name; -1 where there is none, which is nobody's round."""
    number = path.stem.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadState(f"{path} is damaged or missing; restore it from a backup") from error
    if not isinstance(values, dict):
        raise BadState(f"{path} is damaged; restore it from a backup")
    return values
