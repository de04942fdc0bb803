"""Connections to the machines of files, their errors, and which errors end an attempt.

fsspec connects, with its own credentials and settings.
"""

import errno
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from dlrmctl.data.errors import DataError
from dlrmctl.data.remote.urls import SFTP, WEB, without_secrets

# What changes with the content of a file.
_TAGS = ("generation", "ETag", "etag", "mtime", "LastModified", "Last-Modified")
_ATTEMPTS = 6  # in a row without a byte
_CONNECT_SECONDS, _SILENT_SECONDS = 20, 60
_INSTALL = 'pip install "dlrmctl[remote]"'
_DENIED = "check the credentials: see the documentation of fsspec for this protocol"
_DENIED_CLASSES = ("NoCredentialsError", "PartialCredentialsError", "AuthenticationException", "PermissionError")
_UNREACHABLE = ("gaierror", "EndpointConnectionError", "ClientConnectorDNSError", "ClientConnectorError")

_connections = threading.local()


def connect(url: str, *, again: bool = False) -> tuple[Any, str]:
    """Returns the file system of a URL, and the path in it; a connection of this thread, or a new one."""
    try:
        import fsspec
        from fsspec.core import url_to_fs
    except ImportError:
        raise DataError(f"{without_secrets(url)}: reading URLs needs fsspec", _INSTALL) from None
    options: dict[str, Any] = {"skip_instance_cache": again}
    if url.startswith(WEB):
        try:
            import aiohttp
        except ImportError:
            raise DataError(f"{without_secrets(url)}: reading URLs needs aiohttp", _INSTALL) from None
        limits = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENT_SECONDS)
        configured = fsspec.config.conf.get("http", {}).get("client_kwargs", {})
        options["client_kwargs"] = {"timeout": limits, "trust_env": True, **configured}
    elif url.startswith(SFTP):
        options["timeout"] = _CONNECT_SECONDS
        host = url.split("/")[2]
        kept = _connections.__dict__.setdefault("sftp", {})
        if again:
            kept.pop(host, None)
        if host not in kept:
            kept[host] = url_to_fs(url, **{**options, "skip_instance_cache": True})[0]
            kept[host].ftp.get_channel().settimeout(_SILENT_SECONDS)
        return kept[host], kept[host]._strip_protocol(url)
    try:
        return cast(tuple[Any, str], url_to_fs(url, **options))
    except ImportError as error:
        raise DataError(f"{without_secrets(url)}: {str(error)[:100]}", _INSTALL) from None


def current_info(url: str, *, again: bool = False) -> dict[str, Any]:
    """Returns what the server says about a file now; over a new connection, if it has closed the one that was kept."""
    kept = url.startswith(SFTP) and not again and url.split("/")[2] in _connections.__dict__.get("sftp", {})
    filesystem, path = connect(url, again=again)
    filesystem.invalidate_cache()
    try:
        return dict(filesystem.info(path))
    except Exception as error:
        if not kept or _is_final(error):
            raise
    return current_info(url, again=True)


def content_tag(info: Mapping[str, Any]) -> str:
    """Returns what, of the facts about a file, changes with its content."""
    return next((str(info[key]) for key in _TAGS if info.get(key)), "")


@contextmanager
def connection_errors(url: str, doing: str = "read") -> Iterator[None]:
    """Turns the errors of a file system into a DataError.

    Args:
        doing: "read" or "write".
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        problem = explained(url, error, doing)
        raise problem from problem.__cause__


def pause_after(url: str, error: Exception, failures: int, doing: str) -> None:
    """Waits before the next attempt.

    Args:
        error: that of the last attempt.
        failures: attempts in a row that failed.
        doing: "read" or "write".

    Raises:
        DataError: if another attempt is in vain.
    """
    if failures >= _ATTEMPTS or _is_final(error):
        problem = explained(url, error, doing)
        raise problem from problem.__cause__
    time.sleep(0.05 * 4 ** min(failures - 1, 3))


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    one: BaseException | None = error
    while one is not None:
        yield one
        one = one.__cause__ or one.__context__


def _names(error: BaseException) -> list[str]:
    """The names of the classes of an error and of its causes, with their bases."""
    return [cls.__name__ for one in _with_causes(error) for cls in type(one).__mro__]


def _status(error: BaseException) -> int | None:
    """The status of HTTP that an error, or a cause of it, tells."""
    statuses = (getattr(one, "status", None) for one in _with_causes(error))
    return next((status for status in statuses if isinstance(status, int)), None)


def _is_final(error: BaseException) -> bool:
    """Returns whether the same request would fail again."""
    if isinstance(error, DataError):
        return True
    status = _status(error)
    if status is not None:
        return 400 <= status < 500 and status not in (408, 429)
    names = _names(error)
    return any(name in names for name in _DENIED_CLASSES) or isinstance(error, FileNotFoundError | ImportError)


def explained(url: str, error: Exception, doing: str) -> DataError:
    """The one line about an error; its cause has a number, so that a preparation is kept and can continue."""
    if isinstance(error, DataError):
        return error
    problem = _told(url, error, doing)
    if problem.__cause__ is None:
        problem.__cause__ = error
    return problem


def is_missing(problem: DataError) -> bool:
    """Returns whether the problem is that there is no such file."""
    cause = problem.__cause__
    return cause is not None and (isinstance(cause, FileNotFoundError) or _status(cause) == 404)


def is_denied(problem: DataError) -> bool:
    """Returns whether the problem is that access is denied; some servers deny access to files that do not exist."""
    cause = problem.__cause__
    return cause is not None and (_status(cause) in (401, 403) or "PermissionError" in _names(cause))


def _told(url: str, error: Exception, doing: str) -> DataError:
    names, status = _names(error), _status(error)
    start = f"{without_secrets(url)}: cannot {doing}"
    if status in (401, 403) or any(name in names for name in _DENIED_CLASSES):
        return DataError(f"{start}: access denied", _DENIED)
    if any(name in names for name in _UNREACHABLE):
        return _of_the_network(f"{start}: the host cannot be reached", "check its name and the network")
    if status == 404 or isinstance(error, FileNotFoundError):
        what = "file" if doing == "read" else "directory"
        return DataError(f"{start}: no such {what} or bucket", "check its name")
    said = (" ".join(str(error).split()) or type(error).__name__).replace(url, without_secrets(url))
    return _of_the_network(f"{start}: {said[:120]}", "check the network, and try again")


def _of_the_network(message: str, hint: str) -> DataError:
    problem = DataError(message, hint)
    problem.__cause__ = OSError(errno.EIO, "network")
    return problem
