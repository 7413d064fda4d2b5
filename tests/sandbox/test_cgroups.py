"""The folders of cgroups as the spawner makes and removes them."""

import os
import subprocess

import pytest

from sandbox.host.cgroups import Place
from tests.sandbox.conftest import cgroups_of

pytestmark = pytest.mark.namespaces


def test_the_folders_are_removed_as_soon_as_the_last_process_in_a_group_has_ended() -> None:
    place = Place.find()
    if place is None:
        pytest.skip("needs a cgroup that this user may make")
    group = place.make_group(keeper=1, number=0)
    folders = cgroups_of([os.getpid()])
    with subprocess.Popen(["sleep", "0.3"]) as dying:
        for folder in folders:
            (folder / "slot-1-0" / "cgroup.procs").write_text(str(dying.pid))
        place.remove()
        left = cgroups_of([os.getpid()])
        assert dying.poll() is not None, "removed before it had ended"
    with pytest.raises(OSError, match="No such file"):  # it is gone with the rest
        group.remove()
    assert (len(folders) > 0, left) == (True, [])
