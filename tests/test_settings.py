"""Settings from flags, environment and file; runs on the wire."""

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from fedpdpo.client.settings import ClientSettings
from fedpdpo.common.errors import BadRequest, BadSettings
from fedpdpo.common.layout import LoraLayout
from fedpdpo.common.run import LoraSettings, MethodSettings, Run, TensorSpec, check_client_id
from fedpdpo.common.settings import load_settings
from fedpdpo.common.wire import layout_to_messages, run_from_message, run_to_message
from fedpdpo.server.settings import ServerSettings
from fedpdpo.v1 import run_pb2

RUN = Run(
    run_id="a" * 32,
    model="tiny",
    lora=LoraSettings(),
    method=MethodSettings(alpha=0.0, reward_head=False, bottleneck=0),
    num_rounds=2,
    seed=0,
)


def server(*flags: str) -> ServerSettings:
    return load_settings(ServerSettings, flags, program="fedpdpo-server")


def test_flags_win_over_the_environment_and_that_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("rounds: 7\nquorum: 0.7\nmin-clients: 7\nmethod:\n  beta: 0.7\n  alpha: 0.7\n")
    monkeypatch.setenv("FEDPDPO_SERVER_QUORUM", "0.6")
    monkeypatch.setenv("FEDPDPO_SERVER_METHOD__ALPHA", "0.6")
    monkeypatch.setenv("FEDPDPO_SERVER_MIN_CLIENTS", "6")
    found = server("--config", str(file), "--min-clients", "5", "--lora.rank", "5")
    assert (found.rounds, found.quorum, found.min_clients) == (7, 0.6, 5)
    assert (found.method.beta, found.method.alpha) == (0.7, 0.6)
    assert (found.lora.rank, found.lora.alpha) == (5, LoraSettings().alpha)
    assert found.port == 50051


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("roundz: 3", "unknown setting roundz in .*run.yaml; did you mean rounds?"),
        ("method: {betta: 1}", "unknown setting method.betta in .* did you mean method.beta?"),
        ("rounds: many", "setting rounds: .*valid integer"),
        ("rounds: 0", "setting rounds: .*greater than or equal to 1"),
        ("quorum: .nan", "setting quorum"),
        ("method: {objective: sum}", "setting method.objective: .*'combined' or 'separate'"),
        ("method: {head_rank: 4294967296}", "setting method.head_rank: .*less than or equal"),
        ("rounds: " + "9" * 5000, "not valid YAML"),
        ("[" * 1000, "not valid YAML"),
        ("- 1", "holds a list; a mapping of settings is needed"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_refused_by_key(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(content)
    with pytest.raises(BadSettings, match=words):
        server("--config", str(file))


def test_a_missing_file_and_an_unknown_variable_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadSettings, match=r"cannot read --config absent\.yaml"):
        server("--config", "absent.yaml")
    monkeypatch.setenv("FEDPDPO_SERVER_QUORRUM", "1")
    with pytest.raises(BadSettings, match="QUORRUM; did you mean FEDPDPO_SERVER_QUORUM"):
        server()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--rounds", "0"], "setting rounds: .*greater than or equal to 1"),
        (["--quorum", "1.5"], "setting quorum: .*less than or equal to 1"),
        (["--server-lr", "inf"], "setting server_lr: .*finite"),
        (["--lora.rank", "0"], "setting lora.rank"),
        (["--method.batch-pairs", "4294967296"], "setting method.batch_pairs"),
    ],
)
def test_a_flag_out_of_range_is_named(flags: list[str], words: str) -> None:
    with pytest.raises(BadSettings, match=words):
        server(*flags)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--late", "fold"], r"late deltas \(--late fold\)"),
        (["--encoding", "topk"], "what --encoding topk left out"),
        (["--encoding", "int8"], "what --encoding int8 left out"),
        (["--method.lora-moments", "keep"], "kept moments"),
    ],
)
def test_products_take_nothing_that_was_made_in_another_rounds_coordinates(
    flags: list[str], words: str
) -> None:
    with pytest.raises(BadSettings, match=f"^--averaging products gives LoRA new .*{words}"):
        server("--averaging", "products", *flags)
    assert server("--averaging", "products", "--encoding", "bfloat16").averaging == "products"
    assert server(*flags).averaging == "factors"


def test_an_unknown_flag_ends_the_program_with_the_nearest_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        server("--roundz", "3")
    assert ended.value.code == 2
    assert "--roundz 3; did you mean --rounds?" in capsys.readouterr().err


def keys(model: type[BaseModel], before: str = "") -> list[str]:
    found = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found += keys(kind, f"{before}{name}.")
        else:
            found.append(before + name)
    return found


@pytest.mark.parametrize("settings", [ServerSettings, ClientSettings])
def test_help_tells_every_setting_and_what_it_means(
    settings: type[ServerSettings], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        load_settings(settings, ["--help"], program="program")
    shown = capsys.readouterr().out
    for key in keys(settings):
        assert f"--{key.replace('_', '-')}" in shown
    described = [field.description for field in settings.model_fields.values()]
    nested = [d for d, f in zip(described, settings.model_fields.values(), strict=True)
              if not hasattr(f.annotation, "model_fields")]  # fmt: skip
    assert all(nested)
    assert sys.argv


@pytest.mark.parametrize(
    ("model", "message"),
    [(Run, run_pb2.Run), (LoraSettings, run_pb2.LoraSettings),
     (MethodSettings, run_pb2.MethodSettings), (TensorSpec, run_pb2.TensorSpec)],
)  # fmt: skip
def test_models_and_messages_have_the_same_fields(
    model: type[BaseModel], message: type[run_pb2.Run]
) -> None:
    assert list(model.model_fields) == [field.name for field in message.DESCRIPTOR.fields]


rate = st.floats(0, 1, exclude_min=True)
positive = st.floats(0, exclude_min=True, allow_infinity=False)
count = st.integers(1, 2**32 - 1)
loras = st.builds(
    LoraSettings,
    rank=st.integers(1, 4096),
    alpha=positive,
    target_modules=st.lists(st.text("abc_é"), min_size=1, max_size=4).map(tuple),
    layers=st.just("all") | st.integers(1, 999).map(lambda k: f"last-{k}"),
)
methods = st.builds(
    MethodSettings,
    beta=positive,
    alpha=st.floats(0, allow_infinity=False),
    objective=st.sampled_from(["combined", "separate"]),
    head=st.sampled_from(["full", "lowrank", "frozen"]),
    head_rank=count,
    bottleneck=st.integers(0, 2**32 - 1),
    reward_head=st.booleans(),
    warmup_rounds=st.floats(0, allow_infinity=False),
    lr_schedule=st.sampled_from(["constant", "cosine"]),
    local_epochs=count,
    batch_pairs=count,
    lora_lr=rate,
    head_lr=rate,
    bottleneck_lr=rate,
    reward_lr=rate,
    max_grad_norm=positive,
    proximal=st.floats(0, allow_infinity=False),
    anchor=st.just(0.0) | st.floats(0, allow_infinity=False),
)
fixed = st.fixed_dictionaries(
    {
        "backbone_fingerprint": st.text("0123456789abcdef", min_size=64, max_size=64),
        "tokenizer_fingerprint": st.just("c" * 64),
        "lora_layout": st.lists(
            st.builds(
                TensorSpec,
                name=st.text("abc._", min_size=1),
                shape=st.tuples(count, count),
            ),
            min_size=1,
            max_size=3,
        ).map(tuple),
    }
)
runs = st.builds(
    lambda joined, **rest: Run(run_id="a" * 32, model="tiny", **joined, **rest),
    joined=st.just({}) | fixed,
    lora=loras,
    method=methods,
    num_rounds=count,
    seed=st.integers(0, 2**63 - 1),
)


@given(runs)
def test_a_run_comes_off_the_wire_as_it_went_on(run: Run) -> None:
    message = run_pb2.Run.FromString(run_to_message(run).SerializeToString())
    assert run_from_message(message) == run


def test_zeros_and_empty_values_come_off_the_wire_too() -> None:
    assert run_from_message(run_to_message(RUN)) == RUN


def test_a_run_out_of_range_is_refused() -> None:
    message = run_to_message(RUN)
    message.num_rounds = 0
    with pytest.raises(BadRequest, match="num_rounds"):
        run_from_message(message)


def test_a_layout_becomes_messages() -> None:
    layout = LoraLayout((("x.lora_A.weight", (2, 3)),))
    (spec,) = layout_to_messages(layout)
    assert (spec.name, list(spec.shape)) == ("x.lora_A.weight", [2, 3])


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a b", "é", "a" * 65, "a\n"])
def test_a_name_that_could_do_harm_on_disk_is_no_client_id(name: str) -> None:
    with pytest.raises(BadRequest, match="is no client id"):
        check_client_id(name)


@pytest.mark.parametrize("name", ["a", "clinic-7", "x_1.b", "a" * 64])
def test_plain_names_are_client_ids(name: str) -> None:
    assert check_client_id(name) == name
