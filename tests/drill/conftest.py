"""Fixtures of the tests of drills: those of the restore tests."""

from __future__ import annotations

from tests.restore.conftest import keeper, make_keeper

__all__ = ["keeper", "make_keeper"]
