"""Removes secrets from everything that is logged or shown: tags, params, texts and commands.

It masks the values of environment variables with names of secrets, values after such names in the
text (`password=...`, `--api-key ...`), and unmistakable patterns (credentials in a URL, bearer
headers, keys of AWS, GitHub and Hugging Face).
"""

from __future__ import annotations

import os
import re

MASK = "***"

_WORD = r"(?:token|password|passwd|secret(?:[._-]?key)?|api[._-]?key|access[._-]?key(?:[._-]?id)?)"
_NAME = re.compile(
    rf"(?:^|[._/-]){_WORD}$|(?:password|passwd|passphrase)$|[._-](?:pwd|pass)$|"
    r"[._-](?:connection[._-]?string|(?:private|account|storage|shared)[._-]?key)$",
    re.IGNORECASE,
)
_VALUE = r"""(?:"[^"\n]*"|'[^'\n]*'|[^\s"',;&]+)"""
_ASSIGNMENT = re.compile(
    rf"""(?<![\w.-])([\w.-]*(?:{_WORD}|pwd|sig|signature)["']?\s*[=:]\s*){_VALUE}""", re.IGNORECASE
)
_OPTION = re.compile(rf"(?<!\S)(--[\w-]*{_WORD}\s+)(?!-){_VALUE}", re.IGNORECASE)
_USER_OF_URL = re.compile(r"(\w://)[^/\s@]+@")
_PASSWORD_OF_URL = re.compile(r"""(\w://)[^/\s:@]*:(?!\d+(?:/|\s|$))[^\s"']*@""")
"""A password may contain slashes and @; a port followed by a path with an @ is not a password."""
_AUTHORISATION = re.compile(
    r"((?:bearer|authorization[\"']?\s*[:=]\s*[\"']?basic)\s+)[\w.~+/=-]+", re.IGNORECASE
)
_KEY = re.compile(
    r"\b(?:A[KS]IA[0-9A-Z]{16}|hf_\w{20,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|"
    r"sk-[\w-]{20,}|xox[abprs]-[\w-]{10,})"
)
_SHORTEST_SECRET = 8
"""Shorter values of environment variables are not masked: they would match ordinary words."""


def redact(text: str) -> str:
    """The text with everything that looks like a secret masked."""
    for name, value in os.environ.items():
        if names_secret(name) and len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, MASK)
    text = _PASSWORD_OF_URL.sub(rf"\1{MASK}@", text)
    text = _USER_OF_URL.sub(rf"\1{MASK}@", text)
    text = _AUTHORISATION.sub(rf"\1{MASK}", text)
    text = _ASSIGNMENT.sub(rf"\1{MASK}", text)
    text = _OPTION.sub(rf"\1{MASK}", text)
    return _KEY.sub(MASK, text)


def names_secret(name: str) -> bool:
    """Whether a name is that of a secret: true for `ray.auth_token`, false for `tokens`."""
    return _NAME.search(name) is not None


def first_line(error: BaseException) -> str:
    """The first line of an error's message, redacted; the name of its class if there is none."""
    return (redact(str(error)).strip().splitlines() or [type(error).__name__])[0]
