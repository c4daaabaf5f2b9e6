"""One of the hosts that the daemon serves: its store, its uploads, and who watches and keeps them."""

from __future__ import annotations

import math
from collections.abc import Callable, Set
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall

from hmac_file_server.config import Config
from hmac_file_server.daemon.health import StoreWatch
from hmac_file_server.files.resource import Files
from hmac_file_server.files.retry import RetryPolicy
from hmac_file_server.files.serving import Serving
from hmac_file_server.files.tree import Place, Prefix
from hmac_file_server.files.upload import Uploads
from hmac_file_server.housekeeping.rules import lifetime_of
from hmac_file_server.metrics import HostMetrics
from hmac_file_server.resumption import wiring
from hmac_file_server.settings.hosts import Host
from hmac_file_server.slots.removal import Removal
from hmac_file_server.slots.secret import EXAMPLE_SECRET
from hmac_file_server.slots.verifier import Verifier
from hmac_file_server.stores.interface import IStore
from hmac_file_server.stores.room import Room

_LOOK_EVERY = 1.0


class HostService(MultiService):
    """What belongs to one host.

    :param store: its own, as :func:`open_store` has opened it.
    :param metrics: its figures.
    :ivar place: where its files are in the tree.
    :ivar room: accounts for its free space.
    """

    place: Place

    def __init__(self, config: Config, host: Host, store: IStore, metrics: HostMetrics, reactor: Any) -> None:
        super().__init__()
        self._metrics = metrics
        self._reactor = reactor
        self.store = store
        self._let_go: Callable[[], object] = store.close
        self._leaving: LoopingCall | None = None
        self.room = room = Room(config.min_free_space)
        # Before anything listens, so that the first upload is measured too.
        room.found(store.space, ())
        self.uploads = uploads = Uploads(store, room, self._policy(config), config.chunk_size)
        self.watch = StoreWatch(store, room, lambda: uploads.active, reactor)
        self.watch.setServiceParent(self)
        self._serving = Serving(store, reactor)
        # The wing: without these lines no upload can be resumed, and all else works.
        self._keeper = wiring.keep_sessions(config, host, store, uploads, metrics, reactor)
        self._keeper.setServiceParent(self)
        # End of the wing.
        self.configure(config, host)
        metrics.store_free.set_function(lambda: math.nan if room.free is None else room.free)
        metrics.store_size.set_function(lambda: math.nan if room.size is None else room.size)
        metrics.begin()

    def configure(self, config: Config, host: Host) -> None:
        """Do as a configuration says from the next request on. What runs is not touched."""
        self.host = host
        self._basis = basis_of(config, host)
        self.room.min_free = config.min_free_space
        self.uploads.configure(self._policy(config), config.chunk_size)
        self._serving.configure(lifetime_of(host))
        files = Files(
            Verifier(host.secrets),
            self._serving,
            self.uploads,
            host.max_upload_size,
            Removal(host.secrets, host.delete_secret) if host.delete_secret else None,
            Verifier([EXAMPLE_SECRET]) if EXAMPLE_SECRET in host.secrets else None,
        )
        node = Prefix(files)
        # The wing, too.
        if config.resumable_uploads:
            node = wiring.make_resumable(config, host, self.store, self.uploads, self._keeper, files, self._reactor)
        # End of the wing.
        self.place = Place(host.upload_sub_dir, node, files, host.name)

    def _policy(self, config: Config) -> RetryPolicy:
        retries = self._metrics.upload_retries
        return RetryPolicy(self._reactor, config.max_retries, config.retry_delay, lambda error: retries.inc())

    def can_become(self, config: Config, host: Host) -> bool:
        """Whether :meth:`configure` is enough, and no other store or keeper is needed."""
        return self._basis == basis_of(config, host)

    def when_idle(self) -> Deferred[None]:
        """Fires when no upload runs any more."""
        return self.uploads.when_idle()

    def retire(self, requests: Callable[[], Set[object]]) -> Deferred[None]:
        """Another configuration has no use for it: finish what runs, and let go of the store.

        :param requests: gives those that run; of the ones that do now, nobody asks which are for this host.
        :returns: fires when nothing runs any more.
        """
        before = requests()

        def look() -> None:
            if self.uploads.active or not before.isdisjoint(requests()):
                return
            leaving.stop()
            self._let_go = self.store.retire
            self.disownServiceParent()

        leaving = self._leaving = LoopingCall(look)
        leaving.clock = self._reactor
        return leaving.start(_LOOK_EVERY, now=False).addCallback(lambda _: None)

    def stopService(self) -> Deferred[None]:
        """Let go of the store."""
        if self._leaving is not None and self._leaving.running:
            self._leaving.stop()
        stopped: Deferred[None] = super().stopService()
        return stopped.addCallback(lambda _: self._finish())

    def _finish(self) -> None:
        self._let_go()  # Not waited for: a dead disk may never answer.


def basis_of(config: Config, host: Host) -> tuple[object, ...]:
    """What a store and its keeper are made by."""
    store = (host.store_dir, config.fsync, bool(host.delete_secret), config.remember_removed, config.session_timeout)
    redis = (config.redis, config.redis_password, config.redis_db, config.redis_prefix)
    return (*store, *redis, host.name, len(config.hosts) > 1)
