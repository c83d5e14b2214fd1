from tests.keys.conftest import admin, make_key

__all__ = ["admin", "make_key"]
