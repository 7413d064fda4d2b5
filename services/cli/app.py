"""The entry point of `preceptor`. Heavy imports come late, so that Ctrl-C in the first second gives no traceback."""

import sys


def main() -> None:
    """Run the command line and end the process with its exit status."""
    try:
        from services.cli import program

        sys.exit(program.run())
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
