"""A server of one file on this machine, which does what real ones do wrong."""

import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from xlstm_unet_lab.data.recipe import RemoteFile


class Server(http.server.ThreadingHTTPServer):
    """Serves `content`; cuts the connection after `cut` bytes when that is set; knows ranges; records the requests."""

    content, cut, status, etag, says_length = b"", None, 200, '"one"', True
    missing = ()  # paths that are not there
    ignores_if_range = False  # as some caches do: a piece of whatever file there is now
    always_a_piece = False  # without being asked for one
    content_range = None  # in place of the right one
    pieces, pause = None, 0.0  # bytes sent at a time, and seconds between them; the last piece again and again

    drips = 0.0  # seconds between the bytes of a header that never ends
    chunked = False  # `content` and `pieces` are then the answer as it is sent, sizes of chunks and all
    redirect = None  # an address to go to
    closing = False

    def __init__(self):
        self.ranges = []
        super().__init__(("127.0.0.1", 0), Handler)

    def file(self, digest, name="file.zip"):
        return RemoteFile(f"http://127.0.0.1:{self.server_port}/{name}", digest, len(self.content), name)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, content, wanted = self.server, self.server.content, self.headers.get("Range")
        server.ranges.append(wanted)
        if server.status != 200 or self.path in server.missing:
            return self.send_error(404 if server.status == 200 else server.status)
        if server.redirect is not None:
            self.send_response(302)
            self.send_header("Location", server.redirect)
            return self.end_headers()
        start = 0
        if wanted and (server.ignores_if_range or self.headers.get("If-Range") == server.etag):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start or server.always_a_piece:
            if start >= len(content):
                return self.send_error(416)
            self.send_response(206)
            place = server.content_range or f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.send_header("Content-Range", place)
        else:
            self.send_response(200)
        if server.drips:
            self.end_headers = self._drip
        if server.says_length:
            self.send_header("Content-Length", str(len(content) - start))
        if server.etag:
            self.send_header("ETag", server.etag)
        if server.chunked:
            self.protocol_version = "HTTP/1.1"
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(content[start : server.cut])
        while server.pieces and not server.closing:
            try:
                self.wfile.write(server.pieces)
            except OSError:  # the other side has had enough
                return
            time.sleep(server.pause)

    def _drip(self):
        self.flush_headers()
        self.wfile.write(b"Slow: ")
        while not self.server.closing:
            try:
                self.wfile.write(b"a")
            except OSError:
                return
            time.sleep(self.server.drips)

    def log_message(self, *arguments):
        pass


@contextmanager
def serving(content: bytes) -> Iterator[Server]:
    """A server at work for as long as the block lasts."""
    with Server() as server:
        server.content = content
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.closing = True
            server.shutdown()
            thread.join()
