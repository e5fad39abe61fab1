"""The demo: one server and four clients, real processes on loopback, align a small real model.

Gets model and data, runs the federation, prints each client's held-out accuracy before and after,
and writes OUT/summary.json.
"""

import argparse
import sys
import time
from pathlib import Path

from federation import Federation, Member
from fedpdpo.client.machine import available_cores
from fedpdpo.common.errors import FedPDPOError
from folder import make_anew, must_be_ours
from model import get_model
from preferences import get_preferences
from summary import show, summarize

CACHE = Path(".cache")


def main() -> int:
    """Run the command line; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="a folder, made anew")
    parser.add_argument("--model", help="a Hugging Face id or folder instead of the packaged model")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    begun = time.monotonic()
    try:
        must_be_ours(args.out)
        model = args.model or str(get_model(CACHE / "smollm2-135m-instruct"))
        folders = get_preferences(CACHE / "preferences")
        make_anew(args.out)
        members = [
            Member(name, data=folder / "train.jsonl", eval_data=folder / "eval.jsonl")
            for name, folder in folders.items()
        ]
        threads = max(1, available_cores() // len(members))
        federation = Federation(
            args.out, model=model, members=members, rounds=args.rounds, threads=threads
        )
        federation.run()
        summary = summarize(args.out, wall_s=time.monotonic() - begun)
    except FedPDPOError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    show(summary, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
