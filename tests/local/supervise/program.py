"""A small product under the supervisor, run by the tests: `python -m tests.local.supervise.program`.

Starts Postgres, Valkey and a worker on the data folder it is given. The worker starts a process in a session of its
own and ignores SIGTERM: the most stubborn child there is. Prints `READY` and the state, then waits to be stopped.
"""

from __future__ import annotations

import sys
from pathlib import Path

from services.local.layout import Layout
from services.local.servers.postgres import EmbeddedPostgres
from services.local.servers.valkey import EmbeddedValkey
from services.local.supervise.supervisor import ProcessSpec, Supervisor
from services.runtime.errors import PreceptorError

STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print("the worker works", flush=True)
time.sleep(600)
"""


def main(folder: Path, stop_seconds: float) -> None:
    """Run until stopped; ends with 130 when interrupted, 1 when something failed."""
    layout = Layout.open(folder)
    postgres = EmbeddedPostgres(layout.postgres, log=layout.log("postgres"))
    valkey = EmbeddedValkey(layout.valkey, log=layout.log("valkey"))
    try:
        with Supervisor(layout, report=lambda line: print(line, flush=True)) as supervisor:
            supervisor.start(postgres, valkey)
            worker = [sys.executable, "-c", STUBBORN]
            supervisor.start(ProcessSpec("worker", worker, stop_seconds=stop_seconds))
            print("READY", postgres.url, valkey.url, flush=True)
            supervisor.wait()
    except KeyboardInterrupt:
        sys.exit(130)
    except PreceptorError as error:
        print(f"{error}\n{error.hint}", flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
