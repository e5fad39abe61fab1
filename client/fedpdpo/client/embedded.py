"""A client for notebooks and programs."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fedpdpo.client.daemon import run_client
from fedpdpo.client.exporting.export import export_form
from fedpdpo.client.exporting.personal import export
from fedpdpo.client.settings import ClientSettings
from fedpdpo.client.tool.personal import PersonalPolicy
from fedpdpo.client.vault import Vault
from fedpdpo.common.settings import made


class Client:
    """What `fedpdpo-client` is, in this process.

    Settings are those of `fedpdpo-client`, by their names.

        client = Client("localhost:50051", "prefs.jsonl", state_dir="ada")
        client.run()
        model = client.personal()

    Raises BadSettings for settings that cannot be.
    """

    def __init__(self, server: str, data: Path | str, **named: Any) -> None:
        self.settings = made(ClientSettings, {"server": server, "data": data} | named)

    def run(self) -> None:
        """Take part until the run has ended, or go on where this state directory's client was.

        One client a process at a time: torch has one number of threads. Raises BadData, BadModel,
        BadState or Refused, each with what to do.
        """
        run_client(self.settings)

    def export(self, out: Path | str, *, form: str = "personal") -> Path:
        """Write what the client has trained to a new folder, as `fedpdpo export` does; gives it.

        Raises BadState, BadModel or StorageFull.
        """
        own, folder = self.settings, Path(out)
        vault = Vault.of(own.state_key, own.state_key_file)
        if form == "personal":
            export(own.state_dir, folder, vault)
        else:
            export_form(own.state_dir, folder, form, model=own.model, vault=vault)
        return folder

    def personal(self) -> PersonalPolicy:
        """The model that the client has trained, to talk to and to measure.

        Raises BadState or BadModel.
        """
        with TemporaryDirectory() as folder:
            out = self.export(Path(folder) / "personal")
            how = self.settings
            return PersonalPolicy.load(
                out, device=how.device, dtype=how.dtype, quantize=how.quantize
            )
