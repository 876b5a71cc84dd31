"""Hostile HTTP servers on this machine, which send any bytes at any pace."""

import contextlib
import itertools
import socketserver
import threading
from time import sleep  # (tests may replace that of the module)


class _Handler(socketserver.StreamRequestHandler):
    def handle(self):
        method, path = (self.rfile.readline().split() + [b"", b""])[:2]
        lines = iter(lambda: self.rfile.readline().strip(), b"")
        headers = dict(line.decode("latin-1").split(": ", 1) for line in lines)
        request = method.decode(), path.decode(), headers
        self.server.requests.append(request)
        with contextlib.suppress(OSError):
            for part in self.server.answer(*request):
                if isinstance(part, float):
                    sleep(part)
                else:
                    self.wfile.write(part)
                    self.server.sent += len(part)


class Server(socketserver.ThreadingTCPServer):
    """Server whose `answer` yields bytes, and floats: seconds to wait.

    Args:
        answer: callable of the method, the path and the dict of headers of a request.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, answer):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer, self.requests, self.sent = answer, [], 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address):
        pass  # the client has disconnected


@contextlib.contextmanager
def running(answer):
    with Server(answer) as server:
        threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


def head(status=200, **headers):
    """Return the first lines of an answer; `content_length=3` is Content-Length: 3."""
    lines = [f"HTTP/1.1 {status} X", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def stating(size, get, **headers):
    """Return an answer that states a size for HEAD, and is `get(headers)` for GET."""

    def answer(method, path, received):
        if method == "HEAD":
            return [head(content_length=size, **headers)]
        return get(received)

    return answer


def endless(size, length=None):
    """Return an answer that states a size, and whose content never ends.

    Args:
        size: int. Content-Length for HEAD.
        length: int, `"chunked"` or None. How long GET says that the content is.
    """
    lengths = {None: {}, "chunked": {"transfer_encoding": "chunked"}}
    stated = lengths.get(length, {"content_length": length})
    chunk = b"x" * 2**16
    if length == "chunked":
        chunk = b"%x\r\n%s\r\n" % (len(chunk), chunk)
    return stating(
        size, lambda _: itertools.chain([head(**stated)], itertools.repeat(chunk))
    )


def dripping(size, part=b"x", pause=0.1):
    """Return an answer whose content comes byte by byte."""
    return stating(
        size,
        lambda _: itertools.chain(
            [head(content_length=size)], itertools.cycle([part, pause])
        ),
    )


def dripping_head(size, pause=0.1):
    """Return an answer whose headers come byte by byte and never end."""
    line = itertools.chain.from_iterable(
        [bytes([b]), pause] for b in b"X-A: b\r\n" * 9999
    )
    return stating(size, lambda _: itertools.chain([b"HTTP/1.1 200 OK\r\n"], line))


def changing(first, second, at, **headers):
    """Return an answer that breaks off, after which the server has another file.

    Args:
        first, second: bytes of equal length.
        at: int. Number of bytes of `first` that are sent.
        headers: of the second answer; `status` is its status.
    """
    gets = itertools.count()

    def get(received):
        if next(gets) == 0:
            return [head(content_length=len(first), ETag='"1"'), first[:at]]
        begin = received.get("Range")
        if begin is None or headers.get("status") == 200:
            return [head(content_length=len(second), ETag='"2"'), second]
        rest = second[int(begin[6:-1]) :]
        sent = {"content_length": len(rest), "status": 206, **headers}
        return [head(**sent), rest]

    return stating(len(first), get, ETag='"1"')
