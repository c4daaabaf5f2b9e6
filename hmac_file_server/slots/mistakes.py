"""Mistakes in setting up: what was most likely done wrong when an upload is refused.

The operator's log is told of those that cost a few hashes to find, ``hmac-file-server explain`` of all.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import unquote_to_bytes

import attrs

from hmac_file_server.log import from_wire
from hmac_file_server.slots.bearer import BadToken, presented
from hmac_file_server.slots.guesses import (
    BASE_URL,
    Guess,
    below,
    other_forms,
    other_paths,
    other_secrets,
    other_types,
    respelled_secrets,
)
from hmac_file_server.slots.path import SlotPath
from hmac_file_server.slots.signature import PARAMETERS, BadSignature, candidate_types, sign, strongest
from hmac_file_server.slots.verifier import Presented, Verifier

_LONGEST_PATH = 1024
_SHOWN = 100
SHOWN_DIGITS = 8
"""Of a signature's hex digits."""
_EJABBERD = re.compile(rb"/[0-9a-f]{40}/[0-9A-Za-z]{40}/[^/]+\Z")

_UNSIGNED = (
    "Prosody signs with mod_http_upload_external, or with mod_http_file_share and http_file_share_secret, but not with"
    " mod_http_upload; ejabberd with external_secret in mod_http_upload"
)


@attrs.frozen
class Asked:
    """An upload that was refused.

    :param path: of its URL as it came, percent-encoded and without the query.
    :param shown: what it shows to have a right.
    :param size: of the file in bytes.
    """

    path: bytes
    shown: Presented
    size: int


_FORMS = {
    "v": lambda path, size, kind: b"%b %d" % (path, size),
    "v2": lambda path, size, kind: b"%b\0%d\0%b" % (path, size, kind),
    "path alone": lambda path, size, kind: path,
}
"""What is signed."""


@attrs.frozen
class Signature:
    """A signature, or the beginning of one.

    :param name: of the query parameter.
    :param digits: in small letters.
    """

    name: str
    digits: str = attrs.field(repr=False)
    what: str = attrs.field(default="signature", init=False)

    @property
    def form(self) -> str:
        return "v" if self.name == "v" else "v2"

    def fits(self, guess: Guess) -> bool:
        if guess.path is None:
            return False
        form = _FORMS[guess.form]
        messages = {form(guess.path, guess.size, kind) for kind in guess.types}
        return any(sign(secret, message).startswith(self.digits) for secret in guess.secrets for message in messages)


@attrs.frozen
class Token:
    """A bearer token. It names the size and the type itself.

    :param at: when it is looked at, in seconds since 1970; None for now.
    """

    shown: Presented
    at: float | None = None
    what: str = attrs.field(default="token", init=False)
    form: str = attrs.field(default="v", init=False)

    def fits(self, guess: Guess) -> bool:
        if guess.path is None or not guess.secrets or guess.form != self.form:
            return False
        return self.verifier(guess.secrets).holds(self.shown, SlotPath((guess.path,)), guess.size)

    def verifier(self, secrets: Sequence[bytes]) -> Verifier:
        """Who looks at it then."""
        at = self.at
        return Verifier(secrets) if at is None else Verifier(secrets, lambda: at)


Proof = Signature | Token
"""What is shown for a right, of which something is wrong."""


def proof_of(shown: Presented) -> Proof | None:
    """What a request shows; None if that is nothing.

    :raises BadSignature: if it is no signature.
    :raises BadToken: if it is no token.
    """
    if presented(shown.authorization) is not None:
        return Token(shown)
    if not any(name in shown.parameters for name in PARAMETERS):
        return None
    name, digest = strongest(shown.parameters)
    return Signature(name.decode("ascii"), digest.hex())


def why_unsigned(asked: Asked) -> str:
    """What to do about an upload that shows nothing."""
    if any(name.startswith(b"amp;") for name in asked.shown.parameters):
        return 'the query has "&amp;" in place of "&": the URL was taken from HTML or XML as it stands there'
    if _EJABBERD.search(asked.path):
        return "by its path it is ejabberd's: set external_secret in mod_http_upload to the daemon's Secret"
    return f"{_UNSIGNED}; or a proxy cuts the query off, or Authorization"


def likely_mistake(asked: Asked, prefix: str, verifier: Verifier) -> str:
    """What to change so that such an upload is taken; empty if nobody can tell.

    Only a well-formed signature costs more than a look: some thirty hashes. Nobody guesses at a path that is longer
    than those of slots.

    :param prefix: ``UploadSubDir``, without slashes around it.
    """
    if len(asked.path) > _LONGEST_PATH:
        return ""
    try:
        proof = proof_of(asked.shown)
    except (BadSignature, BadToken):
        return ""
    if proof is None:
        return why_unsigned(asked)
    return Case(asked, proof, prefix, verifier.signatures.secrets).mistake()


@attrs.frozen
class Clues:
    """What the log keeps for ``hmac-file-server explain``.

    :param size: of the file in bytes.
    :param type: that the client sent, or its beginning; None if it sent none.
    :param protocol: the parameter's name, if there was a signature.
    :param signature: its first digits, which open nothing.
    """

    size: int
    type: str | None
    protocol: str | None = None
    signature: str | None = None

    def __str__(self) -> str:
        kind = "-" if self.type is None else f'"{self.type}"'
        proof = f" {self.protocol}={self.signature}" if self.protocol else ""
        return f"size={self.size} type={kind}{proof}"


def clues(asked: Asked) -> Clues:
    """The clues that a refused upload leaves."""
    kind = asked.shown.content_type
    found = Clues(asked.size, None if kind is None else from_wire(kind[:_SHOWN]))
    try:
        proof = proof_of(asked.shown)
    except (BadSignature, BadToken):
        proof = None
    if not isinstance(proof, Signature):
        return found
    return attrs.evolve(found, protocol=proof.name, signature=proof.digits[:SHOWN_DIGITS])


def where_uploads_go(prefixes: str) -> str:
    """What to tell of an upload elsewhere.

    :param prefixes: in quotes.
    """
    return (
        f"uploads go below {prefixes} (UploadSubDir): {BASE_URL} must end so, and a proxy must pass the path on"
        " as it is (nginx: proxy_pass without a path)"
    )


@attrs.frozen
class Case:
    """One refused upload, and what is tried to find out why.

    :param prefix: ``UploadSubDir``, without slashes around it.
    :param secrets: of the host that it came to.
    :param elsewhere: secrets of other hosts, by their names.
    """

    asked: Asked
    proof: Proof
    prefix: str
    secrets: Sequence[bytes] = attrs.field(repr=False)
    elsewhere: Mapping[str, Sequence[bytes]] = attrs.field(factory=dict, repr=False)

    @property
    def as_asked(self) -> Guess:
        """What should have been signed."""
        segments = [unquote_to_bytes(segment) for segment in self.asked.path.split(b"/")[1:]]
        path = below(segments, self.prefix)
        name = segments[-1].decode("utf-8", "replace") if segments else ""
        types = list(candidate_types(self.asked.shown.content_type, name))
        return Guess(self.secrets, path, self.asked.size, types, self.proof.form)

    def holds(self) -> bool:
        """Whether nothing is wrong."""
        return self.proof.fits(self.as_asked)

    def mistake(self) -> str:
        """One mistake that explains it, among those that cost little to try; empty if none does."""
        right, what = self.as_asked, self.proof.what
        segments = [unquote_to_bytes(segment) for segment in self.asked.path.split(b"/")[1:]]
        for path, words in other_paths(self.asked.path, segments, self.prefix):
            if self.proof.fits(attrs.evolve(right, path=path)):
                return f"the {what} {words}"
        for form, size, words in other_forms(right):
            if self.proof.fits(attrs.evolve(right, form=form, size=size)):
                return f"the {what} {words}"
        for secrets, words in other_secrets(self.secrets):
            if self.proof.fits(attrs.evolve(right, secrets=secrets)):
                return f"the {what} {words}"
        return ""

    def mistakes(self) -> str:
        """One mistake that explains it, or two together, among all that are known; empty if none do."""
        right, what = self.as_asked, self.proof.what
        segments = [unquote_to_bytes(segment) for segment in self.asked.path.split(b"/")[1:]]
        asked = self.asked
        every: list[list[tuple[dict[str, object], str]]] = [
            [({"path": path}, words) for path, words in other_paths(asked.path, segments, self.prefix)],
            [({"form": form, "size": size}, words) for form, size, words in other_forms(right)],
            [({"secrets": secrets}, words) for secrets, words in self._all_secrets()],
            [({"types": [kind]}, words) for kind, words in other_types(right, asked.shown.content_type)],
        ]
        for kinds in itertools.chain(((kind,) for kind in every), itertools.combinations(every, 2)):
            for changes in itertools.product(*kinds):
                changed = {name: value for change, _ in changes for name, value in change.items()}
                if self.proof.fits(attrs.evolve(right, **changed)):  # type: ignore[arg-type]
                    return f"the {what} " + "; and it ".join(words for _, words in changes)
        return ""

    def _all_secrets(self) -> Iterator[tuple[Sequence[bytes], str]]:
        for name, secrets in self.elsewhere.items():
            words = f"holds with the secret of the host {name}: {BASE_URL} of that host must have its own UploadSubDir"
            yield secrets, words
        yield from other_secrets(self.secrets)
        yield from respelled_secrets(self.secrets)
