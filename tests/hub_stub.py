"""The Hub's HTTP interface, as far as it is used, on this machine: repositories as commits of files."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


class Hub:
    """`repositories` map a name to its commits, oldest first, each (hash, files); `asked` are methods and paths."""

    def __init__(self):
        self.repositories = {}
        self.asked = []
        self.writers = {"token"}
        self.address = ""

    def commit(self, name, files):
        """Adds a commit whose files are those of the last one and these, and returns its hash."""
        commits = self.repositories.setdefault(name, [])
        whole = (commits[-1][1] if commits else {}) | files
        digest = hashlib.sha1(repr((len(commits), sorted(whole.items()))).encode()).hexdigest()
        commits.append((digest, whole))
        return digest

    @property
    def fetched(self):
        """The (revision, file) of all requests for files."""
        found = [path.split("/resolve/")[1].partition("/") for _, path in self.asked if "/resolve/" in path]
        return [(revision, file) for revision, _, file in found]


def _handler(hub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def answer(self, status, body=b"", **headers):
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self):
            hub.asked.append((self.command, self.path))
            if "/resolve/" not in self.path:
                return self.answer(404 if self.path.startswith("/api/") else 200, X_Error_Code="RepoNotFound")
            name, _, rest = self.path[1:].partition("/resolve/")
            revision, _, file = rest.partition("/")
            commits = hub.repositories.get(name)
            if not commits:
                return self.answer(404, X_Error_Code="RepoNotFound")
            files = dict(commits).get(unquote(revision)) if revision != "main" else commits[-1][1]
            digest = revision if revision != "main" else commits[-1][0]
            if files is None:
                return self.answer(404, X_Error_Code="RevisionNotFound")
            if file not in files:
                return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=digest)
            etag = f'"{hashlib.sha1(files[file]).hexdigest()}"'
            return self.answer(200, files[file], ETag=etag, X_Repo_Commit=digest)

        do_HEAD = do_GET

        def do_POST(self):
            hub.asked.append((self.command, self.path))
            content = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Authorization", "").removeprefix("Bearer ") not in hub.writers:
                return self.answer(401, b"{}")
            if self.path == "/api/repos/create":
                asked = json.loads(content)
                name = f"{asked['organization']}/{asked['name']}"
                status = 409 if name in hub.repositories else 200
                hub.repositories.setdefault(name, [])
                return self.tell({"url": f"{hub.address}/{name}", "name": name}, status)
            if self.path == "/api/validate-yaml":
                return self.tell({"warnings": [], "errors": []})
            name = "/".join(self.path.split("/")[3:5])
            if "/preupload/" in self.path:
                files = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in json.loads(content)["files"]
                ]
                return self.tell({"files": files})
            rows = [json.loads(line)["value"] for line in content.splitlines()]
            files = {row["path"]: base64.b64decode(row["content"]) for row in rows if "path" in row}
            digest = hub.commit(name, files)
            return self.tell({"commitUrl": f"{hub.address}/{name}/commit/{digest}", "commitOid": digest})

        def tell(self, values, status=200):
            self.answer(status, json.dumps(values).encode())

    return Handler


@contextmanager
def running():
    """A `Hub` that is served, until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
