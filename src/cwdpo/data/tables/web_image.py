"""Images behind http(s) addresses: fetched once, kept by content, within limits of size, time and redirects."""

from __future__ import annotations

import hashlib
import http.client
import ipaddress
import os
import socket
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from cwdpo.errors import one_line
from cwdpo.files import text_digest, write_bytes, write_text

__all__ = ["WebImage"]

LARGEST = 64 << 20
"""Bytes that a fetched image may have."""
SECONDS = 60.0
"""Time that fetching one may take in all."""
_REDIRECTS = 5
_TRIES = 2
_PASSING = (408, 425, 429, 500, 502, 503, 504)
"""Answers of a server that may be another one a moment later."""


@dataclass(frozen=True)
class WebImage:
    """An image behind an address; see `cwdpo.data.schema.StoredBytes`.

    Attributes:
        url: The address, http or https.
        private: Whether hosts of private networks and this machine may be asked.
    """

    url: str
    private: bool = False

    @property
    def name(self) -> str:
        """The address."""
        return one_line(self.url, 200)

    def to_json(self) -> dict[str, Any]:
        """Return what stands for the image while rows are read; a run keeps it as a file."""
        return {"url": self.url, "private": self.private}

    def read(self) -> bytes:
        """Return the bytes of the image file, from the cache if they were fetched before.

        Raises:
            OSError: They cannot be had.
        """
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cwdpo" / "images"
        note = folder / "addresses" / text_digest(self.url)
        if note.is_file():
            file = folder / note.read_text()
            content = file.read_bytes() if file.is_file() else b""
            if hashlib.sha256(content).hexdigest() == file.name:
                return content
        content = _fetch(self.url, self.private)
        digest = hashlib.sha256(content).hexdigest()
        write_bytes(folder / digest, content)
        write_text(note, digest)
        return content


class _PassingError(OSError):
    """Another try may succeed."""


def _fetch(url: str, private: bool) -> bytes:
    for tries in range(1, _TRIES + 1):
        try:
            return _followed(url, private)
        except (_PassingError, TimeoutError, ConnectionError):
            if tries == _TRIES:
                raise
            time.sleep(1)
        except (http.client.HTTPException, ValueError) as error:
            raise OSError(f"not an answer that can be read ({one_line(error, 100) or type(error).__name__})") from error
    raise AssertionError


def _followed(url: str, private: bool) -> bytes:
    """Return what is behind an address, through its redirects."""
    for _ in range(_REDIRECTS + 1):
        answer = _ask(url, private)
        if isinstance(answer, bytes):
            return answer
        url = urljoin(url, answer)
    raise OSError(f"more than {_REDIRECTS} redirects")


def _ask(url: str, private: bool) -> bytes | str:
    """Return the content behind an address, or where it says that the content is."""
    parts = urlsplit(url)
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname:
        raise OSError(f"{one_line(url, 80)}: only http and https are fetched")
    kind = http.client.HTTPSConnection if parts.scheme.lower() == "https" else http.client.HTTPConnection
    connection: Any = kind(parts.hostname, parts.port, timeout=min(20.0, SECONDS))
    connection._create_connection = partial(_connect, private=private)
    connection.connect()
    # A server that sends a byte now and then never exceeds the time of one read.
    watch = threading.Timer(SECONDS, partial(_hang_up, connection.sock))
    watch.daemon = True
    watch.start()
    try:
        target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", target, headers={"User-Agent": "cwdpo", "Accept": "image/*"})
        response: http.client.HTTPResponse = connection.getresponse()
        if response.status in (301, 302, 303, 307, 308):
            return response.headers.get("Location", "")
        if response.status != 200:
            problem = _PassingError if response.status in _PASSING else OSError
            raise problem(f"the server answers {response.status}")
        content = response.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise OSError(f"more than {LARGEST:,} bytes")
        if response.length:
            raise _PassingError(f"{response.length} bytes are missing")
        if not content:
            raise OSError("no content")
        return content
    finally:
        watch.cancel()
        connection.close()


def _hang_up(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it is closed


def _connect(
    address: tuple[str, int], timeout: float | None = None, source: Any = None, *, private: bool
) -> socket.socket:
    """Connect to a host whose addresses may be asked: what is looked up is what is connected to."""
    host, port = address
    places = [found[4][:2] for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for place in places:
        if not private and _is_private(str(place[0])):
            where = "of a private network or this machine"
            raise OSError(f"{host} is {place[0]}, {where}; set data.private_addresses: true to ask it")
    return socket.create_connection((str(places[0][0]), int(places[0][1])), timeout, source)


def _is_private(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    inner = getattr(ip, "ipv4_mapped", None) or getattr(ip, "sixtofour", None) or ip
    return not inner.is_global or inner.is_multicast
