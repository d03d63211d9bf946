"""Fixtures for all tests."""

from hypothesis import settings

pytest_plugins = ["tests.embedded"]

# How long an example takes is the machine's affair: no test fails for it.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")
