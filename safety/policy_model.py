"""What a policy file may say: strict data models, where a key that is not known is refused. Reads no file and judges nothing.

Numbers are detector scores in [0, 1]. A category's rule for one stage finds it at `threshold`; the severity bands grade the score for
combination rules, also below the threshold.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from platemark.safety.decision import Action, Severity, Stage
from platemark.safety.normalize import plain
from platemark.safety.policy_fields import Bands, FileAction, FileSeverity, Name, Phrase, Phrases, Score, Stages, Strict
from platemark.safety.policy_provenance import ProvenanceRules

TAGS = ("undress_intent", "face_swap_intent", "minor_term", "named_person", "face")
BASE_CATEGORIES = ("sexual", "violence", "hate", "self_harm", "minors", "deception")
LOCKED_CATEGORIES = ("sexual", "violence", "deception", "minors")  # what the locked rules stand on: see platemark.safety.rules
LOCKED_LOW = 0.5  # their low band begins no higher, so that no policy lifts a locked rule
RESERVED = "locked_"  # how the ids of the locked rules begin

_EVERYWHERE: tuple[Stage, ...] = ("prompt", "input_image", "output_image")


class StageRule(Strict):
    """How one category is judged at one stage.

    `thresholds`: a detector's own threshold, by its name. `combine`, where several detectors speak of the category: `any` of them is
    enough, or `all` must agree (a second opinion).
    """

    enabled: bool = True
    action: FileAction
    threshold: Score
    severity: Bands = Bands()
    combine: Literal["any", "all"] = "any"
    thresholds: dict[Name, Score] = Field(default_factory=dict)


class PromptRule(StageRule):
    """`terms` are found in addition to the built-in ones (`base_lexicon`); inside `exceptions` a term means nothing."""

    base_lexicon: bool = True
    terms: Phrases = ()
    exceptions: Phrases = ()

    @model_validator(mode="after")
    def _words(self) -> PromptRule:
        if self.action in (Action.BLUR, Action.REGENERATE):
            raise ValueError(f"a prompt cannot be answered with '{self.action.value}': use allow, flag or block")
        blank = [phrase for phrase in self.terms + self.exceptions if not plain(phrase)]
        if blank:
            raise ValueError(f"{blank[0]!r} holds no letter or digit to look for")
        return self


class ImageRule(StageRule):
    """`concepts`: texts that the bundle's CLIP looks for; `calibration`: added to a concept's cosine before it is compared with others."""

    concepts: Phrases = ()
    calibration: dict[Phrase, Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _concepts(self) -> ImageRule:
        if any(not concept.strip() for concept in self.concepts):
            raise ValueError("a concept is blank")
        strangers = sorted(set(self.calibration) - set(self.concepts))
        if strangers:
            raise ValueError(f"calibration names {strangers[0]!r}, which is no concept of this rule")
        return self


class InputImageRule(ImageRule):
    """A picture that a user brings is used or refused; it is neither blurred nor made anew."""

    @model_validator(mode="after")
    def _possible(self) -> InputImageRule:
        if self.action in (Action.BLUR, Action.REGENERATE):
            raise ValueError(f"an input image cannot be answered with '{self.action.value}': use allow, flag or block")
        return self


class Category(Strict):
    """`locked`: a policy that extends this one may make the category stricter, and nothing else."""

    locked: bool = False
    prompt: PromptRule | None = None
    input_image: InputImageRule | None = None
    output_image: ImageRule | None = None

    @model_validator(mode="after")
    def _not_empty(self) -> Category:
        if self.prompt is None and self.input_image is None and self.output_image is None:
            raise ValueError("the category is empty: give it `prompt`, `input_image` or `output_image`")
        return self

    def stage(self, stage: Stage) -> StageRule | None:
        """The rule for a stage (`negative_prompt` has that of `prompt`), where there is one and it is enabled."""
        rules: dict[Stage, StageRule | None] = {"input_image": self.input_image, "output_image": self.output_image}
        rule = rules.get(stage, self.prompt)
        return rule if rule is not None and rule.enabled else None


class Condition(Strict):
    """A category (of at least this severity) or a tag that must have been seen, in the prompt or in the picture."""

    signal: Name
    at_least: FileSeverity = Severity.LOW


class CombinationRule(Strict):
    """Holds where every condition of `all` and, if there are any, one of `any` is met. `input_image`: only where one was given (or not).

    `locked`: a policy that extends this one keeps the rule as it is.
    """

    id: Name
    locked: bool = False
    action: FileAction
    stages: Stages = _EVERYWHERE
    all: Annotated[tuple[Condition, ...], Field(strict=False)] = ()
    any: Annotated[tuple[Condition, ...], Field(strict=False)] = ()
    input_image: bool | None = None

    @model_validator(mode="after")
    def _possible(self) -> CombinationRule:
        if not self.all and not self.any:
            raise ValueError("the rule has no condition: give it `all` or `any`")
        if self.action in (Action.BLUR, Action.REGENERATE) and self.stages != ("output_image",):
            raise ValueError(f"'{self.action.value}' is for output pictures alone: give the rule stages = [\"output_image\"]")
        return self


class Person(Strict):
    """A real person whom prompts may name, and other spellings."""

    name: Phrase
    aliases: Phrases = ()


class NamedPersons(Strict):
    """`action`: what a mention alone does. `base_list`: also look for the built-in names."""

    action: FileAction = Action.ALLOW
    base_list: bool = True
    list: Annotated[tuple[Person, ...], Field(strict=False)] = ()


class People(Strict):
    """`real_face_input`: whether a picture with a face may be brought: never, with a consent reference, or always.

    `locked`: a policy that extends this one may make it stricter only.

    `minors`: what a mention of a child alone does. `face_threshold`: from which score on a found face counts; bounded, since a locked
    rule stands on it.
    """

    locked: bool = False
    real_face_input: Literal["deny", "consent", "allow"]
    minors: FileAction = Action.ALLOW
    face_threshold: float = Field(default=0.5, gt=0, le=0.6, allow_inf_nan=False)
    named_persons: NamedPersons = NamedPersons()

    @model_validator(mode="after")
    def _prompt_actions(self) -> People:
        if {self.minors, self.named_persons.action} & {Action.BLUR, Action.REGENERATE}:
            raise ValueError("a mention in a prompt is answered with allow, flag or block")
        return self


class DetectorRule(Strict):
    """A detector that the policy wants. `required` false: used where its extra is installed. `sha256`: the model it must be, hex.

    `path`, for `clip` alone: a folder that `optimize.clip.export_clip` made, used in place of the bundle's own CLIP.
    """

    name: Name
    path: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    required: bool = True
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    timeout_seconds: float | None = Field(default=None, gt=0, le=600, allow_inf_nan=False)

    @model_validator(mode="after")
    def _only_clip(self) -> DetectorRule:
        if self.path is not None and self.name != "clip":
            raise ValueError("only the detector 'clip' is read from a path")
        return self


class AuditRules(Strict):
    """`locked`: a policy that extends this one may not switch the log off, write prompts in clear, or keep it for less long."""

    enabled: bool
    locked: bool = False
    prompts_in_clear: bool = False
    rotate_mib: int = Field(default=16, ge=1, le=1024)
    retain_days: int = Field(default=365, ge=1, le=36500)


class RegenerateRule(Strict):
    """`max`: how many times a picture is rendered anew before it counts as blocked."""

    max: int = Field(ge=0, le=10)


class PolicyFile(Strict):
    """What a policy file holds. `timeout_seconds`: how long one look of one detector may take.

    `previews`: whether callers may see what an unchecked picture looks like while it is made, a pixel for each cell of its latents.
    """

    version: int = Field(ge=2, le=2)
    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    fail: Literal["closed"]
    image_filter: Literal["required", "available"]
    previews: bool = False
    timeout_seconds: float = Field(default=30.0, gt=0, le=600, allow_inf_nan=False)
    provenance: ProvenanceRules
    regenerate: RegenerateRule
    audit: AuditRules
    people: People
    detectors: Annotated[tuple[DetectorRule, ...], Field(strict=False)] = ()
    categories: dict[Name, Category] = Field(min_length=1)
    rules: Annotated[tuple[CombinationRule, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _names(self) -> PolicyFile:
        for kind, names in (("detectors", [d.name for d in self.detectors]), ("rules", [r.id for r in self.rules])):
            if len(set(names)) < len(names):
                raise ValueError(f"{kind}: a name is given twice")
        tags = sorted(set(self.categories) & set(TAGS))
        if tags:
            raise ValueError(f"categories.{tags[0]} has the name of a tag; use it in [[rules]]")
        reserved = next((rule.id for rule in self.rules if rule.id.startswith(RESERVED)), None)
        if reserved:
            raise ValueError(f"rules.{reserved}: ids that begin with '{RESERVED}' are those of the built-in rules")
        known = {*self.categories, *TAGS, *BASE_CATEGORIES}
        for rule in self.rules:
            for condition in (*rule.all, *rule.any):
                if condition.signal not in known:
                    raise ValueError(f"rules.{rule.id}: there is no category or tag '{condition.signal}'")
        return self

    @model_validator(mode="after")
    def _one_calibration(self) -> PolicyFile:
        seen: dict[str, float] = {}
        for category in self.categories.values():
            for rule in (category.input_image, category.output_image):
                for concept, offset in (rule.calibration if rule else {}).items():
                    if seen.setdefault(concept, offset) != offset:
                        raise ValueError(f"calibration gives the concept {concept!r} two values")
        return self

    @model_validator(mode="after")
    def _locked_bands(self) -> PolicyFile:
        for name in LOCKED_CATEGORIES:
            category = self.categories.get(name)
            stages = (category.prompt, category.input_image, category.output_image) if category else ()
            if any(rule and rule.severity.low > LOCKED_LOW for rule in stages):
                raise ValueError(f"categories.{name}: a locked rule stands on it, so its low band may begin at {LOCKED_LOW} at most")
        return self

    @property
    def clip_path(self) -> str | None:
        """The exported CLIP folder that the policy names."""
        return next((one.path for one in self.detectors if one.name == "clip"), None)

    def rule(self, category: str, stage: Stage) -> StageRule | None:
        """The enabled rule for a category at a stage."""
        found = self.categories.get(category)
        return found.stage(stage) if found else None

    @property
    def prompt_rules(self) -> dict[str, PromptRule]:
        """The enabled prompt rules by category."""
        return {name: c.prompt for name, c in self.categories.items() if c.prompt and c.prompt.enabled}

    def image_rules(self, stage: Literal["input_image", "output_image"]) -> dict[str, ImageRule]:
        """The enabled image rules of a stage by category."""
        found = {name: c.input_image if stage == "input_image" else c.output_image for name, c in self.categories.items()}
        return {name: rule for name, rule in found.items() if rule and rule.enabled}

    @property
    def concepts(self) -> dict[str, tuple[str, ...]]:
        """The concepts that pictures are searched for, by category, over both image stages."""
        both = [*self.image_rules("output_image").items(), *self.image_rules("input_image").items()]
        found: dict[str, dict[str, None]] = {}
        for name, rule in both:
            found.setdefault(name, {}).update(dict.fromkeys(rule.concepts))
        return {name: tuple(texts) for name, texts in found.items() if texts}

    @property
    def calibration(self) -> dict[str, float]:
        """What is added to the cosine of each calibrated concept."""
        both = (*self.image_rules("input_image").values(), *self.image_rules("output_image").values())
        return {concept: offset for rule in both for concept, offset in rule.calibration.items()}


class Policy(PolicyFile):
    """A policy in force. `sha256`: of the bytes of the file and of those that it extends, hex."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
