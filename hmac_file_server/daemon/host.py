"""One of the hosts that the daemon serves: its store, its uploads, and who watches and keeps them."""

from __future__ import annotations

import math
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred

from hmac_file_server.config import Config
from hmac_file_server.daemon.health import StoreWatch, open_store
from hmac_file_server.files.resource import Files
from hmac_file_server.files.retry import RetryPolicy
from hmac_file_server.files.serving import Serving
from hmac_file_server.files.tree import Place, Prefix
from hmac_file_server.files.upload import Uploads
from hmac_file_server.metrics import HostMetrics
from hmac_file_server.resumption import wiring
from hmac_file_server.settings.hosts import Host
from hmac_file_server.slots.removal import Removal
from hmac_file_server.slots.secret import EXAMPLE_SECRET
from hmac_file_server.slots.verifier import Verifier
from hmac_file_server.stores.room import Room


class HostService(MultiService):
    """What belongs to one host.

    :param metrics: its figures.
    :raises ConfigError: if StoreDir can not be a store.
    :ivar place: where its files are in the tree.
    :ivar room: accounts for its free space.
    """

    def __init__(self, config: Config, host: Host, metrics: HostMetrics, reactor: Any) -> None:
        super().__init__()
        self.host = host
        self.room = room = Room(config.min_free_space)
        self.store = store = open_store(config, host, reactor)
        # Before anything listens, so that the first upload is measured too.
        room.found(store.space, ())
        policy = RetryPolicy(
            reactor, config.max_retries, config.retry_delay, lambda error: metrics.upload_retries.inc()
        )
        self.uploads = uploads = Uploads(store, room, policy, config.chunk_size)
        self.watch = StoreWatch(store, room, lambda: uploads.active, reactor)
        self.watch.setServiceParent(self)
        files = Files(
            Verifier(host.secrets),
            Serving(store, reactor),
            uploads,
            host.max_upload_size,
            Removal(host.secrets, host.delete_secret) if host.delete_secret else None,
            Verifier([EXAMPLE_SECRET]) if EXAMPLE_SECRET in host.secrets else None,
        )
        node = Prefix(files)
        # The wing: without these lines no upload can be resumed, and all else works.
        keeper = wiring.keep_sessions(config, host, store, uploads, metrics, reactor)
        keeper.setServiceParent(self)
        if config.resumable_uploads:
            node = wiring.make_resumable(config, host, store, uploads, keeper, files, reactor)
        # End of the wing.
        self.place = Place(host.upload_sub_dir, node, files, host.name)
        metrics.uploads_in_progress.set_function(lambda: len(uploads.active))
        metrics.store_free.set_function(lambda: math.nan if room.free is None else room.free)
        metrics.begin()

    def when_idle(self) -> Deferred[None]:
        """Fires when no upload runs any more."""
        return self.uploads.when_idle()

    def stopService(self) -> Deferred[None]:
        """Let go of the store."""
        stopped: Deferred[None] = super().stopService()
        return stopped.addCallback(lambda _: self.store.close())
