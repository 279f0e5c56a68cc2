"""Listen at an address of this machine: who can reach it, by which names it is called, and who has its token."""

from __future__ import annotations

import ipaddress
import secrets
import signal
import socket
import sys
from collections.abc import Collection
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from vlltr_index.errors import UsageError

if TYPE_CHECKING:
    from starlette.datastructures import Headers


def bind(host: str, port: int) -> socket.socket:
    """Open a socket to listen at; port 0 takes a free one.

    Raises:
        UsageError: If it is in use, or not an address of this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise UsageError(
            f"cannot listen at {host}, port {port}: {str(error.strerror).partition(' (')[0]}",
            "Take another one: --port 0 finds a free port, --host 127.0.0.1 is this machine alone.",
        ) from None


def is_local(host: str) -> bool:
    """Say whether an address bound to `host` can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def address_of(listening: socket.socket) -> str:
    """Return the address of what listens at a socket, for people: `http://machine:7860/`."""
    address, port = listening.getsockname()[:2]
    shown = socket.gethostname() if ipaddress.ip_address(address).is_unspecified else address
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{port}/"


def wrong_sender(headers: Headers, names: Collection[str], others: bool) -> tuple[int, str] | None:
    """Return status and reason to refuse a request under another host name, or one that another site's page sent.

    Args:
        headers: The request's.
        names: Host names, in lower case, that may be used beside addresses.
        others: Whether other machines may ask, so that any address may be used.
    """
    hosts = headers.getlist("host")
    if len(hosts) != 1 or not _is_own_name(hosts[0], names, others):
        return 421, "Nothing here answers under that name."
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2] != hosts[0]:
        return 403, "Pages of other sites may not ask."
    return None


def _is_own_name(host: str, names: Collection[str], others: bool) -> bool:
    """Say whether a Host header is an own name; another one hints at DNS rebinding."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name == "localhost" or name in names
    return address.is_loopback or others


def check_token(token: str, where: str) -> str:
    """Check that a request can have a token in its header, and return it.

    Raises:
        UsageError: It is empty, or has white space or a character that is not ASCII; `where` is where it came from.
    """
    wrong = [number for number, sign in enumerate(token, 1) if not "!" <= sign <= "~"]
    if token and not wrong:
        return token
    why = "is empty" if not token else f"has white space or a character beyond ASCII at position {wrong[0]}"
    raise UsageError(f"{where} {why}: no request can match it", "Make one: openssl rand -hex 32")


def is_token(shown: str | None, token: str) -> bool:
    """Compare what was shown with a token in constant time."""
    return shown is not None and secrets.compare_digest(shown.encode(), token.encode())


def end_by_signals() -> None:
    """Let SIGTERM, and SIGHUP of a closed terminal, end the program by an exit, so that it can clear up."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
