"""A server on this machine that speaks as much of the Hugging Face hub's API as huggingface_hub asks for.

https://huggingface.co/docs/hub/api, and the headers that huggingface_hub reads of /resolve/ addresses.
"""

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

API = re.compile(r"/api/models/([^/]+/[^/]+?)(?:/(revision|tree)/([^/]+))?")
FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
TOKEN = "hf_right"


@dataclass
class Repo:
    """A repository: its files by revision, and how the hub behaves when it is asked for them."""

    revisions: dict[str, dict[str, bytes]]
    gated: bool = False  # the listing is public, files are not
    private: bool = False
    status: int = 0  # of all answers, where it is not 0
    wait_s: float = 0.0  # before every answer

    def commit(self, revision: str) -> str | None:
        """The commit of a branch, or of a commit itself."""
        commits = {name: hashlib.sha1(repr(sorted(files)).encode() + name.encode()).hexdigest() for name, files in
                   self.revisions.items()}  # fmt: skip
        return commits.get(revision) or next((commit for commit in commits.values() if commit == revision), None)

    def files(self, commit: str) -> dict[str, bytes]:
        return next(files for name, files in self.revisions.items() if self.commit(name) == commit)


@dataclass
class Hub:
    """The server: what it holds, and what was asked of it."""

    endpoint: str
    repos: dict[str, Repo] = field(default_factory=dict)
    fetched: list[str] = field(default_factory=list)  # files whose bytes were asked for, in order
    requests: int = 0

    def add(self, name: str, files: Path | dict[str, bytes], **options: object) -> Repo:
        """A repository of those files, or of all below a folder."""
        if isinstance(files, Path):
            folder = files
            files = {each.relative_to(folder).as_posix(): each.read_bytes() for each in folder.rglob("*.*")}
        self.repos[name] = Repo({"main": files}, **options)  # type: ignore[arg-type]
        return self.repos[name]

    def take_fetched(self) -> list[str]:
        """What was fetched since the last call, in the order of names."""
        files, self.fetched = sorted(self.fetched), []
        return files


@contextmanager
def serving() -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    hub = server.hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        hub.requests += 1
        path = urlsplit(self.path).path
        match = API.fullmatch(path) or FILE.fullmatch(path)
        if match is None:
            return self._error(404, "")
        repo, is_file = hub.repos.get(match[1]), match.re is FILE
        if repo is not None:
            time.sleep(repo.wait_s)
        refusal = self._refusal(repo, is_file)
        if refusal:
            return self._error(*refusal)
        assert repo is not None
        commit = repo.commit(unquote(match[2 if is_file else 3] or "main"))
        if commit is None:
            return self._error(404, "RevisionNotFound")
        if is_file:
            return self._file(hub, repo.files(commit), unquote(match[3]), commit)
        return self._json(self._listing(repo.files(commit), match[1], commit, match[2] == "tree"))

    def _refusal(self, repo: Repo | None, is_file: bool) -> tuple[int, str] | None:
        token = self.headers.get("Authorization")
        if token not in (None, f"Bearer {TOKEN}"):
            return 401, "Invalid credentials in Authorization header"
        if repo is None or (repo.private and token is None):
            return (401, "Invalid username or password.") if token is None else (404, "RepoNotFound")
        if repo.gated and token is None and is_file:
            return 401, "GatedRepo"
        return (repo.status, "") if repo.status else None

    def _listing(self, files: dict[str, bytes], name: str, commit: str, is_tree: bool) -> object:
        if is_tree:
            return [
                {"type": "file", "path": path, "size": len(data), "oid": _oid(data)} for path, data in files.items()
            ]
        return {"id": name, "sha": commit, "siblings": [{"rfilename": path} for path in files]}

    def _file(self, hub: Hub, files: dict[str, bytes], path: str, commit: str) -> None:
        if path not in files:
            return self._error(404, "EntryNotFound")
        data = files[path]
        first = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0, 0])[1])
        headers = {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if first:
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        if self.command == "GET":
            hub.fetched.append(path)
        self._answer(206 if first else 200, headers, data[first:])

    def _json(self, value: object) -> None:
        self._answer(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _error(self, status: int, code: str) -> None:
        said = {"X-Error-Message": code} if " " in code else {"X-Error-Code": code} if code else {}
        self._answer(status, said, b"{}")

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")  # no thread of a closed server answers on
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
