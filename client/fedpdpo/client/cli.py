"""The command `fedpdpo-client`."""

import sys
from collections.abc import Sequence

from fedpdpo.client.settings import ClientSettings
from fedpdpo.common.errors import BadSettings
from fedpdpo.common.log import start_logging
from fedpdpo.common.settings import load_settings, run_program

PROGRAM = "fedpdpo-client"
EPILOG = """\
examples:
  fedpdpo-client --server localhost:50051 --data ./local_prefs
  fedpdpo-client --server host:50051 --data prefs.jsonl --device cuda --dtype bfloat16
  FEDPDPO_CLIENT_SERVER=host:50051 fedpdpo-client --data prefs.parquet --client-id clinic-7

The same command on the same --state-dir goes on where the client was, whatever ended it.
Preferences are records with prompt, chosen and rejected, as text or as chat messages.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the client; gives the exit code."""
    return run_program(_run, argv, program=PROGRAM)


def _run(argv: Sequence[str]) -> None:
    settings = load_settings(ClientSettings, argv, program=PROGRAM, epilog=EPILOG)
    start_logging(settings.log_level, form=settings.log_format)
    try:
        from fedpdpo.client.daemon import run_client
    except ModuleNotFoundError as error:
        raise BadSettings(
            f"{error.name} is not installed; install this package with its extra [client]"
        ) from error
    run_client(settings)


if __name__ == "__main__":
    sys.exit(main())
