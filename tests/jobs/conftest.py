"""The store and the lineage of the store's own tests."""

from tests.store.conftest import store, world

__all__ = ["store", "world"]
