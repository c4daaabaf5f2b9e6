"""Another site: it notes who calls it, serves pages that use the daemon's files, and files without our headers."""

from __future__ import annotations

import threading
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Elsewhere:
    """The site's server.

    :ivar daemon_port: of a daemon that has ``/upload/`` on this site, as behind a proxy; 0 for none.
    """

    daemon_port = 0

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.pages: dict[str, tuple[dict[str, str], bytes]] = {}
        elsewhere = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                elsewhere.calls.append(self.path)
                if elsewhere.daemon_port and self.path.startswith("/upload/"):
                    self.hand_on()
                    return
                headers, body = elsewhere.pages.get(self.path, ({"Content-Type": "text/plain"}, b""))
                self.send_response(200)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Access-Control-Allow-Origin", "*")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def hand_on(self) -> None:
                connection = HTTPConnection("127.0.0.1", elsewhere.daemon_port)
                connection.request("GET", self.path)
                answer = connection.getresponse()
                body = answer.read()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name not in ("Date", "Server"):
                        self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
                connection.close()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.origin = f"http://localhost:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def content(self, text: str, label: str) -> bytes:
        """A file that calls here."""
        return text.replace("$B", self.origin).replace("$L", label).encode()

    def page(self, path: str, media_type: str, body: bytes, **headers: str) -> str:
        """Serve a page; its URL."""
        given = {"Content-Type": media_type} if media_type else {}
        self.pages[path] = (given | {name.replace("_", "-"): value for name, value in headers.items()}, body)
        return self.origin + path

    def called(self, *tricks: str, label: str) -> bool:
        """Whether each of the tricks of a file worked."""
        return all(any(call.startswith(f"/{trick}/{label}") for call in self.calls) for trick in tricks)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
