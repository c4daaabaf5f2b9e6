"""What an operator can do about each reason for which something is refused, or not stored."""

from __future__ import annotations

REMEDIES = {
    "body": "Nothing: a client sends a body where none makes sense.",
    "broken_off": (
        "Nothing, if they are few: clients lost their network. If many do, look for a limit or a timeout in the proxy."
    ),
    "bug": "Report it, with the traceback in the log.",
    "busy": "Find out why the disk, or another daemon that shares the store, does not answer.",
    "cancelled": "Nothing: the client changed its mind, or began anew.",
    "complete": "Nothing: the client did not know that its upload was complete.",
    "conflict": "Nothing, if they are few: the slot has another file. Else the XMPP server gives slots twice.",
    "connections": (
        "Raise MaxConnections or MaxConnectionsPerAddress. A proxy that TrustedProxies does not name is one client."
    ),
    "content_encoding": "Nothing: a client compresses what it uploads.",
    "content_range": "Nothing: a client wants to upload a part of a file in a way that is not served.",
    "digest": "Find out what changes files on their way, if this happens to more than one client.",
    "draining": "Nothing: they came while the daemon stopped.",
    "length_required": "Let the proxy hand on bodies with their Content-Length, and not in chunks.",
    "malformed": "Nothing: strangers try. If a proxy speaks TLS or HTTP/2 to ListenPort, the log says what to change.",
    "method": "Nothing: strangers try. If it is an XMPP server that removes files, set DeleteSecret.",
    "no_room": "Remove old files, or make room; quotas, inodes and MinFreeSpace count, too.",
    "not_found": "Nothing: the file has expired or was removed. If all links fail, look at StoreDir and UploadSubDir.",
    "offset": "Nothing: the client asks how far its upload is, and goes on from there.",
    "path": "Nothing: strangers try, or a client has a name that no file can have.",
    "precondition": "Nothing: the file is not the one that the client meant.",
    "range": "Nothing: a client asks for more than the file has.",
    "removed": "Nothing: the slot's file was removed. RememberRemoved says for how long that holds.",
    "resumption": "Nothing: a client resumes uploads in a way that is not known here.",
    "sessions": "Shorten SessionTimeout: too many uploads wait to be resumed.",
    "signature": (
        'Ask "hmac-file-server explain --log LINE", with the line of the log. Mostly Secret or UploadSubDir is not'
        " what the XMPP server has."
    ),
    "storage": "Read in the log what the disk says, and what mends it.",
    "superseded": "Nothing: the client went on with its upload by another request.",
    "timeout": "Nothing, if they are few: clients stalled. Else raise UploadTimeout, or lower MinRate.",
    "token": ('Ask "hmac-file-server explain --log LINE", with the line of the log. Mostly secrets or clocks differ.'),
    "too_large": "Give MaxUploadSize and the XMPP server the same limit.",
    "type": "Nothing: a client resumes uploads in a way that is not known here.",
}
"""By reason, as ``refusals_total`` and ``upload_errors_total`` have it: one sentence or two."""
