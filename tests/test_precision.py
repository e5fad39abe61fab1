"""Backbones in bfloat16 and in 4 bits, layers computed twice, attention with a window."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fedpdpo.client.exporting.personal import export, load
from fedpdpo.client.model.backbone import dtype_of, load_backbone
from fedpdpo.client.model.policy import Policy
from fedpdpo.client.tool.command import main
from fedpdpo.client.training.evaluation import evaluate
from fedpdpo.client.training.local_round import train_round
from fedpdpo.client.training.optimizer import LocalOptimizer
from fedpdpo.common.errors import BadModel
from left import left_by
from tiny import (
    CPU,
    save_tiny_model,
    tiny_backbone,
    tiny_pairs,
    tiny_pairset,
    tiny_run,
    write_preferences,
)


def learnt(policy: Policy, folder: Path) -> float:
    """Combined accuracy on the pairs after a round of training on them."""
    run = tiny_run(local_epochs=2)
    pairs = tiny_pairset(policy, tiny_pairs(num=48), folder)
    train_round(policy, pairs, run, LocalOptimizer(policy, run.method), seed=0, round_number=1)
    _, personal = evaluate(policy, pairs, run.method)
    return personal.combined_accuracy


def test_auto_is_float32_where_there_is_no_gpu() -> None:
    assert dtype_of("auto", CPU) == torch.float32
    assert dtype_of("bfloat16", CPU) == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"checkpoint_activations": True}])
def test_a_backbone_in_4_bits_is_checked_trained_and_known_as_the_same(
    tmp_path: Path, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    model = save_tiny_model(tmp_path / "model", hidden_size=64, intermediate_size=128, head_dim=16)
    plain = tiny_backbone(model)
    backbone = load_backbone(str(model), device=CPU, dtype=dtype, quantize="4bit")
    layer = backbone.model.get_decoder().layers[0].mlp.up_proj
    assert layer.weight.dtype == torch.uint8
    assert layer.weight.numel() == 128 * 64 / 2
    assert backbone.fingerprint == plain.fingerprint
    policy = Policy(backbone, tiny_run(), private_seed=1, **options)
    policy.check(tiny_pairs()[0])
    assert policy.decoder.path == "blocks"
    assert learnt(policy, tmp_path) > 0.9


def test_an_exported_model_is_computed_in_4_bits_where_it_was_trained_so(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model", hidden_size=64, intermediate_size=128, head_dim=16)
    left_by(model, tmp_path / "state", tiny_run())
    export(tmp_path / "state", tmp_path / "out")
    pairs = tmp_path / "pairs.jsonl"
    write_preferences(pairs, seed=2, num=8, taste="warm")
    told = ["--model-dir", str(tmp_path / "out"), "--data", str(pairs)]
    _, backbone, _ = load(
        tmp_path / "out", model=None, device=CPU, dtype=torch.float32, quantize="4bit"
    )
    assert backbone.model.get_decoder().layers[0].mlp.up_proj.weight.dtype == torch.uint8
    assert main(["eval", *told, "--quantize", "4bit"]) == 0


def test_4_bits_without_bitsandbytes_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_tiny_model(tmp_path)
    monkeypatch.setattr("fedpdpo.client.model.backbone.find_spec", lambda _: None)
    with pytest.raises(BadModel, match=r"install this package with its extra \[quantized\]"):
        load_backbone(str(model), device=CPU, dtype=torch.float32, quantize="4bit")


def test_a_model_whose_layers_cannot_be_computed_twice_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedpdpo.client.model.policy.checkpoint_layers", lambda _: 0)
    with pytest.raises(BadModel, match="cannot be checkpointed"):
        Policy(
            tiny_backbone(save_tiny_model(tmp_path)),
            tiny_run(),
            private_seed=1,
            checkpoint_activations=True,
        )
