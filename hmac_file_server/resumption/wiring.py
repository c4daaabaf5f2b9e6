"""Where the wing meets the house: what makes the uploads of a store resumable."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.interfaces import IReactorTime

from hmac_file_server.config import Config
from hmac_file_server.files.resource import Files
from hmac_file_server.files.tree import Prefix
from hmac_file_server.files.upload import Uploads
from hmac_file_server.metrics import HostMetrics
from hmac_file_server.resumption.keeper import FileKeeper, ISessionKeeper
from hmac_file_server.resumption.protocol import Resumption
from hmac_file_server.resumption.resource import ResumableFiles, UploadResources
from hmac_file_server.resumption.upload import Resumables
from hmac_file_server.settings.hosts import Host
from hmac_file_server.slots.path import RESERVED
from hmac_file_server.stores.interface import IStore

if TYPE_CHECKING:
    from hmac_file_server.resumption.rediskeeper import RedisKeeper


def keep_sessions(
    config: Config, host: Host, store: IStore, uploads: Uploads, metrics: HostMetrics, clock: IReactorTime
) -> FileKeeper | RedisKeeper:
    """Have somebody know what runs and what waits to be resumed. It is a service, for the caller to start."""
    timeout = config.session_timeout
    files = FileKeeper(store.sessions(timeout), clock)
    keeper: FileKeeper | RedisKeeper = files
    if config.redis is not None:
        from hmac_file_server.resumption.rediskeeper import RedisKeeper, connector

        # A name of its own for each of several hosts, whose slots may be called alike.
        prefix = config.redis_prefix + (f"{host.name}:" if len(config.hosts) > 1 else "")
        connect = connector(config.redis, config.redis_password, config.redis_db)
        keeper = RedisKeeper(files, connect, clock, prefix, timeout, *metrics.of_redis())
    metrics.sessions_kept.set_function(keeper.kept)
    uploads.watcher = keeper
    return keeper


def make_resumable(
    config: Config,
    host: Host,
    store: IStore,
    uploads: Uploads,
    keeper: ISessionKeeper,
    files: Files,
    clock: IReactorTime,
) -> Prefix:
    """What the prefix leads to where uploads can be resumed."""
    resumables = Resumables(store.sessions(config.session_timeout), uploads, keeper.kept, clock)
    return place_of(resumables, files, host.upload_sub_dir, host.max_upload_size)


def place_of(resumables: Resumables, files: Files, prefix: str, max_size: int) -> Prefix:
    """Files whose uploads can be resumed, and beside them the upload resources.

    :param prefix: ``UploadSubDir``.
    :param max_size: the longest file in bytes; 0 for whatever was signed.
    """
    resumption = Resumption(resumables, prefix, max_size)
    place = Prefix(ResumableFiles(files, resumption))
    place.putChild(RESERVED, UploadResources(resumables, resumption))
    return place
