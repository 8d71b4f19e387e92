"""What an ``archive_command`` says about where WAL goes: only where it leaves no doubt."""

from __future__ import annotations

import posixpath
import re
import shlex

_COPY = frozenset({"cp", "/bin/cp", "/usr/bin/cp"})
_TEST = frozenset({"test", "/usr/bin/test", "/bin/test"})
_COPY_OPTIONS = re.compile(
    r"-[aipnfuT]+|--preserve(=[a-z,]+)?|--no-clobber|--interactive|--archive|--force|--update|--"
)
# Anything that a shell would expand or run, and any % that is not %p or %f.
_DOUBTFUL = re.compile(r"[$`*?\[\]{}~!#\\;|\n]|%(?![pf])")


def derive_archive_directory(command: str, *, data_directory: str) -> str | None:
    """
    Return the directory into which *command* copies WAL under its own name; None when that is not certain.

    Understood are ``cp %p /directory/%f`` with harmless options and redirections of its input, and the same behind
    ``test ! -f /directory/%f &&``, as PostgreSQL's manual shows them, quoted in any way. Whatever else a command does,
    to another host, through a script, compressed, it is not guessed at.

    Args:
        command: The value of ``archive_command``.
        data_directory: Where the server runs it: a relative directory is below this.
    """
    # "!" stands only as a word of test's; everything else in that list is a reason to doubt.
    if _DOUBTFUL.search(re.sub(r"(?<=\s)!(?=\s)", "", command)):
        return None
    lexer = shlex.shlex(command, posix=True, punctuation_chars="&<>()")
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:
        return None
    guard, copy = [], words
    if "&&" in words:
        split = words.index("&&")
        guard, copy = words[:split], words[split + 1 :]
    target = _copy_target(copy)
    if target is None or (guard and not _is_guard(guard, target)):
        return None
    directory, _, name = target.rpartition("/")
    if name != "%f" or "%" in directory:
        return None
    return posixpath.normpath(posixpath.join(data_directory, directory or ("/" if target.startswith("/") else ".")))


def _copy_target(words: list[str]) -> str | None:
    """Return where a plain copy command copies ``%p``; None when it is not one."""
    if len(words) >= 2 and words[-2] == "<" and words[-1] == "/dev/null":
        words = words[:-2]
    if not words or words[0] not in _COPY:
        return None
    arguments = [word for word in words[1:] if not _COPY_OPTIONS.fullmatch(word)]
    if len(arguments) != 2 or arguments[0] != "%p" or arguments[1].startswith("-"):
        return None
    return None if set(arguments[1]) & set("&<>()") else arguments[1]


def _is_guard(words: list[str], target: str) -> bool:
    return len(words) == 4 and words[0] in _TEST and words[1:] in (["!", "-f", target], ["!", "-e", target])
