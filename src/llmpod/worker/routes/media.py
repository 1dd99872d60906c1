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
from collections.abc import Iterable, Iterator
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
    for name in ("images", "image", "audio"):
        items += _under(name, body, name, body.get(name))
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


class Files:
    """The files of one request, within its limits.

    MAX_PIXELS holds for all of them: a small file can decode to gigabytes of pixels, and vLLM decodes the images of a
    request concurrently.
    """

    def __init__(self, settings: Settings, items: Iterable[Item] = ()) -> None:
        """Check `items`.

        Raises:
            JobError: an address is not allowed, data is too large or not base64, or images have too many pixels.
        """
        self._settings = settings
        self._pixels_left = settings.max_pixels
        self.addresses: list[tuple[Item, URL]] = []  # to be downloaded
        for item in items:
            if item.is_data:
                self.decode(item.value, item.path)
            elif item.value[:5].lower() == "data:":
                found = _DATA_URI.match(item.value)
                if found is None or not found[3]:
                    raise _refused(item.path, f"{item.path} is not a data URI with base64.")
                self.decode(item.value[found.end() :], item.path)
            else:
                self.addresses.append((item, allowed_url(item.value, item.path, settings)))

    def decode(self, text: str, path: str) -> bytes:
        """The content of a file that came as base64; JobError as above."""
        size, most = len(text) * 3 // 4, self._settings.max_media_bytes
        if size > most + 3:
            raise _refused(path, f"{path} has {size} bytes; at most {most} are accepted.")
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise _refused(path, f"{path} is not valid base64.") from None
        if not data:
            raise _refused(path, f"{path} is empty.")
        self._count_pixels(data, path)
        return data

    def _count_pixels(self, data: bytes, path: str) -> None:
        """Subtract an image's pixels, read from its header; other files have none."""
        try:
            with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as image:
                self._pixels_left -= image.width * image.height
        except Image.DecompressionBombError:
            self._pixels_left = -1
        except Exception:  # noqa: BLE001 - not an image, or a damaged one: the decoder reports it
            return
        if self._pixels_left < 0:
            most = self._settings.max_pixels
            message = f"{path}: the images of the request have more than {most} pixels (MAX_PIXELS)."
            raise JobError(Code.INVALID_INPUT, message, field=path, limit=most)

    async def fetch(self, resolver: AbstractResolver | None = None) -> None:
        """Download the files that are addresses, and put data URIs in their place.

        Raises:
            JobError: an address leads to where it may not, or the file cannot be had.
        """
        if not self.addresses:
            return
        connector = aiohttp.TCPConnector(resolver=resolver or PublicResolver(), use_dns_cache=False)
        timeout = aiohttp.ClientTimeout(total=FETCH_TIMEOUT_S)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as session:
            uris = await asyncio.gather(*(self._fetch(session, url, item.path) for item, url in self.addresses))
        for (item, _), uri in zip(self.addresses, uris, strict=True):
            item.holder[item.key] = uri

    async def _fetch(self, session: aiohttp.ClientSession, url: URL, path: str) -> str:
        for _ in range(MAX_REDIRECTS + 1):
            try:
                async with session.get(url, allow_redirects=False) as response:
                    if response.status in (301, 302, 303, 307, 308) and "location" in response.headers:
                        url = allowed_url(str(url.join(URL(response.headers["location"]))), path, self._settings)
                        continue
                    if response.status != 200:
                        raise _refused(path, f"{path}: the server answered {response.status}.")
                    data = await self._read(response, path)
                    self._count_pixels(data, path)
                    kind = response.content_type or "application/octet-stream"
                    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
                raise _refused(path, f"{path}: the file cannot be fetched.") from None
        raise _refused(path, f"{path}: more than {MAX_REDIRECTS} redirects.")

    async def _read(self, response: aiohttp.ClientResponse, path: str) -> bytes:
        data = bytearray()
        async for piece in response.content.iter_chunked(1 << 16):
            data += piece
            if len(data) > self._settings.max_media_bytes:
                raise _refused(path, f"{path} has more than {self._settings.max_media_bytes} bytes.")
        return bytes(data)


def _refused(path: str, message: str) -> JobError:
    return JobError(Code.INVALID_INPUT, message, field=path)


def allowed_url(text: str, path: str, settings: Settings) -> URL:
    """Parse an address that may be downloaded, with the parser of the library that fetches it.

    Raises:
        JobError: it is none, and why.
    """
    refused = _refused(
        path,
        f"{path}: this worker fetches files from {', '.join(settings.allowed_media_domains)} only, by http or https on "
        "its own port; send a data URI."
        if settings.allowed_media_domains
        else f"{path}: this worker fetches no files; send a data URI, or let its operator set ALLOWED_MEDIA_DOMAINS.",
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
