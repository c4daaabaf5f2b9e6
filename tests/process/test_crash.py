"""kill -9 at random moments under load; ``CRASHES`` says how often, ``make crash`` does it many times."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable

from tests.process.test_power_loss import TYPE, Uploading, body_of, lost_and_torn
from tests.support import Daemon, eventually, v2

CRASHES = int(os.environ.get("CRASHES", "10"))


def test_kill_nine(make_daemon: Callable[..., Daemon]) -> None:
    """However often the daemon is killed: nothing acknowledged is lost, nothing is torn or left over."""
    daemon = make_daemon(MinFreeSpace=0).start()
    acknowledged = tried = interrupted = 0
    for crash in range(CRASHES):
        uploading = Uploading(daemon, 4, f"crash{crash}")
        uploading.until_acknowledged()
        # The moment is what is random here; nothing waits for it.
        time.sleep(random.uniform(0, 0.3))
        daemon.stop(signal.SIGKILL)
        uploading.stop()
        assert lost_and_torn(daemon.store, uploading) == (set(), set())
        daemon.start()
        eventually(lambda: not any(name.startswith(".hmac-file-server") for name in daemon.files()))
        for path in uploading.tried - uploading.acknowledged:
            body = body_of(path)
            target = f"/upload/{path}?v2={v2(path, len(body), TYPE)}"
            assert daemon.request("PUT", target, body, Content_Type=TYPE).status == 201
            interrupted += 1
        assert lost_and_torn(daemon.store, uploading) == (set(), set())
        acknowledged += len(uploading.acknowledged)
        tried += len(uploading.tried)
    print(f"{CRASHES} kills: {tried} uploads tried, {acknowledged} acknowledged, {interrupted} interrupted, 0 lost")
    assert acknowledged >= CRASHES
    assert "Traceback" not in daemon.log
