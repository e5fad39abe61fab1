"""Records read from JSON Lines, JSON and Parquet files, one at a time, with the place of each.

A place is `file:line`, or `file[index]` in JSON and Parquet, counted from 0. What is wrong is told
without a word of what the file holds, as training text is private.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from fedpdpo.common.errors import BadData

ENDINGS = (".jsonl", ".json", ".parquet")
KEYS = ("prompt", "chosen", "rejected")
MAX_LINE_BYTES = 16 * 2**20
MAX_JSON_BYTES = 2**30
_BATCH_ROWS = 256
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Record:
    """A decoded value and the place where it stood."""

    place: str
    value: object = field(repr=False)


@dataclass(frozen=True, slots=True)
class Flaw:
    """A place where no record could be read, and why."""

    place: str
    reason: str


def files_in(path: Path) -> tuple[Path, ...]:
    """List the data files that `path` names: itself, or those directly in it, sorted.

    Raises BadData where there is none.
    """
    wanted = ", ".join(ENDINGS)
    try:
        if path.is_dir():
            files = [file for file in path.iterdir() if file.suffix.lower() in ENDINGS]
            if found := sorted(file for file in files if file.is_file()):
                return tuple(found)
            raise BadData(f"the folder {path} holds no file that ends in {wanted}")
        if not path.exists():
            raise BadData(f"{path} does not exist; name a file or folder of preferences")
        if not path.is_file() or path.suffix.lower() not in ENDINGS:
            raise BadData(f"{path} is no folder and no file that ends in {wanted}")
    except OSError as error:
        raise BadData(f"cannot read {path}: {error.strerror}") from error
    return (path,)


def records_in(file: Path, *, also: Sequence[str] = ()) -> Iterator[Record | Flaw]:
    """Read a data file, whose ending is one of ENDINGS, record by record.

    Of Parquet's columns those of preferences are read, and `also` these. Raises BadData where the
    file cannot be opened or read, or Parquet is not installed.
    """
    ending = file.suffix.lower()
    try:
        with file.open("rb") as stream:
            if ending == ".parquet":
                yield from _parquet(stream, str(file), (*KEYS, *also))
            else:
                yield from (_json if ending == ".json" else _json_lines)(stream, str(file))
    except OSError as error:
        raise BadData(f"cannot read {file}: {error.strerror}") from error


def _json_lines(stream: BinaryIO, file: str) -> Iterator[Record | Flaw]:
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = stream.readline(MAX_LINE_BYTES)
            yield Flaw(f"{file}:{number}", f"the line is longer than {MAX_LINE_BYTES} bytes")
            continue
        if number == 1:
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if line.strip():
            yield _decoded(line.rstrip(), file, first_line=number)


def _json(stream: BinaryIO, file: str) -> Iterator[Record | Flaw]:
    text = stream.read(MAX_JSON_BYTES + 1)
    if len(text) > MAX_JSON_BYTES:
        yield Flaw(file, f"more than {MAX_JSON_BYTES} bytes; write it as JSON Lines (.jsonl)")
        return
    whole = _decoded(text.removeprefix(_BYTE_ORDER_MARK), file, first_line=1)
    if isinstance(whole, Flaw):
        yield whole
        return
    data = whole.value.get("data") if isinstance(whole.value, dict) else whole.value
    if isinstance(data, list):
        for index, value in enumerate(data):
            yield Record(f"{file}[{index}]", value)
    else:
        yield Flaw(file, 'neither a list of objects nor {"data": [...]}; JSON Lines end in .jsonl')


def _decoded(text: bytes, file: str, *, first_line: int) -> Record | Flaw:
    place = f"{file}:{first_line}"
    try:
        return Record(place, json.loads(text.decode()))
    except UnicodeDecodeError as error:
        line = first_line + text.count(b"\n", 0, error.start)
        return Flaw(f"{file}:{line}", f"not UTF-8 at byte {error.start}")
    except json.JSONDecodeError as error:
        return Flaw(
            f"{file}:{first_line + error.lineno - 1}", f"invalid JSON at column {error.colno}"
        )
    except (ValueError, RecursionError):
        return Flaw(place, "JSON with a number too long or nested too deep")


def _parquet(stream: BinaryIO, file: str, keys: Sequence[str]) -> Iterator[Record | Flaw]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise BadData(
            f"{file} needs pyarrow; install this package with its extra [client], or write .jsonl"
        ) from None
    num_rows = 0
    try:
        parquet = pq.ParquetFile(stream)
        present = [key for key in keys if key in parquet.schema_arrow.names]
        if missing := [key for key in KEYS[1:] if key not in present]:
            yield Flaw(file, f"no column {missing[0]!r}; {keys_shown(parquet.schema_arrow.names)}")
            return
        for batch in parquet.iter_batches(batch_size=_BATCH_ROWS, columns=present):
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            for row in range(batch.num_rows):
                place = f"{file}[{num_rows}]"
                num_rows += 1
                try:
                    yield Record(place, {key: columns[key][row].as_py() for key in present})
                except UnicodeDecodeError as error:
                    yield Flaw(place, f"not UTF-8 at byte {error.start}")
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        yield Flaw(file, f"not valid Parquet after {num_rows} rows ({type(error).__name__})")


def keys_shown(keys: Iterable[object]) -> str:
    """Say which keys are there, for people: at most ten, cut to forty characters each."""
    names = [repr(str(key)[:40]) for key in keys]
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"there are {', '.join(names[:10])}{more}" if names else "there is no key at all"
