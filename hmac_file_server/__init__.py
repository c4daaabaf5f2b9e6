"""The upload server for XMPP: HTTP File Upload (XEP-0363) with HMAC-signed slots.

To read an upload in order: ``tap`` (the command), ``service`` (what runs), ``web.site`` and
``web.channel`` (bytes to a head), ``web.request`` (a decision at the end of the headers),
``web.resource`` (what is asked for), ``slots`` (is it signed?), ``uploads`` (from the network to the
store, with retries) and ``stores`` (onto the disk, under its public name). A download goes
``web.resource``, ``web.serving``, ``stores.local``, ``web.download``.
"""

__version__ = "0.1.0"
