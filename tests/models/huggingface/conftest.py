"""transformers without its network, its bars and its remarks."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def quiet_transformers() -> None:
    from transformers import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
