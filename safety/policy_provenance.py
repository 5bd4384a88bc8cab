"""The policy's `[provenance]` block: what a released picture must carry. Read by the press, which hands it to the stamp.

[provenance]
require_watermark = true            # false: a picture that cannot hold a mark may go out signed only, and its record says so
prompts_in_metadata = false         # true: prompts are written in clear into the file; else a keyed hash
prompt_writer = "Ada"               # IPTC AIPromptWriterName
web_ui_text = true                  # the `parameters` text that Stable Diffusion web UIs read back
creator = "Studio"                  # Dublin Core and CAWG
rights = "© 2026 Studio"
rights_url = "https://studio.example/rights"
producer = "Studio"                 # name of the service in the TC260 (GB 45438) label; default: the signer's name
do_not_train = false                # CAWG training-and-data-mining assertion, and the PLUS field
latent_mark = false                 # true: the initial noise carries a second mark, so a seed's picture is not the one diffusers gives
timestamp = "off"                   # RFC 3161: off, try (without one where that fails), required
timestamp_url = "http://timestamp.example"
timestamp_seconds = 5.0             # how long a time-stamp authority may take
[[provenance.licences]]             # of the model and of LoRAs
part = "model"                      # model, lora
name = "SDXL base 1.0"
licence = "CreativeML Open RAIL++-M"
url = "https://example.org/licence"
"""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

Line = Annotated[str, Field(min_length=1, max_length=300, pattern=r"^[^\x00-\x1f\x7f]+$")]
Url = Annotated[str, Field(max_length=500, pattern=r"^https?://[^\x00-\x20\x7f]+$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class LicenceRule(_Strict):
    """Under what terms one part of the model is used. `licence`: an SPDX expression or the licence's name."""

    part: Literal["model", "lora"]
    name: Annotated[str, Field(min_length=1, max_length=200)]
    licence: Annotated[str, Field(min_length=1, max_length=200)]
    url: Url | None = None


class ProvenanceRules(_Strict):
    """`require_watermark`: false lets a picture that cannot hold a mark out signed only, and its record says so."""

    require_watermark: bool
    prompts_in_metadata: bool = False
    prompt_writer: Line | None = None
    web_ui_text: bool = True
    creator: Line | None = None
    rights: Line | None = None
    rights_url: Url | None = None
    producer: Line | None = None
    do_not_train: bool = False
    latent_mark: bool = False
    timestamp: Literal["off", "try", "required"] = "off"
    timestamp_url: Url | None = None
    timestamp_seconds: float = Field(default=5.0, gt=0, le=60, allow_inf_nan=False)
    licences: Annotated[tuple[LicenceRule, ...], Field(strict=False, max_length=20)] = ()

    @model_validator(mode="after")
    def _authority(self) -> ProvenanceRules:
        if self.timestamp != "off" and not (self.timestamp_url and urlsplit(self.timestamp_url).hostname):
            raise ValueError(f"timestamp = '{self.timestamp}' needs a timestamp_url")
        return self
