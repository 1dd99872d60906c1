"""A hub on this machine, for the tests of what a start asks it: it lists and gives files, refuses, or is slow."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PIECE = 64 * 1024


@dataclass
class Hub:
    """`files`: content by name. `refusal`: (status, X-Error-Code, X-Error-Message) of every answer."""

    repository: str = "owner/model"
    files: dict[str, bytes] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)  # what the listing says instead of the real ones
    gated: bool = False
    token: str | None = None  # of those who may read a gated repository
    refusal: tuple[int, str | None, str | None] | None = None
    delay_s: float = 0.0  # before every answer
    bytes_per_s: float = 0.0  # 0: as fast as it goes
    asked: list[str] = field(default_factory=list)
    authorizations: set[str | None] = field(default_factory=set)

    def __enter__(self) -> Self:
        hub = self

        class Handler(_Handler):
            served = hub

        self._server = _Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @classmethod
    def of(cls, folder: Path, **fields: Any) -> Hub:
        """A hub with the files of a folder."""
        return cls(files={path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}, **fields)

    def listing(self) -> list[dict[str, Any]]:
        found = []
        for name, content in self.files.items():
            size, digest = self.sizes.get(name, len(content)), hashlib.sha256(content).hexdigest()
            entry: dict[str, Any] = {"size": size, "oid": digest[:40]}
            if name.endswith((".safetensors", ".bin")):
                entry["lfs"] = {"oid": digest, "sha256": digest, "size": size, "pointerSize": 130}
            found.append({"name": name} | entry)
        return found


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no error."""


class _Handler(BaseHTTPRequestHandler):
    served: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        hub, path = self.served, unquote(urlsplit(self.path).path)
        if path == "/api/agent-harnesses":  # the client asks this of every hub, once a day
            return self._send(404, b"{}", {}, body=body)
        hub.asked.append(f"{self.command} {path}")
        hub.authorizations.add(self.headers.get("authorization"))
        time.sleep(hub.delay_s)
        if hub.refusal is not None:
            status, code, message = hub.refusal
            headers = {"X-Error-Code": code, "X-Error-Message": message}
            return self._send(status, b"{}", {name: value for name, value in headers.items() if value}, body=body)
        may_read = not hub.gated or (hub.token and self.headers.get("authorization") == f"Bearer {hub.token}")
        api = f"/api/models/{hub.repository}"
        if path == api or path.startswith(f"{api}/revision/"):
            return self._json(self._info(), body=body)
        if path == f"{api}/auth-check" or f"/{hub.repository}/resolve/" in path:
            if not may_read:
                headers = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to this model is restricted."}
                return self._send(403, b"{}", headers, body=body)
            if path.endswith("/auth-check"):
                return self._json({}, body=body)
            return self._file(path.rsplit("/", 1)[-1], body=body)
        if path.startswith(f"{api}/tree/"):
            tree = [{"type": "file", "path": entry.pop("name")} | entry for entry in hub.listing()]
            return self._json(tree, body=body)
        headers = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
        return self._send(401, b"{}", headers, body=body)

    def _info(self) -> dict[str, Any]:
        siblings = [
            {"rfilename": entry["name"], "size": entry["size"], "blobId": entry["oid"], "lfs": entry.get("lfs")}
            for entry in self.served.listing()
        ]
        repository = self.served.repository
        gated = "manual" if self.served.gated else False
        return {
            "id": repository,
            "modelId": repository,
            "sha": COMMIT,
            "gated": gated,
            "siblings": siblings,
            "tags": [],
        }

    def _file(self, name: str, *, body: bool) -> None:
        content = self.served.files.get(name)
        if content is None:
            return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"}, body=body)
        entry = next(entry for entry in self.served.listing() if entry["name"] == name)
        etag = entry.get("lfs", {}).get("oid") or entry["oid"]
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "X-Linked-Size": str(len(content))}
        return self._send(200, content, headers | {"X-Linked-Etag": f'"{etag}"'}, body=body)

    def _json(self, value: Any, *, body: bool) -> None:
        self._send(200, json.dumps(value).encode(), {"content-type": "application/json"}, body=body)

    def _send(self, status: int, content: bytes, headers: dict[str, str], *, body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        if not body:
            return
        for start in range(0, len(content), PIECE):
            piece = content[start : start + PIECE]
            self.wfile.write(piece)
            if self.served.bytes_per_s:
                time.sleep(len(piece) / self.served.bytes_per_s)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass
