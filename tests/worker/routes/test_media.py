"""Files in requests: what is fetched, what is refused, and that no trick leads to a private address."""

from __future__ import annotations

import asyncio
import base64
import socket
import struct
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

from llmpod.worker.errors import JobError
from llmpod.worker.routes import media
from llmpod.worker.settings import Settings

PNG = base64.b64encode(b"\x89PNG fake").decode()
OPEN = Settings(allowed_media_domains=("files.example.org",), max_media_bytes=1000)


def chat(url: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]}


HOSTILE_URLS = [
    "http://127.0.0.1/x.png",
    "http://localhost/x.png",
    "http://169.254.169.254/latest/meta-data",
    "http://10.0.0.8/x",
    "http://192.168.1.1/x",
    "http://[::1]/x",
    "http://[::ffff:127.0.0.1]/x",
    "http://0.0.0.0/x",
    "http://2130706433/x",
    "http://0x7f000001/x",
    "http://0x7f.1/x",
    "http://0177.0.0.1/x",
    "http://127.1/x",
    "http://evil.example.com/x.png",
    "http://www.files.example.org/x.png",
    "http://files.example.org.evil.com/x",
    "http://files.example.org@evil.com/x",
    "http://evil.com@files.example.org/x",
    "http://evil.com#@files.example.org/",
    "http://evil.com\\@files.example.org/",
    "http://files.example.org:8080/x",
    "http://files.example.org:22/x",
    "ftp://files.example.org/x",
    "gopher://files.example.org/x",
    "file:///etc/passwd",
    "file://files.example.org/etc/passwd",
    "/etc/passwd",
    "../secret.png",
    "C:\\secret.png",
    "//files.example.org/x",
    "http:files.example.org/x",
    "http://files.example.org/\r\nHost: evil",
    "http://files.example.org/ x",
    " http://files.example.org/x",
    "http://fıles.example.org/x",
    "http:///x",
    "javascript:alert(1)",
    "",
]


@pytest.mark.parametrize("url", HOSTILE_URLS)
def test_an_address_outside_the_allowed_domains_is_refused(url: str) -> None:
    for settings in (OPEN, Settings()):
        for body in (
            chat(url),
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]},
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": url}}]}]},
            {"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": url}}]}]},
            {"messages": [{"role": "user", "content": [{"type": "audio_url", "audio_url": {"url": url}}]}]},
            {"images": [url]},
        ):
            items = media.find(body)
            assert items, body
            with pytest.raises(JobError) as caught:
                media.Files(settings, items)
            assert caught.value.failure.status == 400
            assert caught.value.field


def test_an_allowed_domain_is_open_and_no_domain_is_by_default() -> None:
    (item,) = media.find(chat("https://FILES.example.org/a.png?x=1"))
    [(_, url)] = media.Files(OPEN, [item]).addresses
    assert str(url) == "https://files.example.org/a.png?x=1"
    with pytest.raises(JobError, match="ALLOWED_MEDIA_DOMAINS"):
        media.Files(Settings(), [item])


@pytest.mark.parametrize(
    ("url", "what"),
    [
        (f"data:image/png;base64,{PNG}", None),
        (f"DATA:image/png;BASE64,{PNG}", None),
        (f"data:;base64,{PNG}", None),
        ("data:image/png,rawtext", "not a data URI with base64"),
        ("data:image/png;base64,@@@@", "not valid base64"),
        ("data:image/png;base64,abc", "not valid base64"),
        ("data:image/png;base64," + "A" * 2000, "1500 bytes; at most 1000"),
    ],
)
def test_data_uris_work_within_the_cap(url: str, what: str | None) -> None:
    (item,) = media.find(chat(url))
    if what is None:
        assert media.Files(Settings(max_media_bytes=1000), [item]).addresses == []
    else:
        with pytest.raises(JobError, match=what):
            media.Files(Settings(max_media_bytes=1000), [item])


def test_bare_base64_is_checked_as_well() -> None:
    audio = {"type": "input_audio", "input_audio": {"data": "@@", "format": "wav"}}
    (item,) = media.find({"messages": [{"role": "user", "content": [audio]}]})
    with pytest.raises(JobError, match="not valid base64"):
        media.Files(Settings(), [item])


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.0.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:93.184.216.34", True),
        ("64:ff9b::a00:1", False),
        ("2002:7f00:1::", False),
        ("ff02::1", False),
    ],
)
def test_only_public_addresses_are_public(address: str, public: bool) -> None:
    assert media.is_public(address) is public


async def test_a_name_that_leads_to_a_private_address_is_not_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS can say anything; also a public address first and a private one second."""

    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in ("93.184.216.34", "169.254.169.254")]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    with pytest.raises(OSError, match="not on the public internet"):
        await media.PublicResolver().resolve("files.example.org", 80)
    body = chat("http://files.example.org/a.png")
    with pytest.raises(JobError, match="cannot be fetched"):
        await media.Files(OPEN, media.find(body)).fetch()


class ToHere(AbstractResolver):
    """Leads every name to the server of the test."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.asked: list[str] = []

    async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> list[ResolveResult]:
        self.asked.append(host)
        return [ResolveResult(hostname=host, host="127.0.0.1", port=self.port, family=socket.AF_INET, proto=0, flags=0)]

    async def close(self) -> None:
        pass


@pytest.fixture
async def server() -> AsyncIterator[ToHere]:
    async def answer(request: web.Request) -> web.StreamResponse:
        match request.path:
            case "/ok":
                return web.Response(body=b"picture", content_type="image/png")
            case "/big":
                return web.Response(body=b"x" * 5000)
            case "/moved":
                raise web.HTTPFound("/ok")
            case "/inside":
                raise web.HTTPFound("http://169.254.169.254/latest")
            case "/elsewhere":
                raise web.HTTPFound("http://evil.example.com/ok")
            case "/round":
                raise web.HTTPFound("/round")
        raise web.HTTPNotFound

    app = web.Application()
    app.router.add_get("/{tail:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield ToHere(runner.addresses[0][1])
    await runner.cleanup()


@pytest.mark.parametrize("path", ["/ok", "/moved"])
async def test_an_allowed_file_becomes_a_data_uri(server: ToHere, path: str) -> None:
    body = chat(f"http://files.example.org{path}")
    await media.Files(OPEN, media.find(body)).fetch(server)
    url = body["messages"][0]["content"][0]["image_url"]["url"]
    assert url == "data:image/png;base64," + base64.b64encode(b"picture").decode()


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("/big", "more than 1000 bytes"),
        ("/inside", "fetches files from"),
        ("/elsewhere", "fetches files from"),
        ("/round", "redirects"),
        ("/none", "answered 404"),
    ],
)
async def test_a_fetch_that_goes_astray_is_refused(server: ToHere, path: str, what: str) -> None:
    body = chat(f"http://files.example.org{path}")
    with pytest.raises(JobError, match=what):
        await media.Files(OPEN, media.find(body)).fetch(server)
    assert set(server.asked) == {"files.example.org"}


def png(width: int, height: int) -> str:
    """A data URI whose header says that there is an image of this size."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n"
    for name, content in chunks:
        data += struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    return "data:image/png;base64," + base64.b64encode(data).decode()


@pytest.mark.parametrize(("width", "height"), [(8193, 8192), (100_000, 100_000)])
def test_a_few_bytes_that_promise_gigabytes_of_pixels_are_refused(width: int, height: int) -> None:
    (item,) = media.find(chat(png(width, height)))
    with pytest.raises(JobError, match="pixels") as caught:
        media.Files(Settings(), [item])
    assert caught.value.field == "messages[0].content[0].image_url.url"


def test_an_image_within_the_pixels_and_what_is_no_image_pass() -> None:
    for uri in (png(5000, 5000), "data:audio/wav;base64,aGVsbG8="):
        (item,) = media.find(chat(uri))
        assert media.Files(Settings(), [item]).addresses == []


def test_the_images_of_a_request_share_the_pixels() -> None:
    items = media.find(chat(png(400, 400))) * 3
    assert media.Files(Settings(max_pixels=480_000), items).addresses == []
    with pytest.raises(JobError, match="more than 479999 pixels"):
        media.Files(Settings(max_pixels=479_999), items)
