"""Serves an exported model by transformers' own OpenAI-compatible server."""

from pathlib import Path

from fedpdpo.client.exporting.code import MODEL
from fedpdpo.common.errors import BadSettings, BadState


def serve(folder: Path, *, host: str, port: int, device: str, dtype: str) -> None:
    """Serve a folder that `fedpdpo export --form model` wrote, until a signal ends the process.

    transformers' server knows the classes of its own package only, so the folder's is put there,
    where its code is what this version writes; transformers itself is to run no code. Raises
    BadState for another folder or code, BadSettings where the server's libraries are missing.
    """
    import transformers
    from transformers.cli.serve import Serve, is_serve_available
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    if not is_serve_available():
        raise BadSettings(
            "fedpdpo serve needs more libraries; install this package with its extra [serve]"
        )
    if not (folder / "config.json").exists():
        raise BadState(f"{folder} holds no model; write one with fedpdpo export --form model")
    if MODEL.is_in(folder):
        found = get_class_from_dynamic_module(f"{MODEL.module}.{MODEL.kind}", str(folder))
        setattr(transformers, MODEL.kind, found)
    Serve(str(folder), host=host, port=port, device=device, dtype=dtype, trust_remote_code=False)
