"""The URLs of files on other machines: which there are, and what of them is shown and recorded."""

import re

from dlrmctl.data.errors import DataError

WEB, SFTP = ("http://", "https://"), ("sftp://", "ssh://")
_URL = re.compile(r"(s3a?|gs|gcs|sftp|ssh|https?)://")
_READ_ONLY = "choose a name on this machine, or one that begins with s3://, gs:// or sftp://"
_USER = re.compile(r"^(\w+://)([^/@]*)@")


def is_remote(name: str) -> bool:
    """Returns whether a name is a URL of a file that can be read."""
    return _URL.match(name) is not None


def without_secrets(url: str) -> str:
    """Returns a URL without the query, if it has one."""
    if not url.startswith(WEB):
        return url
    address, mark, _ = url.partition("?")
    return address + "?..." * bool(mark)


def refuse_password(url: str) -> None:
    """Checks that a URL, which is recorded, has no credentials.

    Raises:
        DataError: if it has.
    """
    user = _USER.match(url)
    if user is not None and (":" in user[2] or not url.startswith(SFTP)):
        shown = _USER.sub(r"\1...@", without_secrets(url))
        raise DataError(f"{shown}: a URL with credentials would be recorded", "give them in fsspec's configuration")


def refuse_web(url: str) -> None:
    """Checks that the protocol of a URL can write.

    Raises:
        DataError: if it is that of a web server, or the URL has credentials.
    """
    if url.startswith(WEB):
        raise DataError(f"{without_secrets(url)}: web servers are only read from", _READ_ONLY)
    refuse_password(url)
