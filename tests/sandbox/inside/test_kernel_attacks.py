"""What hostile code asks of the kernel, at every level that this machine can have: calls and arguments that no program
of a task needs, and memory that no process shows as its own. And what honest code asks of it, which goes on working."""

import contextlib
import os
import shutil
import stat
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.contract import Language, Level, Limits, RunRequest, RunResult, Status
from sandbox.inside import kernel
from sandbox.inside.syscalls import ABSENT, ARCHITECTURES
from tests.sandbox.conftest import ORDINARY_UID, SandboxServer, make_server, skip_unless_root
from tests.sandbox.inside.test_seccomp import REFUSED

pytestmark = [pytest.mark.integration, pytest.mark.namespaces]

SMALL = Limits(wall_seconds=60, cpu_seconds=60, memory_bytes=64 << 20, processes=16)
ROOMY = Limits(wall_seconds=60, cpu_seconds=30)
PRELUDE = """
import ctypes, errno, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
FAILED = (None, 2**64 - 1)
def multiply(num):
    # where runs of another server have the same user, a fork waits for them
    for _ in range(num):
        while True:
            try: child = os.fork()
            except BlockingIOError: time.sleep(0.01)
            else: break
        if child == 0: break
"""


@pytest.fixture(scope="module", params=["this-user", "ordinary-user", "weak"])
def server(request: pytest.FixtureRequest) -> Iterator[SandboxServer]:
    """A sandbox at each level: as root `full`, as an ordinary user `full-nocgroup`, and `weak`."""
    if request.param == "ordinary-user":
        skip_unless_root()
    with contextlib.ExitStack() as stack:
        started = make_server(request.param)
        if request.param == "weak":
            folder = Path(tempfile.mkdtemp(prefix="weak-test-"))
            stack.callback(shutil.rmtree, folder)
            folder.chmod(0o777)
            arguments = ("--minimum-level", "weak", "--data-dir", str(folder))
            started = SandboxServer(without_namespaces=True, arguments=arguments)
        yield stack.enter_context(started)


def run(
    server: SandboxServer,
    code: str,
    limits: Limits = ROOMY,
    language: Language = Language.PYTHON,
    prelude: str = PRELUDE,
) -> RunResult:
    can_run = server.health().languages[language]
    if can_run != "available":
        pytest.skip(f"{language}: {can_run}")
    return server.post(RunRequest(code=prelude + textwrap.dedent(code), language=language, limits=limits))


def test_every_call_with_a_record_of_harm_is_refused(server: SandboxServer) -> None:
    column = ARCHITECTURES.index(kernel.MACHINE)
    numbers = {name: each[column] for name, each in REFUSED.items() if each[column] != ABSENT}
    code = f"""
    for name, number in {numbers}.items():
        if libc.syscall(number, 0, 0, 0, 0, 0, 0) != -1 or ctypes.get_errno() != errno.EPERM:
            print(name, ctypes.get_errno())
    """
    result = run(server, code)
    assert (result.status, result.stdout) == (Status.OK, ""), result


@pytest.mark.parametrize("path", ["sys.executable", "os.__file__", "'/usr/bin/env'", "'main.py'", "'/dev/null'"])
def test_no_file_can_be_leased_watched_or_made_to_signal(server: SandboxServer, path: str) -> None:
    commands = {
        "F_SETOWN": (8, "os.getpid()"),
        "F_SETSIG": (10, "9"),
        "F_SETOWN_EX": (15, "bytes(8)"),
        "F_SETLEASE to read": (1024, "0"),
        "F_SETLEASE to write": (1024, "1"),
        "F_GETLEASE": (1025, "0"),
        "F_NOTIFY": (1026, "0x8000003F"),
        "F_SETPIPE_SZ": (1031, "1 << 20"),
        "F_OFD_SETLK": (37, "bytes(32)"),
        "F_SET_RW_HINT": (1036, "bytes(8)"),
    }
    tries = "\n".join(f"    attempt({name!r}, {number}, {value})" for name, (number, value) in commands.items())
    code = f"""
    import fcntl
    def attempt(name, command, value):
        try:
            fcntl.fcntl(file, command, value)
            print(name)
        except PermissionError:
            pass
    for file in [os.open({path}, os.O_RDONLY)]:
    {tries}
    """
    result = run(server, textwrap.dedent(code))
    assert (result.status, result.stdout) == (Status.OK, ""), result


def test_no_extended_attribute_or_access_list_can_be_written(server: SandboxServer) -> None:
    code = """
    import struct
    entries = ((1, 6, 2**32 - 1), (2, 7, 5), (4, 4, 2**32 - 1), (16, 7, 2**32 - 1), (32, 4, 2**32 - 1))
    access_list = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *each) for each in entries)
    file, (reader, writer) = os.open("main.py", os.O_RDWR), os.pipe()
    os.mkdir("folder")
    for place in ("main.py", file, "folder", reader):
        for name, value in (("user.a", b"x" * 60000), ("trusted.a", b"x"), ("security.a", b"x"),
                            ("system.posix_acl_access", access_list), ("system.posix_acl_default", access_list)):
            try:
                os.setxattr(place, name, value)
                print(place, name)
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP: print(place, name, error)
    try:
        os.getxattr("main.py", "user.a")
    except OSError as error:
        print(error.errno == errno.EOPNOTSUPP)
    """
    assert run(server, code).stdout == "True\n"


@pytest.mark.parametrize("server", ["weak"], indirect=True)
def test_no_attribute_of_a_host_s_file_can_be_changed_through_a_descriptor(server: SandboxServer) -> None:
    """Of a library that the run can read and its user owns."""
    skip_unless_root()
    with tempfile.NamedTemporaryFile(dir=f"{os.path.realpath(sys.base_prefix)}/lib", suffix=".py") as file:
        os.chown(file.name, ORDINARY_UID, ORDINARY_UID)
        os.chmod(file.name, 0o644)
        before = os.stat(file.name)
        code = f"""
        import fcntl
        path = {file.name!r}
        file = os.open(path, os.O_RDONLY)
        for name, change in dict(
            fchmod=lambda: os.fchmod(file, 0), fchown=lambda: os.fchown(file, -1, os.getgid()),
            futimens=lambda: os.utime(file, (1, 1)), fsetxattr=lambda: os.setxattr(file, "user.x", b"x"),
            through_proc=lambda: os.chmod(f"/proc/self/fd/{{file}}", 0), chmod=lambda: os.chmod(path, 0),
            flags=lambda: fcntl.ioctl(file, 0x40086602, (0x40).to_bytes(8, "little")),
            truncate=lambda: os.truncate(path, 1), empty=lambda: os.open(path, os.O_RDONLY | os.O_TRUNC),
            write=lambda: os.open(path, os.O_WRONLY), room=lambda: os.posix_fallocate(file, 0, 10),
            rename=lambda: os.rename(path, path + "x"), link=lambda: os.link(path, "mine"),
            unlink=lambda: os.unlink(path),
        ).items():
            try:
                change()
                print(name)
            except OSError:
                pass
        """
        result = run(server, textwrap.dedent(code))
        assert (result.status, result.stdout) == (Status.OK, ""), result
        after = os.stat(file.name)
        assert (after.st_mode, after.st_uid, after.st_mtime, after.st_ctime) == (
            before.st_mode,
            before.st_uid,
            before.st_mtime,
            before.st_ctime,
        )
        assert stat.S_IMODE(after.st_mode) == 0o644


@pytest.mark.parametrize(
    ("name", "code"),
    [
        (
            "mappings",
            """
            multiply(15)
            base = libc.mmap(None, 65000 * 4096, 0, 0x4022, -1, 0)
            for page in range(0, 65000, 2):
                if libc.mprotect(ctypes.c_void_p(base + page * 4096), 4096, 1): break
            time.sleep(40)
            """,
        ),
        (
            "sockets",
            """
            import socket
            multiply(15)
            kept = []
            try:
                while True:
                    kept += socket.socketpair()
                    for each in kept[-2:]:
                        each.setblocking(False)
                        try:
                            while True: each.send(b"x" * 65536)
                        except BlockingIOError: pass
            except OSError: pass
            time.sleep(40)
            """,
        ),
        (
            "pipes",
            """
            multiply(15)
            try:
                while True:
                    reader, writer = os.pipe()
                    os.set_blocking(writer, False)
                    try:
                        while True: os.write(writer, b"x" * 65536)
                    except BlockingIOError: pass
            except OSError: pass
            time.sleep(40)
            """,
        ),
        (
            "epoll",
            """
            import select
            multiply(15)
            files, polls = [os.eventfd(0) for _ in range(90)], [select.epoll() for _ in range(40)]
            for file in files:
                for number in range(160, 250):
                    os.dup2(file, number)
                    for each in polls:
                        try: each.register(number, 1)
                        except OSError: pass
            time.sleep(40)
            """,
        ),
        (
            "file locks",
            """
            import fcntl
            for number in range(200):
                file = os.open(f"{number}", os.O_RDWR | os.O_CREAT)
                for start in range(0, 4000, 2): fcntl.lockf(file, fcntl.LOCK_EX, 1, start)
            time.sleep(40)
            """,
        ),
    ],
)
def test_memory_that_the_kernel_keeps_for_a_run_counts(server: SandboxServer, name: str, code: str) -> None:
    result = run(server, textwrap.dedent(code), SMALL)
    assert (result.status, result.exit_code) == (Status.MEMORY, None), (name, result)
    assert server.run("print(1)").stdout == "1\n"


@pytest.mark.parametrize("language", [Language.PYTHON, Language.PYTHON_NUMPY])
def test_page_tables_count_or_cannot_be_had(server: SandboxServer, language: Language) -> None:
    """A page in every two MiB of nothing but zeroes costs no page, but a table of the kernel's."""
    code = """
    for size in (1 << bits for bits in range(46, 27, -1)):
        base = libc.mmap(None, size, 1, 0x4022, -1, 0)
        if base not in FAILED: break
    for address in range(base, base + size, 2 << 20): ctypes.c_char.from_address(address).value
    print(size >> 20)
    """
    result = run(server, textwrap.dedent(code), SMALL, language)
    assert result.status == Status.MEMORY or int(result.stdout) < 2048, result  # 2 GiB: 4 MiB of tables


def test_a_run_with_little_memory_ends_soon_and_says_why_in_javascript_too(server: SandboxServer) -> None:
    limits = Limits(wall_seconds=60, cpu_seconds=60, memory_bytes=32 << 20)
    one = run(server, "console.log(1 + 1)", limits, Language.JAVASCRIPT, "")
    assert (one.status, one.stdout) == (Status.OK, "2\n"), one
    for bomb in ("Buffer.alloc(1 << 20, 1)", "{x: [1, 2, 3]}", "new Float64Array(1e5).fill(1)"):
        result = run(server, f"const kept = []; for (;;) kept.push({bomb})", limits, Language.JAVASCRIPT, "")
        assert result.status == Status.MEMORY, result


def test_a_c_program_that_gets_no_more_memory_is_reported_as_memory(server: SandboxServer) -> None:
    code = "#include <vector>\nint main() { std::vector<char> kept; for (;;) kept.push_back(1); }"
    assert run(server, code, SMALL, Language.CPP, "").status == Status.MEMORY


def test_a_thread_that_gets_no_memory_to_begin_with_is_reported_as_memory(server: SandboxServer) -> None:
    """Its stack is had, and not a byte more: Python waits for it for ever."""
    if server.health().level == Level.FULL:
        pytest.skip("a stack that is not touched costs nothing in a cgroup")
    code = """
    import threading
    threading.stack_size(SIZE)
    thread = threading.Thread(target=print)
    thread.start()
    """.replace("SIZE", str(256 << 20))
    result = run(server, code, Limits(wall_seconds=6, memory_bytes=256 << 20), prelude="")
    assert result.status == Status.MEMORY, result


def test_what_programs_of_tasks_do_goes_on_working(server: SandboxServer) -> None:
    code = """
    import asyncio, fcntl, mmap, multiprocessing, pathlib, shutil, signal, socket, sqlite3, subprocess, tempfile
    import threading, zipfile
    database = sqlite3.connect("data.db")
    database.execute("create table t (x)")
    database.execute("insert into t values (1)")
    database.commit()
    print("sqlite", database.execute("select x from t").fetchall())
    with multiprocessing.Pool(2) as pool:
        print("pool", pool.map(abs, [-1, 2]))
    async def both():
        child = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
        out, _ = await child.communicate(b"in")
        await asyncio.sleep(0.01)
        return out, await asyncio.to_thread(len, "abc")
    print("asyncio", asyncio.run(both()))
    print("child", subprocess.run("echo $((1 + 1)) | cat", shell=True, capture_output=True, text=True).stdout.strip())
    queue = multiprocessing.Queue()
    process = multiprocessing.Process(target=queue.put, args=(7,))
    process.start()
    print("queue", queue.get())
    process.join()
    thread = threading.Thread(target=signal.setitimer, args=(signal.ITIMER_REAL, 0))
    thread.start()
    thread.join()
    with tempfile.TemporaryDirectory() as folder, open("f", "w+b") as file:
        file.write(bytes(8192))
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        fcntl.lockf(file, fcntl.LOCK_EX)
        shutil.copyfile("f", f"{folder}/g")
        with zipfile.ZipFile(f"{folder}/z", "w") as archive: archive.write("f")
        with mmap.mmap(file.fileno(), 0) as block: block[0] = 1
        print("files", sorted(each.name for each in pathlib.Path(folder).iterdir()))
    one, other = socket.socketpair()
    one.sendall(b"x")
    print("pair", other.recv(1))
    os.mkfifo("pipe")
    """
    expected = [
        "sqlite [(1,)]",
        "pool [1, 2]",
        "asyncio (b'in', 3)",
        "child 2",
        "queue 7",
        "files ['g', 'z']",
        "pair b'x'",
    ]
    if server.health().level == Level.WEAK:  # the host's /dev/shm, which semaphores need, is closed
        code = code.replace("multiprocessing.Pool(2) as pool", "__import__('contextlib').nullcontext() as pool")
        code = code.replace("pool.map(abs, [-1, 2])", "[1, 2]")
        code = code.replace("queue = multiprocessing.Queue()", "queue, end = multiprocessing.Pipe()")
        code = code.replace("queue.put", "end.send").replace("queue.get", "queue.recv")
    result = run(server, textwrap.dedent(code))
    assert (result.status, result.stdout.splitlines()) == (Status.OK, expected), result


def test_children_that_nobody_has_buried_yet_hold_no_memory(server: SandboxServer) -> None:
    code = """
    for _ in range(10):
        if os.fork() == 0: os._exit(0)
    time.sleep(1)
    print("done")
    """
    result = run(server, textwrap.dedent(code), SMALL)
    assert (result.status, result.stdout) == (Status.OK, "done\n"), result
    assert result.peak_memory_bytes < 60 << 20


def test_numpy_computes_within_its_address_space(server: SandboxServer) -> None:
    code = """
    import numpy as np
    a = np.arange(250_000.0).reshape(500, 500)
    print((a @ a).shape, np.linalg.svd(a[:50, :50])[1].shape, np.random.default_rng(0).random(3).shape)
    """
    result = run(server, textwrap.dedent(code), language=Language.PYTHON_NUMPY)
    assert (result.status, result.stdout) == (Status.OK, "(500, 500) (50,) (3,)\n"), result


def test_files_are_copied_with_their_modes_and_times(server: SandboxServer) -> None:
    if server.health().level == Level.WEAK:
        pytest.skip("at the level weak modes and times cannot be changed")
    code = (
        "import shutil, os; os.chmod('main.py', 0o640); shutil.copy2('main.py', 'x'); print(oct(os.stat('x').st_mode))"
    )
    assert run(server, code).stdout == "0o100640\n"


def test_commands_that_keep_modes_work_where_no_access_list_can_be_kept(server: SandboxServer) -> None:
    """The C library's way to set a mode tries an access list first."""
    if server.health().level == Level.WEAK:
        pytest.skip("at the level weak modes and times cannot be changed")
    code = """
    set -e
    cp -a main.sh a; cp -p main.sh p; install -m 750 main.sh i; mkdir d; cp -a d e; mv p /tmp/moved
    stat -c %a a i /tmp/moved
    """
    result = run(server, code, language=Language.BASH, prelude="")
    assert (result.status, result.stderr, result.stdout.split()) == (Status.OK, "", ["755", "750", "755"]), result


def test_health_says_what_the_level_protects_and_what_it_leaves_open(server: SandboxServer) -> None:
    health = server.health()
    assert any("system calls" in each for each in health.protects)
    assert any("cgroup" in each or "kernel counts" in each for each in health.protects) == (health.level == Level.FULL)
    assert any("no namespaces" in each for each in health.leaves_open) == (health.level == Level.WEAK)
