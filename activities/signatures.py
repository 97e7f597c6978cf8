"""How is a decision signed, and a signature verified?

The one module that knows Ed25519. A private key is a file for one person's eyes: PKCS 8 in PEM, which
`openssl genpkey -algorithm ed25519` makes too.
"""

import os
import stat
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from durable_agents.domain.identifiers import KeyId
from durable_agents.domain.signatures import key_id

_LARGEST = 10_000


class KeyFileError(ValueError):
    """A key cannot be read or written; the message is one line, cause and remedy."""


class SigningKey:
    """A private key in memory."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public: str = private.public_key().public_bytes_raw().hex()
        self._key = key_id(self.public)

    @property
    def key(self) -> KeyId:
        """The id of its public key."""
        return self._key

    def sign(self, message: bytes) -> str:
        """The Ed25519 signature of these bytes, in hex."""
        return self._private.sign(message).hex()


def generate() -> SigningKey:
    """A new key."""
    return SigningKey(Ed25519PrivateKey.generate())


def write_key(key: SigningKey, file: Path) -> None:
    """Write the private key to a new file that nobody else can read.

    Raises:
        KeyFileError: there is such a file, or it cannot be written.
    """
    text = key._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())  # noqa: SLF001 - the same module
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise KeyFileError(f"{file} exists: a key is not overwritten, name another file") from None
    except OSError as error:
        raise KeyFileError(f"{file} cannot be written ({error.strerror}): name another file") from None
    with os.fdopen(descriptor, "wb") as opened:
        os.fchmod(descriptor, 0o600)
        opened.write(text)


def read_key(file: Path) -> SigningKey:
    """The private key of a file.

    Raises:
        KeyFileError: it is not there, others may read it, or it holds no Ed25519 key.
    """
    try:
        with file.open("rb") as opened:
            mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
            text = opened.read(_LARGEST)
    except OSError as error:
        raise KeyFileError(f"{file} cannot be read ({error.strerror}): make one with `python -m starter keys generate`") from None
    if mode & 0o077:
        raise KeyFileError(f"{file} can be read by others: chmod 600 it, and revoke the key if somebody may have")
    try:
        private = load_pem_private_key(text, password=None)
    except (ValueError, TypeError):
        private = None
    if not isinstance(private, Ed25519PrivateKey):
        raise KeyFileError(
            f"{file} holds no Ed25519 key in PEM without a password: make one with `python -m starter keys generate`"
        )
    return SigningKey(private)


def verify(public: str, message: bytes, signature: str) -> bool:
    """Does this signature (hex) of these bytes belong to this public key (hex)?"""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(bytes.fromhex(signature), message)
    except (InvalidSignature, ValueError):
        return False
    return True
