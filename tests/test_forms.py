"""The personal model in other tools' forms: each gives the client's own numbers."""

import json
import socket
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from exported import Left, own_logits
from fedpdpo.client.data.preferences import Preference
from fedpdpo.client.data.tokens import pair_tokens
from fedpdpo.client.exporting.personal import export, load
from fedpdpo.client.model.objective import explicit_margin, implicit_margin
from fedpdpo.client.model.packing import pack
from fedpdpo.client.model.policy import Policy
from fedpdpo.client.tool.chat import Speaker
from fedpdpo.client.tool.command import main
from fedpdpo.client.tool.ranking import ranked
from processes import stage
from tiny import CPU, save_tiny_model, tiny_pairs, tiny_tokenizer

PROMPT = "the film is 17"
ANSWERS = (" lovely", " awful", " rather cold")


def own_rewards(policy: Policy) -> Tensor:
    packed = pack(tiny_pairs(), range(12), device=CPU)
    with torch.no_grad():
        found = policy.scores(packed, policy.hidden(packed))
    return torch.stack([found.chosen_rewards, found.rejected_rewards], 1)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize(
    "method", [{}, {"head": "full"}, {"head": "frozen"}, {"bottleneck": 0}], ids=str
)
def test_the_whole_model_gives_the_clients_own_logits_and_speaks_as_it_does(
    tmp_path: Path, family: str, method: dict[str, Any]
) -> None:
    left = Left(tmp_path / "left", family=family, **method)
    ids = torch.tensor(tiny_pairs()[0].prompt)
    expected = own_logits(left.policy, ids)
    out = left.exported("model")
    theirs = AutoModelForCausalLM.from_pretrained(
        out, trust_remote_code="bottleneck" not in method, dtype=torch.float32
    )
    with torch.no_grad():
        found = theirs(input_ids=ids[None]).logits[0]
        said = theirs.generate(ids[None], max_new_tokens=5, do_sample=False)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert said.shape[1] > len(ids)
    base = AutoModelForCausalLM.from_pretrained(left.model)
    with torch.no_grad():
        assert (base(input_ids=ids[None]).logits[0] - expected).abs().max() > 1e-3


@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings:UserWarning")
@pytest.mark.parametrize("head", ["lowrank", "full", "frozen"])
@pytest.mark.parametrize("last_layers", [0, 2])
def test_plain_peft_gives_the_clients_own_logits(
    tmp_path: Path, head: str, last_layers: int
) -> None:
    left = Left(tmp_path / "left", head=head, bottleneck=0, last_layers=last_layers)
    ids = torch.tensor(tiny_pairs()[0].prompt)
    expected = own_logits(left.policy, ids)
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(left.model), left.exported("peft")
    )
    with torch.no_grad():
        found = plain(input_ids=ids[None]).logits[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("head", ["lowrank", "full", "frozen"])
def test_merged_weights_need_no_code_and_give_the_clients_own_logits(
    tmp_path: Path, family: str, head: str
) -> None:
    left = Left(tmp_path / "left", family=family, head=head, bottleneck=0)
    ids = torch.tensor(tiny_pairs()[0].prompt)
    expected = own_logits(left.policy, ids)
    out = left.exported("merged")
    assert not list(out.glob("*.py"))
    plain = AutoModelForCausalLM.from_pretrained(out)
    with torch.no_grad():
        found = plain(input_ids=ids[None]).logits[0]
        base = AutoModelForCausalLM.from_pretrained(left.model)(input_ids=ids[None]).logits[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (base - expected).abs().max() > 1e-3
    assert plain.dtype == torch.float32
    assert plain.config.tie_word_embeddings == (head == "frozen")
    told = AutoTokenizer.from_pretrained(out)(PROMPT)["input_ids"]
    assert told == tiny_tokenizer()(PROMPT)["input_ids"]


@pytest.mark.parametrize("form", ["peft", "merged", "gguf"])
def test_a_bottleneck_has_no_place_in_a_peft_adapter_or_in_plain_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    left = Left(tmp_path / "left")
    out = tmp_path / "out"
    arguments = ["--state-dir", str(tmp_path / "left/state"), "--out", str(out), "--form", form]
    assert main(["export", *arguments, "--model", str(left.model)]) == 2
    assert "--form model holds all" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("method", [{}, {"bottleneck": 0}], ids=str)
def test_the_reward_model_scores_as_the_client_does(tmp_path: Path, method: dict[str, Any]) -> None:
    left = Left(tmp_path / "left", **method)
    expected = own_rewards(left.policy)
    out = left.exported("reward")
    theirs = AutoModelForSequenceClassification.from_pretrained(out, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert theirs.config.num_labels == 1
    for pair, own in zip(tiny_pairs(), expected, strict=True):
        texts = [tokenizer.decode(ids[:-1]) for ids in (pair.chosen, pair.rejected)]
        found = theirs.score(tokenizer, tokenizer.decode(pair.prompt), texts)
        torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-5)
    assert (expected[:, 0] > expected[:, 1]).double().mean() > 0.8


@pytest.mark.parametrize("opening", ["", "{{ strftime_now('%d %b %Y') }}\n"], ids=["", "dated"])
def test_the_reward_model_takes_chat_messages(tmp_path: Path, opening: str) -> None:
    left = Left(tmp_path / "left")
    out = left.exported("reward")
    theirs = AutoModelForSequenceClassification.from_pretrained(out, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(out)
    tokenizer.chat_template = opening + tokenizer.chat_template
    turns = [{"role": "user", "content": PROMPT}]
    together = theirs.score(tokenizer, turns, ANSWERS)
    own = ranked(left.policy, tokenizer, left.run.method, PROMPT, ANSWERS, chat=True,
                 max_tokens=256)  # fmt: skip
    by_answer = {one.answer: one.explicit for one in own}
    expected = torch.tensor([by_answer[answer] for answer in ANSWERS])
    torch.testing.assert_close(together.cpu(), expected, rtol=1e-4, atol=1e-5)
    alone = torch.cat([theirs.score(tokenizer, turns, [answer]) for answer in ANSWERS])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert together.std() > 0


def test_the_rewards_form_needs_a_reward_head(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left = Left(tmp_path / "left", reward_head=False)
    state, out = str(tmp_path / "left/state"), str(tmp_path / "out")
    arguments = ["--state-dir", state, "--out", out, "--form", "reward", "--model", str(left.model)]
    assert main(["export", *arguments]) == 2
    assert "no reward head" in capsys.readouterr().err


def test_the_model_is_served_as_openais_clients_ask_for_it(tmp_path: Path) -> None:
    left = Left(tmp_path / "left")
    out = left.exported("model")
    personal = tmp_path / "personal"
    export(tmp_path / "left/state", personal)
    policy, backbone, _ = load(personal, model=str(left.model), device=CPU, dtype=torch.float32)
    turns = [{"role": "user", "content": PROMPT}]
    speaker = Speaker(policy, backbone.tokenizer, max_new_tokens=8, temperature=0)
    expected = speaker.reply(turns)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with stage(tmp_path / "stage") as on:
        server = on.start("fedpdpo", "serve", "--model-dir", out, "--port", port, "--device", "cpu",
                          log="serve")  # fmt: skip
        server.says("Uvicorn running")
        asked = {"model": str(out), "messages": turns, "max_tokens": 8, "temperature": 0}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/chat/completions",
            json.dumps(asked).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            found = json.load(answer)["choices"][0]["message"]["content"]
    assert found.strip() == expected


EVIL = """\
from pathlib import Path
from transformers import LlamaConfig
Path("{ran}").touch()
class C(LlamaConfig): pass
"""


def told(folder: Path, name: str, **more: Any) -> None:
    """Let a folder's configuration say more."""
    path = folder / name
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(found | more))


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers end when they have loaded their model."""
    monkeypatch.setattr("uvicorn.Server.run", lambda _: None)


OWN = {"AutoModelForCausalLM": "remote_model.PersonalModel"}


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(
    ("bottleneck", "name", "auto_map"),
    [
        (0, "config.json", {"AutoConfig": "evil.C"}),
        (0, "config.json", OWN),
        (8, "config.json", OWN | {"AutoConfig": "evil.C"}),
        (8, "config.json", {"AutoModelForCausalLM": "evil.C"}),
        (8, "tokenizer_config.json", {"AutoTokenizer": ["evil.C", None]}),
        (8, "processor_config.json", {"AutoProcessor": "evil.C"}),
    ],
    ids=str,
)
def test_no_code_is_run_that_a_folder_names_beside_ours(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    bottleneck: int,
    name: str,
    auto_map: dict[str, Any],
) -> None:
    out = Left(tmp_path / "left", bottleneck=bottleneck).exported("model")
    ran = tmp_path / "ran"
    (out / "evil.py").write_text(EVIL.format(ran=ran))
    told(out, name, auto_map=auto_map)
    code = main(["serve", "--model-dir", str(out), "--device", "cpu"])
    assert not ran.exists()
    assert code == 1
    assert f"{name} names code that this version does not write" in capsys.readouterr().err


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("form", ["model", "merged"])
def test_a_folder_is_served_without_code_that_no_configuration_names(
    tmp_path: Path, form: str
) -> None:
    out = Left(tmp_path / "left", bottleneck=8 if form == "model" else 0).exported(form)
    ran = tmp_path / "ran"
    (out / "custom_generate").mkdir()
    (out / "custom_generate" / "generate.py").write_text(EVIL.format(ran=ran))
    assert main(["serve", "--model-dir", str(out), "--device", "cpu"]) == 0
    assert not ran.exists()


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("form", ["model", "merged"])
def test_code_that_the_backbone_was_published_with_is_forgotten(tmp_path: Path, form: str) -> None:
    model = save_tiny_model(tmp_path / "backbone")
    told(model, "config.json", auto_map={"AutoConfig": "theirs.C"})
    told(model, "tokenizer_config.json", auto_map={"AutoTokenizer": ["theirs.C", None]})
    bottleneck = 8 if form == "model" else 0
    out = Left(tmp_path / "left", model=model, bottleneck=bottleneck).exported(form)
    assert not [path for path in out.glob("*.json") if "theirs" in path.read_text()]
    assert main(["serve", "--model-dir", str(out), "--device", "cpu"]) == 0


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("remote_model.py", "raise SystemExit('run')", "not what this version writes"),
        ("remote_model.py", None, "config.json names code"),
        ("config.json", None, "holds no model"),
        ("config.json", "{", "config.json is damaged"),
    ],
    ids=str,
)
def test_a_folder_of_other_code_is_not_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str | None, words: str
) -> None:
    path = Left(tmp_path / "left").exported("model") / name
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    assert main(["serve", "--model-dir", str(path.parent)]) == 1
    assert words in capsys.readouterr().err


def test_answers_are_ranked_with_the_clients_own_rewards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left = Left(tmp_path / "left")
    out = tmp_path / "personal"
    state, model = str(tmp_path / "left/state"), str(left.model)
    assert main(["export", "--state-dir", state, "--out", str(out)]) == 0
    answers = tmp_path / "answers.txt"
    answers.write_text("\n".join((*ANSWERS, "", ANSWERS[0])), encoding="utf-8")
    given = ["--model-dir", str(out), "--model", model, "--prompt", PROMPT]
    given += ["--answers", str(answers)]
    assert main(["score", *given, "--continue-text"]) == 0
    told = capsys.readouterr().out
    assert "to the taste of ada" in told
    tokenizer = tiny_tokenizer()
    found = ranked(left.policy, tokenizer, left.run.method, PROMPT, ANSWERS, chat=False,
                   max_tokens=256)  # fmt: skip
    places = [told.index(one.answer.strip()) for one in found]
    assert places == sorted(places)
    assert [one.combined for one in found] == sorted((one.combined for one in found), reverse=True)
    by_answer = {one.answer: one for one in found}
    first, second = ANSWERS[:2]
    pair = pair_tokens(Preference(PROMPT, first, second), tokenizer, max_tokens=256)
    packed = pack([pair], [0], device=CPU)
    with torch.no_grad():
        own = left.policy.scores(packed, left.policy.hidden(packed))
    reference = left.policy.reference_scores(packed)
    reference_margin = reference.chosen_logps - reference.rejected_logps
    implicit = float(implicit_margin(own, reference_margin, beta=left.run.method.beta))
    explicit = float(explicit_margin(own))
    assert by_answer[first].explicit == pytest.approx(float(own.chosen_rewards), abs=1e-5)
    told_margin = by_answer[first].combined - by_answer[second].combined
    assert told_margin == pytest.approx(implicit + left.run.method.alpha * explicit, abs=1e-4)


def test_answers_are_ranked_after_the_same_prompt_on_a_path_that_suits(tmp_path: Path) -> None:
    left = Left(tmp_path / "left")
    policy, tokenizer, method = left.policy, tiny_tokenizer(), left.run.method
    policy.decoder.checked = False
    prompt, long = "a film that " * 8, " enthrals" * 6
    found = ranked(policy, tokenizer, method, prompt, [" bores", " moves", long], chat=False,
                   max_tokens=80)  # fmt: skip
    assert policy.checked
    short = ranked(policy, tokenizer, method, prompt[-(80 - len(long) - 1):], [" bores", " moves"],
                   chat=False, max_tokens=80)  # fmt: skip
    assert {one.answer: one.combined for one in short}.items() <= {
        one.answer: pytest.approx(one.combined, abs=1e-4) for one in found
    }.items()


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"yes", "two or more"), (b"\xff\xff", "cannot read"), (b"a" * (2**20 + 1), "more than"),
     (None, "cannot read")],
)  # fmt: skip
def test_answers_that_cannot_be_ranked_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, words: str
) -> None:
    left = Left(tmp_path / "left")
    out = tmp_path / "personal"
    assert main(["export", "--state-dir", str(tmp_path / "left/state"), "--out", str(out)]) == 0
    given = ["--model-dir", str(out), "--model", str(left.model), "--prompt", PROMPT]
    answers = tmp_path / "answers.txt"
    if content is not None:
        answers.write_bytes(content)
    assert main(["score", *given, "--answers", str(answers)]) == 1
    assert words in capsys.readouterr().err
