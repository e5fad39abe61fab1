"""Whether what clients' models write changes as the clients want: length, and VADER's sentiment.

Four film clients, two that prefer warm sentences and two that prefer harsh ones, are trained
together, for as many rounds as in the table and for LONGER times as many; then each one's personal
model goes on from openings that nobody trained on. VADER is Hutto and Gilbert 2014; its compound
score runs from -1, harsh, to 1, warm.
"""

from statistics import fmean, stdev
from typing import Any

from bench import Bench
from cell import Cell
from fedpdpo.client.tool.chat import Speaker
from partitions import SETTINGS
from worlds import FILM, pools

SETTING = "film-4-tastes"
PROMPTS = 100
NEW_TOKENS = 24
LONGER = 4


def generations_cell(rounds: int, rate: float) -> Cell:
    """The federation whose models write."""
    return Cell(SETTING, "fedpdpo", 0, rounds, rate=rate)


def generations(bench: Bench, cell: Cell) -> dict[str, Any]:
    """What the base model and each client's model write: words and sentiment."""
    setting = SETTINGS[cell.setting]
    clients = setting.clients(cell.seed, bench.data)
    places = bench.places(cell, setting, clients, ())
    trained_on = {pair.prompt for client in clients.values() for pair in client["train"]}
    held_out = dict.fromkeys(pair.prompt for pair in pools(FILM, bench.data)["tune"])
    prompts = [prompt for prompt in held_out if prompt not in trained_on][:PROMPTS]
    _, backbone = bench.policy(cell.configured)
    found: dict[str, Any] = {}
    with bench.federation(cell, places) as federation:
        for client in federation.clients:
            client.take_last()
            path, output = client.policy.decoder.path, backbone.model.get_output_embeddings()
            speaker = Speaker(
                client.policy, backbone.tokenizer, max_new_tokens=NEW_TOKENS, temperature=0.0
            )
            for name, plain in (("base", True), (client.name, False)):
                if name not in found:
                    texts = [speaker.continuation(prompt, plain=plain) for prompt in prompts]
                    found[name] = _told(texts, found.get("base"))
            backbone.model.set_output_embeddings(output)
            client.policy.decoder.path = path
    return {"cell": cell.told(), "prompts": len(prompts), "models": found}


def _told(texts: list[str], base: dict[str, Any] | None) -> dict[str, Any]:
    """What these texts are like, and how the sentiment changed from the base model's, pairwise."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    judge = SentimentIntensityAnalyzer()
    scores = [float(judge.polarity_scores(text)["compound"]) for text in texts]
    before = base["scores"] if base else scores
    changes = [after - score for after, score in zip(scores, before, strict=True)]
    return {
        "words": fmean(len(text.split()) for text in texts),
        "sentiment": fmean(scores),
        "change": fmean(changes),
        "change_error": stdev(changes) / len(changes) ** 0.5,
        "scores": scores,
        "first": texts[:3],
    }
