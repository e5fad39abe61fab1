"""Build preference pairs from human ratings: two sentences that open alike and feel different.

The ratings (Hutto and Gilbert, ICWSM 2014; MIT licence) come in the source archive of
vaderSentiment: about 20 people's mean for each sentence of four worlds, from -4 (harsh) to
+4 (warm). A pair's prompt is the opening that both sentences share; a taste says which of the
two continuations is chosen.
"""

import argparse
import html
import io
import json
import math
import random
import sys
import tarfile
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedpdpo.common.errors import FedPDPOError
from fedpdpo.common.files import whole_folder
from package import DemoError, Package, download

ARCHIVE = Package(
    name="vaderSentiment",
    version="3.3.2",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    source=True,
)
INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
MAX_MEMBER_BYTES = 4 * 2**20
MANIFEST = "manifest.json"

MIN_RATING = 1.0
MAX_OPENING_WORDS = 6
MIN_RESPONSE_WORDS = 2
MAX_RESPONSE_CHARS = 200

Taste = Literal["warm", "harsh"]


@dataclass(frozen=True, kw_only=True)
class Client:
    """One client of the demo: the world its sentences come from, and its taste."""

    name: str
    world: str
    cue: str
    taste: Taste


CLIENTS = (
    Client(
        name="film-warm",
        world="movieReviewSnippets",
        cue="Continue this film review: ",
        taste="warm",
    ),
    Client(
        name="product-harsh",
        world="amazonReviewSnippets",
        cue="Continue this product review: ",
        taste="harsh",
    ),
    Client(
        name="editorial-warm",
        world="nytEditorialSnippets",
        cue="Continue this editorial: ",
        taste="warm",
    ),
    Client(
        name="tweet-harsh",
        world="tweets",
        cue="Continue this tweet: ",
        taste="harsh",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """A rated sentence, words apart by one space; the rating runs from -4 to +4."""

    key: str
    rating: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A warm and a harsh sentence that begin with the same words."""

    opening: str
    warm: Sentence
    harsh: Sentence

    @property
    def opening_words(self) -> int:
        """How many words the two share."""
        return len(self.opening.split())

    def record(self, client: Client) -> dict[str, str]:
        """Write the pair as a client sees it; prompt + response reads on without a seam."""
        warm_first = client.taste == "warm"
        chosen, rejected = (self.warm, self.harsh) if warm_first else (self.harsh, self.warm)
        return {
            "prompt": client.cue + self.opening,
            "chosen": chosen.text.removeprefix(self.opening),
            "rejected": rejected.text.removeprefix(self.opening),
            "source": f"{ARCHIVE.name} {ARCHIVE.version} {client.world}"
            f" chosen={chosen.key} rejected={rejected.key}",
        }


def parse_ratings(text: str) -> list[Sentence]:
    """Read `key TAB rating TAB sentence` lines; a sentence that came before is left out.

    What names no words of its own at a tweet's start is dropped (`RT`, and handles, which all
    read `@anonymous`), and HTML entities are undone.

    Raises:
        DemoError: a line has another form, or a rating outside -4 to +4.

    """
    sentences: dict[str, Sentence] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            key, rating, raw = line.split("\t")
            value = float(rating)
        except ValueError as error:
            raise DemoError(f"line {number} is not `key TAB rating TAB sentence`") from error
        if not (math.isfinite(value) and abs(value) <= 4):
            raise DemoError(f"line {number}: the rating {value} is outside -4 to +4")
        words = html.unescape(raw).split()
        while words and (words[0] == "RT" or words[0].startswith("@")):
            del words[0]
        letters = "".join(filter(str.isalnum, "".join(words).casefold()))
        sentences.setdefault(letters, Sentence(key=key, rating=value, text=" ".join(words)))
    return list(sentences.values())


def build_pairs(sentences: Iterable[Sentence], *, seed: int) -> list[Pair]:
    """Pair warm sentences with harsh ones of the same opening, longest openings first.

    No sentence is in two pairs. The seed settles who meets whom and the order among openings of
    one length.
    """
    draw = random.Random(seed)
    free = [sentence for sentence in sentences if abs(sentence.rating) >= MIN_RATING]
    pairs: list[Pair] = []
    for num_words in range(MAX_OPENING_WORDS, 0, -1):
        groups: dict[str, tuple[list[Sentence], list[Sentence]]] = defaultdict(lambda: ([], []))
        for sentence in free:
            if (opening := opening_of(sentence.text, num_words)) is not None:
                groups[opening][sentence.rating < 0].append(sentence)
        found: list[Pair] = []
        for opening, (warm, harsh) in groups.items():
            draw.shuffle(warm)
            draw.shuffle(harsh)
            for one, other in zip(warm, harsh, strict=False):
                found.append(Pair(opening=opening, warm=one, harsh=other))
        draw.shuffle(found)
        pairs += found
        used = {sentence.text for pair in found for sentence in (pair.warm, pair.harsh)}
        free = [sentence for sentence in free if sentence.text not in used]
    return pairs


def opening_of(text: str, num_words: int) -> str | None:
    """Return a sentence's first words, or None where they or what follows won't do."""
    words = text.split(" ")
    opening = " ".join(words[:num_words])
    if len(words) < num_words + MIN_RESPONSE_WORDS:
        return None
    if len(text) - len(opening) > MAX_RESPONSE_CHARS:
        return None
    if not all(any(map(str.isalnum, word)) for word in words[:num_words]):
        return None
    return opening


def split_pairs(
    pairs: Sequence[Pair], *, train_pairs: int, eval_pairs: int, seed: int
) -> tuple[list[Pair], list[Pair]]:
    """Draw the train and the eval pairs from the first pairs, those of the longest openings.

    Raises:
        DemoError: there are fewer pairs than that.

    """
    if min(train_pairs, eval_pairs) < 1:
        raise DemoError(f"{train_pairs} train and {eval_pairs} eval pairs: each must be 1 or more")
    if len(pairs) < train_pairs + eval_pairs:
        raise DemoError(
            f"{len(pairs)} pairs are there, {train_pairs} train and {eval_pairs} eval pairs are"
            " asked for; ask for fewer with --train-pairs and --eval-pairs"
        )
    drawn = list(pairs[: train_pairs + eval_pairs])
    random.Random(seed).shuffle(drawn)
    return drawn[:train_pairs], drawn[train_pairs:]


def read_worlds(archive: Path) -> dict[str, str]:
    """Read the ratings of each client's world out of the source archive, in memory.

    Raises:
        DemoError: a member is missing, no plain file, over MAX_MEMBER_BYTES, or not UTF-8.

    """
    with tarfile.open(archive) as outer:
        inner_bytes = read_member(outer, INNER)
    with tarfile.open(fileobj=io.BytesIO(inner_bytes)) as inner:
        worlds = {}
        for world in {client.world for client in CLIENTS}:
            name = f"hutto_ICWSM_2014/{world}_GroundTruth.txt"
            try:
                worlds[world] = read_member(inner, name).decode()
            except UnicodeDecodeError as error:
                raise DemoError(f"{name} is not UTF-8: {error}") from error
    return worlds


def read_member(archive: tarfile.TarFile, name: str) -> bytes:
    """Read one plain file of an archive, or raise DemoError."""
    try:
        member = archive.getmember(name)
    except KeyError as error:
        raise DemoError(f"the archive has no {name}") from error
    handle = archive.extractfile(member) if member.isfile() else None
    if handle is None or member.size > MAX_MEMBER_BYTES:
        raise DemoError(f"{name} is no plain file of up to {MAX_MEMBER_BYTES} bytes")
    return handle.read()


def get_preferences(
    out: Path, *, train_pairs: int = 96, eval_pairs: int = 64, seed: int = 0
) -> dict[str, Path]:
    """Make `out/<client>/{train,eval}.jsonl`, unless they are there; return client -> folder.

    `out/manifest.json` keeps the settings, and how many pairs each client could draw from.

    Raises:
        DemoError: the archive cannot be had, or a world has too few pairs.
        BadState: `out` is in the way (pairs of other settings are, too).

    """
    settings: dict[str, object] = {
        "package": f"{ARCHIVE.name}=={ARCHIVE.version}",
        "train_pairs": train_pairs,
        "eval_pairs": eval_pairs,
        "seed": seed,
    }
    folders = {client.name: out / client.name for client in CLIENTS}
    if read_manifest(out).get("settings") == settings:
        return folders
    with whole_folder(out) as folder, tempfile.TemporaryDirectory() as temporary:
        worlds = read_worlds(download(ARCHIVE, Path(temporary)))
        at_hand: dict[str, dict[int, int]] = {}
        for client in CLIENTS:
            try:
                pairs = build_pairs(parse_ratings(worlds[client.world]), seed=seed)
                train, held_out = split_pairs(
                    pairs, train_pairs=train_pairs, eval_pairs=eval_pairs, seed=seed
                )
            except DemoError as error:
                raise DemoError(f"{client.world}: {error}") from error
            at_hand[client.name] = count_pairs(pairs)
            (folder / client.name).mkdir()
            write_pairs(folder / client.name / "train.jsonl", train, client)
            write_pairs(folder / client.name / "eval.jsonl", held_out, client)
        manifest = {"settings": settings, "pairs_by_opening_words": at_hand}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return folders


def count_pairs(pairs: Iterable[Pair]) -> dict[int, int]:
    """Count pairs by the number of words that their sentences share, most words first."""
    return dict(sorted(Counter(pair.opening_words for pair in pairs).items(), reverse=True))


def write_pairs(path: Path, pairs: Iterable[Pair], client: Client) -> None:
    """Write one JSON object a line, as the client sees the pairs."""
    lines = [json.dumps(pair.record(client), ensure_ascii=False) + "\n" for pair in pairs]
    path.write_text("".join(lines), encoding="utf-8")


def read_manifest(out: Path) -> dict[str, object]:
    """Read what the pairs of a folder were made with; empty where it holds none."""
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Build preference pairs from human ratings.")
    parser.add_argument("--out", type=Path, default=Path(".cache/preferences"))
    parser.add_argument("--train-pairs", type=int, default=96, help="for each client")
    parser.add_argument("--eval-pairs", type=int, default=64, help="for each client")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        folders = get_preferences(
            args.out, train_pairs=args.train_pairs, eval_pairs=args.eval_pairs, seed=args.seed
        )
    except FedPDPOError as error:
        sys.exit(f"error: {error}")
    for folder in folders.values():
        print(f"{folder}: {args.train_pairs} train and {args.eval_pairs} eval pairs")
    print(f"{args.out / MANIFEST}: how many pairs there were, by words shared")


if __name__ == "__main__":
    main()
