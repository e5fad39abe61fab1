"""Looks at an exported personal model on a terminal: talks to it, ranks by it, measures it."""

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedpdpo.client.data.preferences import read_preferences
from fedpdpo.client.tool.chat import Turn
from fedpdpo.client.tool.personal import PersonalPolicy
from fedpdpo.client.tool.ranking import read_answers


def chat(
    console: Console,
    policy: PersonalPolicy,
    *,
    compare: str,
    prompt: str | None,
    continue_text: bool,
    max_new_tokens: int,
    temperature: float,
) -> None:
    """Answer one prompt, or converse until an empty line."""
    turns: list[Turn] = []
    while said := prompt or _asked(console):
        turns.append({"role": "user", "content": said})
        answers = {
            name: policy.reply(
                turns,
                plain=name == "base",
                continue_text=continue_text,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
            )
            for name in ("personal", *(["base"] if compare == "base" else []))
        }
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
    policy: PersonalPolicy,
    *,
    prompt: str,
    answers: Path,
    continue_text: bool,
    max_tokens: int,
) -> None:
    """Print answers to a prompt with their rewards, the best first. Raises BadData."""
    found = policy.rank(
        prompt, read_answers(answers), continue_text=continue_text, max_tokens=max_tokens
    )
    table = Table("answer", title=f"to the taste of {policy.identity.client_id}")
    for column in ("reward", "implicit", "explicit"):
        table.add_column(column, justify="right")
    for one in found:
        numbers = (f"{value:.3f}" for value in (one.combined, one.implicit, one.explicit))
        table.add_row(Text(one.answer), *numbers)
    console.print(table)


def evaluate_data(
    console: Console,
    policy: PersonalPolicy,
    *,
    data: Path,
    skip_bad_records: bool,
    max_tokens: int,
) -> None:
    """Print accuracies, margin, loss and chosen shift on a file of preferences. Raises BadData."""
    loaded = read_preferences(data, skip_bad_records=skip_bad_records)
    num_pairs = len(loaded.preferences)
    with console.status(f"measuring {num_pairs} pairs"):
        measured = policy.measure(loaded.preferences, max_tokens=max_tokens)
    table = Table(title=f"{num_pairs} pairs, {len(loaded.skipped)} records skipped")
    for column in ("model", "combined %", "implicit %", "explicit %", "margin", "loss", "chosen*"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, found in (("global", measured.shared), ("personalized", measured.personal)):
        shares = (found.combined_accuracy, found.implicit_accuracy, found.explicit_accuracy)
        table.add_row(
            name,
            *(f"{100 * share:.1f}" for share in shares),
            f"{found.margin:.3f}",
            f"{found.loss:.3f}",
            f"{found.chosen_shift:+.3f}",
        )
    console.print(table)
    console.print(
        "* how much likelier chosen answers are than the backbone finds them, in nats a token; "
        "a model below -1 is about to lose the language"
    )
    console.print(
        f"the plain backbone finds the chosen answer likelier in {100 * measured.likelier:.1f} %"
    )
