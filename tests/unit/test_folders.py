"""Where a cluster keeps things, who owns it, and what its folder says of its past."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from everram.runtime.cluster import launch
from everram.runtime.cluster.config import NVM_DEFAULT_BYTES, ClusterConfig
from everram.runtime.cluster.folders import (
    SOCKET_PATH_MAX_BYTES,
    ClusterLock,
    Folders,
    Phase,
    SupervisorRecord,
    is_locked,
    make_private,
    set_image_aside,
    state_folder,
)
from everram.runtime.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
)
from everram.runtime.formats.config import HostConfig
from everram.runtime.machine.config import MachineConfig


@pytest.fixture
def environ(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Sockets' paths are short, so they cannot lie in pytest's own folders."""
    with tempfile.TemporaryDirectory(prefix="everram-test-", dir="/tmp") as runtime:
        yield {"XDG_STATE_HOME": str(tmp_path / "state"), "XDG_RUNTIME_DIR": runtime}


def test_which_state_folder(environ: dict[str, str], tmp_path: Path) -> None:
    base = tmp_path / "state" / "everram"
    assert state_folder(None, None, environ) == base / "default"
    assert state_folder("lab", None, environ) == base / "lab"
    assert state_folder(None, str(tmp_path / "mine"), environ) == tmp_path / "mine"
    with_variable = environ | {"EVERRAM_DIR": "/somewhere"}
    assert state_folder(None, None, with_variable) == Path("/somewhere")
    assert state_folder("lab", None, with_variable) == base / "lab"
    assert state_folder(None, None, {"XDG_STATE_HOME": "relative"}) == Path.home() / ".local/state/everram/default"


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "a b", "x" * 64, "é"])
def test_impossible_names(name: str, environ: dict[str, str]) -> None:
    if name == "":
        return
    with pytest.raises(InvalidArgument, match="cannot be the name of a cluster"):
        state_folder(name, None, environ)


def test_sockets_of_a_deep_state_folder_are_short(environ: dict[str, str], tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["a" * 50] * 8)
    folders = Folders.of(None, str(deep), environ)
    folders.make()
    for path in (folders.supervisor_socket, folders.coordination_socket, folders.machine_socket("h32")):
        assert len(os.fsencode(path)) <= SOCKET_PATH_MAX_BYTES
    assert stat.S_IMODE(folders.run.stat().st_mode) == 0o700
    folders.remove_run()


def test_a_runtime_folder_that_is_too_deep_or_not_private_is_not_used(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir(mode=0o700)
    wide = tmp_path / "wide"
    wide.mkdir(mode=0o755)
    for folder in (deep, wide, tmp_path / "missing"):
        run = Folders.of(None, str(tmp_path / "state"), {"XDG_RUNTIME_DIR": str(folder)}).run
        assert run.parent == Path(f"/tmp/everram-{os.geteuid()}")


def test_run_folder_is_the_same_for_every_spelling(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    spellings = ["real", "link", "real/../real", "./link"]
    assert len({Folders.of(None, f"{tmp_path}/{s}", environ).run for s in spellings}) == 1


def test_somebody_elses_run_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(PermissionDenied, match="set XDG_RUNTIME_DIR"):
        make_private(tmp_path / "link")
    if os.geteuid() == 0:
        (tmp_path / "other").mkdir()
        os.chown(tmp_path / "other", 12345, 12345)
        with pytest.raises(PermissionDenied, match="not a folder of yours"):
            make_private(tmp_path / "other")
    (tmp_path / "open").mkdir(mode=0o777)
    make_private(tmp_path / "open")
    assert stat.S_IMODE((tmp_path / "open").stat().st_mode) == 0o700


def test_one_owner(tmp_path: Path) -> None:
    path = tmp_path / "supervisor.lock"
    assert not is_locked(path)
    lock = ClusterLock.take(path)
    asked = "import sys, pathlib, everram.runtime.cluster.folders as f; print(f.is_locked(pathlib.Path(sys.argv[1])))"
    other = subprocess.run([sys.executable, "-c", asked, str(path)], capture_output=True, text=True, check=True)
    assert other.stdout == "True\n"
    assert is_locked(path)
    with pytest.raises(AlreadyExists, match="already running"):
        ClusterLock.take(path)
    lock.release()
    assert not is_locked(path)


def test_phases(environ: dict[str, str]) -> None:
    folders = Folders.of(None, None, environ)
    assert folders.phase() is Phase.NEW
    launch.prepare(folders, launch.Wishes())
    assert folders.phase() is Phase.STOPPED
    lock = ClusterLock.take(folders.lock)
    folders.record.write_text(SupervisorRecord(4711, str(folders.run)).to_json())
    assert folders.phase() is Phase.RUNNING
    lock.release()
    assert folders.phase() is Phase.CRASHED
    assert launch.prepare(folders, launch.Wishes()).phase is Phase.CRASHED
    folders.discard()
    assert folders.phase() is Phase.NEW
    assert not folders.state.exists()


def test_running_cluster_says_where_its_sockets_are(environ: dict[str, str], tmp_path: Path) -> None:
    folders = Folders.of(None, None, environ)
    folders.make()
    folders.record.write_text(SupervisorRecord(1, "/run/elsewhere").to_json())
    assert Folders.of(None, None, environ).supervisor_socket == Path("/run/elsewhere/supervisor.sock")
    folders.record.write_text("{")
    with pytest.raises(DataLoss, match=r"supervisor\.json is damaged"):
        Folders.of(None, None, environ)


def test_discard_keeps_what_is_not_everrams(environ: dict[str, str]) -> None:
    folders = Folders.of(None, None, environ)
    launch.prepare(folders, launch.Wishes())
    (folders.state / "notes.txt").write_text("mine")
    folders.discard()
    assert [p.name for p in folders.state.iterdir()] == ["notes.txt"]


def test_prepare_writes_what_supervisor_machine_and_host_read(environ: dict[str, str]) -> None:
    folders = Folders.of(None, None, environ)
    plan = launch.prepare(folders, launch.Wishes(hosts=2, memory_bytes=64 << 20, nvm_bytes=32 << 20))
    assert ClusterConfig.read(folders.config) == plan.config
    assert plan.config.hosts == ("h1", "h2")
    host = HostConfig.read(str(folders.machine("h2") / "host.json"))
    machine = MachineConfig.read(str(folders.machine("h2") / "machine.json"))
    assert (host.host, host.cluster_id, host.nvm_bytes) == ("h2", plan.config.cluster_id, 32 << 20)
    assert (machine.mark, machine.memory_bytes) == (f"{plan.config.cluster_id}/h2", 64 << 20)
    again = launch.prepare(folders, launch.Wishes(nvm_bytes=48 << 20, open_image="opened"))
    assert again.config.cluster_id == plan.config.cluster_id
    assert again.config.nvm_bytes == 48 << 20
    later = HostConfig.read(str(folders.machine("h2") / "host.json"))
    assert (later.host_id, later.open_image) == (host.host_id, "opened")


def test_the_channel_is_forced_for_all_hosts_or_single_ones(environ: dict[str, str]) -> None:
    folders = Folders.of(None, None, environ)

    def up(channel: str | None) -> list[str]:
        plan = launch.prepare(folders, launch.Wishes(hosts=3, channel=channel))
        hosts = [HostConfig.read(str(folders.machine(host) / "host.json")) for host in plan.config.hosts]
        tokens.update(host.token for host in hosts)
        return [host.channel for host in hosts]

    tokens: set[str] = set()
    assert up(None) == ["shm", "shm", "shm"]
    assert up("tcp") == ["tcp", "tcp", "tcp"]
    assert up(None) == ["tcp", "tcp", "tcp"]
    assert up("h2=shm,h3=auto") == ["tcp", "shm", "auto"]
    assert up("auto") == ["shm", "shm", "shm"]
    for wrong in ("udp", "h9=tcp", "h9=auto", "h1=", "h1=tcp,h2", "h1=tcp,", ""):
        with pytest.raises(InvalidArgument):
            up(wrong)
    assert up(None) == ["shm", "shm", "shm"]
    assert len(tokens) == 1 and len(tokens.pop()) == 32
    assert folders.config.stat().st_mode & 0o077 == 0


def test_wishes_that_cannot_be(environ: dict[str, str]) -> None:
    folders = Folders.of(None, None, environ)
    for hosts in (0, -1, 33):
        with pytest.raises(InvalidArgument, match="1 to 32 hosts"):
            launch.prepare(folders, launch.Wishes(hosts=hosts))
    with pytest.raises(InvalidArgument, match="part of the machine's memory"):
        launch.prepare(folders, launch.Wishes(memory_bytes=16 << 20, nvm_bytes=32 << 20))
    assert folders.phase() is Phase.NEW
    assert launch.prepare(folders, launch.Wishes(hosts=3)).config.nvm_bytes == NVM_DEFAULT_BYTES
    with pytest.raises(FailedPrecondition, match="has 3 hosts and keeps them"):
        launch.prepare(folders, launch.Wishes(hosts=2))
    with pytest.raises(FailedPrecondition, match="can grow, not shrink"):
        launch.prepare(folders, launch.Wishes(nvm_bytes=16 << 20))
    with pytest.raises(InvalidArgument, match='is named "default", not "lab"'):
        launch.prepare(folders, launch.Wishes(name="lab"))


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"format": 99, "hosts": []}', '{"format": 1, "hosts": ["h1"]}', None]
)
def test_damaged_configuration_is_explained(damage: str | None, environ: dict[str, str]) -> None:
    folders = Folders.of(None, None, environ)
    launch.prepare(folders, launch.Wishes())
    members = json.loads(folders.config.read_text())
    folders.config.write_text(json.dumps(members | {"surprise": 1}) if damage is None else damage)
    with pytest.raises(DataLoss, match=r"cluster\.json is not a cluster's configuration .* `everram down --discard`"):
        launch.prepare(folders, launch.Wishes())


def test_state_folder_that_cannot_be_made(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidArgument, match="cannot make the folder"):
        launch.prepare(Folders.of(None, str(tmp_path / "file" / "x"), environ), launch.Wishes())


def test_a_lost_machines_image_is_set_aside_under_a_name_of_its_own(tmp_path: Path) -> None:
    assert set_image_aside(tmp_path) == ""
    for number in (1, 2):
        (tmp_path / "image").mkdir()
        (tmp_path / "image" / "MARKER").write_text(f"image {number}")
        assert set_image_aside(tmp_path) == f"image.lost-{number}"
        assert not (tmp_path / "image").exists()
    assert (tmp_path / "image.lost-1" / "MARKER").read_text() == "image 1"
    assert (tmp_path / "image.lost-2" / "MARKER").read_text() == "image 2"
