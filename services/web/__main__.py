"""`python -m services.web`: serves the api and the pages. Settings come from the environment (`runtime.settings`)."""

import argparse
import gc
import os
import sys

import structlog
import uvicorn

from sandbox.http import edge
from sandbox.http.loopback import names_loopback
from services.runtime import logs
from services.runtime.settings import Settings
from services.web.app import create_app

log = structlog.get_logger("services.web")


def freeze_heap() -> None:
    """Spare the garbage collector what is loaded now: it never is garbage, and walking it takes a tenth of the time."""
    gc.collect()
    gc.freeze()


def main(arguments: list[str] | None = None) -> int:
    """Serve until told to stop. Returns 2 when the settings would open the api to others without keys."""
    parser = argparse.ArgumentParser(prog="python -m services.web", description="Serve Preceptor's api and pages.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=8700)
    given = parser.parse_args(arguments)
    logs.configure()
    settings = Settings()
    if settings.api_open and not names_loopback(given.host):
        print(
            f"PRECEPTOR_API_OPEN asks for no API keys, but {given.host} can be reached from outside this machine.\n"
            "Listen on 127.0.0.1, or leave PRECEPTOR_API_OPEN unset.",
            file=sys.stderr,
        )
        return 2
    log.info("api starts", host=given.host, port=given.port, open=settings.api_open)
    app = create_app(settings)
    freeze_heap()
    uvicorn.run(
        app,
        host=given.host,
        port=given.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=10,
        # nobody's word for where a caller is, unless a proxy is named: tries at passwords are counted by it
        proxy_headers="FORWARDED_ALLOW_IPS" in os.environ,
        **edge.bounds(),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
