"""Write questions about made-up paragraphs of English, in the form of SQuAD's files.

A paragraph has three facts of one kind and two of another, in the same words but for names, places,
years, things and numbers; an answer is one of these. So a question can only be answered by finding
the one fact that it asks for: who takes a word of the right sort at random is right in 40 % of them
at most.

    python benchmarks/small_questions.py --out train.json --count 2000
    python benchmarks/small_questions.py --out valid.json --count 400 --seed 1
    python recipes/finetune_squad.py --train_file train.json --validation_file valid.json

A seed gives the same file every time, and other seeds other paragraphs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from string import Formatter
from typing import Any

# Facts of the two kinds that a paragraph is about.
FACTS = (3, 2)


def _listed(words: str) -> list[str]:
    return words.split(",")


_FIRST = _listed(
    "Anna,Alice,Arthur,Bella,Bernard,Clara,Conrad,Daisy,Daniel,David,Diana,Edith,Edward,"
    "Elena,Emma,Eric,Felix,Fiona,Frank,George,Grace,Hannah,Harold,Helen,Henry,Hugo,Irene,"
    "Isaac,Ivan,Jacob,James,Jane,Julia,Karl,Laura,Leon,Louis,Lucy,Maria,Martin,Max,Miriam,"
    "Nina,Nora,Oliver,Oscar,Paul,Peter,Philip,Rachel,Ralph,Robert,Rosa,Ruth,Samuel,Sarah,"
    "Simon,Sofia,Stella,Thomas,Vera,Victor,Walter"
)
_LAST = _listed(
    "Adams,Baker,Barnes,Bell,Bennett,Black,Brooks,Burns,Carter,Chapman,Clark,Cole,Cooper,"
    "Cross,Dixon,Ellis,Fisher,Fletcher,Ford,Foster,Gibson,Gordon,Graham,Grant,Gray,Green,"
    "Harper,Hart,Hayes,Holland,Hunt,Jordan,Kelly,Knight,Lambert,Lane,Lawrence,Long,Marsh,"
    "Mason,Miller,Moore,Morgan,Murray,Nash,Newton,Palmer,Parker,Pearson,Perry,Porter,Price,"
    "Reed,Rice,Rose,Russell,Shaw,Stone,Taylor,Turner,Wallace,Ward,Warren,Webb,West,White,"
    "Wood,Young"
)
# What stands behind "a" in a pattern begins with no vowel.
_WORDS: dict[str, list[str]] = {
    "town": _listed(
        "Ashford,Bolton,Bradford,Bristol,Cardiff,Chester,Derby,Dover,Dublin,Durham,Exeter,"
        "Geneva,Glasgow,Hamburg,Hastings,Lancaster,Leeds,Leicester,Lincoln,Lisbon,Madrid,Milan,"
        "Munich,Naples,Norwich,Oslo,Oxford,Plymouth,Prague,Preston,Reading,Richmond,Salisbury,"
        "Sheffield,Stockholm,Toledo,Turin,Venice,Verona,Vienna,Warsaw,Winchester,York,Zurich"
    ),
    "shop": _listed(
        "bakery,bank,book shop,brewery,cafe,cinema,coffee house,dance school,flower shop,forge,"
        "garage,glass factory,hat shop,hospital,hotel,laundry,library,mill,museum,music school,"
        "paper mill,pharmacy,print shop,restaurant,shipyard,tea room,theatre,toy shop,wine bar"
    ),
    "goods": _listed(
        "apples,baskets,bells,books,boots,bottles,candles,carpets,chairs,clocks,coats,coins,cows,"
        "eggs,flags,gloves,goats,hats,horses,keys,lamps,maps,mirrors,onions,paintings,pens,pigs,"
        "roses,shirts,spoons,stamps,tables,violins"
    ),
    "vehicle": _listed(
        "balloon,bicycle,boat,bus,canoe,car,carriage,coach,ferry,helicopter,horse,motorcycle,"
        "plane,sailing ship,steam train,taxi,tractor,tram,truck,wagon"
    ),
    "building": _listed(
        "bridge,castle,cathedral,chapel,city hall,clock tower,court house,gate,lighthouse,market "
        "hall,palace,post office,prison,railway station,school,stadium,temple,town wall,tunnel,"
        "water tower,windmill"
    ),
    "material": _listed(
        "black marble,brick,bronze,cast iron,clay,concrete,dark wood,glass,granite,limestone,red "
        "sandstone,slate,steel,white stone"
    ),
    "animal": _listed(
        "bear,cat,crow,dog,donkey,duck,fox,goat,goose,horse,lizard,monkey,parrot,pony,rabbit,rat,"
        "sheep,snake,spider,swan,turtle,wolf"
    ),
    "pet": _listed(
        "Bandit,Biscuit,Blossom,Captain,Comet,Dusty,Echo,Ginger,Honey,Jasper,Lucky,Midnight,"
        "Misty,Pepper,Pirate,Rocket,Rusty,Shadow,Snowy,Storm,Sunny,Thunder,Tiger,Trumpet,"
        "Velvet,Ziggy"
    ),
    "team": _listed(
        "the Bears,the Blue Stars,the Dragons,the Eagles,the Falcons,the Giants,the Hawks,the "
        "Kings,the Lions,the Panthers,the Pilots,the Pirates,the Rangers,the Red Devils,the "
        "Rockets,the Saints,the Sharks,the Tigers,the Wolves"
    ),
    "month": _listed(
        "January,February,March,April,May,June,July,August,September,October,November,December"
    ),
    "day": _listed("Monday,Tuesday,Wednesday,Thursday,Friday,Saturday,Sunday"),
    "title": _listed(
        "A Cold Winter,Beyond the Hills,Broken Glass,City of Rain,Dust and Gold,Empty Rooms,Five "
        "Letters,Letters from the Sea,Lost Summer,Night Train,No Way Home,Paper Moon,Silent River,"
        "Stories of the North,The Blue Door,The Last Garden,The Long Road,The Old Sailor,The Red "
        "Island,The Secret Year,The Silver Key,The Thief of Time,Under the Bridge,Winter Birds"
    ),
    "topic": _listed(
        "a war at sea,a lost child,an old farm,a bank robbery,a long marriage,a mountain village,"
        "a murder,a family of actors,a young doctor,a poor soldier,a haunted house,a travelling "
        "circus,two brothers,three friends,a king in exile,the end of the world,a blind painter"
    ),
    "job": _listed(
        "barber,butcher,carpenter,chef,chemist,cleaner,clerk,dancer,dentist,doctor,driver,"
        "farmer,fisherman,gardener,judge,lawyer,mechanic,miner,nurse,painter,pilot,plumber,"
        "priest,sailor,singer,soldier,surgeon,tailor,teacher,translator,waiter,writer"
    ),
    "mineral": _listed(
        "amber,coal,copper,diamonds,gold,iron,lead,nickel,oil,opal,platinum,pearls,quartz,rubies,"
        "salt,silver,sulfur,tin,turquoise,uranium,zinc"
    ),
    "spot": _listed(
        "a cave,a dry well,a field,a glacier,a lake,a marsh,a quarry,a river bed,a valley,an old "
        "mine,the beach,the churchyard,the desert,the forest,the harbour,the hills,the moor"
    ),
    "river": _listed(
        "Alder,Blackwater,Brent,Calder,Dart,Elm,Fleet,Greta,Hazel,Ivel,Kestrel,Lark,Mersey,"
        "Nettle,Otter,Raven,Severn,Swift,Tamar,Thorn,Wharf,Willow"
    ),
    "sea": _listed(
        "a bay,a delta,a great lake,a marsh,a reservoir,the Atlantic,the Baltic,the Black Sea,the "
        "Caspian Sea,the Danube,the Mediterranean,the North Sea,the Pacific,the Rhine,the Volga"
    ),
    "subject": _listed(
        "algebra,art,astronomy,biology,chemistry,cooking,dancing,drama,drawing,economics,French,"
        "geography,geometry,German,Greek,history,Latin,law,logic,music,philosophy,physics,poetry,"
        "singing,Spanish,swimming"
    ),
    "dish": _listed(
        "apple pie,bean soup,cheese cake,chicken stew,chocolate cake,fish soup,fried rice,grilled "
        "lamb,lemon tart,mushroom soup,onion soup,pancakes,pasta,pizza,pork ribs,roast beef,roast "
        "duck,salmon,steak,tomato salad,vegetable curry"
    ),
    "machine": _listed(
        "calculator,camera,clock,compass,cooking stove,drill,flying machine,lamp,lock,loom,"
        "microscope,music box,piano,plough,printing press,radio,robot,sewing machine,steam pump,"
        "telephone,telescope,thermometer,typewriter,washing machine"
    ),
    "prize": _listed(
        "bronze cup,city medal,crystal bowl,diamond ring,first prize,gold medal,golden apple,"
        "king's medal,peace prize,poetry prize,queen's cup,silver crown,science prize,winter cup"
    ),
    "number": [str(number) for number in range(12, 100)],
    "year": [str(year) for year in range(1801, 2000)],
}
# Sentences without a fact.
_FILLERS = (
    "All of this is well known here.",
    "Few people remember it today.",
    "It was in the newspapers.",
    "Not everybody believes it.",
    "Nobody was surprised.",
    "So the old people say.",
    "Some of it may be wrong.",
    "The weather was bad that season.",
    "There are many such stories.",
    "These are the facts.",
    "This much is certain.",
)


@dataclass(frozen=True)
class Kind:
    """One kind of fact.

    Attributes:
        patterns: sentences with places for words, named like a list of words or "person"; a number
            behind the name tells two of one list apart.
        questions: which place is asked for, and the question, with other places.
    """

    patterns: tuple[str, ...]
    questions: tuple[tuple[str, str], ...]


_KINDS = (
    Kind(
        (
            "{person} opened a {shop} in {town} in {year}.",
            "In {year}, {person} opened a {shop} in {town}.",
            "The {shop} in {town} was founded by {person} in {year}.",
        ),
        (
            ("person", "Who founded the {shop}?"),
            ("person", "Who started a business in {town}?"),
            ("shop", "What did {person} open?"),
            ("shop", "What was opened in {year}?"),
            ("town", "Where is the {shop}?"),
            ("town", "In which town did {person} open a {shop}?"),
            ("year", "When was the {shop} in {town} founded?"),
            ("year", "In what year did {person} open the {shop}?"),
        ),
    ),
    Kind(
        (
            "{person} was born in {town} in {year} and became a {job}.",
            "{person}, a {job}, was born in {year} in {town}.",
        ),
        (
            ("person", "Who was born in {town}?"),
            ("person", "Who became a {job}?"),
            ("town", "Where was {person} born?"),
            ("town", "What is the birthplace of the {job}?"),
            ("year", "When was {person} born?"),
            ("year", "In which year was the {job} born?"),
            ("job", "What was the profession of {person}?"),
        ),
    ),
    Kind(
        (
            "{person} sold {number} {goods} to {person2}.",
            "{person2} bought {number} {goods} from {person}.",
            "{number} {goods} were sold to {person2} by {person}.",
        ),
        (
            ("person", "Who sold the {goods}?"),
            ("person", "Who sold something to {person2}?"),
            ("person2", "Who bought {goods}?"),
            ("person2", "To whom did {person} sell something?"),
            ("number", "How many {goods} were sold?"),
            ("goods", "What did {person2} buy?"),
            ("goods", "What did {person} sell?"),
        ),
    ),
    Kind(
        (
            "{person} went from {town} to {town2} by {vehicle}. The journey took {number} days.",
            "It took {person} {number} days to get from {town} to {town2} by {vehicle}.",
        ),
        (
            ("person", "Who travelled by {vehicle}?"),
            ("person", "Who went to {town2}?"),
            ("town", "Where did {person} start?"),
            ("town2", "Where did {person} go?"),
            ("town2", "Where did the {vehicle} from {town} arrive?"),
            ("vehicle", "How did {person} travel?"),
            ("number", "How long was the journey by {vehicle}?"),
            ("number", "How many days did {person} travel?"),
        ),
    ),
    Kind(
        (
            "{person} invented a {machine} in {year} and sold it for {number} pounds.",
            "In {year} a {machine} was invented by {person}. It cost {number} pounds.",
        ),
        (
            ("person", "Who invented the {machine}?"),
            ("person", "Who made an invention in {year}?"),
            ("machine", "What did {person} invent?"),
            ("year", "When was the {machine} invented?"),
            ("year", "In what year did {person} invent something?"),
            ("number", "How many pounds did the {machine} cost?"),
        ),
    ),
    Kind(
        (
            "The {building} in {town} is made of {material}. It is {number} metres high.",
            "The {building} in {town} is {number} metres high and made of {material}.",
            "In {town} there is a {building} of {material}, {number} metres high.",
        ),
        (
            ("town", "Where is the {building}?"),
            ("town", "Which town has a building of {material}?"),
            ("material", "What is the {building} made of?"),
            ("material", "What was used for the building in {town}?"),
            ("number", "How high is the {building}?"),
            ("number", "How many metres high is the building of {material}?"),
            ("building", "What was built in {town}?"),
        ),
    ),
    Kind(
        (
            "{person} has a {animal} called {pet}, which is {number} months old.",
            "{pet} is a {animal} and belongs to {person}. It is {number} months old.",
        ),
        (
            ("person", "Who has a {animal}?"),
            ("person", "To whom does {pet} belong?"),
            ("animal", "What kind of animal is {pet}?"),
            ("animal", "Which animal does {person} have?"),
            ("pet", "What is the name of the {animal}?"),
            ("pet", "What did {person} call the animal?"),
            ("number", "How many months old is {pet}?"),
        ),
    ),
    Kind(
        (
            "In {month}, {team} beat {team2} by {number} points.",
            "{number} points were between {team} and {team2}, who lost in {month}.",
        ),
        (
            ("team", "Who won in {month}?"),
            ("team", "Which team was better than {team2}?"),
            ("team2", "Who lost against {team}?"),
            ("team2", "Who was beaten in {month}?"),
            ("month", "When did {team} win?"),
            ("month", "In which month did {team2} lose?"),
            ("number", "By how many points did {team} win?"),
        ),
    ),
    Kind(
        (
            "{person} wrote {title} in {year}. The book is about {topic}.",
            "{title}, a book about {topic}, was written by {person} in {year}.",
        ),
        (
            ("person", "Who wrote {title}?"),
            ("person", "Who is the author of the book about {topic}?"),
            ("title", "Which book did {person} write?"),
            ("title", "What is the title of the book about {topic}?"),
            ("year", "When was {title} written?"),
            ("topic", "What is {title} about?"),
            ("topic", "What did {person} write about?"),
        ),
    ),
    Kind(
        (
            "{person} works as a {job} in {town} and earns {number} pounds.",
            "In {town}, {person} earns {number} pounds as a {job}.",
        ),
        (
            ("person", "Who works in {town}?"),
            ("person", "Who is a {job}?"),
            ("job", "What is the job of {person}?"),
            ("job", "Which job is done in {town}?"),
            ("town", "Where does {person} work?"),
            ("town", "Where does the {job} work?"),
            ("number", "How many pounds does the {job} earn?"),
        ),
    ),
    Kind(
        (
            "{person} found {mineral} in {spot} near {town}.",
            "Near {town}, in {spot}, {person} found {mineral}.",
        ),
        (
            ("person", "Who found {mineral}?"),
            ("person", "Who made a discovery near {town}?"),
            ("mineral", "What was found in {spot}?"),
            ("mineral", "What did {person} find?"),
            ("spot", "Where was {mineral} found?"),
            ("spot", "In what place did {person} make the discovery?"),
            ("town", "Near which town was {mineral} found?"),
        ),
    ),
    Kind(
        (
            "The {river} is {number} miles long. It flows through {town} into {sea}.",
            "Through {town} flows the {river}, which is {number} miles long and ends in {sea}.",
        ),
        (
            ("river", "Which river flows into {sea}?"),
            ("river", "What is the name of the river in {town}?"),
            ("number", "How long is the {river}?"),
            ("number", "How many miles long is the river that flows into {sea}?"),
            ("sea", "Where does the {river} end?"),
            ("town", "Which town lies on the {river}?"),
        ),
    ),
    Kind(
        (
            "{person} teaches {subject} on {day} to {number} students.",
            "On {day}, {number} students learn {subject} from {person}.",
        ),
        (
            ("person", "Who teaches {subject}?"),
            ("person", "Who is the teacher on {day}?"),
            ("subject", "What does {person} teach?"),
            ("subject", "What is taught on {day}?"),
            ("day", "On which day is {subject} taught?"),
            ("day", "When does {person} teach?"),
            ("number", "How many students learn {subject}?"),
        ),
    ),
    Kind(
        (
            "{person} cooked {dish} for {number} guests in {month}.",
            "In {month}, {number} guests ate {dish} that {person} had cooked.",
        ),
        (
            ("person", "Who cooked {dish}?"),
            ("person", "Who was the cook in {month}?"),
            ("dish", "What did {person} cook?"),
            ("dish", "What was eaten in {month}?"),
            ("number", "How many guests had {dish}?"),
            ("month", "When was {dish} cooked?"),
            ("month", "In which month did {person} cook?"),
        ),
    ),
    Kind(
        (
            "{person} won the {prize} in {year} for a {machine}.",
            "For a {machine}, {person} received the {prize} of {year}.",
        ),
        (
            ("person", "Who won the {prize}?"),
            ("person", "Who built the {machine}?"),
            ("prize", "What did {person} win?"),
            ("prize", "Which award was given for the {machine}?"),
            ("year", "When did {person} win the {prize}?"),
            ("machine", "What was the {prize} given for?"),
        ),
    ),
)


@dataclass(frozen=True)
class Fact:
    """A sentence or two, what stands where in them, and what can be asked.

    Attributes:
        begins: place -> its first character in `text`.
    """

    text: str
    words: dict[str, str]
    begins: dict[str, int]
    questions: tuple[tuple[str, str], ...]


def squad_file(count: int, seed: int) -> dict[str, Any]:
    """Content of a file of `count` questions, as SQuAD nests them."""
    random, found, left = Random(seed), {}, count
    while left > 0:
        paragraph = _paragraph(random, left)
        if paragraph["context"] not in found:
            found[paragraph["context"]] = paragraph
            left -= len(paragraph["qas"])
    paragraphs = list(found.values())
    for number, question in enumerate(each for part in paragraphs for each in part["qas"]):
        question["id"] = f"{seed}-{number}"
    return {"version": "1.1", "data": [{"title": f"seed {seed}", "paragraphs": paragraphs}]}


def write_squad_file(path: Path, count: int, seed: int) -> None:
    """Write a file of `count` questions in SQuAD's form."""
    path.write_text(json.dumps(squad_file(count, seed), indent=1) + "\n", encoding="utf-8")


def _paragraph(random: Random, most: int) -> dict[str, Any]:
    """Facts of two kinds in any order, and one question about each, `most` in all."""
    words = _shuffled(random)
    facts = [
        _fact(kind, pattern, words)
        for kind, count in zip(random.sample(_KINDS, len(FACTS)), FACTS, strict=True)
        # In one pattern: the words around a fact do not tell which of them is asked for.
        for pattern in [random.choice(kind.patterns)] * count
    ]
    random.shuffle(facts)
    context, questions = "", []
    # Below 0, in half of the paragraphs, there is none.
    filler = random.randrange(-len(facts), len(facts))
    for number, fact in enumerate(facts):
        if number == filler:
            context += random.choice(_FILLERS) + " "
        asked, question = random.choice(fact.questions)
        answer = {
            "text": fact.words[asked],
            "answer_start": len(context) + fact.begins[asked],
        }
        questions.append({"question": question.format(**fact.words), "answers": [answer]})
        context += fact.text + " "
    random.shuffle(questions)
    return {"context": context.strip(), "qas": questions[:most]}


def _shuffled(random: Random) -> dict[str, Iterator[str]]:
    """All words in random order: taken one by one, none comes twice in a paragraph."""
    first, last = (random.sample(names, len(_LAST) // 2) for names in (_FIRST, _LAST))
    people = [f"{one} {two}" for one, two in zip(first, last, strict=True)]
    return {
        "person": iter(people),
        **{name: iter(random.sample(words, len(words))) for name, words in _WORDS.items()},
    }


def _fact(kind: Kind, pattern: str, words: dict[str, Iterator[str]]) -> Fact:
    """The next words in the places of a pattern."""
    text, taken, begins = "", {}, {}
    for before, place, _, _ in Formatter().parse(pattern):
        text += before
        if place:
            taken[place] = word = next(words[place.rstrip("2")])
            begins[place] = len(text)
            text += word
    return Fact(text, taken, begins, kind.questions)


def main() -> None:
    """Read the command line, write the file."""
    parser = _arguments()
    args = parser.parse_args()
    if args.count < 1:
        parser.error(f"--count is {args.count}; it must be 1 or more")
    write_squad_file(args.out, args.count, args.seed)
    print(f"{args.out}: {args.count:,} questions")


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="file to write, .json")
    parser.add_argument("--count", type=int, default=2000, help="questions (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    return parser


if __name__ == "__main__":
    main()
