"""Which addresses may be connected to. Nothing here connects to any."""

import asyncio
import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.images import addresses

# First and last address of each block, and some that mean something.
PRIVATE_V4 = """
    0.0.0.0 0.255.255.255 10.0.0.0 10.255.255.255 100.64.0.0 100.127.255.255
    127.0.0.1 127.255.255.255 169.254.0.0 169.254.169.254 172.16.0.0 172.31.255.255
    192.0.0.0 192.0.0.8 192.0.0.9 192.0.0.170 192.0.0.255 192.0.2.1 192.88.99.1
    192.168.0.0 192.168.255.255 198.18.0.0 198.19.255.255 198.51.100.7 203.0.113.9
    224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255
""".split()
PUBLIC_V4 = """
    1.1.1.1 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255
    128.0.0.1 169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0 191.255.255.255
    192.0.1.0 192.31.196.1 192.167.255.255 192.169.0.0 198.17.255.255 198.20.0.0
    223.255.255.255
""".split()
PRIVATE_V6 = """
    :: ::1 ::2 ::1.1.1.1 ::127.0.0.1 ::ffff:0:1.1.1.1 64:ff9b:1::1 64:ff9b:1::101:101
    64:ff9b:2::1 100::1 100:0:0:1::1 1fff:ffff::1 2001::1 2001:0:4136:e378::1
    2001:1::1 2001:2::1 2001:10::1 2001:20::1 2001:1ff:ffff::1 2001:db8::1
    2001:db8:ffff::1 3fff::1 3fff:fff::1 4000::1 5f00::1 5f00:ffff::1 8000::1 fc00::1
    fdff::1 fe80::1 fe80::1%eth0 febf::1 fec0::1 feff::1 ff02::1 ff0e::1
""".split()
PUBLIC_V6 = """
    2001:200::1 2001:4860:4860::8888 2001:db7::1 2001:db9::1 2606:4700::1111 3ffe::1
    3fff:1000::1
""".split()


def embedded(inner):
    """IPv6 spellings of an IPv4 address that are public where it is."""
    number = int(ipaddress.IPv4Address(inner))
    prefix = int(ipaddress.IPv6Address("2606:4700::"))
    for value in (
        (0xFFFF << 32) + number,  # IPv4-mapped
        (0x64FF9B << 96) + number,  # NAT64
        (0x2002 << 112) + (number << 80),  # 6to4
        prefix + (0x5EFE << 32) + number,  # ISATAP
        prefix + (0x02005EFE << 32) + number,
    ):
        yield str(ipaddress.IPv6Address(value))


@pytest.mark.parametrize("address", PRIVATE_V4 + PRIVATE_V6)
def test_addresses_inside_are_not_public(address):
    assert not addresses.is_public(address)


@pytest.mark.parametrize("address", PUBLIC_V4 + PUBLIC_V6)
def test_addresses_outside_are_public(address):
    assert addresses.is_public(address)


@pytest.mark.parametrize("inner", PRIVATE_V4 + PUBLIC_V4)
def test_an_embedded_address_is_judged_too(inner):
    wanted = inner in PUBLIC_V4
    assert [addresses.is_public(outer) for outer in embedded(inner)] == [wanted] * 5


@given(st.ip_addresses(v=4))
def test_what_python_calls_private_is_never_public(ip):
    if not ip.is_global or ip.is_multicast:
        assert not addresses.is_public(str(ip))
    wanted = addresses.is_public(str(ip))
    assert {addresses.is_public(outer) for outer in embedded(ip)} == {wanted}


def test_what_is_no_address_is_an_error():
    for text in ("", "images.example", "1.2.3", "1.2.3.4.5", "[::1]"):
        with pytest.raises(ValueError, match="does not appear to be"):
            addresses.is_public(text)


def test_the_socket_factory_refuses_what_slipped_through():
    make = addresses.socket_factory({("127.0.0.1", 8000)})
    inet = (socket.AF_INET, socket.SOCK_STREAM, 0, "")
    make((*inet, ("127.0.0.1", 8000))).close()
    make((*inet, ("1.1.1.1", 80))).close()
    for target in (("127.0.0.1", 8001), ("127.0.0.2", 8000)):
        with pytest.raises(addresses.PrivateAddressError, match=r"127\.0\.0"):
            make((*inet, target))


def test_a_host_map_names_host_address_and_port():
    pairs = "A.example=127.0.0.1:80,b.example=[::1]:81"
    assert addresses.read_host_map(pairs) == {
        "a.example": ("127.0.0.1", 80),
        "b.example": ("::1", 81),
    }
    assert addresses.read_host_map("") == {}
    for bad in ("a.example", "a.example=127.0.0.1", "a.example=b.example:80"):
        with pytest.raises(ValueError, match="HOST=ADDRESS:PORT"):
            addresses.read_host_map(bad)


@pytest.mark.parametrize("family", [socket.AF_UNSPEC, socket.AF_INET, socket.AF_INET6])
def test_a_pinned_host_has_its_address_whatever_the_machine_has(family):
    async def resolve(address):
        resolver = addresses.Resolver({"a.example": (address, 8000)})
        return await resolver.resolve("a.example", 80, family)

    for address in ("127.0.0.1", "::1"):
        (found,) = asyncio.run(resolve(address))
        assert (found["host"], found["port"]) == (address, 8000)
