"""tus-js-client, which speaks older versions of the IETF's draft: what docs/resuming.rst says of it.

It is looked for where node looks: ``npm install --prefix /tmp/tus tus-js-client@4``, then
``NODE_PATH=/tmp/tus/node_modules``.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import DEADLINE, Daemon, put_target

BODY = bytes(range(256)) * 4000

# Sends one part, breaks off, and goes on with a second client.
SCRIPT = """
const [protocol, endpoint, name] = process.argv.slice(1)
const tus = require('tus-js-client')
const body = require('fs').readFileSync(name)
const stack = new tus.DefaultHttpStack({})
const httpStack = {
  createRequest: (method, url) => stack.createRequest(method === 'POST' ? 'PUT' : method, url),
  getName: () => 'PUT',
}
const onError = error => { console.log(error.message); process.exit(1) }
const first = new tus.Upload(body, {
  protocol, endpoint, httpStack, chunkSize: 300000, retryDelays: null, onError,
  onChunkComplete: () => first.abort().then(() => second()),
})
const second = () => new tus.Upload(body, {
  protocol, uploadUrl: first.url, retryDelays: null, onError,
  onSuccess: () => console.log(JSON.stringify(first.url)),
}).start()
first.start()
"""


@pytest.mark.parametrize("protocol", ["ietf-draft-03", "ietf-draft-05"])
def test_tus_js_client(make_daemon: Callable[..., Daemon], tmp_path: Path, protocol: str) -> None:
    """With a PUT in place of its POST it begins an upload, and goes on with it by its URL."""
    node = shutil.which("node")
    if node is None or subprocess.run([node, "-e", "require('tus-js-client')"], check=False).returncode:
        pytest.skip("node has no tus-js-client")
    (tmp_path / "body").write_bytes(BODY)
    daemon = make_daemon().start()
    endpoint = f"http://127.0.0.1:{daemon.port}{put_target('slot/a.bin', len(BODY))}"
    command = [node, "-e", SCRIPT, protocol, endpoint, str(tmp_path / "body")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "/.hmac-file-server/" in json.loads(done.stdout)
    assert daemon.get("slot/a.bin").body == BODY
    assert daemon.log.count(" 201 in=300000 ") == 1
