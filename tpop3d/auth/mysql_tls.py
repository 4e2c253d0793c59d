"""TLS with a database: gives files to the client library, and finds what is wrong with them."""

from __future__ import annotations

import os

from tpop3d.config.addresses import located

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


DIRECTIVE = "auth-mysql-ssl"


class Tls:
    """The files of TLS. `ca` has the authority that vouches for the server; without it the server
    is not verified. `cert` and `key` are our own, if any; the key may be in the file `cert`."""

    __slots__ = ("ca", "cert", "key")

    def __init__(self, ca: str | None, cert: str | None, key: str | None) -> None:
        self.ca = ca
        self.cert = cert
        self.key = key or cert

    def arguments(self) -> dict[str, Any]:
        """The arguments for mysqlclient. Raises ValueError if systemd has not provided a file."""
        files = {"ca": self.ca, "cert": self.cert, "key": self.key}
        return {
            "ssl": {kind: located(path) for kind, path in files.items() if path},
            "ssl_mode": "VERIFY_IDENTITY" if self.ca else "REQUIRED",
        }

    def check(self) -> tuple[list[str], list[str]]:
        """Load the files as the library will; returns errors and warnings, with directives."""
        import ssl

        try:
            files = self.arguments()["ssl"]
        except ValueError as error:
            return [], [f"{DIRECTIVE}-cert: {error}; it cannot be checked here"]
        for kind, path in files.items():
            try:
                with open(path, "rb"):
                    pass
            except OSError as error:
                return [f"{DIRECTIVE}-{kind}: {path}: {error.strerror}"], []
        errors = []
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if "ca" in files:
            try:
                context.load_verify_locations(files["ca"])
            except (ssl.SSLError, ValueError):
                errors.append(f"{DIRECTIVE}-ca: {files['ca']}: holds no certificate in PEM form")
        if "cert" in files:
            cert, key = files["cert"], files["key"]
            if os.stat(key).st_mode & 0o004:
                why = f"every user can read this private key: chmod o-r {key}"
                errors.append(f"{DIRECTIVE}-key: {key}: {why}")
            try:
                context.load_cert_chain(cert, key, password=_no_passphrase)
            except _Encrypted:
                why = "is encrypted, and nobody is here to give the passphrase"
                errors.append(f"{DIRECTIVE}-key: {key}: {why}")
            except (ssl.SSLError, ValueError) as error:
                errors.append(_mistake(getattr(error, "reason", None), cert, key))
        return errors, []


class _Encrypted(ValueError):
    """The private key needs a passphrase."""


def _no_passphrase() -> str:
    raise _Encrypted


def _mistake(reason: str | None, cert: str, key: str) -> str:
    """Say what is wrong with our certificate and its key, by the reason that OpenSSL gives."""
    if reason == "KEY_VALUES_MISMATCH":
        return f"{DIRECTIVE}-key: {key}: is not the private key of {cert}"
    where = cert if cert == key else f"{cert} and {key}"
    return f"{DIRECTIVE}-cert: {where}: must hold a certificate and its private key in PEM form"
