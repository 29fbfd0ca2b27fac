"""URLs of storages: read by SQLAlchemy alone, shown without secrets, and never written where one could stand."""

from __future__ import annotations

import re
from urllib.parse import quote, quote_plus

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from metaprune.core.errors import SearchError

JOURNAL = "journal:"
FORMS = "sqlite:///FILE, journal:FILE, or postgresql+psycopg://USER@HOST/DB (pip install 'psycopg[binary]')"
_HARMLESS = {  # keys of a URL's query that hold no secret
    *("host", "port", "user", "dbname", "sslmode", "sslrootcert", "connect_timeout", "application_name", "charset"),
    *("target_session_attrs", "passfile", "timeout", "mode", "cache", "uri", "nolock", "immutable"),
}
_QUOTED = 4  # characters of a secret in a row that are masked


def parsed_url(text: str) -> URL:
    """Parse a storage's URL.

    Raises:
        SearchError: no URL, or one whose parts cannot be told apart; shows nothing of it, since it may hold a password.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):  # ValueError: a port that is no number
        url = None
    if url is None or any(mark in (url.host or "") for mark in "@:/?#") or _stray_at(url):
        raise SearchError(
            f"the storage cannot be opened: its URL does not parse (it is not shown, it may hold a password). Give "
            f"{FORMS}; in a password write %40 for @, %3A for : and %2F for /"
        )
    return url


def _stray_at(url: URL) -> bool:
    """Whether what should be a database's name has an @ in it; file names may."""
    return url.get_backend_name() != "sqlite" and "@" in (url.database or "")


def has_secret(text: str) -> bool:
    """Tell whether a URL holds a password, may hold one in its query, or does not parse, so that nobody can tell."""
    if text.startswith(JOURNAL):
        return False
    try:
        return bool(_secrets(parsed_url(text)))
    except SearchError:
        return True


def shown_url(text: str | None) -> str:
    """Show a URL in a message: without its password and its query."""
    if text is None:
        return "memory"
    if text.startswith(JOURNAL):
        return text
    try:
        url = parsed_url(text)
    except SearchError:
        return "(a URL that does not parse)"
    return url.set(query={}).render_as_string(hide_password=True)


def without_secrets(message: str, text: str | None) -> str:
    """Mask what drivers quote of a URL's secrets, whole or in parts."""
    if text is None or text.startswith(JOURNAL):
        return message
    try:
        secrets = _secrets(parsed_url(text))
    except SearchError:
        return "(not shown: it may quote the URL)"
    hidden: set[int] = set()
    for form in {f for s in secrets for f in (s, quote(s), quote(s, safe=""), quote_plus(s), repr(s)[1:-1])}:
        size = min(_QUOTED, len(form))
        parts = {form[i : i + size] for i in range(len(form) - size + 1)}
        hidden |= {i + k for i in range(len(message)) if message[i : i + size] in parts for k in range(size)}
    masked = ("\0" if i in hidden else character for i, character in enumerate(message))
    return re.sub("\0+", "***", "".join(masked))


def _secrets(url: URL) -> list[str]:
    """The password, and all values of the query whose key is not known to be harmless."""
    unknown = [value for key, value in url.query.items() if key not in _HARMLESS]
    values = [v for value in unknown for v in ([value] if isinstance(value, str) else value)]
    return [secret for secret in (str(url.password or ""), *values) if secret]
