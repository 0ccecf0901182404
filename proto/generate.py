"""Generate `runtime/contracts/` from `proto/*.proto`: `python proto/generate.py [--check]`.

For each file NAME.proto it writes `NAME_pb2.py` and `NAME_pb2.pyi` (protoc's), and for each that has services
`NAME_contract.py` (ours): the contract, a typed ref to ask it through, and the typed base of the actor that answers.
`--check` writes nothing and fails if what is checked in differs. Needs grpcio-tools (the `dev` extra).
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from importlib import resources
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet, ServiceDescriptorProto
from grpc_tools import protoc

PROTO = Path(__file__).resolve().parent
CONTRACTS = PROTO.parent / "runtime" / "contracts"
# Generated files import as they lie, so protoc sees the sources under the package's own path.
VIRTUAL = "everram/runtime/contracts"
# Spoken on the wire only: read and written by hand on their streams, never asked through refs.
WITHOUT_REFS = {"link.proto", "etcd.proto"}


def snake(name: str) -> str:
    """`CreateRegions` -> `create_regions`, `VMemFS` -> `vmemfs`."""
    if name.isupper() or name == "VMemFS":
        return name.lower()
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def module_of(path: str) -> str:
    return path.removesuffix(".proto").rsplit("/", 1)[-1] + "_pb2"


def contract_source(file: FileDescriptorProto, owners: dict[str, str]) -> str:
    """The text of one `NAME_contract.py`; `owners` maps a message's full name to the module that defines it."""

    def name_of(type_name: str) -> str:
        full = type_name.removeprefix(".")
        return f"{owners[full]}.{full.rsplit('.', 1)[-1]}"

    def service(s: ServiceDescriptorProto) -> list[str]:
        constant, full = snake(s.name).upper(), f"{file.package}.{s.name}"
        lines: list[str] = ["", ""]
        for m in s.method:
            args = f'"{full}", "{m.name}", {name_of(m.input_type)}, {name_of(m.output_type)}'
            args += ", streams=True" if m.server_streaming else ""
            lines.append(f"{constant}_{snake(m.name).upper()} = Method({args})")
        methods = ", ".join(f"{constant}_{snake(m.name).upper()}" for m in s.method)
        lines += [f'{constant} = Contract("{full}", ({methods},))', "", "", f"class {s.name}Ref(Ref):"]
        lines += [f'    """Asks a {s.name} actor, wherever it is."""', "", f"    contract = {constant}"]
        for m in s.method:
            request, reply, method = (
                name_of(m.input_type),
                name_of(m.output_type),
                f"{constant}_{snake(m.name).upper()}",
            )
            if m.server_streaming:
                lines += [
                    "",
                    f"    def {snake(m.name)}(",
                    f"        self, request: {request}, *, timeout_s: float | None = None",
                ]
                lines += [f"    ) -> Replies[{reply}]:", f"        return self.stream({method}, request, timeout_s)"]
            else:
                lines += [
                    "",
                    f"    def {snake(m.name)}(",
                    f"        self, request: {request}, *, timeout_s: float = DEFAULT_TIMEOUT_S",
                ]
                lines += [
                    f"    ) -> Coroutine[Any, Any, {reply}]:",
                    f"        return self.ask({method}, request, timeout_s)",
                ]
        lines += [
            "",
            "",
            f"class {s.name}Actor(Actor):",
            f'    """Answers the {s.name} contract: override every method."""',
        ]
        lines += ["", f"    contract = {constant}"]
        for m in s.method:
            request, reply = name_of(m.input_type), name_of(m.output_type)
            returns = f"AsyncIterator[{reply}]" if m.server_streaming else f"{reply} | Awaitable[{reply}]"
            lines += [
                "",
                f"    def {snake(m.name)}(self, request: {request}) -> {returns}:",
                "        raise NotImplementedError",
            ]
        return lines

    imports = sorted(
        {name_of(t).split(".")[0] for s in file.service for m in s.method for t in (m.input_type, m.output_type)}
    )
    streams = any(m.server_streaming for s in file.service for m in s.method)
    abc = "AsyncIterator, Awaitable, Coroutine" if streams else "Awaitable, Coroutine"
    source = module_of(file.name).removesuffix("_pb2")
    head = [
        f'"""Generated from proto/{source}.proto by proto/generate.py; do not edit."""',
        "",
        "from __future__ import annotations",
        "",
        f"from collections.abc import {abc}",
        "from typing import Any",
        "",
        "from everram.runtime.actor import Actor",
        f"from everram.runtime.contracts import {', '.join(imports)}",
        "from everram.runtime.method import DEFAULT_TIMEOUT_S, Contract, Method",
        f"from everram.runtime.refs import {'Ref, Replies' if streams else 'Ref'}",
    ]
    body = [line for s in file.service for line in service(s)]
    return "\n".join(head + body) + "\n"


def generate(into: Path) -> None:
    """Write every generated file into the folder `into`."""
    sources = sorted(p.name for p in PROTO.glob("*.proto"))
    well_known = str(resources.files("grpc_tools") / "_proto")
    with tempfile.TemporaryDirectory() as scratch:
        out, described = Path(scratch), Path(scratch) / "set.bin"
        includes = [f"-I{VIRTUAL}={PROTO}", f"-I{well_known}"]
        outputs = [f"--python_out={out}", f"--pyi_out={out}", f"--descriptor_set_out={described}"]
        if protoc.main(["protoc", *includes, *outputs, *(f"{VIRTUAL}/{name}" for name in sources)]) != 0:
            raise SystemExit("protoc refused a file in proto/; see above")
        for file in sorted((out / VIRTUAL).iterdir()):
            (into / file.name).write_text(file.read_text())
        files = FileDescriptorSet.FromString(described.read_bytes()).file
    owners = {f"{f.package}.{m.name}": module_of(f.name) for f in files for m in f.message_type}
    for f in files:
        name = f.name.rsplit("/", 1)[-1]
        if f.service and name not in WITHOUT_REFS:
            (into / name.replace(".proto", "_contract.py")).write_text(contract_source(f, owners))
    (into / "__init__.py").write_text('"""Generated from proto/ by proto/generate.py; do not edit."""\n')


def main() -> None:
    parser = argparse.ArgumentParser(description="Generate runtime/contracts from proto/.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if what is checked in differs")
    if not parser.parse_args().check:
        CONTRACTS.mkdir(exist_ok=True)
        generate(CONTRACTS)
        return
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch)
        generate(fresh)
        differing = sorted(
            {p.name for p in (*fresh.iterdir(), *CONTRACTS.glob("*.py*"))}
            - {
                p.name
                for p in fresh.iterdir()
                if (CONTRACTS / p.name).exists() and (CONTRACTS / p.name).read_text() == p.read_text()
            }
        )
    if differing:
        sys.exit(f"runtime/contracts differs from proto/ in {', '.join(differing)}: run `python proto/generate.py`")


if __name__ == "__main__":
    main()
