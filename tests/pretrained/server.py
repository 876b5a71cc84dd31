"""Local HTTP server of files that can be made to fail."""

import contextlib
import dataclasses
import http.server
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator


@dataclasses.dataclass
class File:
    content: bytes
    headers: dict = dataclasses.field(default_factory=dict)
    # For each GET in order: number of bytes after which to hang up (None: never).
    cuts: Iterator = dataclasses.field(default_factory=lambda: iter(()))
    # Whether the connection is then reset instead of closed.
    resets: bool = False
    knows_range: bool = True
    # Called when all but the last byte has been sent.
    before_last_byte: Callable = lambda: None


class Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        # huggingface_hub asks for this list once per process.
        if self.path != "/api/agent-harnesses":
            self.server.requests.append((self.command, self.path, dict(self.headers)))
        file = self.server.files.get(self.path)
        if not isinstance(file, File):
            self.send_response(file or 404)
            self.end_headers()
            return
        body, status = file.content, 200
        first = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if first and file.knows_range:
            body, status = body[int(first[1]) :], 206
        self.send_response(302 if "Location" in file.headers else status)
        self.send_header("Content-Length", str(len(body)))
        if status == 206:
            size = len(file.content)
            self.send_header("Content-Range", f"bytes {first[1]}-{size - 1}/{size}")
        for name, value in file.headers.items():
            for one in [value] if isinstance(value, str) else value:
                self.send_header(name, one)
        self.end_headers()
        if self.command == "HEAD" or "Location" in file.headers:
            return
        cut = next(file.cuts, None)
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body[:-1] if cut is None else body[:cut])
            if cut is None:
                file.before_last_byte()
                self.wfile.write(body[-1:])
            elif file.resets:
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.connection.close()

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    """Server of `files`, `{path: File or status}`, that records `requests`."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.requests = {}, []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def gets(self, path):
        """Return the Range header, or None, of each GET of `path`."""
        return [
            headers.get("Range")
            for command, at, headers in self.requests
            if (command, at) == ("GET", path)
        ]

    def handle_error(self, request, client_address):
        pass  # the client has disconnected


@contextlib.contextmanager
def running(cls=Server):
    with cls() as server:
        threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
