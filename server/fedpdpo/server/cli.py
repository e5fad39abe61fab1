"""The command `fedpdpo-server`."""

import asyncio
import signal
import sys
from collections.abc import Sequence

from fedpdpo.common.log import start_logging
from fedpdpo.common.settings import load_settings, run_program
from fedpdpo.server.daemon import serve
from fedpdpo.server.settings import ServerSettings

PROGRAM = "fedpdpo-server"
EPILOG = """\
examples:
  fedpdpo-server --port 50051
  fedpdpo-server --config run.yaml --rounds 10 --lora.rank 8
  FEDPDPO_SERVER_METHOD__BETA=0.2 fedpdpo-server --min-clients 4

The same command on the same --state-dir goes on with the run, whatever ended the server.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server; gives the exit code."""
    return run_program(_serve, argv, program=PROGRAM)


def _serve(argv: Sequence[str]) -> None:
    settings = load_settings(ServerSettings, argv, program=PROGRAM, epilog=EPILOG)
    start_logging(settings.log_level, form=settings.log_format)
    asyncio.run(_serve_until_signal(settings))


async def _serve_until_signal(settings: ServerSettings) -> None:
    stopping = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stopping.set)
    await serve(settings, stopping=stopping)


if __name__ == "__main__":
    sys.exit(main())
