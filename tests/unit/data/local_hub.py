"""A hub on this machine: as much of the real one's interface as `datasets` needs to find and read files."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote

MAIN = "main"


class LocalHub(ThreadingHTTPServer):
    """Datasets by id, and what was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reset()

    def reset(self) -> None:
        """As it was at first: empty."""
        self.datasets: dict[str, tuple[str, dict[str, bytes]]] = {}
        """Commit and files."""
        self.gated: set[str] = set()
        self.lost: set[str] = set()
        """Files of which nothing arrives: the connection breaks."""
        self.requests: list[str] = []
        self.read: list[str] = []
        """Files of which content was sent."""

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def start(self) -> None:
        """Answer in a thread until `shutdown`."""
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    server: LocalHub
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16
    """Headers and content in one packet: two would wait for each other, 40 ms a request."""

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub, path = self.server, unquote(self.path.partition("?")[0])
        hub.requests.append(path)
        named = re.match(r"/(?:api/)?datasets/([^/]+/[^/]+)", path)
        if named is None or named[1] not in hub.datasets:
            return self._error(401, "RepoNotFound")
        commit, files = hub.datasets[named[1]]
        what, _, rest = path[named.end() :].removeprefix("/").partition("/")
        revision, _, name = rest.partition("/")
        if (revision or MAIN) not in (MAIN, commit):
            return self._error(404, "RevisionNotFound")
        if what == "resolve":
            return self._file(commit, files, name, is_gated=named[1] in hub.gated)
        listed = [{"type": "file", "path": file, "size": len(content), "oid": "0" * 40} for file, content in files.items()]
        if what == "tree":
            return self._json([file for file in listed if not name or str(file["path"]).startswith(f"{name}/")])
        if what == "paths-info":
            return self._json([file for file in listed if file["path"] in parse_qs(body.decode())["paths"]])
        return self._json({"id": named[1], "sha": commit, "siblings": [{"rfilename": file} for file in files]})

    def do_POST(self) -> None:
        self.do_GET()

    def do_HEAD(self) -> None:
        self.do_GET()

    def _file(self, commit: str, files: dict[str, bytes], name: str, *, is_gated: bool) -> None:
        if is_gated:
            return self._error(401, "GatedRepo")
        if name not in files:
            return self._error(404, "EntryNotFound", {"X-Repo-Commit": commit})
        if self.command == "GET" and name in self.server.lost:
            self.close_connection = True
            return None
        content, code, headers = files[name], 200, {"X-Repo-Commit": commit, "ETag": f'"{name}"', "Accept-Ranges": "bytes"}
        if wanted := re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content, code = content[first : last + 1], 206
        if self.command == "GET":
            self.server.read.append(name)
        return self._answer(code, content, headers)

    def _json(self, value: Any) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, code: int, name: str, headers: dict[str, str] | None = None) -> None:
        self._answer(code, b"{}", {"X-Error-Code": name, **(headers or {})})

    def _answer(self, code: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
