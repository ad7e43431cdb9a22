"""How a Hugging Face model was trained to attend, kept in its config under `attnserve`.

`config.json` does not keep the name of the attention implementation: without this, an expressive model that was saved
would come back as a dot-product one, and nobody would be told.
"""

from dataclasses import dataclass
from typing import Any

from attnserve.models.attention.layer import AttentionConfig
from attnserve.records import check_types, from_json

KEY = "attnserve"
"""Of the config, and the name of dot-product attention by our functions."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A variant and its numbers. Window, softcap and scale are the model's own and stand elsewhere in its config."""

    variant: str = "dot_product"
    epsilon: float = 0.0
    scope: str | None = None
    scaling: str | None = None

    def __post_init__(self) -> None:
        """Refuse what no variant could mean.

        Raises:
            ValueError: names the field, what was expected and what came.
        """
        check_types(self)
        self.layer()

    def layer(self, **own: Any) -> AttentionConfig:
        """A layer that attends so, with what is the model's `own`: scale, window, softcap."""
        return AttentionConfig(
            variant=self.variant, epsilon=self.epsilon, scope=self.scope, scaling=self.scaling, **own
        )


def read_settings(config: Any) -> Settings | None:
    """What a config says; None if it says nothing.

    Raises:
        RecordError: it says something else than it should; names the field.
    """
    document = getattr(config, KEY, None)
    return None if document is None else from_json(Settings, document, KEY)
