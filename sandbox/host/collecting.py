"""Reads files out of a run's folder, without following anything the run put there. Only the standard library."""

import errno
import os
import stat

from sandbox.inside import kernel

_MISSING = {
    errno.ENOENT: "not_found",
    errno.ENOTDIR: "not_found",
    errno.ELOOP: "not_a_file",
    errno.ENXIO: "not_a_file",
    errno.EXDEV: "not_a_file",
}


def collect(box: int, paths: tuple[str, ...], room: int) -> tuple[dict[str, bytes], dict[str, str]]:
    """Read regular files below the open folder, so many bytes of them together, and say why the others were not; every
    process that could change them is dead."""
    files: dict[str, bytes] = {}
    missing: dict[str, str] = {}
    for path in paths:
        try:
            descriptor = kernel.open_beneath(box, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            missing[path] = _MISSING.get(error.errno or 0, "unreadable")
            continue
        try:
            details = os.fstat(descriptor)
            if not stat.S_ISREG(details.st_mode):
                missing[path] = "not_a_file"
            elif details.st_size > room:
                missing[path] = "too_large"
            else:
                files[path] = _read_whole(descriptor, details.st_size)
                room -= len(files[path])
        finally:
            os.close(descriptor)
    return files, missing


def _read_whole(descriptor: int, num_bytes: int) -> bytes:
    data = bytearray()
    while len(data) < num_bytes and (piece := os.read(descriptor, num_bytes - len(data))):
        data += piece
    return bytes(data)
