"""nginx in front of a server, with the configuration that docs/http.md shows."""

from __future__ import annotations

import asyncio
import re
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

NGINX = "/usr/sbin/nginx"
"""Debian's nginx package; builder/test_tools.sh installs it."""
DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "http.md"
FRAME = """\
daemon off;
pid {folder}/pid;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
{site}
}}
"""


def configuration(folder: Path, port: int, upstream: tuple[int, ...]) -> Path:
    """A file in `folder` with the documented server on `port`, in front of `upstream`."""
    (site,) = re.findall(r"^```nginx\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    servers = " ".join(f"server 127.0.0.1:{one};" for one in upstream)
    for documented, here in (("server 127.0.0.1:8080;", servers), ("listen 127.0.0.1:8081;", f"listen {port};")):
        assert site.count(documented) == 1
        site = site.replace(documented, here.replace("listen ", "listen 127.0.0.1:"))
    folder.chmod(0o755)  # where the tests are root's, nginx's processes are another user's
    file = folder / "nginx.conf"
    file.write_text(FRAME.format(folder=folder, site=site))
    return file


@asynccontextmanager
async def in_front_of(*upstream: int) -> AsyncIterator[int]:
    """nginx on a free port, which is given; `upstream`: the ports behind it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with tempfile.TemporaryDirectory(prefix="nginx-") as folder:
        file = configuration(Path(folder), port, upstream)
        process = await asyncio.create_subprocess_exec(NGINX, "-e", "stderr", "-c", str(file), "-p", folder)
        try:
            async with asyncio.timeout(30):
                while not await _listens(port):
                    assert process.returncode is None, "nginx has ended: its reason is on stderr"
                    await asyncio.sleep(0.02)
            yield port
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True
