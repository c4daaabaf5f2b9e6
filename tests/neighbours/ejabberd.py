"""A real ejabberd that signs slots for the daemon."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from tests.neighbours.program import PATH, Program, example
from tests.neighbours.xmpp import PASSWORD
from tests.support import DEADLINE, SECRET, Daemon, Wire, free_port, missing, need

_CONFIG = """
hosts: [{hosts}]
loglevel: info
listen:
  - {{port: {port}, ip: "127.0.0.1", module: ejabberd_c2s}}
  - {{port: {api_port}, ip: "127.0.0.1", module: ejabberd_http, request_handlers: {handlers}}}
acl:
  local: {{user_regexp: ""}}
  loopback: {{ip: 127.0.0.0/8}}
access_rules:
  local: {{allow: local}}
api_permissions:
  accounts: {{who: loopback, what: register}}
"""

# Without them no client finds the upload service, and none logs in.
_MODULES = """modules:
  mod_disco: {}
  mod_http_api: {}
"""

_START = 3 * DEADLINE

# Erlang's threads wait by spinning, and on a busy machine a start then takes a minute instead of seconds.
_CALM = ["+S", "1:1", "+SDcpu", "1:1", "+SDio", "1", "+sbwt", "none", "+sbwtdcpu", "none", "+sbwtdio", "none"]


class Ejabberd:
    """ejabberd with the account ``alice`` on each of its hosts, as one Erlang node that talks to no other.

    :param daemon: None has it store by itself, in the folder ``docroot``.
    :param mistakes: what to replace in the example, by what.
    """

    def __init__(
        self, folder: Path, daemon: Daemon | None, *mistakes: tuple[str, str], hosts: Sequence[str] = ("localhost",)
    ) -> None:
        self.port = free_port()
        api_port = free_port()
        self.docroot = folder / "docroot"
        signs = ("REPLACE-ME: openssl rand -hex 32", SECRET)
        stores = ('external_secret: "REPLACE-ME: openssl rand -hex 32"', f'docroot: "{self.docroot}"')
        modules = example(
            "ejabberd/hmac-file-server.yml",
            ("modules:\n", _MODULES),
            ("https://upload.example.com/upload", f"http://127.0.0.1:{daemon.port if daemon else api_port}/upload"),
            signs if daemon else stores,
            *mistakes,
        )
        handlers = "{/api: mod_http_api}" if daemon else "{/api: mod_http_api, /upload: mod_http_upload}"
        config = folder / "ejabberd.yml"
        text = _CONFIG.format(hosts=", ".join(hosts), port=self.port, api_port=api_port, handlers=handlers)
        config.write_text(text + modules)
        environment = {
            "ERL_LIBS": str(_libraries()),
            "EJABBERD_CONFIG_PATH": str(config),
            "EJABBERD_LOG_PATH": str(folder / "ejabberd.log"),
            # Where Erlang keeps its cookie, and ejabberd what it is not asked to keep elsewhere.
            "HOME": str(folder),
        }
        erl = shutil.which("erl", path=PATH)
        assert erl
        spool = ["-mnesia", "dir", f'"{folder}/spool"']
        command = [erl, *_CALM, "-noinput", "-boot", "start_sasl", "-start_epmd", "false", *spool, "-s", "ejabberd"]
        self.program = Program(folder, command, environment)
        try:
            self.program.listens(self.port, _START).listens(api_port, _START)
            for host in hosts:
                _register(api_port, "alice", host)
        except BaseException:
            self.program.end()
            raise


def _register(port: int, user: str, host: str) -> None:
    body = json.dumps({"user": user, "host": host, "password": PASSWORD}).encode()
    lines = ["POST /api/register HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode()
    with Wire(port) as wire:
        answer = wire.send(head + body).answer()
    assert answer.status == 200, answer


def _libraries() -> Path:
    """The folder of ejabberd's code and of the libraries beside it."""
    found = next(Path("/usr/lib").glob("*/ejabberd-*/ebin/ejabberd.app"), None)
    if found is None:
        missing("ejabberd's code is not where Debian puts it")
    assert found
    return found.parents[2]


def need_ejabberd() -> None:
    need("ejabberdctl", "erl")
    _libraries()
