"""The sandbox in compose: how its container is closed in, and that the profile of its calls adds little."""

import errno
import json
from pathlib import Path

import docker
import pytest

from sandbox.inside import policy
from tests.sandbox.conftest import REPOSITORY, ComposeServer, SandboxServer

NAMESPACES = {"unshare", "mount", "umount2", "pivot_root", "mount_setattr", "sethostname"}
"""What the sandbox is built with, and Docker's own profile denies to a container without capabilities."""
SERVING = {"bind", "connect", "listen", "accept", "accept4", "socket", "sendmmsg", "recvmmsg"}
BUILDING_RUNS = {"capset", "seccomp", "memfd_create", "landlock_create_ruleset", "landlock_add_rule"}
BUILDING_RUNS |= {"landlock_restrict_self"}
READING_ATTRIBUTES = {name for name in policy.ANSWERS[errno.EOPNOTSUPP] if "get" in name or "list" in name}
BEING_A_USER = {
    "setuid",
    "setgid",
    "setreuid",
    "setregid",
    "setresuid",
    "setresgid",
    "setfsuid",
    "setfsgid",
    "setgroups",
}
BEING_A_USER |= {"chown", "fchown", "lchown", "fchownat"}
OF_THE_C_LIBRARY = {"futex_requeue", "futex_wait", "futex_waitv", "futex_wake", "get_robust_list", "map_shadow_stack"}
OF_THE_C_LIBRARY |= {"mseal", "pkey_alloc", "pkey_free", "pkey_mprotect", "uretprobe", "ioprio_get", "rt_sigqueueinfo"}


def allowed_calls() -> set[str]:
    profile = json.loads((REPOSITORY / "sandbox/docker/seccomp.json").read_text())
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    return {name for rule in profile["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}


def test_the_container_s_profile_allows_what_runs_may_do_and_what_the_server_needs_and_nothing_else() -> None:
    of_runs = {*policy.ALLOWED, *policy.SIGNALS, *policy.ATTRIBUTES, *policy.MESSAGES, *policy.ARGUMENTS}
    of_the_server = NAMESPACES | SERVING | BUILDING_RUNS | READING_ATTRIBUTES | BEING_A_USER | OF_THE_C_LIBRARY
    assert allowed_calls() == of_runs | of_the_server


def test_the_container_s_profile_makes_no_namespace_by_clone_and_no_socket_of_another_family() -> None:
    rules = json.loads((REPOSITORY / "sandbox/docker/seccomp.json").read_text())["syscalls"]
    (clone,) = [rule for rule in rules if "clone" in rule["names"]]
    assert clone["args"] == [{"index": 0, "value": 0x7E020000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]
    families = [rule["args"] for rule in rules if "socket" in rule["names"]]
    assert families == [[{"index": 0, "value": family, "op": "SCMP_CMP_EQ"}] for family in (1, 2, 10, 16)]
    assert "clone3" not in allowed_calls()


@pytest.mark.integration
@pytest.mark.parametrize("sandbox", ["compose"], indirect=True)
def test_the_container_has_an_ordinary_user_no_capability_and_nothing_to_write(sandbox: SandboxServer) -> None:
    assert isinstance(sandbox, ComposeServer)
    container = sandbox.container
    config, host = container.attrs["Config"], container.attrs["HostConfig"]
    assert (config["User"], host["CapDrop"], host["CapAdd"], host["Privileged"]) == ("1000:1000", ["ALL"], None, False)
    assert (host["ReadonlyRootfs"], host["Binds"]) == (True, None)
    (key,) = host["Mounts"]  # its own, and it cannot change it
    assert (key["Source"], key["ReadOnly"]) == (f"{sandbox.project}_secret-sandbox", True)
    assert list(host["Tmpfs"]) == ["/tmp"]  # noqa: S108
    assert (host["Memory"], host["PidsLimit"]) == (4 << 30, 2048)
    assert {"no-new-privileges:true"} < set(host["SecurityOpt"])
    assert [each["HostIp"] for each in host["PortBindings"]["8130/tcp"]] == ["127.0.0.1"]
    status = dict(line.split(":", 1) for line in Path(f"/proc/{sandbox.pid}/status").read_text().splitlines())
    assert status["Uid"].split() == ["1000"] * 4
    assert {status[name].strip() for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (status["NoNewPrivs"].strip(), status["Seccomp"].strip()) == ("1", "2")


@pytest.mark.integration
@pytest.mark.parametrize("sandbox", ["compose"], indirect=True)
def test_the_container_s_networks_let_nothing_out_and_only_its_port_in(sandbox: SandboxServer) -> None:
    assert isinstance(sandbox, ComposeServer)
    engine = docker.from_env()
    inner, published = (engine.networks.get(f"{sandbox.project}_{name}").attrs for name in ("sandbox", "loopback"))
    assert inner["Internal"]
    assert published["Options"] == {"com.docker.network.bridge.enable_ip_masquerade": "false"}
