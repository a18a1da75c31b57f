"""Generated data for a first run: NLI triplets and graded pairs of captions, out of the words of `cft.data.lexicon`.

A `Scene` is a meaning: who does what, to what, where, when and how. A `Wording` is one way to say it: which synonym,
active or passive, what comes first. `render` joins the two into a sentence. Labels follow from the scenes and never
from the strings:

- a positive is the anchor's scene with parts dropped or widened (plumber -> worker -> person), then worded anew;
- a hard negative is the scene with one thing made false (opposite action, negation, swapped roles, another count or
  modifier), mostly in the same words;
- a grade is how much meaning two scenes share, by the rule in `grade`.

As in NLI, two captions are read as being about one event: "Two boys laugh" contradicts "Three boys laugh".

The data shows that training works at all. It says nothing about English.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

from cft.data.lexicon import LEXICONS, SOMETHING, Action, Lexicon, Noun, Place, Trait, Verb, article
from cft.data.records import ScoredPair, Triplet
from cft.system.errors import UserError

SPLITS = ("train", "dev", "test")

# Far below the number of scenes each lexicon can make, so that drawing anew after a repeat always ends.
MOST_ROWS = {"train": 50_000, "dev": 10_000, "test": 10_000}

SOME = 0
"""The count of a plural of unknown size, "some plumbers", which any count above one entails."""

T = TypeVar("T")


def triplets(split: str, count: int, seed: int) -> list[Triplet]:
    """Make anchors, each with one positive and one hard negative; no anchor comes twice.

    The grade of anchor and negative is always below that of anchor and positive, so training on these rows and
    evaluating on `graded_pairs` pull the same way.

    Args:
        split: a member of SPLITS; splits share no content words.
        count: rows; fewer rows of the same seed are the first rows of more.
        seed: any integer; the same seed gives the same rows on every platform.

    Returns:
        `count` triplets.

    Raises:
        UserError: if the split is unknown, or the count is negative or above MOST_ROWS[split].
    """
    lexicon = _checked_lexicon(split, count)
    rng = _random("triplets", split, seed)
    rows: dict[str, Triplet] = {}
    while len(rows) < count:
        row = _triplet(rng, lexicon)
        if row is not None:
            rows.setdefault(row.anchor, row)
    return list(rows.values())


def graded_pairs(split: str, count: int, seed: int) -> list[ScoredPair]:
    """Make pairs of sentences scored 0.0 (nothing shared) to 5.0 (same meaning) by `grade`; no pair comes twice.

    A fifth of the scores falls between each whole number and the next. Contradictions tend to keep their words and
    paraphrases to change them, so counting shared words does not give the score away.

    Args:
        split: a member of SPLITS; splits share no content words.
        count: rows; fewer rows of the same seed are the first rows of more.
        seed: any integer; the same seed gives the same rows on every platform.

    Returns:
        `count` pairs, their scores rounded to 2 decimals.

    Raises:
        UserError: if the split is unknown, or the count is negative or above MOST_ROWS[split].
    """
    lexicon = _checked_lexicon(split, count)
    rng = _random("graded_pairs", split, seed)
    rows: dict[frozenset[str], ScoredPair] = {}
    while len(rows) < count:
        row = _graded_pair(rng, lexicon)
        if row is not None:
            rows.setdefault(frozenset((row.sentence1, row.sentence2)), row)
    return list(rows.values())


def _checked_lexicon(split: str, count: int) -> Lexicon:
    """Look up the split, or say what would have been valid."""
    if split not in SPLITS:
        raise UserError(f"scenes has no split {split!r}; choose one of {', '.join(SPLITS)}")
    if not 0 <= count <= MOST_ROWS[split]:
        raise UserError(f"scenes cannot make {count} rows for {split!r}; choose a count from 0 to {MOST_ROWS[split]}")
    return LEXICONS[split]


# ---------------------------------------------------------------------------------------------------------------------
# Chance. Only `Random.random` is promised to give the same numbers in every Python, so all draws go through it.
# ---------------------------------------------------------------------------------------------------------------------


def _random(kind: str, split: str, seed: int) -> random.Random:
    """Give each kind of row and each split its own stream; a text seed is hashed by sha512, the same everywhere."""
    return random.Random(f"cft.scenes/{kind}/{split}/{seed}")


def _pick(rng: random.Random, options: Sequence[T]) -> T:
    return options[int(rng.random() * len(options))]


def _chance(rng: random.Random, probability: float) -> bool:
    return rng.random() < probability


def _shuffled(rng: random.Random, items: Sequence[T]) -> list[T]:
    rest = list(items)
    return [rest.pop(int(rng.random() * len(rest))) for _ in items]


# ---------------------------------------------------------------------------------------------------------------------
# Meaning
# ---------------------------------------------------------------------------------------------------------------------


class Outfit(NamedTuple):
    """What the actors wear, one garment each."""

    color: Trait
    garment: Noun


@dataclass(frozen=True)
class Scene:
    """What a sentence says, apart from its words. None means that it does not say.

    Where the action has `patient == "same"`, the object is an actor too; such a scene has count 1 and no outfit, so
    that swapping its roles is always possible.
    """

    actor: Noun
    action: Action
    count: int = 1
    trait: Trait | None = None
    outfit: Outfit | None = None
    object: Noun | None = None
    object_trait: Trait | None = None
    manner: Trait | None = None
    place: Place | None = None
    time: Trait | None = None
    negated: bool = False

    @property
    def has_swappable_roles(self) -> bool:
        """Whether actor and object could change places."""
        return self.action.patient == "same"


_MODIFIERS = ("trait", "outfit", "object_trait", "manner", "time")


def _draw_scene(rng: random.Random, lexicon: Lexicon) -> Scene:
    """Draw a scene that makes sense, with up to three modifiers."""
    action = _pick(rng, list(lexicon.actions.values()))
    actor = _pick(rng, [noun for noun in lexicon.actors if noun.kind in action.agents])
    scene = Scene(actor, action, object=_draw_object(rng, lexicon, action, actor))
    if not scene.has_swappable_roles:
        scene = replace(scene, count=_pick(rng, (1, 1, 1, 1, 2, 2, 3, 4, 5, SOME)))
    if scene.object is None or _chance(rng, 0.7):
        scene = replace(scene, place=_pick(rng, _places_for(lexicon, action)))
    for slot in _shuffled(rng, _MODIFIERS)[: _pick(rng, (0, 1, 1, 2, 2, 3))]:
        scene = _fill(rng, lexicon, scene, slot)
    return scene


def _places_for(lexicon: Lexicon, action: Action) -> list[Place]:
    return [place for place in lexicon.places if place.tag in action.tags]


def _draw_object(rng: random.Random, lexicon: Lexicon, action: Action, actor: Noun) -> Noun | None:
    """Draw something the action applies to: a thing, or for actions between actors another actor of the same sort."""
    if action.objects:
        return lexicon.things[_pick(rng, action.objects)]
    if not action.patient:
        return None
    patients = [noun for noun in lexicon.actors if noun is not actor]
    if action.patient == "animal":
        return _pick(rng, [noun for noun in patients if noun.kind == "animal"])
    return _pick(rng, [n for n in patients if n.kind in action.agents and n.is_person == actor.is_person])


def _fill(rng: random.Random, lexicon: Lexicon, scene: Scene, slot: str) -> Scene:
    """Give the scene a modifier in this slot, if any suits."""
    if slot == "outfit":
        if scene.has_swappable_roles or not scene.actor.is_person:
            return scene
        return replace(scene, outfit=Outfit(_pick(rng, lexicon.colors), _pick(rng, lexicon.garments)))
    options: Sequence[Trait] = lexicon.times
    if slot != "time":
        bearer = {"trait": scene.actor.families, "manner": scene.action.manners}
        families = bearer.get(slot, scene.object.families if scene.object else ())
        options = [trait for family in families for trait in lexicon.family(family)]
    return _with(scene, slot, _pick(rng, options)) if options else scene


def _with(scene: Scene, slot: str, value: Any) -> Scene:
    return replace(scene, **{slot: value})


# ---------------------------------------------------------------------------------------------------------------------
# Words
# ---------------------------------------------------------------------------------------------------------------------

_FRAMES = ("progressive", "progressive", "present", "existential", "caption")
_SLOTS = ("count", "actor", "trait", "garment", "action", "object", "object_trait", "manner", "place", "time")
_COUNTS = {
    SOME: ("some",),
    2: ("two", "a pair of"),
    3: ("three", "a group of three"),
    4: ("four", "a group of four"),
    5: ("five", "a group of five"),
}


class Wording(NamedTuple):
    """The choices a scene leaves open. A choice that cannot apply to a scene is ignored.

    `synonyms` has a number for each slot, which picks among however many words the slot's concept has.
    """

    synonyms: tuple[int, ...] = (0,) * len(_SLOTS)
    frame: str = "progressive"  # or present, existential ("There is a ..."), caption (no finite verb)
    voice: str = "active"  # or passive, converse
    front: str = ""  # or place, time: what opens the sentence
    early_manner: bool = False  # "quietly eats soup", not "eats soup quietly"
    wearing: bool = False  # "wearing a hat", not "in a hat"
    bare: bool = False  # "soup", not "some soup"
    denial: str = "not"  # or no ("No boy is ..."), nobody

    def word(self, slot: str, options: Sequence[T]) -> T:
        """Choose this wording's synonym for a slot."""
        return options[self.synonyms[_SLOTS.index(slot)] % len(options)]


def _draw_wording(rng: random.Random) -> Wording:
    return Wording(
        synonyms=tuple(_pick(rng, (0, 0, 0, 1, 2)) for _ in _SLOTS),
        frame=_pick(rng, _FRAMES),
        voice=_pick(rng, ("active", "active", "passive", "converse")),
        front=_pick(rng, ("", "", "", "place", "time")),
        early_manner=_chance(rng, 0.4),
        wearing=_chance(rng, 0.4),
        bare=_chance(rng, 0.5),
        denial=_pick(rng, ("not", "not", "no", "nobody")),
    )


def _reworded(rng: random.Random, wording: Wording) -> Wording:
    """Draw a wording that has another synonym wherever there is one, and another voice."""
    return _draw_wording(rng)._replace(
        synonyms=tuple(number + 1 for number in wording.synonyms),
        voice=_pick(rng, ("passive", "converse")) if wording.voice == "active" else "active",
    )


class _Clause(NamedTuple):
    """A sentence before its frame: subject, verb, and what stays with the verb."""

    subject: str
    is_plural: bool
    verb: Verb
    complement: str
    early_adverb: str = ""
    late_adverb: str = ""


def render(scene: Scene, wording: Wording) -> str:
    """Say the scene in these words, as one sentence."""
    adverbial = {
        "place": wording.word("place", scene.place.phrases) if scene.place else "",
        "time": wording.word("time", scene.time.words) if scene.time else "",
    }
    # A caption has no finite verb, so it cannot say "not", and an opening phrase would leave it dangling.
    frame = "progressive" if scene.negated and wording.frame == "caption" else wording.frame
    front = "" if frame == "caption" else adverbial.pop(wording.front, "")
    clause = _clause(scene, wording)
    body = _framed(clause, frame, scene.negated and not _denied_by_subject(scene, wording))
    words = [body, clause.complement, clause.late_adverb, *adverbial.values()]
    sentence = " ".join(word for word in (f"{front}," if front else "", *words) if word)
    return f"{sentence[0].upper()}{sentence[1:]}."


def _framed(clause: _Clause, frame: str, is_denied: bool) -> str:
    """Put subject and verb into the frame. What is denied is always put in the progressive."""
    adverb = f"{clause.early_adverb} " if clause.early_adverb else ""
    be = "are" if clause.is_plural else "is"
    if is_denied:
        return f"{clause.subject} {be} not {adverb}{clause.verb.ing}"
    if frame == "present":
        return f"{clause.subject} {adverb}{clause.verb.base if clause.is_plural else clause.verb.third}"
    if frame == "existential":
        return f"there {be} {clause.subject} {adverb}{clause.verb.ing}"
    return f"{clause.subject} {'' if frame == 'caption' else f'{be} '}{adverb}{clause.verb.ing}"


def _denied_by_subject(scene: Scene, wording: Wording) -> bool:
    """Whether the negation sits in "no" or "nobody"; "some boys are not laughing" would deny too little."""
    return scene.negated and (wording.denial != "not" or scene.count == SOME)


def _clause(scene: Scene, wording: Wording) -> _Clause:
    """Choose the voice: what is the subject, and which verb goes with it."""
    actor = _actor_phrase(scene, wording)
    verb = wording.word("action", scene.action.verbs)
    manner = wording.word("manner", scene.manner.words) if scene.manner else ""
    if scene.object is None:
        return _active(actor, scene, wording, verb, "", manner)
    voice = "active" if _denied_by_subject(scene, wording) else wording.voice
    # "Something is not being eaten" says another thing than "nothing is being eaten".
    is_indefinite = scene.negated and scene.object is SOMETHING
    acted_on = "anything" if is_indefinite else _object_phrase(scene.object, scene, wording)
    if voice == "converse" and scene.action.converse:
        return _Clause(acted_on, False, wording.word("action", scene.action.converse), actor)
    passives = [option for option in scene.action.verbs if option.participle]
    if voice == "passive" and passives and not is_indefinite:
        verb = _passive(wording.word("action", passives), manner)
        return _Clause(acted_on, scene.object.kind == "many", verb, f"by {actor}")
    return _active(actor, scene, wording, verb, acted_on, manner)


def _active(actor: str, scene: Scene, wording: Wording, verb: Verb, complement: str, manner: str) -> _Clause:
    is_plural = scene.count != 1 and actor != "nobody"
    if wording.early_manner:
        return _Clause(actor, is_plural, verb, complement, early_adverb=manner)
    return _Clause(actor, is_plural, verb, complement, late_adverb=manner)


def _passive(verb: Verb, manner: str) -> Verb:
    """Make a verb of its own from the passive; the adverb goes inside, lest it seem to belong to the actor."""
    done = f"{manner} {verb.participle}" if manner else verb.participle
    return Verb(f"are {done}", f"is {done}", f"being {done}", "")


def _actor_phrase(scene: Scene, wording: Wording) -> str:
    """Name the actors, as "two tired plumbers in red coats"."""
    if _denied_by_subject(scene, wording) and wording.denial == "nobody" and scene.actor.is_person:
        return "nobody"
    forms = scene.actor.singulars if scene.count == 1 else scene.actor.plurals
    noun = wording.word("actor", forms)
    if scene.trait:
        noun = f"{wording.word('trait', scene.trait.words)} {noun}"
    if scene.outfit:
        noun = f"{noun} {'wearing' if wording.wearing else 'in'} {_outfit_phrase(scene.outfit, scene.count, wording)}"
    if _denied_by_subject(scene, wording):
        return f"no {noun}"
    if scene.count == 1:
        return article(noun)
    if scene.count == SOME and wording.bare:
        return noun
    # "There are a pair of" is nobody's English.
    counts = _COUNTS[scene.count][:1] if wording.frame == "existential" else _COUNTS[scene.count]
    return f"{wording.word('count', counts)} {noun}"


def _outfit_phrase(outfit: Outfit, count: int, wording: Wording) -> str:
    forms = outfit.garment.singulars if count == 1 else outfit.garment.plurals
    garment = f"{outfit.color.words[0]} {wording.word('garment', forms)}"
    return article(garment) if count == 1 else garment


def _object_phrase(thing: Noun, scene: Scene, wording: Wording) -> str:
    """Name what is acted on, as "a large crate", "some soup" or "something"."""
    noun = wording.word("object", thing.singulars)
    if thing.kind == "pronoun":
        return noun
    if scene.object_trait:
        noun = f"{wording.word('object_trait', scene.object_trait.words)} {noun}"
    if thing.kind in ("many", "mass"):
        return noun if wording.bare or scene.negated else f"some {noun}"
    return article(noun)


# ---------------------------------------------------------------------------------------------------------------------
# What follows from a scene, and what contradicts it
# ---------------------------------------------------------------------------------------------------------------------

_Change = Callable[[random.Random, Lexicon, Scene], "Scene | None"]
"""Makes another scene from one, or returns None where the change does not apply."""


def _drop(slot: str) -> _Change:
    """Make the change that no longer says what is in the slot."""

    def change(rng: random.Random, lexicon: Lexicon, scene: Scene) -> Scene | None:
        return None if getattr(scene, slot) is None else _with(scene, slot, None)

    return change


def _forget_count(rng: random.Random, lexicon: Lexicon, scene: Scene) -> Scene | None:
    return replace(scene, count=SOME) if scene.count > 1 else None


def _widen_actor(rng: random.Random, lexicon: Lexicon, scene: Scene) -> Scene | None:
    wider = scene.actor.ancestors()
    if not wider:
        return None
    actor = _pick(rng, wider)
    return None if actor is scene.object else replace(scene, actor=actor)


def _widen_object(rng: random.Random, lexicon: Lexicon, scene: Scene) -> Scene | None:
    """Name a wider kind; its trait goes, because a small truck is not a small vehicle."""
    wider = scene.object.ancestors() if scene.object else []
    if not wider:
        return None
    wide = _pick(rng, wider)
    return None if wide is scene.actor else replace(scene, object=wide, object_trait=None)


def _widen_place(rng: random.Random, lexicon: Lexicon, scene: Scene) -> Scene | None:
    return replace(scene, place=scene.place.parent) if scene.place and scene.place.parent else None


def _other_actor(rng: random.Random, lexicon: Lexicon, scene: Scene) -> Scene | None:
    options = [noun for noun in lexicon.actors if noun.kind in scene.action.agents]
    if scene.has_swappable_roles:
        options = [noun for noun in options if noun.is_person == scene.actor.is_person and noun is not scene.object]
    actor = _pick(rng, [noun for noun in options if noun is not scene.actor])
    suits = scene.trait is not None and scene.trait.family in actor.families
    return replace(
        scene,
        actor=actor,
        trait=scene.trait if suits else None,
        outfit=scene.outfit if actor.is_person else None,
    )


def _other_object(rng: random.Random, lexicon: Lexicon, scene: Scene) -> Scene | None:
    if scene.object is None:
        return None
    thing = _draw_object(rng, lexicon, scene.action, scene.actor)
    if thing is None or thing is scene.object or thing in scene.object.ancestors():
        return None
    suits = scene.object_trait is not None and scene.object_trait.family in thing.families
    return replace(scene, object=thing, object_trait=scene.object_trait if suits else None)


def _other_thing(rng: random.Random, lexicon: Lexicon, scene: Scene) -> Scene | None:
    """Apply the same action to another thing; not to another actor, since a nurse may be a neighbor too."""
    return None if scene.object is None or scene.object.is_animate else _other_object(rng, lexicon, scene)


def _other_place(rng: random.Random, lexicon: Lexicon, scene: Scene) -> Scene | None:
    if scene.place is None:
        return None
    # A widened place ("indoors") does not exclude the places it contains.
    excluded = [scene.place, *(place for place in lexicon.places if place.parent is scene.place)]
    options = [place for place in _places_for(lexicon, scene.action) if place not in excluded]
    return replace(scene, place=_pick(rng, options)) if options else None


def _other_count(rng: random.Random, lexicon: Lexicon, scene: Scene) -> Scene | None:
    if scene.has_swappable_roles or scene.count == SOME:
        return None
    # Never down to one: where there are two boys there is, strictly, a boy.
    return replace(scene, count=_pick(rng, [count for count in (2, 3, 4, 5) if count != scene.count]))


def _other_outfit(rng: random.Random, lexicon: Lexicon, scene: Scene) -> Scene | None:
    if scene.outfit is None:
        return None
    colors = [color for color in lexicon.colors if color is not scene.outfit.color]
    return replace(scene, outfit=scene.outfit._replace(color=_pick(rng, colors)))


def _other_modifier(slot: str) -> _Change:
    """Make the change that puts another trait of the same family into the slot."""

    def change(rng: random.Random, lexicon: Lexicon, scene: Scene) -> Scene | None:
        old = getattr(scene, slot)
        if old is None:
            return None
        traits = lexicon.times if slot == "time" else lexicon.family(old.family)
        rivals = [trait for trait in traits if trait.family == old.family and trait is not old]
        return _with(scene, slot, _pick(rng, rivals))

    return change


def _other_action(rng: random.Random, lexicon: Lexicon, scene: Scene) -> Scene | None:
    """Have the actor do something that is neither the same nor the opposite, to the same object where it can be."""
    options = [
        action
        for action in lexicon.actions.values()
        if scene.actor.kind in action.agents
        and action.name not in (scene.action.name, scene.action.opposite)
        and (scene.place is None or scene.place.tag in action.tags)
        and (action.patient == "same") == scene.has_swappable_roles
    ]
    if not options:
        return None
    same_object = [action for action in options if scene.object and scene.object.name in action.objects]
    action = _pick(rng, same_object if same_object and _chance(rng, 0.7) else options)
    keeps_object = action in same_object or (
        scene.has_swappable_roles and scene.object is not None and scene.object.kind in action.agents
    )
    return replace(
        scene,
        action=action,
        object=scene.object if keeps_object else _draw_object(rng, lexicon, action, scene.actor),
        object_trait=scene.object_trait if keeps_object else None,
        manner=scene.manner if scene.manner and scene.manner.family in action.manners else None,
    )


def _opposite_action(rng: random.Random, lexicon: Lexicon, scene: Scene) -> Scene | None:
    return replace(scene, action=lexicon.actions[scene.action.opposite])


def _negate(rng: random.Random, lexicon: Lexicon, scene: Scene) -> Scene | None:
    return replace(scene, negated=not scene.negated)


def _swap_roles(rng: random.Random, lexicon: Lexicon, scene: Scene) -> Scene | None:
    return _swapped(scene) if scene.has_swappable_roles else None


def _swapped(scene: Scene) -> Scene:
    """Exchange actor and object, each keeping its own trait."""
    assert scene.object is not None
    return replace(scene, actor=scene.object, object=scene.actor, trait=scene.object_trait, object_trait=scene.trait)


_ENTAILING: tuple[_Change, ...] = (
    _widen_actor,
    _widen_object,
    _widen_place,
    _forget_count,
    *(_drop(slot) for slot in (*_MODIFIERS, "place")),
)
_MINOR: tuple[_Change, ...] = (
    _other_place,
    _other_count,
    _other_outfit,
    *(_other_modifier(slot) for slot in ("trait", "object_trait", "manner", "time")),
)
_MAJOR: tuple[_Change, ...] = (_other_actor, _other_object, _other_action, _other_place)
_CONTRADICTING: tuple[_Change, ...] = (_opposite_action, _negate, _swap_roles)


def _change(rng: random.Random, lexicon: Lexicon, scene: Scene, changes: Sequence[_Change], times: int) -> Scene:
    """Apply the first `times` of these changes, in a random order, that apply at all."""
    left = times
    for change in _shuffled(rng, changes):
        changed = change(rng, lexicon, scene) if left else None
        if changed is not None:
            scene, left = changed, left - 1
    return scene


# ---------------------------------------------------------------------------------------------------------------------
# Grades
# ---------------------------------------------------------------------------------------------------------------------

_WEIGHTS = {"actor": 1.2, "action": 1.8, "object": 1.0, "place": 0.6, "count": 0.2} | dict.fromkeys(_MODIFIERS, 0.2)
_BEARERS = {"count": "actor", "trait": "actor", "outfit": "actor", "object_trait": "object", "manner": "action"}
_NEAR_KIND, _WIDEST_KIND, _SIBLING = 0.6, 0.4, 0.3
_CONTRADICTED = 0.3


def grade(first: Scene, second: Scene) -> float:
    """Grade how much meaning two scenes share, from 0.0 to 5.0.

    1. Each part has a weight: action 1.8, actor 1.2, object 1.0, place 0.6, and 0.2 each for the count and every
       modifier. A part that only one scene mentions counts half its weight; one that neither mentions, nothing.
    2. Each part that both mention earns a credit from 0 to 1. Actors and objects: 1 if the same, 0.6 if one is a kind
       of the other, 0.4 if one is only called person, animal or something, 0.3 if both are of one narrower kind (two
       sorts of worker). Place: 1, or 0.5 if one contains the other. Count: 1, or 0.5 for "some" and a number above
       one. Outfit: half for the color, half for the garment. Everything else: 1 or 0.
    3. What describes a part is worth no more than that part: the credit of count, trait and outfit is multiplied by
       the actor's, that of manner by the action's, that of the object's trait by the object's.
    4. The grade is 5 x (weights x credits) / weights.
    5. A contradiction keeps 0.3 of it, so at most 1.5: one of the two is negated, the actions are opposites, or the
       roles are swapped. Opposites share no action, so they are graded as if the actions were the same.
    """
    score = shared = _shared(first, second)
    if first.negated != second.negated or first.action.opposite == second.action.name:
        score = _CONTRADICTED * _shared(first, replace(second, action=first.action))
    if first.has_swappable_roles and second.has_swappable_roles:
        # Both ways, because an actor weighs more than an object and a grade must not depend on the order.
        crossed = (_shared(first, _swapped(second)) + _shared(_swapped(first), second)) / 2
        if crossed > shared:
            score = min(score, _CONTRADICTED * crossed)
    return round(score, 2)


def _shared(first: Scene, second: Scene) -> float:
    """Steps 1 to 4 of `grade`."""
    credit: dict[str, float] = {}
    earned = weights = 0.0
    for slot, weight in _WEIGHTS.items():  # a part comes before what describes it
        one, other = getattr(first, slot), getattr(second, slot)
        weights += weight * ((one is not None) + (other is not None)) / 2
        credit[slot] = _credit(slot, one, other)
        if credit[slot]:
            bearer = _BEARERS.get(slot)
            earned += weight * credit[slot] * (credit[bearer] if bearer else 1.0)
    return 5 * earned / weights


def _credit(slot: str, first: object, second: object) -> float:
    """Step 2 of `grade`, for one part; 0 where a scene does not mention it."""
    if first is None or second is None:
        return 0.0
    if first is second or first == second:
        return 1.0
    if isinstance(first, Noun) and isinstance(second, Noun):
        return _kinship(first, second)
    if isinstance(first, Place) and isinstance(second, Place):
        return 0.5 if first.parent == second or second.parent == first else 0.0
    if isinstance(first, Outfit) and isinstance(second, Outfit):
        return ((first.color == second.color) + (first.garment == second.garment)) / 2
    if slot == "count":
        return 0.5 if SOME in (first, second) and 1 not in (first, second) else 0.0
    return 0.0


def _kinship(first: Noun, second: Noun) -> float:
    for narrow, wide in ((first, second), (second, first)):
        if wide in narrow.ancestors():
            return _NEAR_KIND if wide.parent else _WIDEST_KIND
    has_narrow_parent = first.parent is not None and first.parent.parent is not None
    return _SIBLING if has_narrow_parent and first.parent == second.parent else 0.0


# ---------------------------------------------------------------------------------------------------------------------
# Rows
# ---------------------------------------------------------------------------------------------------------------------


def _triplet(rng: random.Random, lexicon: Lexicon) -> Triplet | None:
    """Draw one triplet, or None where the draw does not make a good one."""
    anchor, wording = _draw_scene(rng, lexicon), _draw_wording(rng)
    if anchor.count != SOME and _chance(rng, 0.06):
        # Without denied anchors, "not" alone would mark a negative. Nothing may be dropped from a denied scene:
        # that a boy is not eating does not follow from his not eating quickly.
        anchor, wording = replace(anchor, negated=True), wording._replace(denial="not")
        positive, negative = anchor, replace(anchor, negated=False)
        spoken = wording
    else:
        positive = _change(rng, lexicon, anchor, _ENTAILING, _pick(rng, (0, 1, 1, 2, 2, 3)))
        # A negative of the positive also contradicts the anchor, which says more.
        base = positive if _chance(rng, 0.25) else anchor
        changes = _pick(rng, (_CONTRADICTING, _CONTRADICTING, (*_MINOR, _other_thing)))
        negative = _change(rng, lexicon, base, changes, 1)
        spoken = wording if _chance(rng, 0.75) else _reworded(rng, wording)
    if grade(anchor, negative) >= grade(anchor, positive):
        return None
    restated = _reworded(rng, wording)._replace(denial="not")
    texts = [render(anchor, wording), render(positive, restated), render(negative, spoken)]
    return Triplet(texts[0], texts[1], (texts[2],)) if _are_fit(texts) else None


def _are_fit(texts: list[str]) -> bool:
    """Whether all differ and none is a stump such as "A boy laughs."."""
    return len(set(texts)) == len(texts) and all(text.count(" ") >= 3 for text in texts)


def _graded_pair(rng: random.Random, lexicon: Lexicon) -> ScoredPair | None:
    """Draw one pair whose grade falls in a band drawn beforehand, so that the bands come out even."""
    band = int(rng.random() * 5)
    first = _draw_scene(rng, lexicon)
    if first.count != SOME and _chance(rng, 0.06):
        first = replace(first, negated=True)
    # A hundred misses are rare (one scene in hundreds, for one band); giving up on those keeps every call finite.
    candidates = (_scene_to_compare(rng, lexicon, first) for _ in range(100))
    second = next((scene for scene in candidates if min(int(grade(first, scene)), 4) == band), None)
    if second is None or (first.negated and second.negated and second.count == SOME):
        return None  # "no queens are sewing" denies more than "three queens are not", which no grade accounts for
    wording = _draw_wording(rng)._replace(denial="not")
    spoken = _reworded(rng, wording) if _chance(rng, 0.8 if band >= 3 else 0.3) else wording
    if first.negated:
        spoken = spoken._replace(denial="not")
    texts = [render(first, wording), render(second, spoken)]
    if _chance(rng, 0.5):
        texts.reverse()
    return ScoredPair(texts[0], texts[1], grade(first, second)) if _are_fit(texts) else None


def _scene_to_compare(rng: random.Random, lexicon: Lexicon, scene: Scene) -> Scene:
    """Draw a scene that relates to this one in one of the ways a grade can tell apart."""
    recipe = _pick(rng, ("same", "wider", "minor", "major", "major", "contradiction", "one part", "unrelated"))
    if recipe == "wider":
        return _change(rng, lexicon, scene, _ENTAILING, _pick(rng, (1, 2, 3, 4)))
    if recipe == "minor":
        return _change(rng, lexicon, scene, _MINOR, _pick(rng, (1, 2)))
    if recipe == "major":
        changed = _change(rng, lexicon, scene, _MAJOR, _pick(rng, (1, 2, 3)))
        return _change(rng, lexicon, changed, (*_MINOR, *_ENTAILING), _pick(rng, (0, 1, 2)))
    if recipe == "contradiction":
        wider = _change(rng, lexicon, scene, _ENTAILING, _pick(rng, (0, 0, 1, 2)))
        # Two denials do not contradict each other, whatever they deny.
        return _change(rng, lexicon, wider, (_negate,) if scene.negated else _CONTRADICTING, 1)
    if recipe == "one part":
        return _draw_scene_sharing_one_part(rng, lexicon, scene)
    return scene if recipe == "same" else replace(_draw_scene(rng, lexicon), negated=scene.negated)


def _draw_scene_sharing_one_part(rng: random.Random, lexicon: Lexicon, scene: Scene) -> Scene:
    """Draw a scene with the place of this one or, if that does not suit its action, with as much as comes by chance."""
    other = replace(_draw_scene(rng, lexicon), negated=scene.negated)
    suits = scene.place is not None and scene.place.tag in other.action.tags
    return replace(other, place=scene.place) if suits else other
