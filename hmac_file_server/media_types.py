"""Media types: how one is read, and which one belongs to a file's name."""

from __future__ import annotations

import re

UNKNOWN = b"application/octet-stream"
"""The type of a file of which nothing better is known."""

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]"
_QUOTED = rb'"(?:[\t !#-\[\]-~]|\\[\t -~])*+"'
_PARAMETER = rb"[ \t]*+;[ \t]*+(?:(%b++)=(%b++|%b))?+" % (_TOKEN, _TOKEN, _QUOTED)
_PARAMETERS = re.compile(_PARAMETER)
_TYPE = re.compile(rb"(%b{1,127}+/%b{1,127}+)((?:%b)*+)" % (_TOKEN, _TOKEN, _PARAMETER))

_CHARSETS = frozenset(
    b"""
    ascii big5 big5-hkscs cp1251 cp1252 euc-jp euc-kr gb18030 gb2312 gbk iso-2022-jp iso-8859-1 iso-8859-10
    iso-8859-13 iso-8859-14 iso-8859-15 iso-8859-16 iso-8859-2 iso-8859-3 iso-8859-4 iso-8859-5 iso-8859-6
    iso-8859-7 iso-8859-8 iso-8859-8-i iso-8859-9 koi8-r koi8-u latin1 macintosh shift_jis sjis tis-620 us-ascii
    utf-16 utf-16be utf-16le utf-8 utf8 windows-1250 windows-1251 windows-1252 windows-1253 windows-1254
    windows-1255 windows-1256 windows-1257 windows-1258 windows-31j windows-874
    """.split()
)
"""Encodings that browsers know by these names (Encoding Standard, section 4.2)."""

_BY_EXTENSION = {
    extension: media_type.encode("ascii")
    for media_type, extensions in {
        # Pictures
        "image/apng": "apng",
        "image/avif": "avif avifs",
        "image/bmp": "bmp dib",
        "image/gif": "gif",
        "image/heic": "heic",
        "image/heic-sequence": "heics",
        "image/heif": "heif hif",
        "image/heif-sequence": "heifs",
        "image/jp2": "jp2",
        "image/jpeg": "jfif jpe jpeg jpg pjp pjpeg",
        "image/jxl": "jxl",
        "image/png": "png",
        "image/svg+xml": "svg",
        "image/tiff": "tif tiff",
        "image/vnd.adobe.photoshop": "psd",
        "image/vnd.djvu": "djv djvu",
        "image/vnd.microsoft.icon": "ico",
        "image/webp": "webp",
        "image/x-adobe-dng": "dng",
        "image/x-xcf": "xcf",
        # Sound
        "audio/3gpp": "3ga",
        "audio/aac": "aac",
        "audio/ac3": "ac3",
        "audio/aiff": "aif aifc aiff",
        "audio/amr": "amr",
        "audio/amr-wb": "awb",
        "audio/flac": "flac",
        "audio/midi": "mid midi",
        "audio/mp4": "m4a m4b",
        "audio/mpeg": "mp3",
        "audio/ogg": "oga ogg opus spx",
        "audio/wav": "wav wave",
        "audio/webm": "weba",
        "audio/x-caf": "caf",
        "audio/x-matroska": "mka",
        "audio/x-ms-wma": "wma",
        # Films
        "video/3gpp": "3gp 3gpp",
        "video/3gpp2": "3g2 3gp2 3gpp2",
        "video/mp2t": "m2ts mts",
        "video/mp4": "mp4 mp4v",
        "video/mpeg": "mpe mpeg mpg",
        "video/ogg": "ogv",
        "video/quicktime": "mov qt",
        "video/webm": "webm",
        "video/x-flv": "flv",
        "video/x-m4v": "m4v",
        "video/x-matroska": "mkv",
        "video/x-ms-wmv": "wmv",
        "video/x-msvideo": "avi",
        # Text
        "text/calendar": "ics",
        "text/css": "css",
        "text/csv": "csv",
        "text/html": "htm html",
        "text/javascript": "cjs js mjs",
        "text/markdown": "markdown md",
        "text/plain": "log text txt",
        "text/tab-separated-values": "tsv",
        "text/vcard": "vcard vcf",
        "text/vtt": "vtt",
        "application/x-subrip": "srt",
        # Documents
        "application/epub+zip": "epub",
        "application/msword": "doc dot",
        "application/pdf": "pdf",
        "application/rtf": "rtf",
        "application/vnd.apple.numbers": "numbers",
        "application/vnd.apple.pages": "pages",
        "application/vnd.comicbook+zip": "cbz",
        "application/vnd.comicbook-rar": "cbr",
        "application/vnd.ms-excel": "xls",
        "application/vnd.ms-powerpoint": "pps ppt",
        "application/vnd.oasis.opendocument.graphics": "odg",
        "application/vnd.oasis.opendocument.presentation": "odp",
        "application/vnd.oasis.opendocument.spreadsheet": "ods",
        "application/vnd.oasis.opendocument.text": "odt",
        "application/vnd.openxmlformats-officedocument.presentationml.presentation": "pptx",
        "application/vnd.openxmlformats-officedocument.presentationml.slideshow": "ppsx",
        "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "xlsx",
        "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
        "application/x-mobipocket-ebook": "mobi prc",
        # Data
        "application/atom+xml": "atom",
        "application/geo+json": "geojson",
        "application/gpx+xml": "gpx",
        "application/json": "json",
        "application/manifest+json": "webmanifest",
        "application/rss+xml": "rss",
        "application/vnd.apple.mpegurl": "m3u8",
        "application/vnd.apple.pkpass": "pkpass",
        "application/vnd.google-earth.kml+xml": "kml",
        "application/vnd.google-earth.kmz": "kmz",
        "application/vnd.sqlite3": "sqlite sqlite3",
        "application/wasm": "wasm",
        "application/webxdc+zip": "xdc",
        "application/x-bittorrent": "torrent",
        "application/xhtml+xml": "xht xhtml",
        "application/xml": "xml",
        "application/xslt+xml": "xsl xslt",
        "application/yaml": "yaml yml",
        "audio/x-mpegurl": "m3u",
        "font/otf": "otf",
        "font/ttf": "ttf",
        "font/woff": "woff",
        "font/woff2": "woff2",
        "message/rfc822": "eml",
        "model/gltf-binary": "glb",
        "model/vnd.usdz+zip": "usdz",
        # Archives, programs, and what is signed or encrypted
        "application/gzip": "gz tgz",
        "application/java-archive": "jar",
        "application/pgp-encrypted": "gpg pgp",
        "application/pgp-signature": "asc sig",
        "application/vnd.android.package-archive": "apk",
        "application/vnd.debian.binary-package": "deb",
        "application/vnd.rar": "rar",
        "application/x-7z-compressed": "7z",
        "application/x-bzip2": "bz2",
        "application/x-tar": "tar",
        "application/x-xz": "xz",
        "application/zip": "zip",
        "application/zstd": "zst",
    }.items()
    for extension in extensions.split()
}
"""Our own table, because the one of the ``mimetypes`` module changes with the machine."""

KNOWN = sorted(set(_BY_EXTENSION.values()))
"""All types that a file's name can tell."""


def parse(value: bytes) -> bytes:
    """A Content-Type in the one form that everybody reads alike.

    One type and one subtype in lower case; of the parameters only a charset that browsers know, and that of text. What
    does not follow the grammar (RFC 9110, section 8.3.1), is a list, or has a wildcard is :data:`UNKNOWN`: browsers
    differ in what they take it for (Fetch, "extract a MIME type"). So is a multipart, which is nothing without its
    boundary.

    :param value: from whomever; it may hold any bytes.
    """
    found = _TYPE.fullmatch(value.strip(b" \t"))
    if found is None or b"*" in found[1]:
        return UNKNOWN
    essence = found[1].lower()
    if essence.startswith(b"multipart/"):
        return UNKNOWN
    if found[2] and essence.startswith(b"text/"):
        for name, text in _PARAMETERS.findall(found[2]):
            if name.lower() == b"charset":
                charset = text.strip(b'"').lower()
                return b"%b; charset=%b" % (essence, charset) if charset in _CHARSETS else essence
    return essence


def of_name(name: str) -> bytes:
    """The type that a file's extension tells, :data:`UNKNOWN` if none."""
    _, dot, extension = name.rpartition(".")
    return _BY_EXTENSION.get(extension.lower(), UNKNOWN) if dot else UNKNOWN
