"""Decides which addresses and hosts belong to this machine alone."""

import ipaddress


def is_loopback(address: str) -> bool:
    """Whether a caller's address is one of this machine only; IPv4 addresses mapped into IPv6 are unwrapped.

    A name is not an address: `localhost` as a caller's address would have come from a proxy's header.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_loopback


def names_loopback(host: str) -> bool:
    """Whether a host to listen on, or in a request's `Host`, is this machine only: `localhost` or a loopback address,
    with or without brackets. Every other name may resolve to anything."""
    return host == "localhost" or is_loopback(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
