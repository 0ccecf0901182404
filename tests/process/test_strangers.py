"""A real cluster met by those who do not know it: clients without our code, no guests, wrong bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from everram.runtime.log.record import HEADER_BYTES
from everram.runtime.log.ring import APPLIED, APPLIED_COPY, DATA_OFFSET, EPOCH_START, TAIL, WORD_MASK
from tests.user import User, until, user_in

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]


class Stranger(User):
    """With one cluster of one host."""

    def said(self, guest: str, *words: str) -> str:
        """The guest's output, once every word is in it."""
        until(lambda: all(word in self.run("logs", guest) for word in words), f"{guest} says {words}")
        return self.run("logs", guest)


@pytest.fixture(scope="module")
def everram(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stranger]:
    with user_in(tmp_path_factory.mktemp("strangers"), Stranger) as user:
        user.run("up", "--hosts", "1", "--memory", "128MiB", "--nvm", "64MiB", "-d")
        yield user


COUNTS = """
import time
from everram.runtime import guest

me = guest.attach()
words = me.records("r", "<Q")
words[0] = (words[0][0] + 1,)
print("counted to", words[0][0], flush=True)
time.sleep(1000)
"""

CLIENT = """
import json, sys
import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

with grpc.insecure_channel("unix:" + sys.argv[1]) as channel:
    described = ProtoReflectionDescriptorDatabase(channel)
    pool = descriptor_pool.DescriptorPool(described)

    def call(service, method, *, raw=None):
        found = pool.FindServiceByName(service).methods_by_name[method]
        request = message_factory.GetMessageClass(found.input_type)()
        reply = message_factory.GetMessageClass(found.output_type)
        answer = channel.unary_unary(f"/{service}/{method}")(request.SerializeToString() if raw is None else raw)
        return json_format.MessageToDict(reply.FromString(answer))

    services = {name: [method.name for method in pool.FindServiceByName(name).methods]
                for name in described.get_services()}
    status = call("everram.v1.Host", "Status")
    guests = call("everram.v1.Hypervisor", "List")
    refused = {}
    for name, method in (("everram.v1.Hypervisor", "Run"), ("everram.v1.NvmDevice", "CreateRegions")):
        for raw in (b"\\xff\\xff\\xff", b""):
            try:
                call(name, method, raw=raw)
            except grpc.RpcError as error:
                refused[f"{method} {raw.hex()}"] = [error.code().name, error.details()]
assert not any(module.split(".")[0] == "everram" for module in sys.modules)
print(json.dumps([services, status, guests, refused]))
"""


def test_a_client_without_our_code_lists_services_and_calls_them(everram: Stranger) -> None:
    before = everram.host("h1")
    everram.run("run", "-d", "--name", "seen", "--", "sleep", "1000")
    client = [sys.executable, "-I", "-c", CLIENT, before["host_socket"]]
    done = subprocess.run(client, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    services, status, guests, refused = json.loads(done.stdout)
    assert {f"everram.v1.{name}" for name in ("Host", "Hypervisor", "NvmDevice", "VMemFS")} <= services.keys()
    assert "Inspect" in services["everram.v1.Hypervisor"]
    assert (status["host"], int(status["pid"])) == ("h1", before["host_pid"])
    assert [guest["name"] for guest in guests["guests"]] == ["seen"]
    # Malformed, and empty where something is needed.
    assert {code for code, _ in refused.values()} == {"INVALID_ARGUMENT"}, refused
    assert len(refused) == 4
    assert all("Traceback" not in details for _, details in refused.values())
    assert everram.host("h1")["host_restarts"] == before["host_restarts"]
    everram.run("rm", "--force", "seen")


def test_a_stranger_with_a_guests_own_words_may_not_attach(everram: Stranger) -> None:
    everram.run("run", "-d", "--name", "mine", "--region", "r=64KiB", "--", "python", "-c", COUNTS)
    everram.said("mine", "counted to 1")
    pid = everram.json("inspect", "mine")["pid"]
    words = [word.partition("=") for word in Path(f"/proc/{pid}/environ").read_text().split("\0")]
    environment = {name: value for name, _, value in words if name.startswith("EVERRAM_")}
    attach = [sys.executable, "-c", "from everram.runtime import guest; guest.attach()"]
    environment = os.environ | environment
    done = subprocess.run(attach, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "does not belong to guest" in done.stderr.splitlines()[-1]
    after = everram.json("inspect", "mine")
    assert (after["pid"], after["state"], after["epoch"]) == (pid, "running", 1)
    everram.run("rm", "--regions", "--force", "mine")


FORK = """
import os, time
from everram.runtime import guest

me = guest.attach()
words = me.records("r", "<Q")
words[0] = (7,)
if not os.fork():
    for attempt in (lambda: words.__setitem__(0, (8,)), guest.attach):
        try:
            attempt()
        except guest.Detached as error:
            print("child:", error, flush=True)
    os._exit(0)
os.wait()
kept = words[0][0]
words[0] = (9,)
print("parent:", kept, "then", words[0][0], flush=True)
time.sleep(1000)
"""


def test_a_guests_forked_child_writes_nothing_and_its_parent_goes_on(everram: Stranger) -> None:
    everram.run("run", "-d", "--name", "forks", "--region", "r=64KiB", "--", "python", "-c", textwrap.dedent(FORK))
    said = everram.said("forks", "parent:")
    assert said.count("child: this process is a forked child of a guest") == 2
    assert "parent: 7 then 9" in said
    assert everram.json("inspect", "forks")["restarts"] == 0
    everram.run("rm", "--regions", "--force", "forks")


class Log:
    """A stopped guest's log, in the memory that its machine keeps: bytes to read and to damage."""

    def __init__(self, machine_pid: int, guest_id: str) -> None:
        for descriptor in Path(f"/proc/{machine_pid}/fd").iterdir():
            if f"memfd:log.{guest_id}" in str(descriptor.readlink()):
                self._path = descriptor

    def word(self, at: int) -> int:
        with self._path.open("rb") as file:
            return int.from_bytes(os.pread(file.fileno(), 8, at), "little")

    def set_word(self, at: int, value: int) -> None:
        with self._path.open("r+b") as file:
            os.pwrite(file.fileno(), value.to_bytes(8, "little"), at)

    def flip(self, at: int) -> None:
        self.set_word(at, self.word(at) ^ 0x10)


@pytest.mark.parametrize("where", ["magic", "checksum", "tail", "payload"])
def test_a_damaged_log_is_refused_and_whole_again_once_mended(everram: Stranger, where: str) -> None:
    """Somebody flips a bit: the guest is not started on it, nothing is erased, and the right bit brings all back."""
    everram.run("run", "-d", "--name", "counts", "--region", "r=64KiB", "--", "python", "-c", COUNTS)
    everram.said("counts", "counted to 1")
    everram.run("stop", "counts")
    log = Log(everram.host("h1")["pid"], everram.json("inspect", "counts")["guest_id"])
    # As if it had died before its transaction was applied, so that the record is needed.
    applied = log.word(EPOCH_START)
    log.set_word(APPLIED_COPY, applied ^ WORD_MASK)
    log.set_word(APPLIED, applied)
    at = {"magic": 0, "checksum": 120, "tail": TAIL, "payload": DATA_OFFSET + applied + HEADER_BYTES}[where]
    log.flip(at)

    status, _, complaint = everram.try_run("start", "counts")
    assert status == 1
    assert complaint.startswith("everram: its log is damaged, so it cannot start: ")
    assert len(complaint.splitlines()) == 1
    assert everram.json("inspect", "counts")["state"] == "failed"
    assert "damaged" in everram.json("inspect", "counts")["reason"]

    log.flip(at)
    everram.run("start", "counts")
    everram.said("counts", "counted to 2")
    everram.run("rm", "--regions", "--force", "counts")
