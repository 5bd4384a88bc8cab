"""What the policy wants written into a picture besides the facts, as the stamp takes it. Knows no format."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MetadataRules:
    """`prompts_in_clear`: prompts are written as they are; else a keyed hash stands for them, and texts of web UIs have none.

    `prompt_writer`, `creator`, `rights` and `rights_url` go into IPTC, Dublin Core and XMP rights fields; `producer` is the name of the
    service in the TC260 label (None: the signer's name). `do_not_train`: a CAWG training-and-data-mining assertion and the PLUS field.
    `web_ui_text`: the `parameters` text that Stable Diffusion web UIs read back.
    """

    prompts_in_clear: bool = False
    prompt_writer: str | None = None
    creator: str | None = None
    rights: str | None = None
    rights_url: str | None = None
    producer: str | None = None
    do_not_train: bool = False
    web_ui_text: bool = True


DEFAULT_RULES = MetadataRules()
