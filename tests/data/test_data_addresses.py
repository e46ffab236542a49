"""Images behind addresses, in base64 and in parts."""

import base64
import http.server
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from published_rows import png

from cwdpo.data import DataSource, load_groups, open_image
from cwdpo.data.tables import web_image
from cwdpo.data.tables.web_image import WebImage
from cwdpo.errors import DataError

ASKED: Counter[str] = Counter()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        ASKED[self.path] += 1
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
            return
        if self.path == "/busy" and ASKED["/busy"] == 1:
            self.send_error(503)
            return
        if self.path == "/none":
            self.send_error(404)
            return
        content = png("red")
        self.send_response(200)
        self.send_header("Content-Length", str(len(content) + (self.path == "/cut")))
        self.end_headers()
        if self.path == "/drip":
            for byte in content[:20]:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                threading.Event().wait(0.05)
            return
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Be silent."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(web_image.time, "sleep", lambda _: None)
    ASKED.clear()
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}"
    served.shutdown()
    served.server_close()


def row(image: Any) -> dict[str, Any]:
    return {"image": image, "prompt": "What?", "chosen": "red", "rejected": "blue"}


def test_an_address_is_fetched_once(tmp_path: Path, jsonl: Any, server: str) -> None:
    path = jsonl(tmp_path / "x.jsonl", [row(f"{server}/a b.png?x=1"), row(f"{server}/a b.png?x=1")])
    for _ in range(2):
        groups = load_groups(DataSource(path=path, private_addresses=True)).groups
        assert [open_image(g.images[0]).getpixel((0, 0)) for g in groups] == [(255, 0, 0)] * 2
    assert ASKED == {"/a%20b.png?x=1": 1}
    (kept,) = [file for file in (tmp_path / "cache" / "cwdpo" / "images").iterdir() if file.is_file()]
    kept.write_bytes(b"damaged")
    assert WebImage(f"{server}/a b.png?x=1", True).read() == png("red") and ASKED.total() == 2


def test_this_machine_is_asked_only_if_it_may_be(tmp_path: Path, jsonl: Any, server: str) -> None:
    for url in (server, server.replace("127.0.0.1", "localhost"), server.replace("127.0.0.1", "[::ffff:127.0.0.1]")):
        path = jsonl(tmp_path / "x.jsonl", [row(f"{url}/a.png")])
        with pytest.raises(DataError, match=r"row 1: image cannot be read: .*data.private_addresses"):
            load_groups(DataSource(path=path))
    assert not ASKED


@pytest.mark.parametrize(
    "address", ["10.0.0.1", "169.254.169.254", "::1", "fd00::1", "224.0.0.1", "::ffff:192.168.1.1"]
)
def test_addresses_of_private_networks(address: str) -> None:
    assert web_image._is_private(address)  # pyright: ignore[reportPrivateUsage]
    assert not web_image._is_private("8.8.8.8")  # pyright: ignore[reportPrivateUsage]


def test_a_redirect_is_looked_at_like_an_address(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_image, "_is_private", lambda ip: ip != "127.0.0.1")
    assert WebImage(f"{server}/to/{server}/a.png").read() == png("red")
    elsewhere = server.replace("127.0.0.1", "127.0.0.2")
    with pytest.raises(OSError, match=r"127\.0\.0\.2 is 127\.0\.0\.2, of a private network"):
        WebImage(f"{server}/to/{elsewhere}/a.png").read()
    with pytest.raises(OSError, match="only http and https"):
        WebImage(f"{server}/to/file:///etc/passwd").read()
    with pytest.raises(OSError, match="more than 5 redirects"):
        WebImage(f"{server}{'/to/' * 7}{server}/a.png").read()


def test_limits(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert WebImage(f"{server}/busy", True).read() == png("red") and ASKED["/busy"] == 2
    with pytest.raises(OSError, match="answers 404"):
        WebImage(f"{server}/none", True).read()
    with pytest.raises(OSError, match="1 bytes are missing"):
        WebImage(f"{server}/cut", True).read()
    monkeypatch.setattr(web_image, "LARGEST", 40)
    with pytest.raises(OSError, match="more than 40 bytes"):
        WebImage(f"{server}/large", True).read()
    monkeypatch.setattr(web_image, "SECONDS", 0.2)
    with pytest.raises(OSError, match="bytes are missing"):
        WebImage(f"{server}/drip", True).read()


def test_images_in_base64_and_in_parts(tmp_path: Path, jsonl: Any) -> None:
    (tmp_path / "red.png").write_bytes(png("red"))
    encoded = base64.b64encode(png("red")).decode()
    images = [encoded, f"data:image/png;base64,{encoded}", f"file://{tmp_path}/red.png", "red.png"]
    rows = [row(image) for image in images]
    for key, image in (("path", "red.png"), ("url", images[1]), ("image", images[2]), ("base64", encoded)):
        turn = {"role": "user", "content": [{"type": "image", key: image}, {"type": "text", "text": "What?"}]}
        rows.append({"prompt": [turn], "chosen": "red", "rejected": "blue"})
    groups = load_groups(DataSource(path=jsonl(tmp_path / "x.jsonl", rows))).groups
    assert [open_image(g.images[0]).getpixel((0, 0)) for g in groups] == [(255, 0, 0)] * 8
