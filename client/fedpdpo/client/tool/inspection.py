"""Looks at an exported personal model: talks to it, measures it."""

import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedpdpo.client.data.preferences import read_preferences
from fedpdpo.client.data.tokens import pair_tokens
from fedpdpo.client.exporting.personal import load
from fedpdpo.client.model.backbone import device_of, dtype_of
from fedpdpo.client.model.objective import accuracy
from fedpdpo.client.tool.chat import Speaker, Turn
from fedpdpo.client.tool.ranking import ranked, read_answers
from fedpdpo.client.training.evaluation import evaluate
from fedpdpo.client.training.pairset import prepare
from fedpdpo.client.training.reference import ReferenceCache


def chat(
    console: Console,
    *,
    model_dir: Path,
    model: str | None,
    device: str,
    dtype: str,
    compare: str,
    prompt: str | None,
    continue_text: bool,
    max_new_tokens: int,
    temperature: float,
) -> None:
    """Answer one prompt, or converse until an empty line. Raises BadState or BadModel."""
    policy, backbone, _ = load(
        model_dir, model=model, device=device_of(device), dtype=dtype_of(dtype, device_of(device))
    )
    speaker = Speaker(
        policy, backbone.tokenizer, max_new_tokens=max_new_tokens, temperature=temperature
    )
    turns: list[Turn] = []
    while said := prompt or _asked(console):
        turns.append({"role": "user", "content": said})
        answers = {}
        for plain in (False, True) if compare == "base" else (False,):
            name = "base" if plain else "personal"
            if continue_text:
                answers[name] = speaker.continuation(said, plain=plain)
            else:
                answers[name] = speaker.reply(turns, plain=plain)
        for name, answer in answers.items():
            console.print(f"[bold cyan]{name}[/]: ", end="")
            console.print(answer, markup=False, highlight=False)
        turns.append({"role": "assistant", "content": answers["personal"]})
        if prompt:
            return


def _asked(console: Console) -> str:
    try:
        return console.input("[bold]you[/] (an empty line ends): ").strip()
    except EOFError:
        return ""


def score(
    console: Console,
    *,
    model_dir: Path,
    model: str | None,
    device: str,
    dtype: str,
    prompt: str,
    answers: Path,
    continue_text: bool,
    max_tokens: int,
) -> None:
    """Print answers to a prompt with their rewards, the best first.

    Raises BadData, BadState or BadModel.
    """
    policy, backbone, identity = load(
        model_dir, model=model, device=device_of(device), dtype=dtype_of(dtype, device_of(device))
    )
    given = read_answers(answers)
    chat = bool(backbone.tokenizer.chat_template) and not continue_text
    method = identity.run.method
    found = ranked(
        policy, backbone.tokenizer, method, prompt, given, chat=chat, max_tokens=max_tokens
    )
    table = Table("answer", title=f"to the taste of {identity.client_id}")
    for column in ("reward", "implicit", "explicit"):
        table.add_column(column, justify="right")
    for one in found:
        numbers = (f"{value:.3f}" for value in (one.combined, one.implicit, one.explicit))
        table.add_row(Text(one.answer), *numbers)
    console.print(table)


def evaluate_data(
    console: Console,
    *,
    model_dir: Path,
    model: str | None,
    device: str,
    dtype: str,
    data: Path,
    skip_bad_records: bool,
    max_tokens: int,
) -> None:
    """Print accuracies, margin and loss on a file of preferences.

    Raises BadData, BadState or BadModel.
    """
    loaded = read_preferences(data, skip_bad_records=skip_bad_records)
    policy, backbone, identity = load(
        model_dir, model=model, device=device_of(device), dtype=dtype_of(dtype, device_of(device))
    )
    pairs = [
        pair_tokens(one, backbone.tokenizer, max_tokens=max_tokens) for one in loaded.preferences
    ]
    policy.check(max(pairs, key=len))
    with tempfile.TemporaryDirectory() as folder, console.status(f"measuring {len(pairs)} pairs"):
        reference = ReferenceCache(Path(folder) / "reference.safetensors", key="")
        prepared = prepare(policy, pairs, tokens_per_step=1024, reference=reference)
        shared, personal = evaluate(policy, prepared, identity.run.method)
    table = Table(title=f"{len(pairs)} pairs, {len(loaded.skipped)} records skipped")
    for column in ("model", "combined %", "implicit %", "explicit %", "margin", "loss", "chosen*"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, found in (("global", shared), ("personalized", personal)):
        table.add_row(
            name,
            *(
                f"{100 * value:.1f}"
                for value in (
                    found.combined_accuracy,
                    found.implicit_accuracy,
                    found.explicit_accuracy,
                )
            ),
            f"{found.margin:.3f}",
            f"{found.loss:.3f}",
            f"{found.chosen_shift:+.3f}",
        )
    console.print(table)
    console.print(
        "* how much likelier chosen answers are than the backbone finds them, in nats a token; "
        "a model below -1 is about to lose the language"
    )
    likelier = accuracy(prepared.reference_margins)
    console.print(f"the plain backbone finds the chosen answer likelier in {100 * likelier:.1f} %")
