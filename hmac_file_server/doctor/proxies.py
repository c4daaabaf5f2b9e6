"""The proxies that are known, and the line that mends what each breaks."""

from __future__ import annotations

import re

import attrs

_NAMES = re.compile(r"nginx|openresty|angie|apache|httpd|caddy|haproxy", re.IGNORECASE)
_SPELLED = {
    "openresty": "nginx",
    "angie": "nginx",
    "nginx": "nginx",
    "apache": "Apache",
    "httpd": "Apache",
    "caddy": "Caddy",
    "haproxy": "HAProxy",
}
_ERROR_OF_HAPROXY = b"<html><body><h1>400 Bad request</h1>\nYour browser sent an invalid request.\n</body></html>"

_REMEDIES: dict[str, dict[str, str]] = {
    "route": {
        "nginx": "location /upload/ { proxy_pass http://...; } in the server block of this name, as in contrib/nginx",
        "Apache": "ProxyPass /upload/ http://[::1]:8080/upload/ nocanon, as in contrib/apache",
        "HAProxy": "a use_backend or default_backend for path_beg /upload/, as in contrib/haproxy",
        "Caddy": "reverse_proxy /upload/* [::1]:8080, as in contrib/caddy",
        "": "pass what lies below UploadSubDir on to the daemon",
    },
    "static": {
        "nginx": "location /upload/ { proxy_pass http://...; } without try_files, root or alias, as in contrib/nginx",
        "Apache": "ProxyPass instead of DocumentRoot or Alias for this path, as in contrib/apache",
        "Caddy": "reverse_proxy instead of file_server for this path, as in contrib/caddy",
        "": "pass PUT on to the daemon",
    },
    "upstream": {
        "nginx": "server [::1]:8080; in the upstream (or proxy_pass) must be the daemon's ListenPort",
        "Apache": "ProxyPass /upload/ http://[::1]:8080/upload/ must name the daemon's ListenPort",
        "HAProxy": "server daemon [::1]:8080 must be the daemon's ListenPort",
        "Caddy": "reverse_proxy /upload/* [::1]:8080 must name the daemon's ListenPort",
        "": "the address that the proxy asks at must be the daemon's ListenPort",
    },
    "size": {
        "nginx": "client_max_body_size 0;",
        "Apache": "take out the rule that looks at Content-Length, or raise SecRequestBodyLimit (mod_security)",
        "HAProxy": "take out the http-request deny that looks at the length of bodies",
        "Caddy": "take out request_body { max_size ... }",
        "": "raise its limit for bodies, or let the XMPP server give no slots above it",
    },
    "buffering": {
        "nginx": "proxy_request_buffering off;",
        "HAProxy": "take out option http-buffer-request",
        "Caddy": "take out buffer_requests (request_buffers)",
        "": "hand bodies on while they arrive",
    },
    "path": {
        "nginx": "proxy_pass http://hmac_file_server; without a path or a slash at its end, and no rewrite",
        "Apache": "ProxyPass /upload/ http://[::1]:8080/upload/ nocanon, and AllowEncodedSlashes NoDecode",
        "HAProxy": "take out http-request set-path, replace-path and normalize-uri",
        "Caddy": "take out uri, rewrite and handle_path: reverse_proxy /upload/* [::1]:8080",
        "": "pass the path on as it came",
    },
    "cors": {
        "nginx": "take out add_header and proxy_hide_header for Access-Control-...: the daemon sends what is needed",
        "Apache": "take out Header set, add and unset for Access-Control-...: the daemon sends what is needed",
        "HAProxy": "take out http-response set-header, add-header and del-header for Access-Control-...",
        "Caddy": "take out header and header_down for Access-Control-...: the daemon sends what is needed",
        "": "leave Access-Control-... to the daemon",
    },
    "preflight": {
        "nginx": "take out what answers OPTIONS (if ($request_method = OPTIONS), limit_except): the daemon does",
        "Apache": "take out what answers OPTIONS (RewriteRule, Limit, LimitExcept): the daemon does",
        "HAProxy": "take out the rule that answers or denies OPTIONS: the daemon answers it",
        "Caddy": "take out what answers OPTIONS (@options, respond): the daemon does",
        "": "pass OPTIONS on to the daemon",
    },
    "delete": {
        "nginx": "let DELETE through in limit_except, or take that out",
        "Apache": "let DELETE through in Limit or LimitExcept, or take that out",
        "": "let DELETE through",
    },
    "compression": {
        "nginx": "gzip off;",
        "Apache": "SetEnv no-gzip 1",
        "HAProxy": "take out filter compression and compression algo",
        "Caddy": "take out encode",
        "": "turn compression off",
    },
    "headers": {
        "nginx": "take out add_header, expires, proxy_hide_header and proxy_ignore_headers in this location",
        "Apache": "take out Header and ExpiresActive for this path",
        "HAProxy": "take out http-response set-header and del-header",
        "Caddy": "take out header and header_down for this path",
        "": "leave the headers of answers as the daemon sends them",
    },
    "ranges": {
        "nginx": "take out proxy_cache, slice, and proxy_set_header for Range, If-Range and If-None-Match",
        "Apache": "take out RequestHeader unset for Range, If-Range and If-None-Match, and mod_cache",
        "HAProxy": "take out http-request del-header for Range, If-Range and If-None-Match",
        "Caddy": "take out header_up for Range, If-Range and If-None-Match",
        "": "hand Range, If-Range and If-None-Match on, and cache nothing",
    },
    "patience": {
        "nginx": "client_body_timeout 60s; proxy_send_timeout 60s;",
        "Apache": "RequestReadTimeout body=60,MinRate=256",
        "HAProxy": "timeout client 75s, timeout server 300s",
        "Caddy": "take out timeouts { read_body ... }, or make it longer",
        "": "give bodies that pause a minute",
    },
    "http2": {
        "nginx": "listen 443 ssl http2; (from nginx 1.25.1 on: http2 on;)",
        "Apache": "Protocols h2 http/1.1, and a2enmod http2",
        "HAProxy": "bind ... alpn h2,http/1.1",
        "Caddy": "take out protocols, or name h1 and h2 there",
        "": "offer h2 by ALPN",
    },
    "chain": {
        "nginx": "ssl_certificate .../fullchain.pem;",
        "Apache": "SSLCertificateFile .../fullchain.pem",
        "HAProxy": "bind ... crt: the certificate, its chain and its key in one file",
        "Caddy": "tls: the file needs the whole chain",
        "": "serve the certificate with its chain (fullchain.pem)",
    },
    "old-tls": {
        "nginx": "ssl_protocols TLSv1.2 TLSv1.3;",
        "Apache": "SSLProtocol -all +TLSv1.2 +TLSv1.3",
        "HAProxy": "ssl-default-bind-options ssl-min-ver TLSv1.2",
        "Caddy": "tls { protocols tls1.2 tls1.3 }",
        "": "allow TLS 1.2 and 1.3 only",
    },
    "login": {
        "nginx": "auth_basic off; (and no auth_request) in this location",
        "Apache": "Require all granted for this path, and no AuthType",
        "HAProxy": "take out http-request auth for this path",
        "Caddy": "take out basicauth (basic_auth) and forward_auth for this path",
        "": "ask for no password below UploadSubDir: the signature is one",
    },
    "forbidden": {
        "nginx": "take out deny, limit_except and dot-file rules for this location",
        "Apache": "Require all granted for this path, and no mod_security",
        "HAProxy": "take out http-request deny for this path",
        "Caddy": "take out respond 403 and abort for this path",
        "": "let PUT, GET, HEAD and OPTIONS through",
    },
    "pages": {
        "nginx": "proxy_intercept_errors off; (and no auth_basic, deny or limit_except in this location)",
        "Apache": "ProxyErrorOverride Off, and Require all granted for this path",
        "HAProxy": "take out http-response return and http-request deny for this path",
        "Caddy": "take out handle_response and handle_errors for this path",
        "": "pass the daemon's answers on as they are",
    },
    "rate": {
        "nginx": "take out limit_req for this location",
        "": "ask it to be more patient with this path: MaxConnectionsPerAddress is there for that",
    },
    "expect": {"": "update it, or let it drop Expect"},
}


@attrs.frozen
class Proxy:
    """What answers at the URL.

    :param kind: nginx, Apache, HAProxy or Caddy; empty if it is another one, or none.
    :param name: what it calls itself; empty where there is none to be seen.
    """

    kind: str = ""
    name: str = ""

    def remedy(self, topic: str) -> str:
        """What to write, or to take out, in its configuration."""
        lines = _REMEDIES[topic]
        if self.kind and self.kind in lines:
            return f"{self.kind}: {lines[self.kind]}"
        return lines[""]


def proxy_of(names: list[str], pages: list[bytes]) -> Proxy:
    """Which proxy it is.

    :param names: what its own answers say in Server and Via.
    :param pages: their content.
    """
    for name in names:
        found = _NAMES.search(name)
        if found:
            return Proxy(_SPELLED[found[0].lower()], name)
    if any(page.startswith(_ERROR_OF_HAPROXY) for page in pages):
        return Proxy("HAProxy", "HAProxy")
    return Proxy("", next(iter(names), ""))
