"""The product's processes, one by one: started, killed, frozen and started again as the supervisor would."""

import shutil
import time
from dataclasses import replace
from pathlib import Path

from services import prepare
from services.cli.client import ApiClient
from services.local.layout import Layout
from services.local.processes.process import LocalError
from services.local.servers.postgres import EmbeddedPostgres
from services.local.servers.valkey import EmbeddedValkey
from services.local.supervise import stack
from services.local.supervise.supervisor import ChildProcess, ProcessSpec
from services.runtime.settings import Settings
from tests.freezing import frozen
from tests.ports import free_port

VICTIMS = ("worker-1", "worker-2", "trainer", "valkey", "postgres")


class Victims:
    """The processes, startable and killable one by one."""

    def __init__(self, folder: Path) -> None:
        self.layout = Layout.open(folder / "data")
        self.postgres = EmbeddedPostgres(self.layout.postgres, port=free_port(), log=self.layout.log("postgres"))
        self.valkey = EmbeddedValkey(self.layout.valkey, port=free_port(), log=self.layout.log("valkey"))
        self.processes: dict[str, ChildProcess] = {}
        self._specs: dict[str, ProcessSpec] = {}

    def bring_up(self, settings: Settings, model: Path) -> ApiClient:
        """Start everything but the two servers, which run already; the owner's client."""
        key = prepare.prepare_database(settings)
        assert key is not None
        for spec in stack.engines(settings, self.layout, model, policy_threads=1):
            self.start(spec.name, spec)
        prepare.prepare_lineage(settings)
        for spec in stack.faces(settings):
            self.start(spec.name, spec)
        prepare.register_own_experts(settings, key)
        worker, beat = stack.workers()
        for number in (1, 2):
            name = f"worker-{number}"
            self.start(name, replace(worker, name=name, env={}, argv=[*worker.argv, "--hostname", f"{name}@%h"]))
        self.start("beat", beat)
        self.start("trainer", stack.trainer(model, threads=1))
        return ApiClient(settings.api_url, key)

    def start(self, name: str, spec: ProcessSpec) -> None:
        """Start one process and wait until it is ready."""
        self._specs[name] = spec
        process = ChildProcess(spec, self.layout.log(name), [])
        process.start()
        self.processes[name] = process
        deadline = time.monotonic() + spec.ready_seconds
        while not process.is_ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{name} does not start; see {self.layout.log(name)}")
            time.sleep(0.1)

    def kill(self, name: str) -> None:
        """kill -9, and start it again; Valkey loses its data on the way."""
        if name == "postgres":
            self.postgres.kill()
            self.postgres.start()
        elif name == "valkey":
            self.valkey.kill()
            for path in self.layout.valkey.rglob("appendonlydir"):
                shutil.rmtree(path)
            self.valkey.start()
        else:
            self.processes[name].kill()
            self.processes[name].stop()
            self.start(name, self._specs[name])

    def freeze_postgres(self, seconds: float) -> None:
        """Stop every process of Postgres where it is, so that connections stay open and say nothing; then go on."""
        with frozen(self.postgres):
            time.sleep(seconds)

    def revive(self) -> list[str]:
        """Start again what ended by itself, as the supervisor would; their names."""
        ended = []
        for server in (self.postgres, self.valkey):
            if server.poll() is not None:
                ended.append(server.name)
                server.stop()
                try:
                    server.start()
                except (LocalError, OSError):
                    return ended  # a disk may still be full: the next look tries again
        for name, process in list(self.processes.items()):
            if process.poll() is not None:
                ended.append(name)
                self.start(name, self._specs[name])
        return ended

    def stop(self) -> None:
        """Stop everything."""
        for process in reversed(list(self.processes.values())):
            process.ask_to_stop()
        for process in reversed(list(self.processes.values())):
            process.stop()
        self.valkey.stop()
        self.postgres.stop()
