"""Which addresses a download may connect to.

URLs on the web can point anywhere, also into the downloader's own network. Only public
addresses and those pinned by host name are allowed. Addresses are checked when a name
is resolved and again when the socket is created.
"""

import ipaddress
import socket
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
from aiohttp.abc import ResolveResult

# Blocks that IANA's registries of special-purpose addresses (iana.org/assignments/
# iana-ipv4-special-registry, iana-ipv6-special-registry) do not list as globally
# reachable; multicast; and deprecated blocks. Used in addition to Python's own list,
# which differs between versions.
_SPECIAL = tuple(
    ipaddress.ip_network(block)
    for block in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared by a carrier's customers
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local, cloud metadata
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays, deprecated
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
        "2001::/23",  # protocol assignments: Teredo, benchmarks, ORCHID
        "2001:db8::/32",  # documentation
        "3fff::/20",  # documentation
    )
)
# All global unicast addresses; the rest of IPv6 is special or unassigned.
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Bits 32 to 63 of an ISATAP address, less the bit that says "globally unique".
_ISATAP, _ISATAP_MASK = 0x00005EFE, 0xFDFFFFFF


class PrivateAddressError(OSError):
    """A connection was about to reach an address that is not public."""


def read_host_map(pairs: str) -> dict[str, tuple[str, int]]:
    """Returns the address and port of each pinned host, by name in lower case.

    Raises ValueError unless `pairs` is "host=address:port,host=[address]:port" and so
    on, with brackets for IPv6.
    """
    pinned = {}
    for pair in filter(None, pairs.split(",")):
        host, _, target = pair.partition("=")
        address, _, port = target.strip().rpartition(":")
        try:
            address = str(ipaddress.ip_address(address.strip("[]")))
            if not 0 < int(port) < 65_536:
                raise ValueError(f"{port} is no port")
        except ValueError as error:
            raise ValueError(
                "host_map: wanted HOST=ADDRESS:PORT with an IP address, such as "
                f"images.example=127.0.0.1:8000, got {pair.strip()}; correct it"
            ) from error
        pinned[host.strip().lower()] = (address, int(port))
    return pinned


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet.

    It must be outside the special-purpose blocks of IANA's registries, as must an IPv4
    address that it embeds (IPv4-mapped, NAT64, 6to4, ISATAP). Raises ValueError if
    `address` is no IP address.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        low = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if ip.ipv4_mapped or ip in _NAT64:  # other forms of the IPv4 address
            return is_public(str(low))
        isatap = (int(ip) >> 32) & _ISATAP_MASK == _ISATAP
        if ip not in _GLOBAL_UNICAST or (isatap and not is_public(str(low))):
            return False
        if ip.sixtofour:  # all of them are private to some versions of Python
            return is_public(str(ip.sixtofour))
    return ip.is_global and not any(ip in block for block in _SPECIAL)


class Resolver(aiohttp.ThreadedResolver):
    """Resolves pinned hosts from the map, others by the system, to public addresses."""

    def __init__(self, pinned: Mapping[str, tuple[str, int]]) -> None:
        super().__init__()
        self._pinned = pinned

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_INET,
    ) -> list[ResolveResult]:
        """Returns the allowed addresses of a host."""
        if host in self._pinned:
            address, port = self._pinned[host]
            # Not by the system: it refuses a family that no other interface has.
            return [
                ResolveResult(
                    hostname=host,
                    host=address,
                    port=port,
                    family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                    proto=0,
                    flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
                )
            ]
        try:
            found = await super().resolve(host, port, family)
        except UnicodeError as error:  # invalid labels
            raise OSError(f"{host!r} is no host name") from error
        public = [one for one in found if is_public(one["host"])]
        if not public:
            raise PrivateAddressError(f"{host} has no public address")
        return public


def socket_factory(
    pinned: set[tuple[str, int]],
) -> Callable[[Any], socket.socket]:
    """Returns a socket factory that refuses addresses neither public nor pinned.

    It sees the address that is actually connected to, whatever was resolved.
    """

    def make(address_info: Any) -> socket.socket:
        family, kind, protocol, _, address = address_info
        if (address[0], address[1]) not in pinned and not is_public(address[0]):
            raise PrivateAddressError(f"{address[0]} is not a public address")
        return socket.socket(family, kind, protocol)

    return make
