"""Python imports this at its start where it stands on PYTHONPATH: no test, nor what it starts, reaches a network."""

import ipaddress
import socket
import sys


class NetworkReached(RuntimeError):
    """Something tried to leave this machine."""


def _is_local(host: object) -> bool:
    if host in (None, "", b"", "localhost", socket.gethostname(), socket.getfqdn()):
        return True
    text = host.decode(errors="replace") if isinstance(host, bytes) else str(host)
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return text.endswith(".localhost") or text == "ip6-localhost"
    return address.is_loopback or address.is_unspecified or text in _own_addresses()


def _own_addresses() -> set[str]:
    try:
        return set(socket.gethostbyname_ex(socket.gethostname())[2])
    except OSError:
        return set()


_asking: list[bool] = []  # our own look-ups of this machine's name are heard too


def _hear(event: str, arguments: tuple) -> None:
    if event not in ("socket.connect", "socket.getaddrinfo") or _asking:
        return
    address = arguments[1] if event == "socket.connect" else arguments[0]
    if event == "socket.connect":
        if not isinstance(address, tuple):  # a Unix socket's path
            return
        address = address[0]
    _asking.append(True)
    try:
        local = _is_local(address)
    finally:
        _asking.pop()
    if not local:
        raise NetworkReached(f"{event} of {address!r}: tests stay on this machine")


def install() -> None:
    """Keep this process on this machine, for good: an audit hook cannot be taken away."""
    sys.addaudithook(_hear)


# pip fetches the model that some slow tests want, and Python itself asks for no network.
if "pip" not in sys.orig_argv:
    install()
