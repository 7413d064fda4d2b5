"""Artifacts are stored under what they are, and never read as anything else."""

from pathlib import Path

import pytest

from services.policy.artifacts import ArtifactDamaged, ArtifactNotFound, ArtifactRefused, ArtifactStore, hash_tree


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "source"
    (made / "inner").mkdir(parents=True)
    (made / "a.txt").write_text("a")
    (made / "inner" / "b.txt").write_text("b")
    return made


def test_storing_the_same_bytes_again_changes_nothing(tmp_path: Path, folder: Path) -> None:
    store = ArtifactStore(tmp_path / "store")
    address = store.store(folder)
    assert store.store(folder) == address == hash_tree(folder)
    assert [entry.name for entry in store.root.iterdir()] == [address]
    assert (store.path(address) / "inner" / "b.txt").read_text() == "b"


def test_a_single_file_is_an_artifact_too(tmp_path: Path, folder: Path) -> None:
    store = ArtifactStore(tmp_path / "store")
    assert store.path(store.store(folder / "a.txt")).read_text() == "a"


def test_the_address_depends_on_every_name_and_byte(folder: Path) -> None:
    before = hash_tree(folder)
    (folder / "a.txt").rename(folder / "c.txt")
    renamed = hash_tree(folder)
    (folder / "c.txt").write_text("x")
    assert len({before, renamed, hash_tree(folder)}) == 3


@pytest.mark.parametrize("damage", ["change", "remove", "add"])
def test_a_changed_artifact_is_refused(tmp_path: Path, folder: Path, damage: str) -> None:
    store = ArtifactStore(tmp_path / "store")
    address = store.store(folder)
    if damage == "change":
        (store.root / address / "a.txt").write_text("A")
    elif damage == "remove":
        (store.root / address / "a.txt").unlink()
    else:
        (store.root / address / "new.txt").write_text("")
    with pytest.raises(ArtifactDamaged):
        store.path(address)


def test_links_and_empty_folders_are_refused(tmp_path: Path, folder: Path) -> None:
    store = ArtifactStore(tmp_path / "store")
    (folder / "link").symlink_to("/etc/hostname")
    (tmp_path / "empty").mkdir()
    for source in (folder, tmp_path / "empty", tmp_path / "missing"):
        with pytest.raises(ArtifactRefused):
            store.store(source)
    assert not store.root.exists()


@pytest.mark.parametrize("address", ["0" * 64, "../source", "source", ""])
def test_only_a_stored_sha256_leads_anywhere(tmp_path: Path, folder: Path, address: str) -> None:
    store = ArtifactStore(tmp_path)
    assert folder.exists()
    with pytest.raises(ArtifactNotFound):
        store.path(address)


def test_a_folder_without_an_adapters_files_is_not_an_adapter(tmp_path: Path, folder: Path) -> None:
    store = ArtifactStore(tmp_path / "store")
    with pytest.raises(ArtifactRefused, match="not an adapter"):
        store.adapter(store.store(folder))
