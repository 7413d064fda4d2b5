"""The entry point of `preceptor`. It imports what is heavy late, so that Ctrl-C in the first second is no traceback."""

import sys


def main() -> None:
    """Run the command line and end the process with its exit status."""
    try:
        from services.cli import program

        sys.exit(program.run())
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
