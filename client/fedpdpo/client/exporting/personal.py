"""The personal model as a folder: what `fedpdpo export` writes and the other commands read.

adapter_config.json, adapter_model.safetensors   the shared LoRA, as PEFT loads it
private.safetensors                              head, bottleneck and reward head
fedpdpo.json                                     client, run, method, where the backbone lay
README.md                                        how to use it
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fedpdpo.client.model.backbone import Backbone, Quantize, load_backbone
from fedpdpo.client.model.lora import SharedState, peft_config
from fedpdpo.client.model.policy import Policy, put_private_parameters
from fedpdpo.client.state import ClientState, Identity
from fedpdpo.client.vault import Vault
from fedpdpo.common.errors import BadModel, BadState
from fedpdpo.common.files import held, whole_folder
from fedpdpo.common.layout import layer_numbers

_README = """\
# A personal model

Client `{client}` of the FedPDPO run `{run}`, after round {round}, on the global adapter of
version {version}. The backbone is `{model}`; it is not in this folder.

    fedpdpo chat --model-dir {folder} --compare base
    fedpdpo eval --model-dir {folder} --data preferences.jsonl

Both take `--model` where the backbone lies elsewhere. The shared LoRA alone, without this client's
private parts, is a PEFT adapter:

    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained("{model}")
    model = PeftModel.from_pretrained(model, "{folder}")

`private.safetensors` holds what is personal: {parts}. It was learnt from private preferences; give
it away with the same care as these.
"""


def export(state_dir: Path, out: Path, vault: Vault | None = None) -> None:
    """Write the personal model of a client's state directory to a new folder.

    Raises BadState where there is nothing to export yet, the directory is damaged or in use, or
    `out` is there already; StorageFull.
    """
    if not (state_dir / "client.json").exists():
        raise BadState(f"{state_dir} is no client's state directory")
    with held(state_dir):
        state = ClientState(state_dir, client_id=None, vault=vault or Vault())
        adapter = state.last_adapter()
        last = state.last_round()
        if state.identity is None or last is None:
            raise BadState(f"{state_dir} has trained no round yet; there is nothing to export")
        identity, (trained, private) = state.identity, last
        layout = identity.run.layout
        shared = SharedState.read(adapter, layout)
        num_layers = max(layer_numbers(layout)) + 1
        with whole_folder(out) as folder:
            shared.write(folder / "adapter_model.safetensors")
            config = peft_config(identity.run.lora, num_layers=num_layers)
            config.base_model_name_or_path = identity.model
            config.inference_mode = True
            config.save_pretrained(folder)
            save_file(private.parameters, folder / "private.safetensors")
            (folder / "fedpdpo.json").write_text(
                identity.model_dump_json(indent=2), encoding="utf-8"
            )
            text = _README.format(
                client=identity.client_id,
                run=identity.run.run_id,
                round=trained.number,
                version=int(adapter.stem.rpartition("-")[2]),
                model=identity.model,
                folder=out,
                parts=", ".join(sorted(private.parameters)),
            )
            (folder / "README.md").write_text(text, encoding="utf-8")


def load(
    folder: Path,
    *,
    model: str | None,
    device: torch.device,
    dtype: torch.dtype,
    quantize: Quantize = "none",
) -> tuple[Policy, Backbone, Identity]:
    """Load an exported personal model; `model` says where the backbone lies if it moved.

    Raises BadState where the folder is damaged, BadModel where the backbone is another one.
    """
    if not (folder / "fedpdpo.json").exists():
        raise BadState(f"{folder} is no exported model; write one with fedpdpo export")
    identity = Identity.read(folder / "fedpdpo.json")
    backbone = load_backbone(model or identity.model, device=device, dtype=dtype, quantize=quantize)
    for what, found, wanted in (
        ("backbone", backbone.fingerprint, identity.run.backbone_fingerprint),
        ("tokenizer", backbone.tokenizer_fingerprint, identity.run.tokenizer_fingerprint),
    ):
        if found != wanted:
            raise BadModel(
                f"the {what} of {model or identity.model} has fingerprint {found[:12]}, this "
                f"model was trained on {wanted[:12]}; give the right one by --model"
            )
    policy = Policy(backbone, identity.run, private_seed=0)
    shared = SharedState.read(folder / "adapter_model.safetensors", identity.run.layout)
    shared.put_into(policy.peft_model)
    try:
        put_private_parameters(policy, load_file(folder / "private.safetensors"))
    except (OSError, SafetensorError) as error:
        raise BadState(f"{folder / 'private.safetensors'} is damaged: {error}") from error
    return policy, backbone, identity
