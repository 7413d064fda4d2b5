"""Disturb everything at random and ask the database: nothing lost, nothing counted twice, nobody trusted who is not.

`python -m tests.chaos --tasks 300 --seed 0` draws every task once while workers, the trainer, Valkey (its data wiped)
and Postgres are killed with -9, Postgres is frozen, the disk is filled to its last byte (as root), people correct many
answers at once, and two experts on probation answer: one with "ask again in an hour", one with wrong words about
everything. Then the disturbances stop, the loop runs dry, and `tests.chaos.invariants` are asked in SQL.
"""

import argparse
import json
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import structlog

from tests.chaos.run import run_chaos


def run(arguments: Sequence[str]) -> int:
    """The command; 1 when an invariant does not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=str(__doc__).splitlines()[0])
    parser.add_argument("--tasks", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--disturb-every", type=float, default=4.0, help="seconds between disturbances, on average")
    parser.add_argument("--keep", action="store_true", help="keep the folder with the logs")
    options = parser.parse_args(arguments)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))  # our own experts' refusals
    folder = Path(tempfile.mkdtemp(prefix="preceptor-chaos-"))
    folder.chmod(0o711)
    began = time.monotonic()

    def say(line: str) -> None:
        sys.stdout.write(f"[{time.monotonic() - began:6.0f} s] {line}\n")
        sys.stdout.flush()

    try:
        counts = run_chaos(options.tasks, options.seed, folder, options.disturb_every, say)
    finally:
        if options.keep:
            say(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    sys.stdout.write(json.dumps(asdict(counts), indent=2) + "\n")
    if counts.violations or counts.starved_floods:
        sys.stdout.write(f"VIOLATED: {counts.violations}; floods that kept others waiting: {counts.starved_floods}\n")
        return 1
    sys.stdout.write("every invariant holds\n")
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
