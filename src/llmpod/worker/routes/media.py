"""Images, audio and video in requests: data URIs up to a size, and downloads from allowed domains.

vLLM would fetch addresses itself, and follow redirects. So it never gets one: this module downloads allowed files, from
public addresses that it has resolved itself, and passes data URIs to vLLM. Loopback, private and link-local addresses
are never connected to, whatever name or redirect leads there.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import ipaddress
import re
import socket
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from PIL import Image
from yarl import URL

from llmpod.worker.errors import Code, JobError
from llmpod.worker.jobs.bounds import MEDIA_KEYS
from llmpod.worker.settings import Settings

FETCH_TIMEOUT_S = 20.0
MAX_REDIRECTS = 3
MAX_FILES = 64
_DATA_URI = re.compile(r"data:([\w.+-]+/[\w.+-]+)?((?:;[\w.+-]+=[\w.+\"-]+)*)(;base64)?,", re.IGNORECASE)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class Pixels:
    """Remaining MAX_PIXELS of one request.

    A small file can decode to gigabytes of pixels, and vLLM decodes the images of a request concurrently.
    """

    def __init__(self, settings: Settings) -> None:
        self._limit = self._left = settings.max_pixels

    def take(self, data: bytes, path: str) -> None:
        """Subtract an image's pixels, read from its header; other files have none.

        Raises:
            JobError: with it, they have too many.
        """
        try:
            with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as image:
                self._left -= image.width * image.height
        except Image.DecompressionBombError:
            self._left = -1
        except Exception:  # noqa: BLE001 - not an image, or a damaged one: the decoder reports it
            return
        if self._left < 0:
            raise JobError(
                Code.INVALID_INPUT,
                f"{path}: the images of the request have more than {self._limit} pixels (MAX_PIXELS).",
                field=path,
                limit=self._limit,
            )


@dataclass
class Item:
    """A media file in a body: its path, and how to replace it."""

    path: str
    holder: Any  # the dict or list it stands in
    key: Any
    value: str
    is_data: bool  # bare base64, not an address


def find(body: dict[str, Any]) -> list[Item]:
    """Every media file in a request's body.

    Raises:
        JobError: there are more than any request needs.
    """
    items: list[Item] = []
    pending: list[tuple[str, Any]] = [
        (name, value) for name, value in body.items() if name not in ("tools", "metadata")
    ]
    top = [(name, body[name]) for name in ("images", "image", "audio") if name in body]
    for name, value in top:
        items += _under(name, body, name, value)
    while pending:
        path, value = pending.pop()
        if isinstance(value, list):
            pending += [(f"{path}[{index}]", item) for index, item in enumerate(value) if isinstance(item, list | dict)]
        elif isinstance(value, dict):
            for key, inner in value.items():
                if key in MEDIA_KEYS:
                    items += _under(f"{path}.{key}", value, key, inner)
                elif isinstance(inner, list | dict):
                    pending.append((f"{path}.{key}", inner))
        if len(items) > MAX_FILES:
            raise JobError(Code.INVALID_INPUT, f"A request may carry at most {MAX_FILES} files.", field=path)
    return items


def _under(path: str, holder: Any, key: Any, value: Any) -> Iterator[Item]:
    """Addresses and data below a media key: text, a list, {"url": …}, {"data": …}."""
    if isinstance(value, str):
        is_data = key in ("data", "image_embeds", "audio_embeds", "file_data") and value[:5].lower() != "data:"
        yield Item(path, holder, key, value, is_data)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _under(f"{path}[{index}]", value, index, item)
    elif isinstance(value, dict) and not (value.get("type") == "text" and holder.get("type") == "document"):
        for name, item in value.items():
            if name in ("url", "data", "file_data") or name in MEDIA_KEYS:
                yield from _under(f"{path}.{name}", value, name, item)


@dataclass
class Wanted:
    """Files to download for a request."""

    addresses: list[tuple[Item, URL]]
    pixels: Pixels


def check_all(items: list[Item], settings: Settings) -> Wanted:
    """Check the files of a request, as `check` does.

    Raises:
        JobError: as `check`.
    """
    pixels = Pixels(settings)
    return Wanted([(item, url) for item in items if (url := check(item, settings, pixels)) is not None], pixels)


def check(item: Item, settings: Settings, pixels: Pixels | None = None) -> URL | None:
    """Check a file. Returns the address to download; None if the data is in the request.

    Raises:
        JobError: the address is not allowed, the data is too large or not base64, or has too many pixels.
    """
    pixels = pixels or Pixels(settings)
    if item.is_data:
        decode(item.value, item.path, settings, pixels)
        return None
    if item.value[:5].lower() == "data:":
        found = _DATA_URI.match(item.value)
        if found is None or not found[3]:
            raise JobError(Code.INVALID_INPUT, f"{item.path} is not a data URI with base64.", field=item.path)
        decode(item.value[found.end() :], item.path, settings, pixels)
        return None
    return allowed_url(item.value, item.path, settings)


def decode(text: str, path: str, settings: Settings, pixels: Pixels) -> bytes:
    """The content of a file that came as base64.

    Raises:
        JobError: it is too large, not base64, or has too many pixels.
    """
    size = len(text) * 3 // 4
    if size > settings.max_media_bytes + 3:
        raise JobError(
            Code.INVALID_INPUT, f"{path} has {size} bytes; at most {settings.max_media_bytes} are accepted.", field=path
        )
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise JobError(Code.INVALID_INPUT, f"{path} is not valid base64.", field=path) from None
    if not data:
        raise JobError(Code.INVALID_INPUT, f"{path} is empty.", field=path)
    pixels.take(data, path)
    return data


def allowed_url(text: str, path: str, settings: Settings) -> URL:
    """Parse an address that may be downloaded, with the parser of the library that fetches it.

    Raises:
        JobError: it is none, and why.
    """
    refused = JobError(
        Code.INVALID_INPUT,
        f"{path}: this worker fetches files from {', '.join(settings.allowed_media_domains)} only, by http or https on "
        "its own port; send a data URI."
        if settings.allowed_media_domains
        else f"{path}: this worker fetches no files; send a data URI, or let its operator set ALLOWED_MEDIA_DOMAINS.",
        field=path,
    )
    if not text.isascii() or re.search(r"[\x00-\x20\\\x7f]", text):
        raise refused
    try:
        url = URL(text)
        host, port = (url.host or "").rstrip(".").lower(), url.port
    except ValueError:
        raise refused from None
    default_port = {"http": 80, "https": 443}.get(url.scheme)
    if default_port is None or port != default_port or url.user is not None or url.password is not None or not host:
        raise refused
    if host not in {domain.rstrip(".").lower() for domain in settings.allowed_media_domains} or _is_address(host):
        raise refused
    return url


def _is_address(host: str) -> bool:
    """Whether a host is an IP address in any form that some resolver reads: 127.0.0.1, ::1, 2130706433, 0x7f.1."""
    return ":" in host or re.fullmatch(r"(?:0x[0-9a-f]*|\d+)(?:\.(?:0x[0-9a-f]*|\d+))*", host) is not None


def is_public(address: str) -> bool:
    """Whether an IP address is public, also if it is mapped into IPv6."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if ip.sixtofour is not None or ip.teredo is not None or ip in _NAT64:
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


class PublicResolver(AbstractResolver):
    """DNS resolver for aiohttp that only returns public addresses; resolving once rules out DNS rebinding."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The host's addresses. Raises OSError if any of them is not public."""
        found = await asyncio.get_running_loop().getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
        results: list[ResolveResult] = []
        for found_family, _, proto, _, address in found:
            ip = str(address[0])
            if not is_public(ip):
                raise OSError(f"{host} is not on the public internet")
            results.append(
                ResolveResult(
                    hostname=host, host=ip, port=port, family=found_family, proto=proto, flags=socket.AI_NUMERICHOST
                )
            )
        return results

    async def close(self) -> None:
        """Does nothing: no resources are held."""


async def fetch(wanted: Wanted, settings: Settings, resolver: AbstractResolver | None = None) -> None:
    """Download the `wanted` files and replace them by data URIs.

    Raises:
        JobError: an address leads to where it may not, or the file cannot be had.
    """
    if not wanted.addresses:
        return
    connector = aiohttp.TCPConnector(resolver=resolver or PublicResolver(), use_dns_cache=False)
    timeout = aiohttp.ClientTimeout(total=FETCH_TIMEOUT_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as session:
        files = await asyncio.gather(
            *(_fetch(session, url, item.path, settings, wanted.pixels) for item, url in wanted.addresses)
        )
    for (item, _), data_uri in zip(wanted.addresses, files, strict=True):
        item.holder[item.key] = data_uri


async def _fetch(session: aiohttp.ClientSession, url: URL, path: str, settings: Settings, pixels: Pixels) -> str:
    for _ in range(MAX_REDIRECTS + 1):
        try:
            async with session.get(url, allow_redirects=False) as response:
                if response.status in (301, 302, 303, 307, 308) and "location" in response.headers:
                    url = allowed_url(str(url.join(URL(response.headers["location"]))), path, settings)
                    continue
                if response.status != 200:
                    raise JobError(Code.INVALID_INPUT, f"{path}: the server answered {response.status}.", field=path)
                data = await _read(response, path, settings)
                pixels.take(data, path)
                kind = response.content_type or "application/octet-stream"
                return f"data:{kind};base64,{base64.b64encode(data).decode()}"
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            raise JobError(Code.INVALID_INPUT, f"{path}: the file cannot be fetched.", field=path) from None
    raise JobError(Code.INVALID_INPUT, f"{path}: more than {MAX_REDIRECTS} redirects.", field=path)


async def _read(response: aiohttp.ClientResponse, path: str, settings: Settings) -> bytes:
    data = bytearray()
    async for piece in response.content.iter_chunked(1 << 16):
        data += piece
        if len(data) > settings.max_media_bytes:
            raise JobError(Code.INVALID_INPUT, f"{path} has more than {settings.max_media_bytes} bytes.", field=path)
    return bytes(data)
