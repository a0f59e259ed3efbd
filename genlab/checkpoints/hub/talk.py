"""Talking to the hub: what its library raises becomes one sentence that says what to do."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from genlab.checkpoints.hub.names import HubName
from genlab.errors import ConfigError, DownloadError, GenLabError, OutputError, printable, reason

LOG_IN = "log in with 'hf auth login', or set HF_TOKEN"
_TRUE = frozenset({"1", "ON", "YES", "TRUE"})
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM)


def is_offline() -> bool:
    """Whether the environment forbids asking the hub: ``HF_HUB_OFFLINE``, as its library reads it.

    That library looks once, when it is imported; here it holds from when it is set.
    """
    constants: Any = sys.modules.get("huggingface_hub.constants")
    if constants is not None and constants.HF_HUB_OFFLINE:
        return True
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE


def endpoint() -> str:
    """The hub's address: ``HF_ENDPOINT``, by default https://huggingface.co."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


@contextmanager
def talking(name: HubName, *, writing: bool = False) -> Iterator[None]:
    """Ask the hub something; a failure becomes a sentence.

    Args:
        name: what is asked for.
        writing: whether files are sent, which takes other rights than reading.

    Raises:
        DownloadError: the hub is not reached, has no such repository or revision, or gives no
            access; also where something is sent.
        ConfigError: it does not take what is sent.
        OutputError: the disk is full or cannot be written.
    """
    if is_offline():
        raise _offline(name)
    try:
        with _bars_in_terminals_only():
            yield
    except (GenLabError, Warning):
        raise
    except Exception as error:  # of several HTTP libraries, by the hub library's version
        raise _explained(error, name, writing) from error


def _offline(name: HubName) -> DownloadError:
    return DownloadError(
        f"{name} is not on this machine, and HF_HUB_OFFLINE is set, so the hub is not asked; unset "
        f"it, then fetch it with 'genlab pull {name}'"
    )


def _explained(error: Exception, name: HubName, writing: bool) -> GenLabError:
    from huggingface_hub import errors

    whole = list(_chain(error))
    for one in whole:
        if isinstance(one, errors.OfflineModeIsEnabled):
            return _offline(name)
        if isinstance(one, errors.GatedRepoError):
            return DownloadError(
                f"{name.repository} asks for consent first: accept its terms at "
                f"{endpoint()}/{name.repository}, then {LOG_IN}"
            )
        if isinstance(one, errors.RevisionNotFoundError):
            return DownloadError(
                f"{name.repository} has no revision {name.revision or 'main'!r}; give a branch, a "
                "tag or a whole commit of it (--revision, or owner/name@revision)"
            )
        if isinstance(one, errors.RepositoryNotFoundError):
            return DownloadError(
                f"there is no repository {name.repository} at {endpoint()}, or it is private; "
                f"check the name, or {LOG_IN}"
            )
        if isinstance(one, errors.HfHubHTTPError) and one.response is not None:
            return _refused(one.response.status_code, name, writing)
    if writing and isinstance(error, ValueError):  # of what is sent: a card, a message
        return ConfigError(f"the hub does not take {name}: {reason(error)}; mend the model card")
    for one in whole:
        if isinstance(one, OSError) and one.errno in _FULL:
            return OutputError(f"cannot write the copy of {name}: {reason(one)}")
    verb, why = "send" if writing else "fetch", printable(reason(whole[-1]))
    return DownloadError(
        f"cannot {verb} {name}: the hub at {endpoint()} cannot be reached or broke off ({why}); "
        "check the connection, then run it again"
    )


def _refused(status: int, name: HubName, writing: bool) -> DownloadError:
    if status in (401, 403):
        right = "write to" if writing else "read"
        return DownloadError(
            f"the hub at {endpoint()} does not let you {right} {name.repository} ({status}); "
            f"{LOG_IN} to a token that may"
        )
    return DownloadError(
        f"the hub at {endpoint()} answers {status} for {name.repository}; try again later"
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and what caused it, outermost first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


@contextmanager
def _bars_in_terminals_only() -> Iterator[None]:
    """The library's progress bars fill the log of a job that no terminal shows."""
    from huggingface_hub import constants
    from huggingface_hub.utils import (  # type: ignore[attr-defined]  # public, in no __all__
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    terminal = sys.stderr is not None and sys.stderr.isatty()
    decided = constants.HF_HUB_DISABLE_PROGRESS_BARS is not None  # by the environment
    if terminal or decided or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
