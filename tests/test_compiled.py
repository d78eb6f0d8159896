"""Compiled functions work where nothing can be cached."""

from __future__ import annotations

import pytest
from numba.core.caching import CacheImpl, CompileResultCacheImpl

from muva.compiled import compiled


def test_without_a_place_for_a_cache_functions_are_compiled_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert issubclass(CompileResultCacheImpl, CacheImpl)
    monkeypatch.setattr(CompileResultCacheImpl, "_locator_classes", [])

    @compiled(nogil=True)
    def doubled(value):
        return 2 * value

    assert doubled(4) == 8
    assert doubled.nopython_signatures
