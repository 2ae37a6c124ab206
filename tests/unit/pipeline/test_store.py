"""The object store in a directory: durable before it is visible, and nothing outside it."""

from __future__ import annotations

import errno
import os
import resource
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import ObjectNotFound, ObjectStoreUnavailable
from pipeline.settings import ObjectStoreSettings
from pipeline.store import LocalObjectStore, ObjectStore, check_key, make_object_store


@pytest.fixture
def store(tmp_path: Path) -> LocalObjectStore:
    return LocalObjectStore(tmp_path / "objects")


def staged(store: LocalObjectStore, data: bytes) -> Path:
    path = store.staging_dir() / "staged"
    path.write_bytes(data)
    return path


def test_objects_come_back_as_they_went_in(store: LocalObjectStore) -> None:
    store.put_bytes(b"small", "manifests/a.json")
    store.put_file(staged(store, b"big"), "objects/aa/bb/c.dcm")
    for key, data in {"manifests/a.json": b"small", "objects/aa/bb/c.dcm": b"big"}.items():
        with store.open(key) as stream:
            assert stream.read() == data
    assert list(store.keys("objects")) == ["objects/aa/bb/c.dcm"]
    assert list(store.keys("nothing")) == []
    assert list(store.staging_dir().iterdir()) == []
    assert store.exists("manifests/a.json")
    store.delete("manifests/a.json")
    store.delete("manifests/a.json")
    assert not store.exists("manifests/a.json")
    with pytest.raises(ObjectNotFound):
        store.open("manifests/a.json")


def test_what_was_acknowledged_survives_a_power_cut(
    store: LocalObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File first, then the name, then every folder that got a new entry."""
    root = tmp_path / "objects"
    done: list[str] = []
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        done.append(f"fsync {Path(f'/proc/self/fd/{descriptor}').readlink()}")
        real_fsync(descriptor)

    def replace(self: Path, target: Path) -> Path:
        done.append(f"rename {target}")
        return real_replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    store.put_file(staged(store, b"x"), "objects/aa/c.dcm")
    assert done[:3] == [
        f"fsync {root}/.staging/staged",
        f"rename {root}/objects/aa/c.dcm",
        f"fsync {root}/objects/aa",
    ]
    assert set(done[3:]) == {f"fsync {root}/objects", f"fsync {root}"}
    done.clear()
    store.put_file(staged(store, b"y"), "objects/aa/d.dcm")
    assert len(done) == 3, "no new folder, so no other one is synced"


@pytest.mark.parametrize(
    "key",
    [
        "../x",
        "a/../../x",
        "/etc/passwd",
        "",
        "a//b",
        "a/",
        ".staging/x",
        "a/.hidden",
        "a b",
        "a\x00b",
        "ä",
        "a\n",
        "x" * 600,
    ],
)
def test_keys_cannot_leave_the_store(store: LocalObjectStore, key: str) -> None:
    with pytest.raises(ValueError, match="object keys"):
        check_key(key)
    with pytest.raises(ValueError, match="object keys"):
        store.put_bytes(b"x", key)


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file of this process may grow beyond 64 KiB: every write answers with an error, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("full_disk")
def test_a_write_that_fails_leaves_nothing_behind(store: LocalObjectStore) -> None:
    with pytest.raises(ObjectStoreUnavailable):
        store.put_bytes(bytes(200_000), "a/b")
    assert list(store.staging_dir().iterdir()) == []
    assert not store.exists("a/b")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said(store: LocalObjectStore, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ObjectStoreUnavailable, match="no space left"):
        store.put_bytes(b"x", "a/b")
    assert list(store.staging_dir().iterdir()) == [], "the staged copy does not stay either"


def test_a_medium_that_fails_under_a_read_is_unavailable(store: LocalObjectStore, tmp_path: Path) -> None:
    (tmp_path / "objects" / "a").symlink_to("/proc/self/mem")  # its first page cannot be read: EIO
    for read in (
        lambda stream: stream.read(),
        lambda stream: stream.read(10),
        lambda stream: stream.read(1 << 20),
        lambda stream: stream.seek(0, os.SEEK_END),
    ):
        with store.open("a") as stream, pytest.raises(ObjectStoreUnavailable, match="input/output error"):
            read(stream)


def test_what_cannot_be_deleted_is_unavailable(store: LocalObjectStore) -> None:
    store.put_bytes(b"x", "a/b")
    with pytest.raises(ObjectStoreUnavailable):
        store.delete("a")


def test_free_space_and_ping(store: LocalObjectStore) -> None:
    assert store.free_bytes() is not None
    store.ping()
    store.staging_dir().rmdir()
    with pytest.raises(ObjectStoreUnavailable):
        store.ping()


def test_a_folder_that_cannot_be_made_is_a_wrong_setting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    settings = ObjectStoreSettings(object_store_url=f"file://{tmp_path}/file/objects")
    with pytest.raises(SystemExit) as caught:
        make_object_store(settings)
    assert caught.value.code == 2
    assert "ECHO_OBJECT_STORE_URL" in capsys.readouterr().err


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def remote(bucket: str) -> ObjectStore:
    return make_object_store(ObjectStoreSettings(object_store_url=f"s3://{bucket}"))


def test_what_a_crash_left_staged_for_a_remote_store_is_found_after_it(temporary: Path) -> None:
    store = remote("bucket")
    assert list(temporary.iterdir()) == [], "services that stage nothing leave no folder"
    (store.staging_dir() / "left").touch()
    assert store.staging_dir().stat().st_mode & 0o777 == 0o700
    assert [path.name for path in remote("bucket").staging_dir().iterdir()] == ["left"]
    assert list(remote("other").staging_dir().iterdir()) == []


def test_nobody_else_says_where_files_are_staged(temporary: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    store = remote("bucket")
    folder = store.staging_dir()
    folder.rmdir()
    folder.symlink_to(tmp_path_factory.mktemp("elsewhere"))
    with pytest.raises(ObjectStoreUnavailable, match="somebody else"):
        store.staging_dir()
