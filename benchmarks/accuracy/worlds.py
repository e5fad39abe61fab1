"""The pairs that clients draw from: pools of real human preferences, split by hash.

Film sentences are made from the source archive of vaderSentiment, which comes from the package
index. The other pools are JSON Lines files in a folder of the user's; `ORIGINS` says where each can
be had and under which licence. One object a line: `prompt`, `chosen`, `rejected`, perhaps
`annotator`; NAME.train.jsonl is trained on, NAME.eval.jsonl is divided into tune and test.
"""

import hashlib
import json
import sys
import tempfile
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from report import ROOT, BenchmarkError

sys.path.insert(0, str(ROOT / "deploy" / "demo"))

from package import download
from preferences import ARCHIVE, CLIENTS, build_pairs, parse_ratings, read_worlds

SPLITS = ("train", "tune", "test")
FILM = "film"
MAX_FILE_BYTES = 64 * 2**20

#: A pool, and who made it, where it can be had, and its licence.
ORIGINS = {
    FILM: "Hutto and Gilbert 2014, rated film sentences; vaderSentiment 3.3.2 on PyPI; MIT",
    "sentiment": "the same sentences as questions and answers",
    "truthful": "TruthfulQA, Lin et al. 2022; github.com/sylinrl/TruthfulQA; Apache-2.0",
    "math": "solutions of GSM8K, Cobbe et al. 2021; github.com/openai/grade-school-math; MIT",
    "harmless": "harmless-base of hh-rlhf, Bai et al. 2022; github.com/anthropics/hh-rlhf; MIT",
    "pandalm": "PandaLM test set, Wang et al. 2023; github.com/WeOpenML/PandaLM; Apache-2.0",
    "chat_zh": "dpo_zh_demo; github.com/hiyouga/LLaMA-Factory; Apache-2.0",
    "persona_say": "persona evals, Perez et al. 2022; github.com/anthropics/evals; CC-BY 4.0",
    "ukp_big4": "UKPConvArg1, Habernal and Gurevych 2016, four annotators; CC-BY 4.0",
    "ukp_users_xt": "UKPConvArg1, sixteen annotators, sides of debates held out; CC-BY 4.0",
}  # fmt: skip

#: Of answers in this pool the first so many characters are taken: whole ones have 1,000 tokens.
BEGINNINGS = {"chat_zh": 80}

#: Pools by which nothing is chosen: all that is held out is tested on.
UNTUNED = frozenset({"math", "pandalm", "chat_zh", "ukp_users_xt"})


@dataclass(frozen=True)
class Pair:
    """A prompt, the answer that somebody preferred, the other one, and who that was."""

    prompt: str
    chosen: str
    rejected: str
    annotator: str = ""

    def swapped(self) -> "Pair":
        """The same pair in the eyes of one with the opposite taste."""
        return replace(self, chosen=self.rejected, rejected=self.chosen)

    @property
    def num_chars(self) -> int:
        """Characters of the prompt and both answers."""
        return len(self.prompt) + len(self.chosen) + len(self.rejected)

    def record(self) -> str:
        """The pair as a line of a client's data file."""
        fields = {"prompt": self.prompt, "chosen": self.chosen, "rejected": self.rejected}
        return json.dumps(fields, ensure_ascii=False) + "\n"


Pools = dict[str, list[Pair]]


@cache
def pools(name: str, folder: Path) -> Pools:
    """A pool's pairs by split. Raises BenchmarkError where its files are not in the folder."""
    if name == FILM:
        found: Pools = {split: [] for split in SPLITS}
        for pair in _film_pairs():
            found[_split_of(pair, ("train",) * 6 + ("tune", "test"))].append(pair)
        return found
    train, held_out = (_read(folder / f"{name}.{part}.jsonl", name) for part in ("train", "eval"))
    tune = [pair for pair in held_out if _split_of(pair, ("tune", "test")) == "tune"]
    test = [pair for pair in held_out if _split_of(pair, ("tune", "test")) == "test"]
    if name in UNTUNED:
        test = held_out
    return {"train": train, "tune": tune, "test": test}


def at_hand(names: set[str], folder: Path) -> bool:
    """Whether the files of these pools are there."""
    wanted = [
        folder / f"{name}.{part}.jsonl" for name in names - {FILM} for part in ("train", "eval")
    ]
    return all(path.exists() for path in wanted)


def _split_of(pair: Pair, splits: tuple[str, ...]) -> str:
    """A split that follows from the two answers, whichever of them was preferred."""
    answers = "\0".join(sorted((pair.chosen, pair.rejected)))
    return splits[hashlib.sha256(answers.encode()).digest()[0] % len(splits)]


def _film_pairs() -> list[Pair]:
    """Warm (chosen) over harsh sentences that open with the same words."""
    kept = ROOT / ".cache" / f"{ARCHIVE.name}-{ARCHIVE.version}-films.json"
    if not kept.exists():
        with tempfile.TemporaryDirectory() as temporary:
            worlds = read_worlds(download(ARCHIVE, Path(temporary)))
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(worlds["movieReviewSnippets"]), encoding="utf-8")
    client = next(one for one in CLIENTS if one.taste == "warm" and "movie" in one.world)
    sentences = parse_ratings(json.loads(kept.read_text(encoding="utf-8")))
    records = [pair.record(client) for pair in build_pairs(sentences, seed=0)]
    return [Pair(one["prompt"], one["chosen"], one["rejected"]) for one in records]


def _read(path: Path, name: str) -> list[Pair]:
    if not path.exists():
        raise BenchmarkError(f"{path} is missing: {ORIGINS[name]}")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise BenchmarkError(f"{path} is larger than {MAX_FILE_BYTES} bytes")
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            fields = json.loads(line)
            prompt, chosen, rejected = (fields[key] for key in ("prompt", "chosen", "rejected"))
            annotator = str(fields.get("annotator", ""))
            begun = slice(BEGINNINGS.get(name))
            found.append(Pair(prompt, " " + chosen[begun], " " + rejected[begun], annotator))
        except (ValueError, KeyError, TypeError) as error:
            raise BenchmarkError(f"{path}:{number} is no preference: {error!r}") from error
    return found
