"""Between the pydantic models and the protobuf messages of the same field names."""

from google.protobuf.json_format import MessageToDict, ParseDict
from pydantic import ValidationError

from fedpdpo.common.errors import BadRequest
from fedpdpo.common.layout import LoraLayout
from fedpdpo.common.run import Run
from fedpdpo.v1 import run_pb2


def run_to_message(run: Run) -> run_pb2.Run:
    """Pack a run."""
    return ParseDict(run.model_dump(mode="json"), run_pb2.Run())


def run_from_message(message: run_pb2.Run) -> Run:
    """Unpack a run. Raises BadRequest where a field is out of range."""
    fields = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    try:
        return Run.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadRequest(f"the run's {where or 'message'} is malformed: {first['msg']}") from error


def layout_to_messages(layout: LoraLayout) -> list[run_pb2.TensorSpec]:
    """Pack a layout."""
    return [run_pb2.TensorSpec(name=name, shape=shape) for name, shape in layout.shapes]
