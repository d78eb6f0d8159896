"""The network interface of Gloo, PyTorch's communication between processes without GPUs.

Gloo listens on the address to which a node's own name resolves. On Debian that is 127.0.1.1, which
no other node reaches: a training on two such nodes ended after 30 seconds with "Gloo
connectFullMesh failed" (torch 2.14, Ray 2.60). Ray knows an address of each node that the others
reach. NCCL, for GPUs, looks for interfaces itself.
"""

from __future__ import annotations

import os
from typing import Any

import psutil
import ray.util
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

VARIABLE = "GLOO_SOCKET_IFNAME"


class NodeAddressConfig(TorchConfig):
    """Ray Train's process group, whose processes talk over the interface that Ray uses too."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """What sets the process group up."""
        return _NodeAddressBackend


class _NodeAddressBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(use_interface_of_node)
        super().on_start(worker_group, backend_config)


def use_interface_of_node() -> None:
    """Make Gloo use the interface that has Ray's address of this node, unless one was chosen."""
    if name := interface_with(ray.util.get_node_ip_address()):
        os.environ.setdefault(VARIABLE, name)


def interface_with(address: str) -> str | None:
    """The name of this machine's network interface with an IP address; None if none has it."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address.partition("%")[0] == address for one in addresses):
            return name
    return None
