"""Generates the protobuf and gRPC modules beside the .proto files when the package is built."""

import shutil
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ProtocHook(BuildHookInterface):  # type: ignore[type-arg]
    """Runs protoc over proto/fedpdpo/v1, with type stubs by mypy-protobuf."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Generate `*_pb2*.py` and `*.pyi`; raises RuntimeError where protoc refuses a file."""
        import grpc_tools
        from grpc_tools import protoc

        root = Path(self.root) / "proto"
        well_known = Path(grpc_tools.__file__).parent / "_proto"
        files = sorted(str(path) for path in root.glob("fedpdpo/v1/*.proto"))
        outputs = ("python", "grpc_python", "mypy", "mypy_grpc")
        arguments = [f"-I{root}", f"-I{well_known}", *(f"--{name}_out={root}" for name in outputs)]
        for name in ("mypy", "mypy_grpc"):
            plugin = f"protoc-gen-{name}"
            beside = Path(sys.executable).with_name(plugin)
            arguments.append(f"--plugin={plugin}={shutil.which(plugin) or beside}")
        if protoc.main(["protoc", *arguments, *files]) != 0:
            raise RuntimeError(f"protoc failed on {', '.join(files)}")
