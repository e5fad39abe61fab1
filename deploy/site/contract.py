"""The protocol reference: services, calls, messages and their comments, from proto/*.proto."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
    ServiceDescriptorProto,
)
from grpc_tools import protoc

_MESSAGE, _ENUM, _SERVICE, _INNER = 4, 5, 6, 2  # numbers of fields in descriptor.proto
_INTRODUCTION = """\
# Protocol reference

Made from `proto/fedpdpo/v1/*.proto`. [The protocol](../protocol.md) tells how the calls fit
together, and [its statuses](../protocol.md#statuses) what each failure means.
"""


def page(root: Path) -> str:
    """The whole reference as Markdown. Raises RuntimeError where protoc refuses a file."""
    parts = [_INTRODUCTION]
    for file in sorted(_described(root).file, key=lambda one: not one.service):
        words = _Words(file)
        parts.append(f"## {file.name}\n\n{words.of((12,))}\n")
        for number, service in enumerate(file.service):
            parts += _service(service, words, (_SERVICE, number))
        for number, message in enumerate(file.message_type):
            parts += _message(message, words, (_MESSAGE, number))
        for number, enum in enumerate(file.enum_type):
            parts += _enum(enum, words, (_ENUM, number))
    return "\n".join(parts)


class _Words:
    """The comments of a file, by the path of what they stand before."""

    def __init__(self, file: FileDescriptorProto) -> None:
        places = file.source_code_info.location
        self._found = {
            tuple(place.path): (*place.leading_detached_comments, place.leading_comments)
            for place in places
        }

    def of(self, path: tuple[int, ...]) -> str:
        """The comment in one line, safe in a table."""
        told = " ".join(" ".join(self._found.get(path, ())).split())
        return told.replace("|", "\\|").replace("<", "&lt;")


def _described(root: Path) -> FileDescriptorSet:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set"
        files = sorted(str(path) for path in root.glob("fedpdpo/v1/*.proto"))
        given = ["protoc", f"-I{root}", "--include_source_info", f"--descriptor_set_out={out}"]
        if protoc.main([*given, *files]) != 0:
            raise RuntimeError(f"protoc failed on {', '.join(files)}")
        return FileDescriptorSet.FromString(out.read_bytes())


def _service(one: ServiceDescriptorProto, words: _Words, path: tuple[int, ...]) -> Iterator[str]:
    yield f"### {one.name}\n\n{words.of(path)}\n"
    for number, method in enumerate(one.method):
        yield _call(method, words.of((*path, _INNER, number)))


def _call(method: MethodDescriptorProto, told: str) -> str:
    request = "stream of " * method.client_streaming + _named(method.input_type)
    response = "stream of " * method.server_streaming + _named(method.output_type)
    return f"#### {method.name}\n\n{told}\n\nTakes {request}; gives {response}.\n"


def _message(one: DescriptorProto, words: _Words, path: tuple[int, ...]) -> Iterator[str]:
    yield f"### {one.name}\n\n{words.of(path)}\n"
    rows = []
    for number, field in enumerate(one.field):
        told = words.of((*path, _INNER, number))
        if field.HasField("oneof_index"):
            told = f"(one of `{one.oneof_decl[field.oneof_index].name}`) {told}"
        rows.append((str(field.number), f"`{field.name}`", _type(field), told))
    if rows:
        yield _table(("number", "field", "type", "meaning"), rows)


def _enum(one: EnumDescriptorProto, words: _Words, path: tuple[int, ...]) -> Iterator[str]:
    yield f"### {one.name}\n\n{words.of(path)}\n"
    rows = [
        (str(value.number), f"`{value.name}`", words.of((*path, _INNER, number)))
        for number, value in enumerate(one.value)
    ]
    yield _table(("number", "value", "meaning"), rows)


def _type(field: FieldDescriptorProto) -> str:
    kind = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    name = _named(field.type_name) if field.type_name else f"`{kind}`"
    many = field.label == FieldDescriptorProto.LABEL_REPEATED
    return f"repeated {name}" if many else name


def _named(type_name: str) -> str:
    name = type_name.rpartition(".")[2]
    return f"[`{name}`](#{name.lower()})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
