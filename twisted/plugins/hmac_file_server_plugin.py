"""What ``twist`` finds: the name of the command and where to load it from."""

from twisted.application.service import ServiceMaker

hmac_file_server = ServiceMaker(
    "HMAC File Server",
    "hmac_file_server.tap",
    "Store and serve the files of XMPP clients (XEP-0363 HTTP File Upload).",
    "hmac-file-server",
)
