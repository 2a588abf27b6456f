"""The kinds of value a setting can have: how text and YAML become a value, and what to say when they do not.

A kind raises `ValueError`: with a text when it knows exactly what is wrong, without one when `allowed` says it all.
"""

from __future__ import annotations

import re
import shlex
from typing import Final, Generic, TypeVar

T_co = TypeVar("T_co", covariant=True)

_SHOWN_LIMIT: Final = 80
# C0, DEL and the C1 controls, Unicode's line ends and changes of direction: a log viewer or a terminal may act on any
# of them. Lone surrogates (bytes of the environment that are not UTF-8) cannot be printed at all.
UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# These three cannot be inside one argument of a launch script line, one element of argv or one header.
_FORBIDDEN: Final = {"\0": "NUL", "\r": "CR", "\n": "LF"}
# Ends of words: `HF_TOKEN` and `OPENAI_APIKEY`, not `TOKENIZERS_PARALLELISM` or `MAX_TOKENS`; a secret's path is none.
_SECRET_NAME: Final = re.compile(
    r"(?:TOKEN|(?:KEY|SECRET|PASSWORD|PASSWD|CREDENTIAL)S?)(?![A-Z0-9])(?!.*_(?:FILE|PATH|DIR)$)", re.IGNORECASE
)
_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
_USER_INFORMATION: Final = re.compile(r"(?<=://)[^\s/?#@\"']+(?=@)")
_VARIABLE_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def shown(value: object, limit: int = _SHOWN_LIMIT) -> str:
    """Return a value fit for one line of a message: control characters escaped, cut at 80 characters."""
    text = value if isinstance(value, str) else repr(value)
    text = UNPRINTABLE.sub(lambda found: found.group().encode("unicode_escape").decode("ascii"), text)
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"


def one_line(text: str) -> str:
    """Return the text unless it holds NUL, CR, LF or bytes that are not UTF-8; raise `ValueError` saying what."""
    for character, name in _FORBIDDEN.items():
        if character in text:
            raise ValueError(f"must not contain {name}")
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("must be valid UTF-8")
    return text


def looks_secret(name: str) -> bool:
    """Return whether a variable or flag of this name would hold a secret."""
    return bool(_SECRET_NAME.search(name.replace("-", "_")))


def without_passwords(text: str) -> str:
    """Return the text with the name and password of every address in it (RFC 3986 §3.2.1) replaced by HIDDEN."""
    return _USER_INFORMATION.sub("HIDDEN", text)


class Kind(Generic[T_co]):
    """One kind of value; `allowed` completes the sentence "must be …"."""

    allowed: str

    def from_text(self, text: str) -> T_co:
        """Return the value an environment variable stands for."""
        raise NotImplementedError

    def from_yaml(self, value: object) -> T_co:
        """Return the value a YAML node stands for; a scalar of the file is a text, and read like the variable's."""
        if not isinstance(value, str):
            raise ValueError
        return self.from_text(value)

    def disclosed(self, raw: object) -> str:
        """Return what a message may show of a wrong value: an equals sign and the value, or nothing."""
        return f"={shown(raw)}"

    def to_text(self, value: object) -> str:
        """Return the value as a variable's text would have it, for `check` and the README's table."""
        return "" if value is None else str(value)


class Text(Kind[str]):
    """Any text on one line."""

    allowed = "a text on one line"

    def from_text(self, text: str) -> str:
        """Return the text; NUL, CR and LF are refused."""
        return one_line(text)


class Host(Text):
    """An address or a host name to listen on."""

    allowed = "an IPv4 or IPv6 address or a host name, and nothing else"

    def from_text(self, text: str) -> str:
        """Return the text; what is more than a host is refused by what it is."""
        one_line(text)
        if "://" in text or "/" in text:
            raise ValueError("is a URL: write the address alone, such as 127.0.0.1")
        if text.startswith("["):
            raise ValueError("an IPv6 address stands here without brackets, such as ::1")
        if re.fullmatch(r"[^:]*:[0-9]*", text):
            raise ValueError("write the address alone: the port is WINGS_PORT")
        if re.search(r"\s|,", text):
            raise ValueError(f"must be {self.allowed}")
        return text


class Integer(Kind[int]):
    """A whole number within bounds, both included."""

    def __init__(self, least: int, most: int) -> None:
        self._least, self._most = least, most
        self.allowed = f"a whole number from {least} to {most}"

    def from_text(self, text: str) -> int:
        """Return the number."""
        if not re.fullmatch(r"-?[0-9]{1,18}", text):
            raise ValueError
        if not self._least <= (number := int(text)) <= self._most:
            raise ValueError
        return number


class Seconds(Kind[float]):
    """A duration in seconds within bounds, both included."""

    def __init__(self, least: float, most: float) -> None:
        self._least, self._most = least, most
        self.allowed = f"a number of seconds from {least:g} to {most:g}"

    def from_text(self, text: str) -> float:
        """Return the duration."""
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
            raise ValueError
        if not self._least <= (number := float(text)) <= self._most:
            raise ValueError
        return number

    def to_text(self, value: object) -> str:
        """Return the duration without needless zeros."""
        return f"{value:.9f}".rstrip("0").rstrip(".")


class OptionalSeconds(Kind[float | None]):
    """A duration in seconds, or `off`."""

    def __init__(self, least: float, most: float) -> None:
        self._seconds = Seconds(least, most)
        self.allowed = f"{self._seconds.allowed}, or off"

    def from_text(self, text: str) -> float | None:
        """Return the duration, or None for `off`."""
        return None if text == "off" else self._seconds.from_text(text)

    def to_text(self, value: object) -> str:
        """Return the duration or `off`."""
        return "off" if value is None else self._seconds.to_text(value)


class ByteCount(Kind[int]):
    """A number of bytes, plain or with a binary unit."""

    _UNITS: Final = {"": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}

    def __init__(self, least: int, most: int) -> None:
        self._least, self._most = least, most
        self.allowed = f"a number of bytes from {self.to_text(least)} to {self.to_text(most)}, such as 65536 or 64MiB"

    def from_text(self, text: str) -> int:
        """Return the number of bytes."""
        found = re.fullmatch(r"([0-9]{1,15})(|KiB|MiB|GiB)", text)
        if found is None:
            raise ValueError
        if not self._least <= (number := int(found[1]) * self._UNITS[found[2]]) <= self._most:
            raise ValueError
        return number

    def to_text(self, value: object) -> str:
        """Return the largest unit that divides the number."""
        assert isinstance(value, int)
        for unit in ("GiB", "MiB", "KiB"):
            if value and value % self._UNITS[unit] == 0:
                return f"{value // self._UNITS[unit]}{unit}"
        return str(value)


class Boolean(Kind[bool]):
    """True or false."""

    allowed = "true or false (or 1/0, yes/no, on/off)"

    def from_text(self, text: str) -> bool:
        """Return the truth of the text, in any case."""
        match text.lower():
            case "true" | "1" | "yes" | "on":
                return True
            case "false" | "0" | "no" | "off":
                return False
            case _:
                raise ValueError

    def to_text(self, value: object) -> str:
        """Return `true` or `false`."""
        return "true" if value else "false"


class Choice(Kind[str]):
    """One of a few words."""

    def __init__(self, *words: str) -> None:
        self._words = words
        self.allowed = f"one of {', '.join(words)}"

    def from_text(self, text: str) -> str:
        """Return the word."""
        if text not in self._words:
            raise ValueError
        return text


class Words(Kind[tuple[str, ...]]):
    """Arguments: shell-quoted in one text, or a list in YAML."""

    allowed = "arguments, quoted as in a shell"

    def from_text(self, text: str) -> tuple[str, ...]:
        """Return the words of the text; an unbalanced quote is refused."""
        one_line(text)
        try:
            return tuple(shlex.split(text))
        except ValueError as error:
            raise ValueError(f"cannot be split into arguments: {error}".lower()) from None

    def from_yaml(self, value: object) -> tuple[str, ...]:
        """Return the words of a list (each one argument as it stands) or of a text."""
        if isinstance(value, str):
            return self.from_text(value)
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            raise ValueError("must be a list of texts, one argument each")
        return tuple(one_line(word) for word in value)

    def disclosed(self, raw: object) -> str:
        """Return the value, unless a flag in it looks as if a secret follows."""
        return "" if looks_secret(str(raw)) else super().disclosed(raw)

    def to_text(self, value: object) -> str:
        """Return the words quoted for a shell, what follows a flag such as `--api-key` replaced by HIDDEN."""
        assert isinstance(value, tuple)
        shown_words: list[str] = []
        hide = False
        for word in value:
            flag, equals, _ = word.partition("=")
            secret = flag.startswith("-") and looks_secret(flag)
            # JSON, as some flags take it: which of its texts are the secrets is not worth guessing.
            hide = hide or (not flag.startswith("-") and ":" in word and looks_secret(word))
            shown_words.append("HIDDEN" if hide else f"{flag}=HIDDEN" if secret and equals else word)
            hide = secret and not equals
        return shlex.join(shown_words)


class Origins(Kind[tuple[str, ...]]):
    """Web origins, as a browser writes them (RFC 6454 §6.2), or `*` for every one."""

    allowed = "origins such as https://chat.example.com, separated by spaces, or *"

    def from_text(self, text: str) -> tuple[str, ...]:
        """Return the origins of the text."""
        return self._checked(text.split())

    def from_yaml(self, value: object) -> tuple[str, ...]:
        """Return the origins of a list or of a text."""
        if isinstance(value, str):
            return self.from_text(value)
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            raise ValueError
        return self._checked(value)

    def _checked(self, words: list[str]) -> tuple[str, ...]:
        for word in words:
            # An origin that a browser would write differently would never match: better said now.
            if word != "*" and not _ORIGIN.fullmatch(word):
                raise ValueError(
                    f"{shown(word)} is not an origin: scheme://host or scheme://host:port, in small letters"
                )
        return tuple(words)

    def to_text(self, value: object) -> str:
        """Return the origins, separated by spaces."""
        assert isinstance(value, tuple)
        return " ".join(value)


class EnvironmentBlock(Kind[tuple[tuple[str, str], ...]]):
    """A mapping of variable names to texts; names that look like secrets are refused."""

    allowed = "a mapping of variable names to texts"

    def from_text(self, text: str) -> tuple[tuple[str, str], ...]:  # noqa: ARG002 - no text will do
        """Refuse: a block of variables cannot be written in one text."""
        raise ValueError

    def from_yaml(self, value: object) -> tuple[tuple[str, str], ...]:
        """Return the pairs in the order of the file."""
        if not isinstance(value, dict):
            raise ValueError
        pairs: list[tuple[str, str]] = []
        for name, text in value.items():
            if not isinstance(name, str) or not _VARIABLE_NAME.fullmatch(name):
                raise ValueError(f"{shown(name)} is not a variable name")
            if looks_secret(name):
                raise ValueError(
                    f"{name} looks like a secret, and this file is readable in the pod: set it in the engine "
                    "container's own env, from a Secret"
                )
            if not isinstance(text, str):
                raise ValueError(f"the value of {name} must be a text")
            try:
                pairs.append((name, one_line(text)))
            except ValueError as error:
                raise ValueError(f"the value of {name} {error}") from None
        return tuple(pairs)

    def disclosed(self, raw: object) -> str:  # noqa: ARG002 - whatever it is
        """Return nothing: a secret may stand here by mistake, and messages end in logs."""
        return ""

    def to_text(self, value: object) -> str:
        """Return `NAME=text` words quoted for a shell."""
        assert isinstance(value, tuple)
        return shlex.join(f"{name}={text}" for name, text in value)
