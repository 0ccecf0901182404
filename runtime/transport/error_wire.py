"""Errors as messages: `everram.v1.Error`, the same on the link and in gRPC's trailing metadata."""

from __future__ import annotations

from typing import cast

from everram.runtime.contracts import common_pb2
from everram.runtime.errors import EverramError, of_code


def to_proto(error: EverramError) -> common_pb2.Error:
    fault = cast("common_pb2.Fault", int(error.fault))  # the two enumerations have the same numbers
    return common_pb2.Error(code=error.code, fault=fault, message=error.message, unknown=error.unknown)


def from_proto(error: common_pb2.Error) -> EverramError:
    """The same class on the other side; a code we do not know becomes `Internal`."""
    return of_code(error.code, error.message, unknown=error.unknown)
