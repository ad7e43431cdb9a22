import tests.checkout  # noqa: F401
