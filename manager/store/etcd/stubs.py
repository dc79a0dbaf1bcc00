"""The generated client stubs, loaded once, and the few names of gRPC the room uses.

Whoever needs etcd's messages takes them from here; the rest of the project must not.
"""

from __future__ import annotations

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc
import grpc.aio
from aetcd.rpc import kv_pb2 as kv
from aetcd.rpc import rpc_pb2 as pb
from aetcd.rpc import rpc_pb2_grpc as services

RpcError = grpc.aio.AioRpcError
Code = grpc.StatusCode

__all__ = ["Code", "RpcError", "grpc", "kv", "pb", "services"]
