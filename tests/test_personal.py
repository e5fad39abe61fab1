"""The exported personal model: the same scores, plain PEFT, plain commands."""

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import AutoModelForCausalLM

from fedpdpo.client.data.preferences import Preference
from fedpdpo.client.data.tokens import pair_tokens
from fedpdpo.client.exporting.personal import export, load
from fedpdpo.client.model.packing import pack
from fedpdpo.client.model.policy import Policy
from fedpdpo.client.state import ClientState, Identity
from fedpdpo.client.tool.chat import Speaker
from fedpdpo.client.tool.command import main
from fedpdpo.client.tool.personal import PersonalPolicy
from fedpdpo.common.errors import BadModel, BadState
from left import left_by
from tiny import (
    CPU,
    save_tiny_model,
    tiny_backbone,
    tiny_pairs,
    tiny_run,
    write_preferences,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def trained(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Policy, Path]:
    """A policy after a round, and the state directory that a client would have left."""
    folder = tmp_path_factory.mktemp("state")
    return left_by(model, folder, tiny_run()), folder


@pytest.fixture
def exported(trained: tuple[Policy, Path], tmp_path: Path) -> Path:
    out = tmp_path / "personal"
    export(trained[1], out)
    return out


def scores(policy: Policy) -> Tensor:
    packed = pack(tiny_pairs(), range(12), device=CPU)
    with torch.no_grad():
        found = policy.scores(packed, policy.hidden(packed))
    return torch.stack([found.chosen_logps, found.rejected_logps, found.chosen_rewards])


def test_the_loaded_model_scores_as_the_clients_own_to_the_bit(
    trained: tuple[Policy, Path], exported: Path
) -> None:
    policy, backbone, identity = load(exported, model=None, device=CPU, dtype=torch.float32)
    assert torch.equal(scores(policy), scores(trained[0]))
    assert identity.client_id == "ada"
    assert backbone.fingerprint == identity.run.backbone_fingerprint
    assert "fedpdpo chat --model-dir" in (exported / "README.md").read_text()


def test_plain_peft_loads_the_shared_adapter(
    trained: tuple[Policy, Path], exported: Path, model: Path
) -> None:
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), exported)
    ids = torch.tensor([tiny_pairs()[0].prompt])
    with torch.no_grad():
        theirs = plain.get_base_model().get_decoder()(input_ids=ids)[0]
        ours = trained[0].decoder.alone(ids[0])
    torch.testing.assert_close(theirs[0], ours)


def test_another_backbone_is_refused(exported: Path, tmp_path: Path) -> None:
    other = save_tiny_model(tmp_path / "other", seed=5)
    with pytest.raises(BadModel, match="has fingerprint"):
        load(exported, model=str(other), device=CPU, dtype=torch.float32)


def test_what_is_there_is_not_overwritten(trained: tuple[Policy, Path], exported: Path) -> None:
    before = (exported / "README.md").read_bytes()
    with pytest.raises(BadState, match="in the way"):
        export(trained[1], exported)
    assert (exported / "README.md").read_bytes() == before


def test_a_directory_without_a_round_has_nothing_to_export(tmp_path: Path) -> None:
    with pytest.raises(BadState, match="no client's state directory"):
        export(tmp_path, tmp_path / "out")


def test_the_plain_answer_is_the_untouched_models_and_the_personal_one_uses_the_private_head(
    exported: Path, model: Path
) -> None:
    untouched = tiny_backbone(model)
    encoded = untouched.tokenizer("the film", return_tensors="pt", add_special_tokens=False)
    ids = untouched.model.generate(
        input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"],
        max_new_tokens=12, do_sample=False,
    )  # fmt: skip
    expected = untouched.tokenizer.decode(ids[0, 8:], skip_special_tokens=True).strip()
    policy, backbone, _ = load(exported, model=None, device=CPU, dtype=torch.float32)
    speaker = Speaker(policy, backbone.tokenizer, max_new_tokens=12, temperature=0)
    assert speaker.continuation("the film", plain=True) == expected
    with torch.no_grad():
        policy.private.head.weight.zero_()
        policy.private.head.weight[backbone.tokenizer.eos_token_id] = 1e-9
    assert speaker.continuation("the film", plain=True) == expected
    assert speaker.continuation("the film") != expected


def test_a_text_is_gone_on_from_as_it_was_trained_with_what_begins_a_text(exported: Path) -> None:
    policy, backbone, _ = load(exported, model=None, device=CPU, dtype=torch.float32)
    tokenizer = backbone.tokenizer
    tokenizer.bos_token = "<|im_start|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", tokenizer.bos_token_id)]
    )
    given: list[Tensor] = []

    def generate(**settings: Any) -> Tensor:
        given.append(settings["input_ids"])
        return given[-1]

    policy.peft_model.generate = generate
    speaker = Speaker(policy, tokenizer, max_new_tokens=4, temperature=0)
    speaker.continuation("the film")
    speaker.reply([{"role": "user", "content": "hi"}])
    tokenizer.chat_template = None
    speaker.reply([{"role": "user", "content": "the film"}])
    trained = pair_tokens(Preference("the film", " a", " b"), tokenizer, max_tokens=64)
    assert given[0].tolist() == given[2].tolist() == [list(trained.prompt)]
    assert tokenizer.decode(given[1][0]).startswith("<|im_start|>user")


def test_a_reply_goes_on_from_the_rendered_conversation(exported: Path) -> None:
    policy, backbone, _ = load(exported, model=None, device=CPU, dtype=torch.float32)
    speaker = Speaker(policy, backbone.tokenizer, max_new_tokens=8, temperature=0)
    text = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    turns = [{"role": "user", "content": "hi"}]
    for plain in (True, False):
        assert speaker.reply(turns, plain=plain) == speaker.continuation(text, plain=plain)


@pytest.mark.parametrize("share", [None, 0, 0.5])
@pytest.mark.parametrize(
    "name", ["private.safetensors", "adapter_model.safetensors", "fedpdpo.json"]
)
def test_a_truncated_or_missing_part_of_an_export_is_named(
    exported: Path, name: str, share: float | None
) -> None:
    part = exported / name
    content = part.read_bytes()
    part.unlink()
    if share is not None:
        part.write_bytes(content[: int(share * len(content))])
    named = "no exported model" if name == "fedpdpo.json" and share is None else name
    with pytest.raises(BadState, match=named):
        load(exported, model=None, device=CPU, dtype=torch.float32)


def test_an_export_of_other_parts_than_its_run_has_is_refused(exported: Path) -> None:
    private, adapter = exported / "private.safetensors", exported / "adapter_model.safetensors"
    kept = private.read_bytes()
    private.write_bytes(adapter.read_bytes())
    with pytest.raises(BadState, match="not those of the run's method settings"):
        load(exported, model=None, device=CPU, dtype=torch.float32)
    adapter.write_bytes(kept)
    with pytest.raises(BadState, match=r"adapter_model\.safetensors is damaged.*lacks"):
        load(exported, model=None, device=CPU, dtype=torch.float32)


def test_a_damaged_global_adapter_is_named_and_nothing_is_exported(
    trained: tuple[Policy, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "state"
    shutil.copytree(trained[1], folder)
    adapter = ClientState(folder, client_id=None).last_adapter()
    adapter.write_bytes(adapter.read_bytes()[:-1])
    with pytest.raises(BadState, match=r"version-00001\.safetensors is damaged"):
        export(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_eval_and_chat_work_on_it(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_preferences(tmp_path / "data.jsonl", seed=3, num=10, taste="warm")
    assert main(["eval", "--model-dir", str(exported), "--data", str(data)]) == 0
    assert "10 pairs" in capsys.readouterr().out
    chat = ["chat", "--model-dir", str(exported), "--prompt", "hello", "--max-new-tokens", "4"]
    assert main([*chat, "--compare", "base"]) == 0
    said = capsys.readouterr().out
    assert "base:" in said
    assert "personal:" in said


def test_answers_are_ranked_after_a_reply_as_before_it(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path, family="gpt_oss", num_local_experts=4, num_experts_per_tok=2)
    run = tiny_run()
    run = run.model_copy(
        update={"lora": run.lora.model_copy(update={"target_modules": ("q_proj", "v_proj")})}
    )
    identity = Identity(client_id="ada", model=str(model), run=run)
    backbone = tiny_backbone(model)
    policy = PersonalPolicy(Policy(backbone, run, private_seed=1), backbone, identity)
    answers = [" bores", " enthrals"]
    told = policy.rank("A film that", answers)
    policy.reply("A film that", max_new_tokens=2)
    assert policy.rank("A film that", answers) == told


def test_a_conversation_ends_with_an_empty_line_or_the_end_of_input(
    exported: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = ["chat", "--model-dir", str(exported), "--max-new-tokens", "4"]
    for typed in ("hello\nand then?\n\nunread\n", "hello\nand then?\n"):
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        assert main(chat) == 0
        assert capsys.readouterr().out.count("personal:") == 2


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["eval", "--model-dir", "absent", "--data", "absent.jsonl"], 1, "absent"),
        (["chat", "--model-dir", "absent"], 1, "no exported model"),
        (["export", "--state-dir", "absent", "--out", "out"], 1, "no client's state directory"),
        (["export"], 2, "give --out"),
        (["chatt"], 2, "did you mean chat?"),
        (["status", "--server", "localhost:1"], 1, "localhost:1"),
    ],
)
def test_bad_input_gets_words_and_a_code(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == code
    assert words in capsys.readouterr().err
