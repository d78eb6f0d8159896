"""The network interface that Gloo is told to use."""

from __future__ import annotations

import psutil
import pytest

from workflows.runtime import gloo


def test_the_interface_is_the_one_that_has_the_address() -> None:
    name = gloo.interface_with("127.0.0.1")
    assert name is not None
    assert "127.0.0.1" in {each.address for each in psutil.net_if_addrs()[name]}
    assert gloo.interface_with("192.0.2.77") is None  # RFC 5737: for documentation


@pytest.mark.parametrize(
    ("address", "chosen", "expected"),
    [
        ("127.0.0.1", None, gloo.interface_with("127.0.0.1")),
        ("127.0.0.1", "ib0", "ib0"),
        ("127.0.1.1", None, None),
    ],
)
def test_gloo_uses_the_interface_of_rays_address_unless_the_user_chose_one(
    monkeypatch: pytest.MonkeyPatch, address: str, chosen: str | None, expected: str | None
) -> None:
    environment = {} if chosen is None else {gloo.VARIABLE: chosen}
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: address)
    monkeypatch.setattr("os.environ", environment)
    gloo.use_interface_of_node()
    assert environment.get(gloo.VARIABLE) == expected
