"""One attack a test: what hostile code tries, and what it must find."""

import os
import tempfile
import textwrap
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sandbox.contract import Language, Level, Limits, RunRequest, RunResult, Status
from sandbox.inside import kernel
from sandbox.inside.syscalls import ARCHITECTURES, NUMBERS
from tests.sandbox.conftest import SECRET, SandboxServer, host_processes
from tests.sandbox.inside.test_seccomp import REFUSED

pytestmark = pytest.mark.integration


def run(sandbox: SandboxServer, code: str, limits: Limits | None = None) -> RunResult:
    return sandbox.run(textwrap.dedent(code), limits=limits)


# what it may use


def test_an_endless_loop_is_stopped_at_its_processor_time(sandbox: SandboxServer) -> None:
    result = run(sandbox, "while True: pass", Limits(wall_seconds=30, cpu_seconds=1))
    assert (result.status, result.exit_code) == (Status.TIMEOUT, None)
    assert "processor" in result.reason
    assert 0.8 < result.cpu_seconds < 10


def test_processor_time_is_that_of_all_processes_together(sandbox: SandboxServer) -> None:
    code = "import os\nfor _ in range(3): os.fork()\nwhile True: pass"
    result = run(sandbox, code, Limits(wall_seconds=30, cpu_seconds=1))
    assert result.status == Status.TIMEOUT
    assert result.cpu_seconds < 7  # a second for each would be 8


def test_children_that_nobody_waits_for_cost_processor_time_too(sandbox: SandboxServer) -> None:
    """With SIGCHLD ignored the kernel buries them without adding their time to anybody's."""
    code = """
    import os, signal, time
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        try:
            if os.fork() == 0:
                end = time.process_time() + 0.02
                while time.process_time() < end: pass
                os._exit(0)
        except BlockingIOError:
            time.sleep(0.001)
    """
    result = run(sandbox, code, Limits(wall_seconds=20, cpu_seconds=1))
    assert (result.status, "processor" in result.reason) == (Status.TIMEOUT, True)
    assert 1 <= result.cpu_seconds < 15


def test_a_sleeper_is_stopped_at_its_wall_time_and_keeps_what_it_wrote(sandbox: SandboxServer) -> None:
    result = run(sandbox, "import time\nprint('before', flush=True)\ntime.sleep(600)", Limits(wall_seconds=4))
    assert (result.status, result.stdout) == (Status.TIMEOUT, "before\n")
    assert 4 <= result.wall_seconds < 60


def test_code_that_takes_its_own_output_back_is_stopped_all_the_same(sandbox: SandboxServer) -> None:
    """Where the keeper has the same user, the pipe it reads from can be opened by the code, and be emptied first."""
    code = """
    import os, time
    try:
        back = os.open("/proc/self/fd/1", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        time.sleep(600)
    while True:
        os.write(1, b"x")
        try:
            os.read(back, 1)
        except BlockingIOError:
            pass
    """
    for _ in range(3):
        result = run(sandbox, code, Limits(wall_seconds=1, cpu_seconds=20))
        assert result.status == Status.TIMEOUT
        assert 1 <= result.wall_seconds < 60


def test_code_that_ignores_every_signal_is_stopped_all_the_same(sandbox: SandboxServer) -> None:
    code = """
    import signal
    for number in set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    while True: pass
    """
    assert run(sandbox, code, Limits(wall_seconds=1, cpu_seconds=30)).status == Status.TIMEOUT
    assert run(sandbox, code, Limits(wall_seconds=30, cpu_seconds=1)).status == Status.TIMEOUT


def test_a_memory_bomb_is_reported_as_memory(sandbox: SandboxServer) -> None:
    code = "data = []\nwhile True: data.append(bytearray(1 << 20))"
    result = run(sandbox, code, Limits(wall_seconds=30, memory_bytes=96 << 20))
    assert (result.status, result.exit_code) == (Status.MEMORY, None)
    assert "96 MiB" in result.reason


def test_memory_is_that_of_all_processes_together(sandbox: SandboxServer) -> None:
    code = """
    import os, time
    for _ in range(6):
        if os.fork() == 0:
            data = bytearray(30 << 20)
            for i in range(0, len(data), 4096): data[i] = 1
            time.sleep(600)
    time.sleep(600)
    """
    assert run(sandbox, code, Limits(wall_seconds=60, memory_bytes=96 << 20)).status == Status.MEMORY


def test_memory_in_shared_and_anonymous_places_counts_too(sandbox: SandboxServer) -> None:
    code = """
    import mmap
    block = mmap.mmap(-1, 1 << 30)
    for i in range(0, 1 << 30, 4096): block[i] = 1
    print("held it all")
    """
    result = run(sandbox, code, Limits(wall_seconds=30, memory_bytes=96 << 20))
    assert "held" not in result.stdout
    assert result.status in (Status.MEMORY, Status.FAILED, Status.KILLED)


@pytest.mark.parametrize("language", [Language.PYTHON, Language.PYTHON_NUMPY])
@pytest.mark.parametrize("source", ["-1", "os.open('/dev/zero', os.O_RDWR)"])
def test_shared_memory_that_no_process_shows_any_more_counts_too(
    sandbox: SandboxServer, source: str, language: Language
) -> None:
    """Touched, then let go of: the kernel keeps it, and it is in no process's account."""
    if sandbox.in_containers and language == Language.PYTHON_NUMPY:
        pytest.skip("the image has no numpy")
    code = f"""
    import mmap, os, time
    for _ in range(4):
        if os.fork() == 0:
            block = mmap.mmap({source}, 64 << 20)
            for start in range(0, 64 << 20, 4 << 20):
                for i in range(start, start + (4 << 20), 4096): block[i] = 1
                block.madvise(mmap.MADV_DONTNEED, start, 4 << 20)
            time.sleep(600)
    print([os.wait()[1] == 0 for _ in range(4)])
    """
    limits = Limits(wall_seconds=20, cpu_seconds=20, memory_bytes=96 << 20)
    result = sandbox.post(RunRequest(code=textwrap.dedent(code), language=language, limits=limits))
    # either the whole run is ended for it, or no process gets such memory
    assert (result.status, result.stdout) in ((Status.MEMORY, ""), (Status.OK, "[False, False, False, False]\n"))


def test_memory_without_an_address_cannot_be_made(sandbox: SandboxServer) -> None:
    result = run(sandbox, "import os; os.memfd_create('x')")
    assert "Function not implemented" in result.stderr


def test_a_fork_bomb_stays_small_and_dies(sandbox: SandboxServer) -> None:
    token = uuid.uuid4().hex
    code = f"""
    import os
    token = "{token}"
    while True:
        try:
            os.fork()
        except OSError:
            pass
    """
    result = run(sandbox, code, Limits(wall_seconds=2, cpu_seconds=30, processes=8))
    assert result.status == Status.TIMEOUT
    assert run(sandbox, "print('still here')").stdout == "still here\n"


def test_no_more_processes_than_allowed(sandbox: SandboxServer) -> None:
    code = """
    import os, time
    made = 1
    try:
        while True:
            if os.fork() == 0: time.sleep(60)
            made += 1
    except BlockingIOError:
        print(made)
    """
    assert run(sandbox, code, Limits(processes=5)).stdout == "5\n"


def test_output_is_cut_at_its_cap_and_marked(sandbox: SandboxServer) -> None:
    code = "import sys\nsys.stdout.write('o' * 5000)\nsys.stderr.write('e' * 10)"
    result = run(sandbox, code, Limits(output_bytes=1000))
    assert (result.stdout, result.stdout_truncated) == ("o" * 1000, True)
    assert (result.stderr, result.stderr_truncated) == ("e" * 10, False)
    assert result.status == Status.OK


def test_endless_output_is_stopped(sandbox: SandboxServer) -> None:
    result = run(sandbox, "while True: print('x' * 1000)", Limits(wall_seconds=30, output_bytes=1000))
    assert (result.status, len(result.stdout), result.stdout_truncated) == (Status.OUTPUT, 1000, True)


def test_disk_is_bounded(sandbox: SandboxServer) -> None:
    code = """
    import os
    written = 0
    for folder in ("/box", "/tmp", "/dev/shm"):
        try:
            for i in range(100):
                with open(f"{folder}/{i}", "wb") as file:
                    written += file.write(b"x" * (10 << 20))
        except OSError as error:
            print(error.strerror)
    print(written >> 20)
    """
    result = run(sandbox, code, Limits(wall_seconds=30, cpu_seconds=20, memory_bytes=512 << 20))
    lines = result.stdout.split()
    assert int(lines[-1]) <= 150
    assert result.stdout.count("No space left on device") == 3


def test_files_are_bounded_in_number(sandbox: SandboxServer) -> None:
    code = """
    import os
    made = 0
    try:
        for made in range(100_000):
            os.close(os.open(f"/tmp/{made}", os.O_CREAT))
    except OSError as error:
        print(error.strerror)
    print(made < 5000)
    """
    assert run(sandbox, code).stdout == "No space left on device\nTrue\n"


def test_no_crash_is_handed_to_a_program_of_the_host_s(sandbox: SandboxServer) -> None:
    """Where core dumps go to a program the kernel asks for none at a limit of 1 only, and not at 0."""
    code = """
    import resource
    print(open("/proc/self/limits").read().partition("Max core file size")[2].split()[:2])
    for limit in (0, 1):
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (limit, 1))
            print("set to", limit)
        except ValueError:  # what Python makes of EPERM here
            pass
    """
    assert run(sandbox, code).stdout == "['1', '1']\n"


def test_core_dumps_and_sparse_giants_are_refused(sandbox: SandboxServer) -> None:
    code = "f = open('big', 'wb')\nimport signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nf.truncate(1 << 40)"
    assert "File too large" in run(sandbox, code).stderr


def test_code_that_sends_itself_the_signal_of_the_processor_limit_has_killed_itself(sandbox: SandboxServer) -> None:
    result = run(sandbox, "import os, signal; os.kill(os.getpid(), signal.SIGXCPU)")
    assert (result.status, result.signal) == (Status.KILLED, 24)


@pytest.mark.parametrize("said", ["MemoryErrorXYZ", "MemoryError"])
def test_code_that_only_says_it_has_no_memory_has_failed(sandbox: SandboxServer, said: str) -> None:
    result = run(sandbox, f"import sys; sys.exit('{said}')")
    # without a cgroup nobody else says so when a process gets no more
    is_believed = said == "MemoryError" and sandbox.health().level != Level.FULL
    assert result.status == (Status.MEMORY if is_believed else Status.FAILED)


def test_code_that_asks_for_more_than_its_memory_at_once_does_not_get_it(sandbox: SandboxServer) -> None:
    result = run(sandbox, "data = b'x' * (200 << 20)\nprint('held')", Limits(memory_bytes=96 << 20))
    assert (result.status, result.stdout) == (Status.MEMORY, "")


# what it may see


def test_the_files_of_the_host_are_not_there(sandbox: SandboxServer) -> None:
    repository = Path(__file__).resolve().parents[2]
    nowhere = [str(repository), "/root/.ssh", "/dev/vda", "/dev/mem", "/dev/kmsg", "/proc/1/root", "/proc/mounts/.."]
    if not sandbox.in_containers:  # an image has files of its own under these names
        nowhere += ["/etc/shadow", "/etc/hostname", "/home", "/var", "/sys/fs", "/run", "/root/.bashrc"]
        nowhere += ["/proc/kcore", "/proc/sys/kernel/hostname", "/proc/cmdline"]
    assert run(sandbox, f"import os\nprint([p for p in {nowhere} if os.path.exists(p)])").stdout == "[]\n"


def test_a_file_of_the_host_is_not_in_the_sandbox_s_folders(sandbox: SandboxServer) -> None:
    with tempfile.NamedTemporaryFile(dir="/var/tmp") as bait:
        os.chmod(bait.name, 0o644)
        assert run(sandbox, f"import os\nprint(os.path.exists({bait.name!r}))").stdout == "False\n"


def test_secrets_of_the_server_are_nowhere_in_proc(sandbox: SandboxServer) -> None:
    code = """
    import glob
    for path in glob.glob("/proc/*/environ") + glob.glob("/proc/*/cmdline"):
        try:
            print(open(path, "rb").read())
        except OSError as error:
            print(type(error).__name__)
    """
    result = run(sandbox, code)
    assert "main.py" in result.stdout  # its own command line
    assert SECRET not in result.stdout
    assert "spawner" not in result.stdout


def test_only_its_own_processes_exist(sandbox: SandboxServer) -> None:
    code = """
    import os
    seen = {int(name) for name in os.listdir("/proc") if name.isdecimal()}
    print(os.getppid(), sorted(seen - {os.getpid()}))
    alive = []
    for pid in range(1, 70000):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            continue
        except PermissionError:
            pass
        try:
            is_thread = f"\\nTgid:\\t{pid}\\n" not in open(f"/proc/{pid}/status").read()
        except OSError:
            is_thread = False
        alive += [] if is_thread else [pid]
    print(alive == [1, os.getpid()])
    """
    seen = [1] if sandbox.in_containers else []  # a container shows its PID 1, which cannot be opened
    assert run(sandbox, code).stdout.split("\n")[:2] == [f"1 {seen}", "True"]


def test_nothing_but_its_own_folders_can_be_written(sandbox: SandboxServer) -> None:
    # a container's /proc can be written; what is written there reaches only the process itself
    files = ["/etc/passwd", *([] if sandbox.in_containers else ["/proc/self/oom_score_adj", "/proc/self/uid_map"])]
    code = f"""
    import os, sys
    for folder in ("/", "/usr", "/usr/lib", "/etc", "/dev", "/proc", "/proc/self", sys.prefix, "/bin"):
        try:
            open(f"{{folder}}/written", "w")
            print("wrote", folder)
        except OSError:
            pass
    for path in (*{files}, "/proc/sys/kernel/hostname", os.path.realpath(sys.executable)):
        try:
            os.open(path, os.O_WRONLY)
            print("opened", path)
        except OSError:
            pass
    """
    assert run(sandbox, code).stdout == ""


def test_it_is_nobody_without_any_privilege(sandbox: SandboxServer) -> None:
    code = """
    import os, socket
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    print(os.getuid(), os.getgid(), os.getgroups(), socket.gethostname())
    names = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")
    print(*(status[name].strip() for name in names))
    """
    lines = run(sandbox, code).stdout.split("\n")
    assert lines[0] in ("65534 65534 [] sandbox", "65534 65534 [65534] sandbox")
    assert lines[1] == " ".join(["0" * 16] * 5 + ["1", "2"])


def test_no_descriptor_of_the_sandbox_is_left_open(sandbox: SandboxServer) -> None:
    code = """
    import os
    for number in range(3, 256):
        try:
            print(number, os.fstat(number))
        except OSError:
            pass
    """
    assert run(sandbox, code).stdout == ""


# whom it may reach


@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK", "AF_VSOCK", "AF_PACKET", "AF_ALG"])
def test_no_socket_can_be_made(sandbox: SandboxServer, family: str) -> None:
    result = run(sandbox, f"import socket\nsocket.socket(socket.{family}, socket.SOCK_STREAM)")
    assert "PermissionError" in result.stderr


def test_the_server_on_loopback_cannot_be_called(sandbox: SandboxServer) -> None:
    code = f"import urllib.request\nprint(urllib.request.urlopen('http://127.0.0.1:{sandbox.port}/healthz').read())"
    result = run(sandbox, code)
    assert (result.status, result.stdout) == (Status.FAILED, "")


def test_the_network_namespace_is_empty(sandbox: SandboxServer) -> None:
    code = "print([line.split(':')[0].strip() for line in open('/proc/self/net/dev') if ':' in line])"
    assert run(sandbox, code).stdout == "['lo']\n"


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("unshare user", "libc.unshare(0x10000000)"),
        ("unshare mount", "libc.unshare(0x00020000)"),
        ("mount", "libc.mount(b'none', b'/tmp', b'tmpfs', 0, None)"),
        ("umount", "libc.umount2(b'/proc', 2)"),
        ("chroot", "libc.chroot(b'/box')"),
        ("ptrace init", "libc.ptrace(16, 1, 0, 0)"),
        ("setns", "libc.setns(0, 0)"),
        (
            "clone with a user namespace",
            "libc.clone(ctypes.cast(libc.getpid, ctypes.c_void_p), stack, 0x10000011, None)",
        ),
        ("personality", "libc.personality(0x0400000)"),
        ("keyctl", "libc.syscall(NR['keyctl'], 0, -3, 0, 0, 0)"),
        ("bpf", "libc.syscall(NR['bpf'], 0, None, 0)"),
        ("io_uring", "libc.syscall(NR['io_uring_setup'], 8, None)"),
        ("userfaultfd", "libc.syscall(NR['userfaultfd'], 0)"),
        ("perf_event_open", "libc.syscall(NR['perf_event_open'], None, 0, -1, -1, 0)"),
        ("pivot_root", "libc.syscall(NR['pivot_root'], b'/box', b'/box')"),
        ("limits of init", "libc.prlimit(1, 0, ctypes.byref((ctypes.c_ulong * 2)(0, 0)), None)"),
        ("hostname", "libc.sethostname(b'x', 1)"),
        ("a device node", "libc.mknod(b'/tmp/disk', 0o60600, 0x0801)"),
        ("memory of init", "libc.syscall(NR['process_vm_readv'], 1, None, 0, None, 0, 0)"),
        ("a file of init", "libc.syscall(NR['pidfd_getfd'], libc.syscall(NR['pidfd_open'], 1, 0), 0, 0)"),
        ("the real-time scheduler", "libc.sched_setscheduler(0, 1, ctypes.byref(ctypes.c_int(1)))"),
        ("a kernel module", "libc.syscall(NR['finit_module'], 0, b'', 0)"),
        ("a datagram pair", "libc.socketpair(1, 2, 0, memory)"),
        ("a pair of another family", "libc.socketpair(30, 1, 0, memory)"),
        ("the host's asynchronous input and output", "libc.syscall(NR['io_setup'], 20000, memory)"),
        ("the host's file watchers", "libc.inotify_init1(0)"),
        ("the host's disks", "libc.syscall(NR['sync'])"),
        ("a disk of the host", "libc.syscall(NR['syncfs'], 0)"),
        ("the host's huge pages", "libc.syscall(NR['mmap'], 0, 2 << 20, 3, 0x40022, -1, 0)"),
        ("the clock", "libc.clock_settime(0, ctypes.byref((ctypes.c_long * 2)(0, 0)))"),
    ],
)
def test_a_call_that_reaches_outside_is_refused(sandbox: SandboxServer, name: str, call: str) -> None:
    column = ARCHITECTURES.index(kernel.MACHINE)
    numbers = {name: each[column] for name, each in {**NUMBERS, **REFUSED}.items()}
    code = f"""
    import ctypes, os
    libc = ctypes.CDLL(None, use_errno=True)
    memory = ctypes.create_string_buffer(1 << 16)
    stack = ctypes.c_void_p(ctypes.addressof(memory) + (1 << 16) - 64)
    NR = {numbers}
    print({call}, os.strerror(ctypes.get_errno()))
    """
    assert run(sandbox, code).stdout == "-1 Operation not permitted\n"


def test_clone3_is_said_not_to_exist(sandbox: SandboxServer) -> None:
    code = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\nlibc.syscall(435, None, 0)\n"
    assert run(sandbox, code + "print(os.strerror(ctypes.get_errno()))").stdout == "Function not implemented\n"


def test_init_cannot_be_killed_stopped_or_opened(sandbox: SandboxServer) -> None:
    code = """
    import os, signal
    for number in signal.valid_signals():
        os.kill(1, number)
    for path in ("/proc/1/mem", "/proc/1/environ", "/proc/1/fd", "/proc/1/maps"):
        try:
            os.open(path, os.O_RDONLY)
            print("opened", path)
        except OSError:
            pass
    print("done")
    """
    result = run(sandbox, code)
    assert (result.status, result.stdout) == (Status.OK, "done\n")


def test_setuid_programs_gain_nothing(sandbox: SandboxServer) -> None:
    folders = ["/box", "/tmp", "/dev/shm", *([] if sandbox.in_containers else ["/", "/usr", "/bin"])]  # noqa: S108
    code = f"""
    import os, shutil, subprocess
    print([folder for folder in {folders} if not os.statvfs(folder).f_flag & os.ST_NOSUID])
    su = shutil.which("su") or shutil.which("mount") or "/bin/true"
    print(subprocess.run([su, "-c", "id -u"], stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout.strip())
    """
    lines = run(sandbox, code).stdout.split("\n")
    assert lines[0] == "[]"
    assert lines[1] != "0"


def test_descriptors_under_way_by_the_hundred_do_not_stop_the_neighbours(sandbox: SandboxServer) -> None:
    """The kernel counts them for the user whom, without root, all slots share."""
    code = """
    import array, os, socket, time
    pairs, num_under_way = [], 0
    try:
        while num_under_way < 600:
            pairs.append(socket.socketpair())
            for _ in range(8):
                one, other = pairs[-1]
                one.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [one.fileno()] * 40))])
                num_under_way += 40
    except OSError:
        pass
    time.sleep(5)
    print(num_under_way)
    """
    limits = Limits(wall_seconds=60, cpu_seconds=20)
    with ThreadPoolExecutor(1) as pool:
        attack = pool.submit(run, sandbox, code, limits)
        time.sleep(1)
        results = [sandbox.run("open('x', 'w').write('mine')", collect=("x",))]
        while not attack.done():
            results.append(sandbox.run("open('x', 'w').write('mine')", collect=("x",)))
    # where the run's user is the neighbours' too, none can be sent
    owns_user = sandbox.health().level == Level.FULL and os.getuid() == 0
    assert (int(attack.result().stdout) > 200) == owns_user
    assert [each for each in results if each.files != {"x": b"mine"}] == []


# what it may leave behind


def test_daemons_and_orphans_die_with_the_run(sandbox: SandboxServer) -> None:
    token = uuid.uuid4().hex
    code = f"""
    import os, subprocess, sys, time
    for _ in range(3):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                null = os.open("/dev/null", os.O_RDWR)
                for number in range(3): os.dup2(null, number)
                os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)", "{token}"])
            os._exit(0)
    deadline = time.time() + 20
    while time.time() < deadline:
        lines = [open(f"/proc/{{p}}/cmdline", "rb").read() for p in os.listdir("/proc") if p.isdecimal()]
        seen = [line for line in lines if line.endswith(b"{token}\\0")]
        if len(seen) == 3: break
        time.sleep(0.02)
    print(len(seen))
    """
    result = run(sandbox, code)
    assert (result.status, result.stdout) == (Status.OK, "3\n")
    assert host_processes(token) == []


def test_a_background_thread_or_child_holding_the_output_does_not_delay_the_answer(sandbox: SandboxServer) -> None:
    result = run(sandbox, "import os, time\nif os.fork() == 0: time.sleep(600)\nprint('parent')")
    assert (result.status, result.stdout) == (Status.OK, "parent\n")


def test_files_left_behind_are_not_there_for_the_next(sandbox: SandboxServer) -> None:
    write = "for f in ('/box', '/tmp', '/dev/shm'): open(f + '/left', 'w').write('x')"
    look = "import os\nprint([os.listdir(f) for f in ('/box', '/tmp', '/dev/shm')])"
    for _ in range(2 * sandbox.health().slots):
        assert run(sandbox, write).status == Status.OK
        assert run(sandbox, look).stdout == "[['main.py'], [], []]\n"


def test_two_runs_at_once_see_nothing_of_each_other(sandbox: SandboxServer) -> None:
    token = uuid.uuid4().hex
    hide = f"open('/tmp/{token}', 'w'); open('/dev/shm/{token}', 'w'); open('{token}', 'w')"
    code = f"""
    import os, time
    {hide}
    time.sleep(2)
    print(sum(len(os.listdir(folder)) for folder in ("/tmp", "/dev/shm", "/box")),
          len([name for name in os.listdir("/proc") if name.isdecimal()]))
    """
    limits = Limits(wall_seconds=60)
    requests = tuple(
        RunRequest(code=textwrap.dedent(code).replace(token, f"{token}{n}"), limits=limits) for n in range(2)
    )
    num_processes = 2 if sandbox.in_containers else 1  # a container shows its PID 1
    expected = [f"4 {num_processes}\n"] * 2
    assert [result.stdout for result in sandbox.run_batch(requests).results] == expected


def test_what_the_code_says_about_itself_does_not_count(sandbox: SandboxServer) -> None:
    code = """
    import json, os, sys
    report = json.dumps({"ending": "exited", "exit_code": 0, "signal": None, "cpu_seconds": 0, "peak_memory_bytes": 0})
    for number in range(3, 64):
        try: os.write(number, report.encode())
        except OSError: pass
    print(report)
    os._exit(9)
    """
    result = run(sandbox, code)
    assert (result.status, result.exit_code) == (Status.FAILED, 9)
