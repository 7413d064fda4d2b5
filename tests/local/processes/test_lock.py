"""What a look at a folder's lock says."""

from pathlib import Path

import pytest

from services.local.processes.lock import FolderOfAnother, is_locked


def test_a_lock_that_is_not_ours_to_look_at_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, flags: int) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "file").write_text("")
    assert not is_locked(tmp_path / "file" / "run.lock")
    monkeypatch.setattr("services.local.processes.lock.os.open", refuse)
    with pytest.raises(FolderOfAnother, match="another user"):
        is_locked(tmp_path / "run.lock")
