"""What the supervisor promises: nothing left running, nothing lost, and a clear word about why."""

from __future__ import annotations

import http.server
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from services.cli.commands.stack import _lines_of_sick
from services.local.layout import Layout
from services.local.processes.lock import FolderInUse
from services.local.processes.process import ProcessFailed
from services.local.supervise import supervisor as supervisor_module
from services.local.supervise.run_state import RunningProcess, Stage, StopOutcome, read_running, stop_running
from services.local.supervise.supervisor import Interrupted, ProcessSpec, Supervisor, answers_http
from services.runtime import space
from tests.local.commands import SLEEP, await_gone, await_written, is_alive, python
from tests.ports import free_port
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture
def layout(open_folder: Path) -> Layout:
    return Layout.open(open_folder / "data")


class Program:
    """tests/local/supervise/program.py, running."""

    def __init__(self, folder: Path, stop_seconds: float = 0.3) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.local.supervise.program", str(folder), str(stop_seconds)],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.layout = Layout(folder)
        self.said: list[str] = []
        line = self._read_until("READY")
        _, self.database_url, self.redis_url = line.split()
        wait_until(lambda: b"the worker works" in self.layout.log("worker").read_bytes())
        self.family = family_of(self.process.pid)

    def _read_until(self, word: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line)
            if line.startswith(word):
                return line
        raise AssertionError("".join(self.said))

    def finish(self) -> int:
        """Read what it still says and return its exit status."""
        rest, _ = self.process.communicate()
        self.said.append(rest)
        return self.process.returncode

    def pid_of(self, name: str) -> int:
        state = read_running(self.layout)
        assert state is not None
        return next(process.pid for process in state.processes if process.name == name and process.pid is not None)


@contextmanager
def running(folder: Path, stop_seconds: float = 0.3) -> Iterator[Program]:
    program = Program(folder, stop_seconds)
    try:
        yield program
    finally:
        if program.process.poll() is None:
            program.process.kill()
            program.finish()
        await_gone(program.family)


def family_of(pid: int) -> list[psutil.Process]:
    """The process and all below it, whatever their sessions."""
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def insert_row(url: str) -> None:
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (n int)")
        connection.execute("INSERT INTO kept VALUES (1)")


def count_rows(url: str) -> int:
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        row = connection.execute("SELECT count(*) FROM kept").fetchone()
        assert row is not None
        return int(row[0])


def test_kill_9_of_the_supervisor_leaves_no_process_and_loses_no_row(open_folder: Path) -> None:
    with running(open_folder / "data") as program:
        assert len(program.family) >= 10, "three guards, their three commands, the backends, the worker's child"
        insert_row(program.database_url)
        with redis.Redis.from_url(program.redis_url) as client:
            client.set("kept", "1")
            await_written(client)
        program.process.kill()
        program.finish()
        await_gone(program.family)
        assert read_running(program.layout) is None, "the state it left is known to be stale"
    with running(open_folder / "data") as program:
        assert count_rows(program.database_url) == 1
        with redis.Redis.from_url(program.redis_url) as client:
            assert client.get("kept") == b"1"


def test_a_crash_of_one_process_stops_all_and_names_it_and_its_log(open_folder: Path) -> None:
    with running(open_folder / "data") as program:
        os.kill(program.pid_of("postgres"), signal.SIGKILL)
        assert program.finish() == 1
        await_gone(program.family)
        said = "".join(program.said)
        assert "postgres ended by itself (signal SIGKILL)" in said
        assert str(program.layout.log("postgres")) in said
        assert not program.layout.run_file.exists()


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_stops_groups_in_reverse_order_and_leaves_nothing(layout: Layout) -> None:
    said: list[str] = []
    family: list[psutil.Process] = []

    def run() -> None:
        with Supervisor(layout, report=said.append) as supervisor:
            for name in ("first", "second", "third"):
                supervisor.start(ProcessSpec(name, SLEEP))
            family.extend(psutil.Process(process.pid) for process in supervisor.state().processes)
            threading.Timer(0.2, press_ctrl_c).start()
            time.sleep(600)

    with pytest.raises(Interrupted, match="SIGINT"):
        run()
    await_gone(family)
    assert [line for line in said if "stopping" in line] == ["stopping third", "stopping second", "stopping first"]
    assert not layout.run_file.exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_process_gets_its_time_to_stop_and_a_second_ctrl_c_cuts_it_short(layout: Layout) -> None:
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    )
    said: list[str] = []
    had_time: list[bool] = []

    def press_twice(process: psutil.Process) -> None:
        press_ctrl_c()
        wait_until(lambda: "stopping stubborn" in said)
        time.sleep(1)
        had_time.append(is_alive(process))
        press_ctrl_c()

    def run() -> None:
        log = layout.log("stubborn")
        spec = ProcessSpec(
            "stubborn", python(stubborn), is_ready=lambda: b"deaf" in log.read_bytes(), stop_seconds=600.0
        )
        with Supervisor(layout, report=said.append) as supervisor:
            supervisor.start(spec)
            process = psutil.Process(supervisor.state().processes[0].pid)
            threading.Thread(target=press_twice, args=(process,)).start()
            time.sleep(600)

    with pytest.raises(Interrupted):
        run()
    assert had_time == [True]


def test_down_stops_it_and_is_no_error_twice(layout: Layout) -> None:
    outcomes: list[StopOutcome] = []

    def run() -> None:
        with Supervisor(layout) as supervisor:
            supervisor.start(ProcessSpec("worker", SLEEP))
            down.start()
            supervisor.wait(600)

    down = threading.Thread(target=lambda: outcomes.append(stop_running(layout)))
    with pytest.raises(Interrupted, match="SIGTERM"):
        run()
    down.join()
    assert outcomes == [StopOutcome.STOPPED]
    assert stop_running(layout) is StopOutcome.NOT_RUNNING


def test_a_second_supervisor_on_the_folder_is_refused_and_told_who_has_it(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.local.supervise.supervisor.LOCK_WAIT_SECONDS", 0.2)
    with Supervisor(layout):
        with pytest.raises(FolderInUse, match=f"process {os.getpid()}"), Supervisor(layout):
            pass
        assert read_running(layout) is not None, "the refused one leaves the state of the first"


def test_a_run_file_that_names_a_foreign_process_is_not_believed(layout: Layout) -> None:
    with Supervisor(layout) as supervisor:
        state = supervisor.state()
    assert read_running(layout) is None
    layout.run_file.write_text(state.model_copy(update={"supervisor_pid": 1}).model_dump_json())
    assert read_running(layout) is None
    assert stop_running(layout) is StopOutcome.NOT_RUNNING
    assert not layout.run_file.exists()


def test_a_process_that_ends_while_starting_fails_the_start_with_its_last_words(layout: Layout) -> None:
    broken = ProcessSpec("broken", python("import sys; sys.exit('no model found')"), is_ready=lambda: False)
    said = r"broken ended by itself \(exit code 1\)(?s:.*)no model found"
    with pytest.raises(ProcessFailed, match=said), Supervisor(layout) as supervisor:
        supervisor.start(broken)


def test_a_process_that_never_becomes_ready_fails_the_start(layout: Layout) -> None:
    with pytest.raises(ProcessFailed, match="slow was not ready within 0 s"), Supervisor(layout) as supervisor:
        supervisor.start(ProcessSpec("slow", SLEEP, is_ready=lambda: False, ready_seconds=0.2))


def test_a_command_that_does_not_exist_is_a_failed_process(layout: Layout) -> None:
    with pytest.raises(ProcessFailed, match="No such file"), Supervisor(layout) as supervisor:
        supervisor.start(ProcessSpec("missing", ["/no/such/program"]))


def test_a_crash_interrupts_the_main_thread_wherever_it_is(layout: Layout) -> None:
    def run() -> None:
        with Supervisor(layout) as supervisor:
            supervisor.start(ProcessSpec("brief", python("import time; time.sleep(0.5)")))
            time.sleep(600)

    with pytest.raises(ProcessFailed, match="brief ended by itself"):
        run()


def test_a_crash_is_named_instead_of_the_error_it_caused(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "CRASH_NOTICE_SECONDS", 600.0)  # however late it is noticed

    def run() -> None:
        with Supervisor(layout) as supervisor:
            supervisor.start(ProcessSpec("brief", SLEEP))
            pid = supervisor.state().processes[0].pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            raise ConnectionError("the server closed the connection")

    with pytest.raises(ProcessFailed, match="brief ended by itself"):
        run()


def test_what_ends_while_a_disk_is_full_is_started_again_without_spending_restarts(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "FULL_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(supervisor_module, "FULL_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(supervisor_module, "FULL_KEPT_SECONDS", 0.2)
    is_full = [True]
    monkeypatch.setattr(space, "find_full", lambda home: "the disk is full" if is_full[0] else None)
    runs = layout.root / "runs"
    code = f"import time; open({str(runs)!r}, 'a').write('x'); time.sleep(0.3)"
    said: list[str] = []

    def run() -> None:
        with Supervisor(layout, said.append) as supervisor:
            supervisor.start(ProcessSpec("needy", python(code)))
            wait_until(lambda: runs.exists() and len(runs.read_text()) > 3)
            is_full[0] = False
            supervisor.wait(600)

    with pytest.raises(ProcessFailed, match="needy ended by itself"):
        run()
    assert "the disk is full" in said


def test_a_process_with_restarts_is_started_again_until_they_are_used_up(layout: Layout) -> None:
    runs = layout.root / "runs"
    code = f"import time; open({str(runs)!r}, 'a').write('run\\n'); time.sleep(0.3)"

    def run() -> None:
        with Supervisor(layout) as supervisor:
            supervisor.start(ProcessSpec("flaky", python(code), max_restarts=2))
            supervisor.wait(600)

    with pytest.raises(ProcessFailed, match="flaky ended by itself after 2 restarts"):
        run()
    assert runs.read_text() == "run\n" * 3


def test_a_restarted_process_is_ready_again_under_a_new_number(layout: Layout) -> None:
    with Supervisor(layout) as supervisor:
        supervisor.start(ProcessSpec("worker", SLEEP, max_restarts=1))
        before = supervisor.state().processes[0]
        assert before.pid is not None
        os.kill(before.pid, signal.SIGKILL)
        written: list[RunningProcess] = []

        def is_written_ready() -> bool:
            state = read_running(layout)
            assert state is not None
            written[:] = state.processes
            return (written[0].num_restarts, written[0].stage) == (1, Stage.READY)

        wait_until(is_written_ready)
        assert written == supervisor.state().processes
        assert written[0].pid != before.pid


def test_a_process_whose_health_check_fails_for_long_is_shown_as_not_ready_and_left_alone(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.local.supervise.supervisor.HEALTH_EVERY_SECONDS", 0.0)
    monkeypatch.setattr("services.local.supervise.supervisor.SICK_SECONDS", 0.3)
    is_well = [True]

    def stage() -> Stage:
        state = read_running(layout)
        assert state is not None
        return state.processes[0].stage

    with Supervisor(layout) as supervisor:
        supervisor.start(ProcessSpec("server", SLEEP, is_ready=lambda: is_well[0], max_restarts=1))
        pid = supervisor.state().processes[0].pid
        is_well[0] = False
        wait_until(lambda: stage() is Stage.SICK)
        assert [*_lines_of_sick(layout)] == [f"server: its health check fails; see {layout.log('server')}"]
        is_well[0] = True
        wait_until(lambda: stage() is Stage.READY)
        assert supervisor.state().processes[0].pid == pid


def test_a_server_is_ready_when_its_health_check_answers(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "HEALTH_SECONDS", 600.0)  # however late it answers
    port = free_port()
    serve = f"import time, http.server as h; time.sleep(0.3); h.HTTPServer(('127.0.0.1', {port}), h.SimpleHTTPRequestHandler).serve_forever()"  # noqa: E501
    url = f"http://127.0.0.1:{port}/"
    with Supervisor(layout) as supervisor:
        supervisor.start(ProcessSpec("server", python(serve), is_ready=answers_http(url), url=url))
        assert answers_http(url)()
    assert not answers_http(url)()


def test_an_error_page_is_not_health() -> None:
    class Unwell(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(503)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Unwell) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert not answers_http(f"http://127.0.0.1:{server.server_port}/")()
        server.shutdown()


def test_a_child_gets_the_environment_and_folder_it_is_given(layout: Layout, tmp_path: Path) -> None:
    code = "import os; print(os.environ['COLOUR'], os.getcwd()); os.abort()"
    spec = ProcessSpec("painter", python(code), env={"COLOUR": "green"}, cwd=tmp_path, is_ready=lambda: False)
    with pytest.raises(ProcessFailed, match=f"SIGABRT(?s:.*)green {tmp_path}"), Supervisor(layout) as supervisor:
        supervisor.start(spec)
