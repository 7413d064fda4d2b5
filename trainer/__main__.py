"""`python -m trainer`, or `torchrun … -m trainer`: train the lineage named in the settings until a signal ends it.

SIGTERM and SIGINT end it within one micro-batch; the current update is abandoned and its lessons are released.
"""

import argparse
import signal
import sys
import threading
from pathlib import Path

import structlog

from services.runtime import logs
from services.runtime.errors import PreceptorError
from services.runtime.settings import Settings
from trainer.config import TrainerConfig


def main() -> int:
    """Read the settings, then train. The exit status is 0 after a signal, 1 when it cannot train."""
    logs.configure()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    parser = argparse.ArgumentParser(prog="python -m trainer", description=__doc__)
    parser.add_argument("--model", type=Path, help="folder of the base model (PRECEPTOR_TRAINER_MODEL)")
    given = parser.parse_args()
    settings = Settings()
    config = TrainerConfig() if given.model is None else TrainerConfig(model=given.model)
    from trainer.loop.train import run  # torch takes seconds to import: wrong settings are refused first

    try:
        run(config, settings, stop)
    except PreceptorError as error:  # it has a hint; any other error ends with its traceback
        structlog.get_logger("trainer").error(error.title, detail=error.detail, hint=error.hint)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
