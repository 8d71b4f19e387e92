"""
Load a File Daemon's plugin as the daemon would, and say what it is: ``python -m pgkeep.bacula.plugin_loading PATH``.

A program of its own, since a library that is not what it should be may take its process along. The tests are those of
Bacula 15.0's ``filed/fd_plugins.c``, in their order.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable
from typing import Any

INTERFACE = 23
INFO_BYTES = 56
LICENCES = ("Bacula AGPLv3", "AGPLv3")
MAGIC = "*FDPluginData*"
BACULA_FUNCTIONS = 20

_STRINGS = ("magic", "licence", "author", "date", "version", "description")


class _BaculaInfo(ctypes.Structure):
    _fields_ = [("size", ctypes.c_uint32), ("version", ctypes.c_uint32)]


class _BaculaFunctions(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_uint32),
        ("version", ctypes.c_uint32),
        ("functions", ctypes.c_void_p * BACULA_FUNCTIONS),
    ]


class _PluginInfo(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_uint32),
        ("interface", ctypes.c_uint32),
        *((name, ctypes.c_char_p) for name in _STRINGS),
    ]


def load(path: str) -> dict[str, Any]:
    """Return ``{"version": …}`` of a plugin that the daemon would take, else ``{"problem": …}``."""
    try:
        library = ctypes.CDLL(path)
        entries = library.loadPlugin, library.unloadPlugin
    except (OSError, AttributeError) as error:
        return {"problem": str(error)}
    # Whatever the plugin calls while it is loaded must not be a hole: each function answers "all is well".
    answer = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 0)
    address = ctypes.cast(answer, ctypes.c_void_p).value
    functions = _BaculaFunctions(ctypes.sizeof(_BaculaFunctions), INTERFACE)
    functions.functions[:] = [address] * BACULA_FUNCTIONS
    info = ctypes.POINTER(_PluginInfo)()
    table = ctypes.c_void_p()
    daemon = _BaculaInfo(ctypes.sizeof(_BaculaInfo), INTERFACE)
    answered = entries[0](ctypes.byref(daemon), ctypes.byref(functions), ctypes.byref(info), ctypes.byref(table))
    if answered != 0 or not ctypes.cast(info, ctypes.c_void_p).value or table.value is None:
        return {"problem": f"its loadPlugin ended with {answered}"}
    return _judge(info.contents, entries[1])


def _judge(info: _PluginInfo, unload: Callable[[], int]) -> dict[str, Any]:
    texts = {name: (getattr(info, name) or b"").decode(errors="replace") for name in _STRINGS}
    for what, expected, found in (
        ("magic", (MAGIC,), texts["magic"]),
        ("interface", (INTERFACE,), info.interface),
        ("licence", LICENCES, texts["licence"]),
        ("size of its description", (INFO_BYTES,), info.size),
    ):
        if found not in expected:
            return {"problem": f"{what}: expected {' or '.join(map(str, expected))}, found {found}"}
    version = texts["version"]
    unload()
    return {"version": version}


def main() -> None:
    """Print the verdict on one plugin as JSON."""
    json.dump(load(sys.argv[1]), sys.stdout)


if __name__ == "__main__":
    main()
