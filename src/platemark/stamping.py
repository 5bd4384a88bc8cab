"""From the policy's `[provenance]` block to the stamp's rules: the two stages know nothing of each other."""

from __future__ import annotations

from platemark.provenance.metadata.rules import MetadataRules
from platemark.provenance.record import Licence
from platemark.provenance.stamp import StampRules
from platemark.provenance.timestamps import TimestampRule
from platemark.safety.policy_provenance import ProvenanceRules


def stamp_rules(policy: ProvenanceRules) -> StampRules:
    """What the stamp does under a policy."""
    return StampRules(
        require_watermark=policy.require_watermark,
        metadata=MetadataRules(
            prompts_in_clear=policy.prompts_in_metadata,
            prompt_writer=policy.prompt_writer,
            creator=policy.creator,
            rights=policy.rights,
            rights_url=policy.rights_url,
            producer=policy.producer,
            do_not_train=policy.do_not_train,
            web_ui_text=policy.web_ui_text,
        ),
        timestamp=TimestampRule(mode=policy.timestamp, url=policy.timestamp_url, budget_seconds=policy.timestamp_seconds),
        licences=tuple(Licence(part=one.part, name=one.name, licence=one.licence, url=one.url) for one in policy.licences),
    )
