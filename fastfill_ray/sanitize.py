"""Text that comes from elsewhere, made safe to print, log and store: no secret, no control character, one line.

Secret is: a value given to ``hide``, the value of an environment variable whose name says so, and what looks like a
secret wherever it stands. A known value is replaced by its name, so that a message loses nothing: `<kwargs.token>`,
`<$AWS_SECRET_ACCESS_KEY>`; the others by `***`. Every ``FastfillError`` passes its message through ``one_line``.

What cannot be known is not found: a password that stands alone in a text, and was neither in kwargs nor in the
environment.
"""

from __future__ import annotations

import functools
import json
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping
from urllib.parse import quote, quote_plus

MAX_MESSAGE_CHARS = 4_000
# Longer foreign texts are cut before the patterns run over them; the end could then be half of a secret, and goes too.
_MAX_SCANNED_CHARS, _HALF_A_SECRET = 20_000, 1_000

# A kwarg's name that says what its value is.
_SECRET_KEY = re.compile(r"token|key|secret|passw|passphrase|pwd|credential|auth|cookie|signature|dsn", re.IGNORECASE)
_SECRET_VARIABLE = re.compile(
    r"(^|_)(TOKEN|KEY|APIKEY|SECRET|PASSWORD|PASSWD|PASSPHRASE|PASS|PWD|CREDENTIALS?|COOKIE|DSN)(_|$)", re.IGNORECASE
)
_NO_SECRETS = {"PWD", "OLDPWD"}
# Words of lower-case letters, in any number: "passage: ", "float", "text-embedding".
_WORDS = re.compile(r"[A-Za-z]?[a-z]*([ _\-./:]+[A-Za-z]?[a-z]*)*")
_PLAIN_URL = re.compile(r"[a-z][a-z0-9+.-]*://[^\s@?#]*", re.IGNORECASE)
# Unicode's categories of control and format characters, surrogates, and separators of lines and paragraphs.
_ACTING = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_MIN_NAMED, _MIN_NUMBER, _MIN_OTHER = 4, 6, 8

# {value: what stands for it}, of this process: an embedder's exception is made of the kwargs it was built with.
_hidden: dict[str, str] = {}

_NAME = (
    r"(?:token(?!s(?![a-z])|i[sz])|secret|passw(?:or)?d|passphrase|pwd|credentials?|authorization|cookie"
    r"|(?:api|access|private|secret|account|auth|signing|encryption)[_-]?key)(?!\w{0,40}(?:error|exception))"
)
# Without quote and blank only the name itself: "my_pkg.token_model:Embedder" names a class.
_NAMED = rf"({_NAME}(?:[\w-]{{0,40}}(?:[\\\"']*\s*(?:=>|=|:(?=\s))|[\\\"']+\s*:)|\s*:)\s*)"
# Not what is no value: an attribute of that name (`pad_token = tokenizer.eos_token`), our own "key: found str".
_BARE = r"""(?!(["'])\*\*\*\2)(?!\w+\.\w+_token\b)(?!found\b)[\\"']*[^\s&"']+(?:["'][^\s&"']+)*"""
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE | re.DOTALL), shown)
    for pattern, shown in (
        (r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", "***"),
        # User info: before the first slash of a URL, or with a password that holds slashes; and without a scheme.
        (r"(://)[^\s/?#'\"]{0,400}@", r"\1***@"),
        (r"(://)[^\s/?#'\"@:]{1,200}:(?!\d+[/?#])[^\s'\"]{0,400}@", r"\1***@"),
        (r"(?<![\w./*@'\"-])[\w.+%-]{1,200}:[^\s/@'\":]{1,400}@(?=[\w\[])", "***@"),
        # In quotes only with a port or path: it could be an id.
        (r"(?<=['\"])[\w.+%-]{1,200}:[^\s/@'\":]{1,400}@(?=[\w.\[\]-]+[:/])", "***@"),
        # Queries: of a URL, and wherever one starts with a name and a value.
        (r"(://[^\s?'\"]{0,2000}\?)[^\s'\"]+", r"\1***"),
        (r"\?[\w%.~+-]+=[^\s'\"]*", "?***"),
        (rf"{_NAMED}(\\*[\"'])(?:\\.|[^\\])*?\2", r"\1\2***\2"),
        (rf"{_NAMED}(?:(?:bearer|basic|token|digest)\s+)?{_BARE}", r"\1***"),
        (r"\b((?:x-amz-)?signature|sig)=[^\s&\"']+", r"\1=***"),
        (r"\b(bearer\s+)[\w+/.~=-]{8,}", r"\1***"),
        # Tokens that say by their form what they are: AWS, Hugging Face, OpenAI, GitHub, GitLab, Slack, Google, JWT.
        (r"\b(AKIA|ASIA)[0-9A-Z]{16}\b", "***"),
        (r"\b(hf_|sk-|gh[pousr]_|github_pat_|glpat-|xox[a-z]-|AIza)[\w-]{16,}", "***"),
        (r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*", "***"),
    )
)


def hide(kwargs: Mapping[str, object], name: str = "kwargs") -> None:
    """From here on ``redact`` replaces the values of a model's kwargs in this process.

    All of at least 4 characters whose key looks like a secret's (below 8 as whole words only); of the others those of
    at least 8 characters that are not words, an existing path or a URL without user and query. A name that is replaced
    does no harm: its key is shown.
    """
    for key, value in _leaves(kwargs, name):
        if _is_secret(key, value):
            text = str(value)
            lines = [line for line in text.splitlines() if len(line) >= _MIN_OTHER]
            for part in {text, *(lines if len(lines) > 1 else ())}:
                _hidden.update(dict.fromkeys(_spellings(part), f"<{key}>"))


def redact(text: str) -> str:
    """`text` without what is known, or looks, to be secret. Ordinary text stays as it is."""
    if len(text) > _MAX_SCANNED_CHARS:
        text = text[: _MAX_SCANNED_CHARS - _HALF_A_SECRET]
    known = {**_environment(), **_hidden}
    if known:
        text = _one_of(tuple(known)).sub(lambda match: known[match[0]], text)
    for pattern, shown in _PATTERNS:
        text = pattern.sub(shown, text)
    return text


def printable(text: str) -> str:
    """`text` with every character that a terminal could act on as its escape (``\\x1b``, ``\\n``, ``\\u202e``).

    These are the control characters, line separators, surrogates, and what formats invisibly, such as turning the
    direction of text. The joiners U+200C and U+200D stay: words of some languages need them.
    """
    if text.isprintable():
        return text
    return "".join(c.encode("unicode_escape", "surrogatepass").decode() if _acts(c) else c for c in text)


def _acts(character: str) -> bool:
    return unicodedata.category(character) in _ACTING and character not in "\u200c\u200d"


def one_line(text: str, max_chars: int = MAX_MESSAGE_CHARS) -> str:
    """`text` redacted, printable, on one line (line breaks become spaces), cut to `max_chars`; valid Unicode.

    Again on its own outcome it changes nothing: errors pass through it once more when they are unpickled.
    """
    redacted = re.sub(r"[ \t\r\n]*[\r\n][ \t\r\n]*", " ", redact(text)).strip()
    if (text := printable(redacted)) != redacted:
        text = redact(text)  # with escapes in it more could look like a secret: now, rather than the next time
    return text if len(text) <= max_chars else text[: max_chars - 3].rstrip() + "..."


def _leaves(value: object, key: str) -> Iterator[tuple[str, object]]:
    """(key, value) of everything inside a value of plain JSON."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner, key)
    else:
        yield key, value


def _is_secret(key: str, value: object) -> bool:
    named = _SECRET_KEY.search(key.partition(".")[2]) is not None
    if isinstance(value, str):
        if named:
            return len(value) >= _MIN_NAMED
        ordinary = _WORDS.fullmatch(value) or _PLAIN_URL.fullmatch(value) or os.path.exists(value.partition("\x00")[0])
        return len(value) >= _MIN_OTHER and not ordinary
    return named and isinstance(value, int | float) and len(str(value)) >= _MIN_NUMBER


def _spellings(value: str) -> set[str]:
    """How a value can stand in a text: as it is, in quotes of Python or JSON, in a URL."""
    safe = value.encode("utf-8", "replace").decode()
    return {value, repr(value)[1:-1], json.dumps(value)[1:-1], quote(safe, safe=""), quote_plus(safe), printable(value)}


def _environment() -> dict[str, str]:
    secrets = {}
    for name, value in os.environ.items():
        if len(value) >= _MIN_OTHER and name not in _NO_SECRETS and _SECRET_VARIABLE.search(name):
            secrets.update(dict.fromkeys(_spellings(value), f"<${name}>"))
    return secrets


@functools.lru_cache(maxsize=4)
def _one_of(values: tuple[str, ...]) -> re.Pattern[str]:
    """Any of `values`, the longest first: one may be the beginning of another. Short ones match as whole words only."""
    patterns = (
        re.escape(value) if len(value) >= _MIN_OTHER else rf"(?<!\w){re.escape(value)}(?!\w)"
        for value in sorted(values, key=len, reverse=True)
    )
    return re.compile("|".join(patterns))
