"""Writes the personal model of a client's state directory in one of the forms."""

import tempfile
from pathlib import Path

import torch

from fedpdpo.client.exporting.forms import FORMS, Personal
from fedpdpo.client.exporting.gguf_model import GgufType
from fedpdpo.client.exporting.personal import export, load
from fedpdpo.client.vault import Vault
from fedpdpo.common.files import whole_folder


def export_form(
    state_dir: Path,
    out: Path,
    form: str,
    *,
    model: str | None,
    vault: Vault | None = None,
    gguf_type: GgufType = "f32",
) -> None:
    """Write a form to a new folder; `model` says where the backbone lies if it moved.

    Raises what `export` and `load` raise, and what the form's writer does.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "personal"
        export(state_dir, folder, vault)
        policy, backbone, identity = load(
            folder, model=model, device=torch.device("cpu"), dtype=torch.float32
        )
    with whole_folder(out) as partial:
        FORMS[form].write(Personal(policy, backbone, identity.run, gguf_type), partial)
        usage = FORMS[form].usage.format(folder=out, model=model or identity.model)
        text = f"# {FORMS[form].what}\n\nOf client `{identity.client_id}`.\n\n{usage}"
        (partial / "README.md").write_text(text, encoding="utf-8")
