#!/usr/bin/env python3
"""Write the packet vectors that Python and C share, ``tests/wire/vectors/packets.json``, as rows of a C table."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def row(vector: dict[str, str]) -> str:
    """Return the C initialiser of one vector."""
    data = bytes.fromhex(vector["bytes_hex"])
    text = "".join(f"\\{byte:03o}" for byte in data)
    kind = f"'{vector['kind']}'" if "kind" in vector else "0"
    payload = len(bytes.fromhex(vector.get("payload_hex", "")))
    return f'\t{{{json.dumps(vector["name"])}, "{text}", {len(data)}, {kind}, {payload}}},'


if __name__ == "__main__":
    path = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[2] / "tests/wire/vectors/packets.json")
    sys.stdout.writelines(f"{row(vector)}\n" for vector in json.loads(path.read_text(encoding="utf-8")))
