"""A client that knows nothing of everram: plain grpcio, and what the server says of itself by reflection.

    python examples/plain_grpc.py "$(everram status --json | jq -r '.hosts[0].host_socket')"

Any language with gRPC does the same; `grpcurl -unix -plaintext SOCKET list` is the shortest.
"""

from __future__ import annotations

import sys
from typing import Any

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase


def ask(channel: grpc.Channel, service: str, method: str, **members: Any) -> dict[str, Any]:
    """One call, by the names that the server itself gives."""
    described = DescriptorPool(ProtoReflectionDescriptorDatabase(channel)).FindServiceByName(service)
    call = described.methods_by_name[method]
    request, reply = GetMessageClass(call.input_type), GetMessageClass(call.output_type)
    send = channel.unary_unary(
        f"/{service}/{method}", request_serializer=request.SerializeToString, response_deserializer=reply.FromString
    )
    answer: dict[str, Any] = MessageToDict(send(request(**members), timeout=5.0), preserving_proto_field_name=True)
    return answer


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("say the socket of a host: `everram status --json` has it as host_socket")
    with grpc.insecure_channel(f"unix:{sys.argv[1]}") as channel:
        status = ask(channel, "everram.v1.Host", "Status")
        print(f"{status['host']} of {status['cluster']}: memory {status['memory_id']}")
        for guest in ask(channel, "everram.v1.Hypervisor", "List").get("guests", []):
            print(f"guest {guest['name']} is {guest['state']} in epoch {guest.get('epoch', 0)}")
        try:
            ask(channel, "everram.v1.Hypervisor", "Inspect", guest="nobody")
        except grpc.RpcError as error:
            print(f"an error says what is wrong: {error.details()}")


if __name__ == "__main__":
    main()
