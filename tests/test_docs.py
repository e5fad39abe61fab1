"""Every command in the documentation works: it is run here, or by the test that is named for it.

To add a command to a page: write it down. It is run after those above it, in a folder made by the
fixture `walk`, with REPLACED and GIVEN applied. Where that can't be, name in COVERED what runs it.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
import yaml

from documented import PROGRAMS, ROOT, Command, blocks, commands, flags, pages, spans
from fedpdpo.common.settings import load_settings
from tiny import save_tiny_model, write_preferences
from walk import Walk, environment, free_port

IMAGES = "test_images.py::test_a_run_of_both_images_in_their_own_networks_comes_to_its_end"
COMPOSE = "test_deploy.py::test_compose_finds_the_file_valid"
CHART = "test_chart.py::test_every_object_is_valid_for_kubernetes"
UNITS = "test_deploy.py::test_systemd_finds_the_units_valid"
ELSEWHERE = "test_elsewhere.py::test_a_whole_run_is_served_and_the_folder_of_copies_is_gone"
REFLECTION = "test_federation_service.py::test_health_and_reflection_are_on"
SIMULATION = "test_simulation.py::test_virtual_clients_come_to_the_bits_of_real_ones"
EXTRAS = "test_docs.py::test_an_extra_that_pip_is_told_of_is_there"

#: Commands that are not run here, and the test or the target that runs what they stand for.
COVERED = {
    "make demo": "test_system_real_model.py::"
    "test_two_clients_align_a_real_model_export_it_measure_it_and_talk_to_it",
    "pip install .": "make test-images",
    "pip install '.[client]'": "make test-images",
    "docker build -f deploy/Dockerfile.server -t fedpdpo-server .": IMAGES,
    "docker build -f deploy/Dockerfile.client -t fedpdpo-client .": IMAGES,
    "docker build -f deploy/Dockerfile.client -t fedpdpo-client "
    '--build-arg TORCH="torch --index-url URL" .': IMAGES,
    "docker compose -f deploy/docker-compose.yml up --build": COMPOSE,
    "docker compose -f deploy/docker-compose.yml run --rm operator status "
    "--server server:50051 --tls /certs": COMPOSE,
    "kubectl create secret generic fed-cert --from-file certs/server/server": CHART,
    "kubectl create secret generic ada-cert --from-file certs/client/ada": CHART,
    "helm install demo deploy/helm/fedpdpo --values values.yaml": CHART,
    "python3 -m venv /opt/fedpdpo && /opt/fedpdpo/bin/pip install '.[client]'": EXTRAS,
    "cp deploy/systemd/*.service /etc/systemd/system/": UNITS,
    "useradd --system --no-create-home fedpdpo": UNITS,
    "chown -R fedpdpo /etc/fedpdpo": UNITS,
    "systemctl enable --now fedpdpo-server.service": UNITS,
    "systemctl enable --now fedpdpo-client@ada": UNITS,
    "pip install '.[s3,postgres]'": EXTRAS,
    "export AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=...": ELSEWHERE,
    "export FEDPDPO_SERVER_DATABASE="
    "postgresql://fedpdpo:PASSWORD@db.example.org/fedpdpo": ELSEWHERE,
    "fedpdpo-server --state-dir s3://BUCKET/run-1 --rounds 10 --min-clients 3": ELSEWHERE,
    "grpc_health_probe -addr=localhost:50051": REFLECTION,
    "grpcurl -plaintext localhost:50051 list": REFLECTION,
    "grpcurl -plaintext localhost:50051 fedpdpo.v1.OperatorService/GetStatus": REFLECTION,
    'grpcurl -plaintext -d \'{"service": "fedpdpo.v1.FederationService"}\' localhost:50051 '
    "grpc.health.v1.Health/Check": REFLECTION,
    "accelerate launch --num_processes 4 $(which fedpdpo-client) --server host:50051 "
    "--data ./local_prefs": "test_system_crew.py::"
    "test_processes_that_are_launched_together_train_as_one_client_does",
    "pip install '.[client,track]'": EXTRAS,
    "pip install '.[client,simulate]'": EXTRAS,
    "fedpdpo simulate --data ./prefs.jsonl --clients 200 --server.rounds 5": SIMULATION,
    "fedpdpo simulate --data prefs.jsonl --clients 200 --server.rounds 5": SIMULATION,
    "fedpdpo simulate --config simulate.yaml --data prefs.jsonl": SIMULATION,
    "fedpdpo-client --server localhost:50051 --client-id client-001 --state-dir client-001 "
    "--threads 1 --data fedpdpo-simulation/clients/client-001/preferences.jsonl": SIMULATION,
    "pip install '.[telemetry]'": EXTRAS,
    "prometheus --config.file deploy/prometheus/prometheus.yml": "test_prometheus.py::"
    "test_prometheus_scrapes_a_run_and_evaluates_the_rules",
}
#: Pages with Python, and the test that runs it.
PYTHON = {
    "README.md": "test_python_page.py::test_a_client_and_its_personal_model",
    "docs/python.md": "test_python_page.py::test_a_client_and_its_personal_model",
}
#: The first lines of blocks that are folders or what a program says.
NOT_COMMANDS = {
    ("docs/operations.md", "run.sqlite (-wal, -shm)"),
    ("docs/operations.md", "client.json"),
    ("docs/operations.md", "2026-01-05 10:11:12,345 INFO round_closed"),
}
#: What stands for something of the reader's own, and what it is here; one page's, or all pages'.
REPLACED = {
    r"fed\.example\.org": "localhost",
    r"\b50051\b": "{port}",
    r"\b8080\b": "{page}",
    r"--model HuggingFaceTB/SmolLM2-135M-Instruct": "--model {model}",
}
#: The page starts two clients where it asks for two: with fewer, the first one could finish alone.
REPLACED_ON = {"README.md": {r"--min-clients 3": "--min-clients 1"}}  # its other clients
#: What is added to commands that leave it out.
GIVEN = {
    "fedpdpo-server": {"--port": "{port}", "--model": "{model}", "--min-clients": "1",
                       "--rounds": "10000", "--lora.layers": "last-2", "--lora.rank": "4"},
    "fedpdpo-client": {"--server": "localhost:{port}", "--data": "local_prefs", "--threads": "1",
                       "--heartbeat-s": "0.5"},
    "fedpdpo export": {"--out": "my-model"},
    "fedpdpo chat": {"--max-new-tokens": "8"},
    **{f"fedpdpo {name}": {"--server": "localhost:{port}"}
       for name in ("events", "pause", "resume", "stop")},
    "fedpdpo status": {"--server": "localhost:{port}", "--every-s": "0.1"},
}  # fmt: skip
#: Flags of other programs that pages speak of.
FOREIGN = {"--build-arg", "--profile", "--logdir", "--backend-store-uri", "--constraint", "--gpus",
           "--nproc_per_node"}  # fmt: skip

PAGES = pages()
BLOCKS = [block for page, text in PAGES.items() for block in blocks(page, text)]


PYTHON_PAGES = {block.page for block in BLOCKS if block.is_python}
FILES = [block for block in BLOCKS if block.file]
COMMANDS = [
    command
    for block in BLOCKS
    if not (block.file or block.is_python)
    if not any(block.page == page and block.lines[0].startswith(first)
               for page, first in NOT_COMMANDS)
    for command in commands(block)
]  # fmt: skip
OURS = [one for one in COMMANDS if one.program and not one.text.startswith("docker ")]
WALKED = list(dict.fromkeys(one.page for one in COMMANDS if one.text not in COVERED))


@pytest.fixture
def walk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Walk]:
    """A folder with a model, preferences and answers, and the place's own names."""
    model = save_tiny_model(tmp_path / "model")
    (tmp_path / "local_prefs").mkdir()
    for number, name in enumerate(("local_prefs/a.jsonl", "prefs.jsonl", "more-prefs.jsonl")):
        write_preferences(tmp_path / name, seed=number, num=20, taste="warm")
    (tmp_path / "answers.txt").write_text(" lovely\n awful\n", encoding="utf-8")
    own = {"port": str(free_port()), "page": str(free_port()), "model": str(model)}
    replaced = REPLACED_ON.get(request.getfixturevalue("page"), {}) | REPLACED
    made = Walk(
        tmp_path,
        {pattern: value.format(**own) for pattern, value in replaced.items()},
        {program: {flag: value.format(**own) for flag, value in given.items()}
         for program, given in GIVEN.items()},
        environment(tmp_path),
    )  # fmt: skip
    yield made
    made.clear()


@pytest.mark.system
@pytest.mark.parametrize("page", WALKED)
def test_the_commands_of_a_page_work_one_after_another(page: str, walk: Walk) -> None:
    mine = [one for one in COMMANDS if one.page == page and one.text not in COVERED]
    for command in mine:
        walk.takes(command)
    walk.settle()
    assert len(walk.run) >= sum(not one.text.startswith("export ") for one in mine)


def test_what_is_covered_elsewhere_is_in_the_documentation_still() -> None:
    assert COVERED.keys() <= {one.text for one in COMMANDS}
    assert PYTHON.keys() == PYTHON_PAGES
    assert {
        (page, first) for page, first in NOT_COMMANDS
        if any(one.page == page and one.lines[0].startswith(first) for one in BLOCKS)
    } == NOT_COMMANDS  # fmt: skip


@pytest.mark.parametrize("where", sorted({*COVERED.values(), *PYTHON.values()}))
def test_what_covers_a_command_is_there(where: str) -> None:
    if where.startswith("make "):
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{where.removeprefix('make ')}:", makefile, re.MULTILINE)
        return
    file, _, name = where.partition("::")
    text = (Path(__file__).parent / file).read_text(encoding="utf-8")
    assert re.search(rf"^def {name}\(", text, re.MULTILINE)


@pytest.mark.parametrize("command", OURS, ids=str)
def test_a_commands_flags_are_read_by_its_program(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for block in FILES:
        if block.page == command.page:
            (tmp_path / str(block.file)).write_text("\n".join(block.lines), encoding="utf-8")
    given = list(command.arguments)
    for flag, value in GIVEN.get(command.program or "", {}).items():
        given += [flag, value.format(port=1, page=2, model="m")] * (flag not in given)
    load_settings(PROGRAMS[command.program or ""], given, program=command.program or "")


@pytest.mark.parametrize("page", PAGES)
def test_a_flag_that_a_page_speaks_of_is_one_of_ours(page: str) -> None:
    known = FOREIGN.union(*(flags(program) for program in PROGRAMS))
    found = {
        flag
        for span in spans(PAGES[page])
        for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*(?:\.[\w-]+)*", span)
        if flag not in ("--lora", "--method") and flag.islower()  # --lora.*, --server.NAME
    }
    assert found <= known


def test_an_extra_that_pip_is_told_of_is_there() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    told = [
        extra
        for text in (
            *(one.text for one in COMMANDS),
            *(s for t in PAGES.values() for s in spans(t)),
        )
        for found in re.findall(r"pip install .*?\[([\w,]+)\]", text)
        for extra in found.split(",")
    ]
    assert {"client", "track", "s3"} <= set(told)
    assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in told)


def test_a_make_target_that_a_page_speaks_of_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    told = {found for text in PAGES.values() for found in re.findall(r"`make ([a-z-]+)", text)}
    assert {"test-images", "bench-round"} <= told
    assert told <= set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))


def file_in(page: str, name: str) -> str:
    """A file that a page shows."""
    (found,) = (one for one in FILES if (one.page, one.file) == (page, name))
    return "\n".join(found.lines)


def test_a_file_of_settings_gives_what_the_flags_beside_it_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = file_in("README.md", "run.yaml")
    file = tmp_path / "run.yaml"
    file.write_text(text, encoding="utf-8")
    cls = PROGRAMS["fedpdpo-server"]
    argv = [word for flag in re.findall(r"# (--.*)", text) for word in flag.split()]
    for variable, value in re.findall(r"# (FEDPDPO_\w+)=(\S+)", text):
        monkeypatch.setenv(variable, value)
    by_flags = load_settings(cls, argv, program="fedpdpo-server")
    monkeypatch.undo()
    by_file = load_settings(cls, ["--config", str(file)], program="fedpdpo-server")
    assert by_file.model_copy(update={"config": None}) == by_flags
    assert by_flags != cls()


def test_the_charts_values_on_the_page_are_valid() -> None:
    values = yaml.safe_load(file_in("docs/deploy.md", "values.yaml"))
    schema = (ROOT / "deploy/helm/fedpdpo/values.schema.json").read_text(encoding="utf-8")
    jsonschema.validate(values, json.loads(schema))
    argv = [word for name, value in values["server"]["settings"].items()
            for word in (f"--{name}", str(value))]  # fmt: skip
    load_settings(PROGRAMS["fedpdpo-server"], argv, program="fedpdpo-server")
