"""`python -m sandbox`: serve the sandbox over HTTP until told to stop. The keys come from SANDBOX_API_KEY and
SANDBOX_METRICS_KEY, or from files that those names with _FILE name, never from the command line."""

import argparse
import os
import signal
import sys
from pathlib import Path

import uvicorn
from pydantic import SecretStr

from sandbox.contract import Level
from sandbox.http import edge
from sandbox.http.logs import LogFormat, configure
from sandbox.http.loopback import names_loopback
from sandbox.inside import kernel
from sandbox.server.app import create_app
from sandbox.settings import BackendName, SandboxSettings

STOP_SECONDS = 2
"""Given to requests in flight; then they are cancelled, and with them their runs."""


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m sandbox", description="Run untrusted code, isolated, behind an HTTP interface."
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; other than loopback needs SANDBOX_API_KEY"
    )
    parser.add_argument("--port", type=int, default=8130)
    parser.add_argument("--slots", type=int, help="runs at one time (default: two per core)")
    parser.add_argument("--queue-limit", type=int, help="runs that may wait before callers are told 429")
    parser.add_argument(
        "--minimum-level",
        type=Level,
        choices=list(Level),
        default=Level.FULL_NOCGROUP,
        help="refuse to start below this isolation (default: full-nocgroup)",
    )
    parser.add_argument(
        "--backend",
        type=BackendName,
        choices=list(BackendName),
        default=BackendName.NAMESPACES,
        help="what isolates runs (default: namespaces); docker is for machines that forbid them",
    )
    parser.add_argument("--docker-image", help="of the backend docker's containers (default: python:3.11-slim)")
    parser.add_argument("--data-dir", type=Path, help="where the level weak keeps the folders of its runs")
    parser.add_argument(
        "--die-with-parent", action="store_true", help="stop when the process that started this one ends"
    )
    parser.add_argument(
        "--log-format",
        type=LogFormat,
        choices=list(LogFormat),
        default=LogFormat.TEXT,
        help="of a line (default: text)",
    )
    return parser.parse_args(arguments)


def _find_key(variable: str) -> SecretStr | None:
    """What the variable says, else the file that the same name with _FILE names. Raises ValueError when it cannot be
    read."""
    key = os.environ.get(variable, "")
    if not key and (file := os.environ.get(f"{variable}_FILE")):
        try:
            key = Path(file).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{variable}_FILE cannot be read: {error}") from error
    return SecretStr(key) if key else None


def main(arguments: list[str]) -> int:
    """Serve until SIGTERM or SIGINT; 2 for settings that make no sense, 3 when the machine does not allow the
    isolation."""
    options = _parse(arguments)
    configure(options.log_format)
    try:
        key, metrics_key = _find_key("SANDBOX_API_KEY"), _find_key("SANDBOX_METRICS_KEY")
    except ValueError as error:
        sys.stderr.write(f"sandbox: {error}\n")
        return 2
    if not key and not names_loopback(options.host):
        sys.stderr.write(
            f"sandbox: set SANDBOX_API_KEY to listen on {options.host}; without it only loopback is open\n"
        )
        return 2
    if options.die_with_parent:
        kernel.die_with_parent(signal.SIGTERM)
    names = ("slots", "queue_limit", "minimum_level", "backend", "docker_image", "data_dir")
    chosen = {name: getattr(options, name) for name in names}
    settings = SandboxSettings(
        api_key=key,
        metrics_key=metrics_key,
        **{name: value for name, value in chosen.items() if value is not None},
    )
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(settings),
            host=options.host,
            port=options.port,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=STOP_SECONDS,
            **edge.bounds(),
        )
    )
    server.run()
    return 0 if server.started else 3


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
