"""The languages a sandbox can run, and how: which of them this machine has a toolchain for is looked up once."""

import importlib.util
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from sandbox.contract import MAIN_FILES, Language, Limits, RunRequest
from sandbox.inside.isolation import ENVIRONMENT, SYSTEM
from sandbox.inside.wire import Flavour, Job

COMPILE_LIMITS = Limits(wall_seconds=30, cpu_seconds=30, memory_bytes=1 << 30, output_bytes=64 << 10, processes=16)
PROGRAM_FILE = "program"
"""The file a compiler writes."""


_NODE_ADDRESS_BYTES = 12 << 30
"""Node reserves .7 GiB for itself, and 8 GiB and more for each memory of WebAssembly."""
_NODE_DATA_BYTES = 128 << 20
"""Address space for stacks and heaps not yet touched. Without it node hangs or crashes, so touched memory is measured
instead."""

PROGRAMS = {Language.BASH: "bash", Language.JAVASCRIPT: "node", Language.CPP: "g++"}
"""Programs that have to be installed for languages other than Python."""


@dataclass(frozen=True)
class Toolchain:
    """How one language is run."""

    main_file: str
    argv: tuple[str, ...] = ()
    """Empty: by the zygote itself."""
    compile_argv: tuple[str, ...] = ()
    """Empty: it is not compiled."""
    flavour: Flavour = Flavour.LEAN
    address_slack_bytes: int = 256 << 20
    """As in a `Job`."""
    data_slack_bytes: int = 0


@dataclass(frozen=True)
class Toolchains:
    """The languages this machine can run, and for the others the reason why not."""

    available: Mapping[Language, Toolchain]
    missing: Mapping[Language, str] = field(default_factory=lambda: MappingProxyType({}))
    packages: tuple[str, ...] = ()
    """Folders of installed packages that the flavour `numpy` imports."""

    @classmethod
    def find(cls) -> "Toolchains":
        """Look for interpreters and compilers where runs in namespaces of this machine will see them."""
        packages = _find_numpy()
        programs = {name: _find_program(name) for name in PROGRAMS.values()}
        return cls.choose(programs, has_numpy=bool(packages), where=", ".join(_FOLDERS), packages=packages)

    @classmethod
    def choose(
        cls, programs: Mapping[str, str | None], *, has_numpy: bool, where: str, packages: tuple[str, ...] = ()
    ) -> "Toolchains":
        """The languages these programs make possible, by name; the reason for a missing one names `where`."""
        available: dict[Language, Toolchain] = {Language.PYTHON: Toolchain(MAIN_FILES[Language.PYTHON])}
        missing: dict[Language, str] = {}
        if has_numpy:
            available[Language.PYTHON_NUMPY] = Toolchain(MAIN_FILES[Language.PYTHON_NUMPY], flavour=Flavour.NUMPY)
        else:
            missing[Language.PYTHON_NUMPY] = "numpy is not installed beside the sandbox's Python"
        for language, program in PROGRAMS.items():
            path = programs[program]
            main_file = MAIN_FILES[language]
            if path is None:
                missing[language] = f"no {program} is installed in {where}"
            elif language == Language.CPP:
                flags = ("-std=c++17", "-O2", "-pipe", "-o", PROGRAM_FILE, main_file)
                available[language] = Toolchain(main_file, (f"./{PROGRAM_FILE}",), (path, *flags))
            elif language == Language.JAVASCRIPT:
                available[language] = Toolchain(
                    main_file,
                    (path, main_file),
                    address_slack_bytes=_NODE_ADDRESS_BYTES,
                    data_slack_bytes=_NODE_DATA_BYTES,
                )
            else:
                available[language] = Toolchain(main_file, (path, main_file))
        return cls(MappingProxyType(available), MappingProxyType(missing), packages)


_FOLDERS = ENVIRONMENT["PATH"].split(":")


def _find_program(name: str) -> str | None:
    path = shutil.which(name, path=ENVIRONMENT["PATH"])
    if path is None or not os.path.realpath(path).startswith(tuple(f"{folder}/" for folder in SYSTEM)):
        return None
    return path


def _find_numpy() -> tuple[str, ...]:
    spec = importlib.util.find_spec("numpy")
    if spec is None or spec.origin is None:
        return ()
    folder = Path(spec.origin).parent
    libraries = folder.with_name("numpy.libs")
    return (str(folder), *([str(libraries)] if libraries.is_dir() else []))


def make_job(request: RunRequest, toolchain: Toolchain) -> Job:
    """The run of a program that needs no compiler."""
    limits = request.limits
    return Job(
        code=request.code.encode(),
        stdin=request.stdin.encode(),
        files=dict(request.files),
        collect=request.collect,
        wall_seconds=limits.wall_seconds,
        cpu_seconds=limits.cpu_seconds,
        memory_bytes=limits.memory_bytes,
        output_bytes=limits.output_bytes,
        processes=limits.processes,
        main_file=toolchain.main_file,
        argv=toolchain.argv,
        address_slack_bytes=toolchain.address_slack_bytes,
        data_slack_bytes=toolchain.data_slack_bytes,
    )


def make_compile_job(request: RunRequest, toolchain: Toolchain) -> Job:
    """The run of the compiler, which leaves `PROGRAM_FILE`."""
    limits = COMPILE_LIMITS.model_copy(update={"wall_seconds": request.limits.compile_seconds})
    asked = request.model_copy(update={"limits": limits, "stdin": "", "collect": (PROGRAM_FILE,)})
    return replace(make_job(asked, toolchain), argv=toolchain.compile_argv)


def make_program_job(request: RunRequest, toolchain: Toolchain, program: bytes) -> Job:
    """The run of a compiled program."""
    return replace(make_job(request, toolchain), code=program, main_file=PROGRAM_FILE)
