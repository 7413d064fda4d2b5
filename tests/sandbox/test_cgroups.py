"""The folders of cgroups as the spawner makes and removes them."""

import math
import os
import subprocess

import pytest

from sandbox.host import cgroups
from sandbox.host.cgroups import Place
from tests.sandbox.conftest import cgroups_of

pytestmark = pytest.mark.namespaces


def test_the_folders_are_removed_as_soon_as_the_last_process_in_a_group_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cgroups, "_REMOVE_SECONDS", math.inf)  # however late it ends
    place = Place.find()
    if place is None:
        pytest.skip("needs a cgroup that this user may make")
    group = place.make_group(keeper=1, number=0)
    folders = cgroups_of([os.getpid()])
    with subprocess.Popen(["sleep", "0.3"]) as dying:
        for folder in folders:
            (folder / "slot-1-0" / "cgroup.procs").write_text(str(dying.pid))
        place.remove()
        left = [folder for folder in folders if folder.exists()]
        assert dying.poll() is not None, "removed before it had ended"
    group.remove()  # gone with the rest, so there is nothing to wait for
    assert (len(folders) > 0, left) == (True, [])


def test_a_group_is_removed_as_soon_as_its_last_process_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "_REMOVE_SECONDS", math.inf)  # however late it ends
    place = Place.find()
    if place is None:
        pytest.skip("needs a cgroup that this user may make")
    group = place.make_group(keeper=1, number=0)
    made = [folder / "slot-1-0" for folder in cgroups_of([os.getpid()])]
    with subprocess.Popen(["sleep", "0.3"]) as dying:
        for folder in made:
            (folder / "cgroup.procs").write_text(str(dying.pid))
        group.remove()
        assert dying.poll() is not None, "removed before it had ended"
    assert (len(made) > 0, [folder for folder in made if folder.exists()]) == (True, [])
    place.remove()


def test_a_group_with_a_living_process_is_not_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place.find()
    if place is None:
        pytest.skip("needs a cgroup that this user may make")
    group = place.make_group(keeper=1, number=0)
    made = [folder / "slot-1-0" for folder in cgroups_of([os.getpid()])]
    with subprocess.Popen(["sleep", "60"]) as living:
        for folder in made:
            (folder / "cgroup.procs").write_text(str(living.pid))
        monkeypatch.setattr(cgroups, "_REMOVE_SECONDS", 0.1)
        with pytest.raises(OSError, match="busy"):
            group.remove()
        assert all(folder.exists() for folder in made)
        living.kill()
    monkeypatch.setattr(cgroups, "_REMOVE_SECONDS", math.inf)  # however late it ends
    place.remove()
    assert cgroups_of([os.getpid()]) == []
