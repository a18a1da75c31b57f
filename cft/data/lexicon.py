"""The words of `cft.data.scenes`: three lexicons that share no content word, and the sense each word has.

A split owns its actors, verbs, things, places and modifiers, so a score on `test` cannot come from words met in
`train`. Only function words, number words and the widest nouns ("person", "animal", "something") are common.

The tables below are text, to be read and edited as a list of words:

    "a, b / c, d"          three concepts: `a`; `b` with its synonym `c`; `d`. The first word is the concept's name.
    "boy=boys"             a noun that is counted: singular and plural.
    "eat=eats=eating=eaten"  a verb: base, third person, -ing form, participle; no participle means no passive.

Every word that may follow an article starts with the sound its first letter suggests ("an apron", never
"a uniform"), because `article` looks at that letter alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

PERSON_KINDS = ("adult", "child")
INDOOR_TAGS = ("home", "public")
OUTDOOR_TAGS = ("town", "nature")


@dataclass(frozen=True)
class Noun:
    """A kind of actor or thing, with its synonyms and its place in the hierarchy of kinds."""

    name: str
    singulars: tuple[str, ...]
    plurals: tuple[str, ...]  # of the same synonyms in the same order
    # adult, child or animal for actors; for things: one (takes "a"), many (a plural such as "apples"), mass ("soup") or
    # pronoun ("something")
    kind: str
    parent: "Noun | None" = None
    families: tuple[str, ...] = ()  # of the modifiers that suit it

    @property
    def is_person(self) -> bool:
        """Whether 'nobody' denies it and clothes suit it."""
        return self.kind in PERSON_KINDS

    @property
    def is_animate(self) -> bool:
        """Whether it can be an actor."""
        return self.is_person or self.kind == "animal"

    def ancestors(self) -> list["Noun"]:
        """The wider kinds it belongs to, the nearest first."""
        return [] if self.parent is None else [self.parent, *self.parent.ancestors()]


class Verb(NamedTuple):
    """The four forms in use; `participle` is empty where a passive would be clumsy ("is being fled from")."""

    base: str
    third: str
    ing: str
    participle: str


@dataclass(frozen=True)
class Action:
    """What an actor does: synonymous verbs, what they apply to and where they make sense."""

    name: str
    verbs: tuple[Verb, ...]
    opposite: str  # name of the opposite action
    agents: tuple[str, ...]  # kinds of actor that can do it
    tags: tuple[str, ...]  # of the places where it makes sense
    objects: tuple[str, ...] = ()  # names of the things that it applies to
    # "animal" for what people do to animals; "same" for what one person does to another, or one animal to another: only
    # these actions can have their roles swapped
    patient: str = ""
    manners: tuple[str, ...] = ()  # families of the adverbs that suit it
    converse: tuple[Verb, ...] = ()  # verbs for the same event from the other side: A chases B when B flees from A


@dataclass(frozen=True)
class Trait:
    """A modifier (adjective, color, adverb or time) with its synonyms; traits of one family exclude each other."""

    name: str
    words: tuple[str, ...]
    family: str


@dataclass(frozen=True)
class Place:
    """Where a scene happens, preposition included. Places exclude each other, except a place and its `parent`."""

    name: str
    phrases: tuple[str, ...]
    tag: str
    parent: "Place | None" = None


@dataclass(frozen=True)
class Lexicon:
    """All concepts of one split."""

    actors: tuple[Noun, ...]
    things: Mapping[str, Noun]
    actions: Mapping[str, Action]
    places: tuple[Place, ...]
    traits: tuple[Trait, ...]
    garments: tuple[Noun, ...]
    manners: tuple[Trait, ...]
    times: tuple[Trait, ...]

    @property
    def colors(self) -> tuple[Trait, ...]:
        """The traits that a garment takes."""
        return tuple(trait for trait in self.traits if trait.family == "color")

    def family(self, name: str) -> list[Trait]:
        """The traits and manners of one family, in the order of the table."""
        return [trait for trait in (*self.traits, *self.manners) if trait.family == name]


def article(phrase: str) -> str:
    """The phrase with "a" or "an" before it."""
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


PERSON = Noun("person", ("person",), ("people",), "adult")
ANIMAL = Noun("animal", ("animal",), ("animals",), "animal")
SOMETHING = Noun("something", ("something",), ("something",), "pronoun")


def _concepts(table: str) -> list[tuple[str, ...]]:
    """Split "a, b / c" into (("a",), ("b", "c"))."""
    return [tuple(word.strip() for word in concept.split("/")) for concept in table.split(",")]


def _counted(words: tuple[str, ...], kind: str, parent: Noun | None, families: str) -> Noun:
    """Make a noun from ("boy=boys", "lad=lads")."""
    singulars, plurals = zip(*(word.split("=") for word in words), strict=True)
    return Noun(singulars[0], singulars, plurals, kind, parent, tuple(families.split()))


def _actors(groups: list[tuple[str, str, str, str]]) -> tuple[Noun, ...]:
    """Make actors from rows of kind, parent (empty: straight below person), trait families, members."""
    actors: list[Noun] = []
    for kind, parent_words, families, members in groups:
        top = ANIMAL if kind == "animal" else PERSON
        parent = _counted(_concepts(parent_words)[0], kind, top, families) if parent_words else top
        actors += [_counted(words, kind, parent, families) for words in _concepts(members)]
    return tuple(actors)


def _things(groups: list[tuple[str, str, str, str]]) -> dict[str, Noun]:
    """Make things from rows of kind, parent (empty: straight below something), trait families, members."""
    things: dict[str, Noun] = {}
    for kind, parent_words, families, members in groups:
        parent = SOMETHING
        if parent_words:
            synonyms = _concepts(parent_words)[0]
            parent = Noun(synonyms[0], synonyms, synonyms, kind, SOMETHING)
        for words in _concepts(members):
            assert words[0] not in things, f"thing {words[0]!r} is listed twice"
            things[words[0]] = Noun(words[0], words, words, kind, parent, tuple(families.split()))
    return things


def _verbs(table: str) -> tuple[Verb, ...]:
    """Make synonymous verbs from "eat=eats=eating=eaten / ..."; a missing participle stays empty."""
    forms = [(*verb.split("="), "") for verb in _concepts(table)[0]]
    return tuple(Verb(*form[:4]) for form in forms)


class _Pair(NamedTuple):
    """One row of an action table: an action and its opposite, with what both apply to."""

    verbs: str
    opposite: str
    agents: str = "adult child"
    tags: str = "home public town nature"
    objects: str = ""
    patient: str = ""
    manners: str = ""
    converse: bool = False


def _actions(pairs: list[_Pair]) -> dict[str, Action]:
    """Make both actions of every row, each the other's opposite."""
    actions: dict[str, Action] = {}
    for pair in pairs:
        sides = _verbs(pair.verbs), _verbs(pair.opposite)
        objects = tuple(words[0] for words in _concepts(pair.objects)) if pair.objects else ()
        for verbs, other in (sides, sides[::-1]):
            name = verbs[0].base
            assert name not in actions, f"action {name!r} is listed twice"
            actions[name] = Action(
                name,
                verbs,
                other[0].base,
                tuple(pair.agents.split()),
                tuple(pair.tags.split()),
                objects,
                pair.patient,
                tuple(pair.manners.split()),
                other if pair.converse else (),
            )
    return actions


def _places(indoor: str, outdoor: str, groups: list[tuple[str, str]]) -> tuple[Place, ...]:
    """Make places from rows of tag, members; `indoor` and `outdoor` are the two parents, as phrases."""
    inside, outside = Place(indoor, (indoor,), ""), Place(outdoor, (outdoor,), "")
    parents = {**dict.fromkeys(INDOOR_TAGS, inside), **dict.fromkeys(OUTDOOR_TAGS, outside)}
    return tuple(Place(words[0], words, tag, parents[tag]) for tag, members in groups for words in _concepts(members))


def _traits(groups: list[tuple[str, str]]) -> tuple[Trait, ...]:
    """Make traits from rows of family, members."""
    return tuple(Trait(words[0], words, family) for family, members in groups for words in _concepts(members))


def _garments(members: str) -> tuple[Noun, ...]:
    """Make garments, which are things that come one to a person."""
    return tuple(_counted(words, "one", None, "") for words in _concepts(members))


TRAIN = Lexicon(
    actors=_actors(
        [
            (
                "adult",
                "worker=workers / laborer=laborers",
                "age energy mood",
                "plumber=plumbers, carpenter=carpenters / woodworker=woodworkers, electrician=electricians, "
                "welder=welders, bricklayer=bricklayers / mason=masons, mechanic=mechanics, roofer=roofers, "
                "janitor=janitors / caretaker=caretakers, miner=miners, lumberjack=lumberjacks",
            ),
            (
                "adult",
                "healthcare professional=healthcare professionals / medical professional=medical professionals",
                "age energy mood",
                "doctor=doctors / physician=physicians, nurse=nurses, surgeon=surgeons, dentist=dentists, "
                "paramedic=paramedics, pharmacist=pharmacists",
            ),
            (
                "adult",
                "musician=musicians",
                "age energy mood",
                "violinist=violinists / fiddler=fiddlers, pianist=pianists, drummer=drummers, guitarist=guitarists, "
                "cellist=cellists, trumpeter=trumpeters, harpist=harpists",
            ),
            (
                "adult",
                "athlete=athletes / sportsperson=sportspeople",
                "age energy mood",
                "boxer=boxers, gymnast=gymnasts, goalkeeper=goalkeepers / goalie=goalies, wrestler=wrestlers, "
                "sprinter=sprinters, cyclist=cyclists, skier=skiers, golfer=golfers",
            ),
            (
                "adult",
                "scientist=scientists / researcher=researchers",
                "age energy mood",
                "chemist=chemists, biologist=biologists, astronomer=astronomers, geologist=geologists, "
                "physicist=physicists",
            ),
            (
                "adult",
                "adult=adults / grown-up=grown-ups",
                "energy mood",
                "man=men, woman=women, grandmother=grandmothers / grandma=grandmas, "
                "grandfather=grandfathers / grandpa=grandpas, mother=mothers / mom=moms, father=fathers / dad=dads",
            ),
            ("adult", "", "age energy mood", "farmer=farmers, neighbor=neighbors, prince=princes, lawyer=lawyers"),
            ("child", "child=children / kid=kids", "energy mood", "girl=girls, boy=boys"),
            (
                "animal",
                "dog=dogs / canine=canines",
                "age energy damp",
                "poodle=poodles, beagle=beagles, bulldog=bulldogs, terrier=terriers, collie=collies, "
                "labrador=labradors, greyhound=greyhounds",
            ),
            ("animal", "bird=birds", "age energy damp", "goose=geese, parrot=parrots, pigeon=pigeons, crow=crows"),
            ("animal", "rodent=rodents", "age energy damp", "squirrel=squirrels, hamster=hamsters, rat=rats"),
        ]
    ),
    things=_things(
        [
            ("one", "vehicle", "size color", "truck / lorry, van, trailer"),
            ("one", "container", "size color", "box, crate, barrel / cask, trunk, suitcase"),
            ("one", "device", "size", "lamp, radio, television / TV, fan"),
            ("one", "piece of furniture", "size color", "sofa / couch, chair, table, bookcase / bookshelf, desk"),
            ("one", "musical instrument", "", "guitar, violin / fiddle, trumpet, accordion, flute"),
            ("one", "structure", "size", "wall, shed, tower, fence, bridge"),
            ("one", "dish", "", "sandwich, pizza, salad, pancake, cake"),
            ("mass", "food", "", "soup / broth, rice, bread, cheese"),
            ("mass", "", "", "tea, lemonade, milk, cocoa / hot chocolate"),
            ("many", "plants", "", "roses, cabbages, bushes / shrubs, pumpkins"),
            ("many", "fruit", "", "apples, pears, melons, grapes"),
            ("one", "toy", "color", "ball, frisbee, balloon, kite"),
            ("one", "piece of writing", "", "letter, note, story / tale, poem, report"),
            ("one", "decoration", "size", "picture, poster, banner, wreath"),
            ("one", "light source", "", "candle, lantern, torch, bonfire"),
            ("one", "", "size color", "cart, blanket / quilt, towel, umbrella / parasol, window, boat, flag"),
            ("one", "", "size", "pipe / tube, bicycle / bike, ladder, hill, staircase / flight of stairs, rope / cord"),
            ("one", "", "size", "gift / present, parcel / package, trophy, bone, stick / twig, slipper, carrot"),
        ]
    ),
    actions=_actions(
        [
            _Pair(
                "load=loads=loading=loaded / fill up=fills up=filling up=filled up",
                "unload=unloads=unloading=unloaded / empty=empties=emptying=emptied",
                tags="town",
                objects="truck, van, trailer, crate",
                manners="pace care",
            ),
            _Pair(
                "repair=repairs=repairing=repaired / fix=fixes=fixing=fixed / mend=mends=mending=mended",
                "break=breaks=breaking=broken / damage=damages=damaging=damaged / wreck=wrecks=wrecking=wrecked",
                objects="pipe, bicycle, chair, radio, ladder, fan",
                manners="pace noise",
            ),
            _Pair(
                "push=pushes=pushing=pushed / shove=shoves=shoving=shoved",
                "pull=pulls=pulling=pulled / drag=drags=dragging=dragged / haul=hauls=hauling=hauled",
                tags="home public town",
                objects="cart, sofa, crate, trunk, barrel, table, desk, bookcase",
                manners="pace care noise",
            ),
            _Pair(
                "open=opens=opening=opened",
                "close=closes=closing=closed / shut=shuts=shutting=shut",
                tags="home public",
                objects="window, box, umbrella, suitcase, trunk",
                manners="pace care noise",
            ),
            _Pair(
                "buy=buys=buying=bought / purchase=purchases=purchasing=purchased",
                "sell=sells=selling=sold",
                tags="public town",
                objects="apples, pears, melons, grapes, bread, cheese, balloon, kite, roses, umbrella",
            ),
            _Pair(
                "wash=washes=washing=washed / clean=cleans=cleaning=cleaned / scrub=scrubs=scrubbing=scrubbed",
                "stain=stains=staining=stained / soil=soils=soiling=soiled",
                tags="home public",
                objects="window, table, chair, blanket, towel, flag",
                manners="pace",
            ),
            _Pair(
                "lift=lifts=lifting=lifted / raise=raises=raising=raised / hoist=hoists=hoisting=hoisted",
                "lower=lowers=lowering=lowered",
                objects="box, flag, ladder, barrel, crate, suitcase",
                manners="pace care",
            ),
            _Pair(
                "build=builds=building=built / construct=constructs=constructing=constructed",
                "demolish=demolishes=demolishing=demolished / tear down=tears down=tearing down=torn down",
                tags="town nature",
                objects="wall, shed, tower, fence, bridge",
                manners="pace noise",
            ),
            _Pair(
                "plant=plants=planting=planted",
                "uproot=uproots=uprooting=uprooted / dig up=digs up=digging up=dug up",
                tags="nature",
                objects="roses, cabbages, bushes, pumpkins",
                manners="pace care",
            ),
            _Pair(
                "throw=throws=throwing=thrown / toss=tosses=tossing=tossed / hurl=hurls=hurling=hurled",
                "catch=catches=catching=caught",
                tags="town nature",
                objects="ball, frisbee, stick, towel",
            ),
            _Pair(
                "cover=covers=covering=covered",
                "uncover=uncovers=uncovering=uncovered",
                tags="town nature",
                objects="boat, truck, cake, trailer, cart",
                manners="pace care",
            ),
            _Pair(
                "eat=eats=eating=eaten / consume=consumes=consuming=consumed",
                "serve=serves=serving=served / dish out=dishes out=dishing out=dished out",
                tags="home public",
                objects="sandwich, pizza, salad, pancake, cake, soup, rice, bread, cheese",
                manners="pace noise",
            ),
            _Pair(
                "play=plays=playing=played",
                "put away=puts away=putting away=put away / pack away=packs away=packing away=packed away",
                objects="guitar, violin, trumpet, accordion, flute",
            ),
            _Pair(
                "turn on=turns on=turning on=turned on / switch on=switches on=switching on=switched on",
                "turn off=turns off=turning off=turned off / switch off=switches off=switching off=switched off",
                tags="home public",
                objects="lamp, radio, television, fan",
                manners="pace",
            ),
            _Pair(
                "tie up=ties up=tying up=tied up / fasten=fastens=fastening=fastened",
                "untie=unties=untying=untied / unfasten=unfastens=unfastening=unfastened",
                tags="town nature",
                objects="boat, rope, flag",
                manners="pace care",
            ),
            _Pair(
                "fold=folds=folding=folded",
                "unfold=unfolds=unfolding=unfolded / spread out=spreads out=spreading out=spread out",
                objects="blanket, towel, flag, banner",
                manners="pace care",
            ),
            _Pair(
                "read=reads=reading=read / look through=looks through=looking through=looked through",
                "write=writes=writing=written / compose=composes=composing=composed",
                tags="home public",
                objects="letter, note, story, poem, report",
                manners="pace care",
            ),
            _Pair(
                "hide=hides=hiding=hidden / conceal=conceals=concealing=concealed",
                "display=displays=displaying=displayed / show off=shows off=showing off=shown off",
                objects="trophy, picture, gift, banner, violin",
            ),
            _Pair(
                "drink=drinks=drinking=drunk / sip=sips=sipping=sipped",
                "pour=pours=pouring=poured",
                tags="home public",
                objects="tea, lemonade, milk, cocoa",
                manners="pace noise",
            ),
            _Pair(
                "hang up=hangs up=hanging up=hung up / put up=puts up=putting up=put up",
                "take down=takes down=taking down=taken down / remove=removes=removing=removed",
                tags="home public town",
                objects="picture, poster, banner, wreath, lantern",
                manners="pace care",
            ),
            _Pair(
                "wrap=wraps=wrapping=wrapped",
                "unwrap=unwraps=unwrapping=unwrapped",
                tags="home public",
                objects="gift, parcel, trophy",
                manners="pace care",
            ),
            _Pair(
                "light=lights=lighting=lit / ignite=ignites=igniting=ignited",
                "extinguish=extinguishes=extinguishing=extinguished / put out=puts out=putting out=put out",
                tags="nature",
                objects="candle, lantern, torch, bonfire",
                manners="pace care",
            ),
            _Pair(
                "climb=climbs=climbing=climbed / go up=goes up=going up",
                "descend=descends=descending=descended / go down=goes down=going down",
                tags="town nature",
                objects="hill, ladder, staircase, tower",
                manners="pace care",
            ),
            _Pair(
                "help=helps=helping=helped / assist=assists=assisting=assisted",
                "hinder=hinders=hindering=hindered / obstruct=obstructs=obstructing=obstructed",
                patient="same",
            ),
            _Pair(
                "chase=chases=chasing=chased / pursue=pursues=pursuing=pursued",
                "flee from=flees from=fleeing from / run away from=runs away from=running away from",
                agents="adult child animal",
                tags="town nature",
                patient="same",
                converse=True,
            ),
            _Pair(
                "teach=teaches=teaching=taught / instruct=instructs=instructing=instructed",
                "learn from=learns from=learning from / take lessons from=takes lessons from=taking lessons from",
                agents="adult",
                patient="same",
                converse=True,
            ),
            _Pair(
                "praise=praises=praising=praised / compliment=compliments=complimenting=complimented",
                "criticize=criticizes=criticizing=criticized / scold=scolds=scolding=scolded",
                patient="same",
                manners="noise",
            ),
            _Pair(
                "photograph=photographs=photographing=photographed / "
                "take a picture of=takes a picture of=taking a picture of",
                "sketch=sketches=sketching=sketched / draw=draws=drawing=drawn",
                patient="same",
                manners="pace noise",
            ),
            _Pair(
                "welcome=welcomes=welcoming=welcomed / greet=greets=greeting=greeted",
                "send away=sends away=sending away=sent away / dismiss=dismisses=dismissing=dismissed",
                patient="same",
                manners="noise",
            ),
            _Pair(
                "pet=pets=petting=petted / stroke=strokes=stroking=stroked",
                "frighten=frightens=frightening=frightened / scare=scares=scaring=scared",
                patient="animal",
            ),
            _Pair("laugh=laughs=laughing / giggle=giggles=giggling", "cry=cries=crying / weep=weeps=weeping"),
            _Pair("sit=sits=sitting", "stand=stands=standing"),
            _Pair(
                "sleep=sleeps=sleeping / doze=dozes=dozing",
                "exercise=exercises=exercising / work out=works out=working out",
            ),
            _Pair(
                "whisper=whispers=whispering / murmur=murmurs=murmuring", "shout=shouts=shouting / yell=yells=yelling"
            ),
            _Pair(
                "race around=races around=racing around / dash about=dashes about=dashing about",
                "rest=rests=resting / lie down=lies down=lying down",
                agents="animal",
                manners="noise",
            ),
            _Pair(
                "chew=chews=chewing=chewed / gnaw on=gnaws on=gnawing on=gnawed on",
                "spit out=spits out=spitting out=spat out",
                agents="animal",
                objects="bone, stick, slipper, carrot",
                manners="pace noise",
            ),
            _Pair("jump=jumps=jumping / leap=leaps=leaping", "crouch=crouches=crouching", agents="animal"),
        ]
    ),
    places=_places(
        "indoors",
        "outdoors",
        [
            (
                "home",
                "in the basement / in the cellar, in the kitchen, in the attic / in the loft, in the garage, "
                "in the living room / in the lounge, in the hallway / in the corridor, in the laundry room",
            ),
            (
                "public",
                "in the library, in the museum, at the airport, in the hospital / in the clinic, in the gym, "
                "in the church / in the chapel, in the hotel lobby, in the classroom / in the schoolroom, "
                "in the supermarket / in the grocery store, at the train station / at the railway station, "
                "in the warehouse / in the storehouse, in the theater, in the laboratory / in the lab",
            ),
            (
                "town",
                "on the sidewalk / on the pavement, at the gas station, on the street corner, "
                "at the tram stop, in the city square / in the plaza, in the alley / in the lane, "
                "on the playground, at the fairground, in the backyard / behind the house, at the market",
            ),
            (
                "nature",
                "in the forest / in the woods, on the beach / at the seaside, in the meadow, in the orchard, "
                "in the desert, beside the lake, on the riverbank / by the river, in the vineyard, "
                "on the mountain, in the valley",
            ),
        ],
    ),
    traits=_traits(
        [
            ("age", "young / youthful, old / elderly"),
            ("energy", "tired / weary, energetic / lively"),
            ("mood", "happy / cheerful, sad / unhappy"),
            ("damp", "wet / soaked, dry"),
            ("size", "large / big, small / little"),
            ("color", "red, blue, green, white"),
        ]
    ),
    garments=_garments("coat=coats / overcoat=overcoats, hat=hats, shirt=shirts, apron=aprons, tracksuit=tracksuits"),
    manners=_traits(
        [
            ("pace", "slowly / unhurriedly, quickly / rapidly"),
            ("care", "carefully / cautiously, carelessly / recklessly"),
            ("noise", "quietly / silently, loudly / noisily"),
        ]
    ),
    times=_traits(
        [
            ("clock", "at dawn / at sunrise, at dusk / at sunset, at midnight"),
            ("weather", "on a rainy day, on a sunny day"),
        ]
    ),
)

DEV = Lexicon(
    actors=_actors(
        [
            (
                "adult",
                "entertainer=entertainers / performer=performers",
                "nerves hunger wealth",
                "clown=clowns, juggler=jugglers, magician=magicians / conjurer=conjurers, acrobat=acrobats, "
                "ballerina=ballerinas",
            ),
            (
                "adult",
                "educator=educators",
                "nerves hunger wealth",
                "professor=professors, tutor=tutors, lecturer=lecturers",
            ),
            (
                "adult",
                "sailor=sailors / seafarer=seafarers",
                "nerves hunger wealth",
                "skipper=skippers, deckhand=deckhands, helmsman=helmsmen",
            ),
            (
                "adult",
                "employee=employees",
                "nerves hunger wealth",
                "accountant=accountants / bookkeeper=bookkeepers, secretary=secretaries, cashier=cashiers, "
                "engineer=engineers",
            ),
            ("adult", "relative=relatives", "nerves hunger", "uncle=uncles, aunt=aunts"),
            ("adult", "", "nerves hunger wealth", "priest=priests / clergyman=clergymen, detective=detectives"),
            ("child", "", "nerves hunger", "teenager=teenagers / adolescent=adolescents"),
            ("animal", "cat=cats / feline=felines", "nerves hunger", "tabby=tabbies, tomcat=tomcats, lynx=lynxes"),
            (
                "animal",
                "barnyard animal=barnyard animals",
                "nerves hunger",
                "cow=cows, goat=goats, pig=pigs / hog=hogs",
            ),
        ]
    ),
    things=_things(
        [
            ("one", "", "size color", "door, cabinet / cupboard, safe, locker"),
            ("one", "means of transport", "size color", "motorcycle, scooter / moped"),
            ("one", "vessel", "size color", "canoe, raft, yacht"),
            ("many", "root crops", "", "potatoes, turnips, parsnips"),
            ("one", "distinction", "", "medal, award / prize, diploma"),
            ("one", "paper", "", "document, contract / agreement, receipt, invoice / bill"),
            ("one", "metal item", "size", "helmet, spoon, sword, tray"),
            ("one", "item of knitwear", "color", "sweater / pullover, cardigan, mitten"),
            ("mass", "fodder", "", "hay, grass, clover"),
            ("one", "inflatable item", "size color", "tire, mattress, dinghy"),
            ("one", "", "", "pen, camera, novel, calculator"),
        ]
    ),
    actions=_actions(
        [
            _Pair(
                "lock=locks=locking=locked / bolt=bolts=bolting=bolted",
                "unlock=unlocks=unlocking=unlocked / unbolt=unbolts=unbolting=unbolted",
                tags="home public",
                objects="door, cabinet, safe, locker",
                manners="force will",
            ),
            _Pair(
                "inflate=inflates=inflating=inflated / blow up=blows up=blowing up=blown up",
                "deflate=deflates=deflating=deflated / flatten=flattens=flattening=flattened",
                objects="tire, mattress, dinghy",
                manners="will",
            ),
            _Pair(
                "borrow=borrows=borrowing=borrowed",
                "lend=lends=lending=lent / loan=loans=loaning=loaned",
                tags="home public",
                objects="pen, camera, novel, calculator, sweater, helmet",
                manners="will",
            ),
            _Pair(
                "peel=peels=peeling=peeled / skin=skins=skinning=skinned",
                "mash=mashes=mashing=mashed / crush=crushes=crushing=crushed",
                tags="home",
                objects="potatoes, turnips, parsnips",
                manners="force will",
            ),
            _Pair(
                "accept=accepts=accepting=accepted",
                "refuse=refuses=refusing=refused / reject=rejects=rejecting=rejected",
                tags="public",
                objects="medal, award, diploma, contract",
                manners="will",
            ),
            _Pair(
                "ride=rides=riding=ridden",
                "park=parks=parking=parked",
                tags="town",
                objects="motorcycle, scooter",
                manners="will",
            ),
            _Pair(
                "polish=polishes=polishing=polished / shine=shines=shining=shined",
                "scratch=scratches=scratching=scratched / scrape=scrapes=scraping=scraped",
                tags="home public",
                objects="helmet, spoon, sword, tray",
                manners="force will",
            ),
            _Pair(
                "print=prints=printing=printed",
                "shred=shreds=shredding=shredded / rip apart=rips apart=ripping apart=ripped apart",
                tags="public",
                objects="document, contract, receipt, invoice",
                manners="will",
            ),
            _Pair(
                "knit=knits=knitting=knitted",
                "unravel=unravels=unraveling=unraveled",
                tags="home public",
                objects="sweater, cardigan, mitten",
                manners="will",
            ),
            _Pair(
                "launch=launches=launching=launched",
                "moor=moors=mooring=moored / dock=docks=docking=docked",
                tags="nature",
                objects="canoe, raft, yacht",
                manners="force will",
            ),
            _Pair(
                "comfort=comforts=comforting=comforted / console=consoles=consoling=consoled",
                "insult=insults=insulting=insulted / mock=mocks=mocking=mocked",
                patient="same",
            ),
            _Pair(
                "interview=interviews=interviewing=interviewed / question=questions=questioning=questioned",
                "avoid=avoids=avoiding=avoided / dodge=dodges=dodging=dodged",
                patient="same",
            ),
            _Pair(
                "defeat=defeats=defeating=defeated / beat=beats=beating=beaten",
                "lose to=loses to=losing to",
                patient="same",
                converse=True,
            ),
            _Pair("smile=smiles=smiling / grin=grins=grinning", "frown=frowns=frowning / scowl=scowls=scowling"),
            _Pair("kneel=kneels=kneeling", "march=marches=marching", manners="will"),
            _Pair(
                "snore=snores=snoring",
                "sing=sings=singing",
                manners="force",
            ),
            _Pair(
                "scamper=scampers=scampering / scurry=scurries=scurrying",
                "snooze=snoozes=snoozing",
                agents="animal",
                tags="town nature",
            ),
            _Pair(
                "nibble=nibbles=nibbling=nibbled",
                "sniff=sniffs=sniffing=sniffed",
                agents="animal",
                tags="town nature",
                objects="hay, grass, clover",
                manners="will",
            ),
            _Pair(
                "lick=licks=licking=licked",
                "bite=bites=biting=bitten / nip=nips=nipping=nipped",
                agents="animal",
                tags="town nature",
                patient="same",
                manners="force",
            ),
        ]
    ),
    places=_places(
        "inside",
        "outside",
        [
            ("home", "in the bedroom, in the bathroom, in the nursery, in the pantry"),
            (
                "public",
                "in the office, in the post office, at the bank, in the courtroom / in the courthouse, "
                "in the cafeteria / in the canteen, in the auditorium, in the barracks",
            ),
            ("town", "on the rooftop, in the driveway, at the crossroads / at the intersection, in the courtyard"),
            (
                "nature",
                "on the island / on the isle, in the swamp / in the marsh, at the campsite, on the shore, "
                "in the jungle",
            ),
        ],
    ),
    traits=_traits(
        [
            ("nerves", "calm / relaxed, nervous / anxious"),
            ("hunger", "hungry / famished, well-fed"),
            ("wealth", "rich / wealthy, poor / penniless"),
            ("size", "huge / enormous, tiny / miniature"),
            ("color", "yellow, black, orange"),
        ]
    ),
    garments=_garments("jacket=jackets, cap=caps, vest=vests / waistcoat=waistcoats, T-shirt=T-shirts"),
    manners=_traits([("force", "gently / softly, roughly"), ("will", "eagerly / keenly, reluctantly / grudgingly")]),
    times=_traits(
        [
            ("clock", "in the afternoon / after lunch, in the evening / after dinner"),
            ("weather", "on a snowy morning, on a foggy morning"),
        ]
    ),
)

TEST = Lexicon(
    actors=_actors(
        [
            (
                "adult",
                "staff member=staff members",
                "nerve courtesy health",
                "chef=chefs / cook=cooks, waiter=waiters, baker=bakers, barista=baristas",
            ),
            (
                "adult",
                "artist=artists",
                "nerve courtesy health",
                "painter=painters, sculptor=sculptors, potter=potters / ceramist=ceramists",
            ),
            (
                "adult",
                "author=authors",
                "nerve courtesy health",
                "poet=poets, dramatist=dramatists, biographer=biographers",
            ),
            (
                "adult",
                "traveler=travelers / voyager=voyagers",
                "nerve courtesy health",
                "tourist=tourists / sightseer=sightseers, hiker=hikers / trekker=trekkers, backpacker=backpackers",
            ),
            (
                "adult",
                "first responder=first responders",
                "nerve courtesy health",
                "firefighter=firefighters / fireman=firemen, lifeguard=lifeguards, policeman=policemen",
            ),
            ("adult", "monarch=monarchs / ruler=rulers", "nerve courtesy", "king=kings, queen=queens, sultan=sultans"),
            ("adult", "", "nerve courtesy health", "bride=brides, butler=butlers"),
            ("child", "", "nerve courtesy health", "pupil=pupils / student=students"),
            ("animal", "horse=horses", "nerve health", "pony=ponies, stallion=stallions, mare=mares"),
            (
                "animal",
                "ape=apes",
                "nerve health",
                "gorilla=gorillas, chimpanzee=chimpanzees / chimp=chimps, orangutan=orangutans",
            ),
            ("animal", "bear=bears", "nerve health", "grizzly=grizzlies, panda=pandas"),
        ]
    ),
    things=_things(
        [
            ("one", "art object", "price", "statue, portrait"),
            ("one", "baked good", "", "pie, muffin, biscuit / cookie"),
            ("one", "automobile", "color", "bus, tractor, taxi / cab"),
            ("one", "antiquity", "price", "vase, necklace, goblet / chalice"),
            ("one", "gadget", "price", "telescope, microscope, barometer"),
            ("mass", "textiles", "price color", "leather, silk, velvet"),
            ("many", "blossoms", "color", "tulips, daisies, lilies"),
            ("many", "materials", "", "logs, bricks, stones / rocks"),
            ("mass", "breakfast", "", "coffee, porridge / oatmeal, marmalade"),
            ("many", "produce", "", "berries, bananas, nuts"),
            ("one", "", "", "tunnel, cave / cavern, maze / labyrinth"),
            ("one", "", "color", "bench, balcony"),
        ]
    ),
    actions=_actions(
        [
            _Pair(
                "paint=paints=painting=painted",
                "sand down=sands down=sanding down=sanded down",
                tags="town",
                objects="bench, balcony, statue",
                manners="patience grace",
            ),
            _Pair(
                "bake=bakes=baking=baked",
                "burn=burns=burning=burned / char=chars=charring=charred",
                tags="home public",
                objects="pie, muffin, biscuit",
            ),
            _Pair(
                "stack=stacks=stacking=stacked / pile up=piles up=piling up=piled up",
                "scatter=scatters=scattering=scattered / strew=strews=strewing=strewn",
                tags="town nature",
                objects="logs, bricks, stones",
                manners="patience grace",
            ),
            _Pair(
                "drive=drives=driving=driven",
                "tow=tows=towing=towed",
                tags="town",
                objects="bus, tractor, taxi",
                manners="patience",
            ),
            _Pair(
                "cut=cuts=cutting=cut / snip=snips=snipping=snipped",
                "sew=sews=sewing=sewn / stitch=stitches=stitching=stitched",
                tags="home public",
                objects="leather, silk, velvet",
                manners="patience grace",
            ),
            _Pair(
                "water=waters=watering=watered / irrigate=irrigates=irrigating=irrigated",
                "trample=tramples=trampling=trampled / stomp on=stomps on=stomping on=stomped on",
                tags="town nature",
                objects="tulips, daisies, lilies",
                manners="grace",
            ),
            _Pair(
                "enter=enters=entering=entered",
                "exit=exits=exiting=exited / come out of=comes out of=coming out of",
                tags="nature",
                objects="tunnel, cave, maze",
                manners="grace boldness",
            ),
            _Pair(
                "stir=stirs=stirring=stirred",
                "spill=spills=spilling=spilled",
                tags="home public",
                objects="coffee, porridge, marmalade",
                manners="grace",
            ),
            _Pair(
                "donate=donates=donating=donated / give away=gives away=giving away=given away",
                "steal=steals=stealing=stolen / make off with=makes off with=making off with",
                tags="public",
                objects="vase, necklace, goblet, portrait, telescope",
                manners="boldness",
            ),
            _Pair(
                "bury=buries=burying=buried",
                "unearth=unearths=unearthing=unearthed / excavate=excavates=excavating=excavated",
                tags="nature",
                objects="vase, necklace, goblet, statue, stones",
                manners="patience",
            ),
            _Pair(
                "examine=examines=examining=examined / inspect=inspects=inspecting=inspected",
                "discard=discards=discarding=discarded / dump=dumps=dumping=dumped",
                objects="telescope, microscope, barometer, portrait, goblet",
                manners="patience",
            ),
            _Pair(
                "rescue=rescues=rescuing=rescued / save=saves=saving=saved",
                "abandon=abandons=abandoning=abandoned / forsake=forsakes=forsaking=forsaken",
                tags="nature",
                patient="same",
            ),
            _Pair(
                "thank=thanks=thanking=thanked",
                "blame=blames=blaming=blamed",
                patient="same",
                manners="boldness",
            ),
            _Pair(
                "guide=guides=guiding=guided / lead=leads=leading=led",
                "follow=follows=following=followed / tag along behind=tags along behind=tagging along behind",
                agents="adult child animal",
                tags="town nature",
                patient="same",
                converse=True,
            ),
            _Pair(
                "tame=tames=taming=tamed",
                "provoke=provokes=provoking=provoked / annoy=annoys=annoying=annoyed",
                tags="town nature",
                patient="animal",
                manners="patience boldness",
            ),
            _Pair("dance=dances=dancing", "meditate=meditates=meditating", manners="grace"),
            _Pair(
                "hum=hums=humming",
                "complain=complains=complaining / grumble=grumbles=grumbling",
            ),
            _Pair(
                "applaud=applauds=applauding / clap=claps=clapping",
                "jeer=jeers=jeering / boo=boos=booing",
                tags="public town",
                manners="boldness",
            ),
            _Pair(
                "roam around=roams around=roaming around / wander about=wanders about=wandering about",
                "stay still=stays still=staying still / remain motionless=remains motionless=remaining motionless",
                agents="animal",
                tags="town nature",
            ),
            _Pair(
                "devour=devours=devouring=devoured / gobble up=gobbles up=gobbling up=gobbled up",
                "ignore=ignores=ignoring=ignored / disregard=disregards=disregarding=disregarded",
                agents="animal",
                tags="town nature",
                objects="berries, bananas, nuts",
            ),
            _Pair(
                "nuzzle=nuzzles=nuzzling=nuzzled",
                "attack=attacks=attacking=attacked / assault=assaults=assaulting=assaulted",
                agents="animal",
                tags="town nature",
                patient="same",
                manners="boldness",
            ),
        ]
    ),
    places=_places(
        "in an enclosed space",
        "in the fresh air",
        [
            ("home", "in the study, in the conservatory, in the bathhouse / in the sauna, in the ballroom"),
            (
                "public",
                "in the restaurant, in the art gallery, in the factory, in the studio / in the atelier, "
                "in the concert hall, in the shopping mall / in the shopping center, in the castle / in the fortress",
            ),
            (
                "town",
                "at the harbor / at the port, on the boulevard / on the avenue, at the zoo, in the suburbs, "
                "in the cemetery / in the graveyard",
            ),
            (
                "nature",
                "on the cliff / on the bluff, in the canyon / in the gorge, beside the waterfall, on the prairie, "
                "near the volcano, on the glacier",
            ),
        ],
    ),
    traits=_traits(
        [
            ("nerve", "brave / courageous, timid / fearful"),
            ("courtesy", "polite / courteous, rude / impolite"),
            ("health", "healthy / fit, sick / ill"),
            ("price", "expensive / costly, cheap / inexpensive"),
            ("color", "purple / violet, brown, gray, pink"),
        ]
    ),
    garments=_garments("scarf=scarves, cape=capes / cloak=cloaks, robe=robes / gown=gowns, hoodie=hoodies"),
    manners=_traits(
        [
            ("patience", "patiently, impatiently / hastily"),
            ("grace", "gracefully / elegantly, clumsily / awkwardly"),
            ("boldness", "confidently / boldly, hesitantly"),
        ]
    ),
    times=_traits(
        [
            ("clock", "at noon / at midday, in the middle of the night"),
            ("season", "in the spring / in springtime, in the fall / in the autumn, in the winter / in wintertime"),
        ]
    ),
)

LEXICONS: Mapping[str, Lexicon] = {"train": TRAIN, "dev": DEV, "test": TEST}
