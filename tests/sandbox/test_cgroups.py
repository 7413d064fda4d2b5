"""The folders of cgroups as the spawner makes and removes them."""

import math
import os
import subprocess
from pathlib import Path

import pytest

from sandbox.host import cgroups
from sandbox.host.cgroups import Group, Place
from tests.sandbox.conftest import cgroups_of

pytestmark = pytest.mark.namespaces


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Place:
    """Where this process may make cgroups. They are removed however late their processes end."""
    monkeypatch.setattr(cgroups, "_REMOVE_SECONDS", math.inf)
    found = Place.find()
    if found is None:
        pytest.skip("needs a cgroup that this user may make")
    return found


def fill(place: Place, process: subprocess.Popen[bytes]) -> tuple[Group, list[Path]]:
    """A group with the process in it, and the group's folders."""
    group = place.make_group(keeper=1, number=0)
    made = [folder / "slot-1-0" for folder in cgroups_of([os.getpid()])]
    for folder in made:
        (folder / "cgroup.procs").write_text(str(process.pid))
    return group, made


def test_the_folders_are_removed_as_soon_as_the_last_process_in_a_group_has_ended(place: Place) -> None:
    with subprocess.Popen(["sleep", "0.3"]) as dying:
        group, made = fill(place, dying)
        place.remove()
        left = [folder.parent for folder in made if folder.parent.exists()]
        assert dying.poll() is not None, "removed before it had ended"
    group.remove()  # gone with the rest, so there is nothing to wait for
    assert (len(made) > 0, left) == (True, [])


def test_a_group_is_removed_as_soon_as_its_last_process_has_ended(place: Place) -> None:
    with subprocess.Popen(["sleep", "0.3"]) as dying:
        group, made = fill(place, dying)
        group.remove()
        assert dying.poll() is not None, "removed before it had ended"
    assert (len(made) > 0, [folder for folder in made if folder.exists()]) == (True, [])
    place.remove()


def test_a_group_with_a_living_process_is_not_removed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["sleep", "60"]) as living:
        group, made = fill(place, living)
        with monkeypatch.context() as impatient:
            impatient.setattr(cgroups, "_REMOVE_SECONDS", 0.1)
            with pytest.raises(OSError, match="busy"):
                group.remove()
        assert all(folder.exists() for folder in made)
        living.kill()
    place.remove()
    assert cgroups_of([os.getpid()]) == []
