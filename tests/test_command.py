"""The command `fedpdpo` as its reader meets it: help, examples, errors."""

import shlex

import pytest

from fedpdpo.client.tool.command import COMMANDS, main
from fedpdpo.common.settings import load_settings
from fedpdpo.simulation.cli import COMMAND as SIMULATE

EXAMPLES = {f"fedpdpo {name}": one for name, one in COMMANDS.items()} | {
    "fedpdpo simulate": SIMULATE
}


@pytest.mark.parametrize("program", [name for name, one in EXAMPLES.items() if one.example])
def test_an_example_is_read_by_its_command(program: str) -> None:
    command = EXAMPLES[program]
    assert load_settings(command.settings, shlex.split(command.example), program=program)


@pytest.mark.parametrize("program", EXAMPLES)
def test_help_is_in_the_words_of_a_user(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_settings(EXAMPLES[program].settings, ["--help"], program=program)
    text = capsys.readouterr().out
    for word in ("(default: None)", "(default: )", "SecretStr", "tuple[", " Path ", " float "):
        assert word not in text
    assert text.splitlines()[2] not in seen_elsewhere(program)


def seen_elsewhere(program: str) -> set[str]:
    """What other commands of other settings say that they do."""
    own = EXAMPLES[program].settings
    others = (one.settings for one in EXAMPLES.values() if one.settings is not own)
    return {(one.__doc__ or "").splitlines()[0] for one in others}


def test_a_group_of_commands_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["certs"]) == main(["certs", "serve"]) == 2
    assert capsys.readouterr().err.count("certs init, certs server, certs client") == 2
    assert main(["certs", "--help"]) == 0
    assert "certs revoke     revoke a client's" in capsys.readouterr().out
    assert main(["cert"]) == 2
    assert "there is no command cert" in capsys.readouterr().err
