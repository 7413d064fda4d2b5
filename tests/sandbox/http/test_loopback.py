"""Which addresses and hosts are this machine alone."""

import pytest

from sandbox.http.loopback import is_loopback, names_loopback

OWN = ["127.0.0.1", "127.8.0.1", "::1", "::ffff:127.0.0.1", "::ffff:7f00:1"]
OTHERS = ["192.0.2.1", "10.0.0.1", "0.0.0.0", "::", "::ffff:10.0.0.1", "::ffff:0.0.0.0", "localhost.example.com", ""]  # noqa: S104


@pytest.mark.parametrize("address", OWN)
def test_addresses_of_this_machine_are_known_mapped_ones_too(address: str) -> None:
    assert is_loopback(address)
    assert names_loopback(address)
    assert names_loopback(f"[{address}]")


@pytest.mark.parametrize("address", [*OTHERS, "127.0.0.1.example.com", "127.1", "0x7f000001", "[::1", "LOCALHOST."])
def test_other_addresses_and_names_are_not_this_machine(address: str) -> None:
    assert not is_loopback(address)
    assert not names_loopback(address)


def test_localhost_is_a_host_to_listen_on_but_no_address_of_a_caller() -> None:
    assert names_loopback("localhost")
    assert not is_loopback("localhost")
