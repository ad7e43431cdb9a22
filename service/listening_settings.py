"""Settings of where the service listens, and to whom."""

from typing import Annotated

from pydantic import Field, PlainValidator, WithJsonSchema
from pydantic_settings import BaseSettings, NoDecode

from attnserve.service.keys import Key, parse_keys


def _parse_keys(given: object) -> tuple[Key, ...]:
    # An empty variable, as compose files pass on, is none.
    return () if given in ("", (), []) else parse_keys(given)


class ListeningSettings(BaseSettings):
    """Part of `Settings`."""

    # An empty host would mean every interface there is.
    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="Address to listen on. `127.0.0.1` is this machine alone. Others, such as `0.0.0.0` for every "
        "network it is in, need keys or `--allow-anonymous`: whoever reaches the port could ask.",
    )
    port: int = Field(
        8000, ge=0, le=65535, description="Port to listen on; 0 lets the system choose, and the log says which."
    )
    keys_file: str = Field(
        "",
        description="File of API keys, as `attnserve key --file` writes it. It is read again when it changes. A secret "
        "mounted read-only is best.",
        json_schema_extra={"accepts": "path"},
    )
    keys: Annotated[
        tuple[Key, ...], NoDecode, PlainValidator(_parse_keys), WithJsonSchema({"accepts": "entries of a keys file"})
    ] = Field(
        (),
        description="API keys without a file, in YAML or JSON: hashes, not the keys themselves. For platforms that "
        "pass secrets in variables; a change needs a restart.",
    )
    allow_anonymous: bool = Field(
        False,
        description="Whether to listen to other machines without keys. Only where something else decides who may ask: "
        "a gateway on a private network. Where there are keys it changes nothing.",
    )
