"""What tests ask of processes they did not start themselves."""

import psutil


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs; one that ends between the two looks does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
