"""The sections of the sample web, and the words that assign a picture to one.

OpenMoji's drawings are assigned by words of their names. The first group that has a
word of the name wins.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """A section of the site. `facts` are sentences with {name} and {other}."""

    title: str
    kind: str  # name of one member, "animal"
    tags: tuple[str, ...]
    facts: tuple[str, ...]


GROUPS: dict[str, Group] = {
    "people": Group(
        "People and professions",
        "person",
        ("people", "character", "work", "hobby"),
        (
            "Everybody in town has seen {name} at least once.",
            "The drawing of {name} comes in several skin tones.",
            "Children often ask what {name} does all day long.",
            "Next to {other}, {name} looks quite busy.",
        ),
    ),
    "hands": Group(
        "Hands and body",
        "gesture",
        ("hand", "body", "gesture", "fingers"),
        (
            "In a chat, {name} says more than words.",
            "The drawing of {name} comes in several skin tones.",
            "Not every culture reads {name} the same way as {other}.",
        ),
    ),
    "families": Group(
        "Families and couples",
        "group of people",
        ("family", "love", "together", "home"),
        (
            "The photo album opens with {name}.",
            "A card with {name} suits a wedding or an anniversary.",
        ),
    ),
    "animals": Group(
        "Animals",
        "animal",
        ("animal", "nature", "wildlife", "zoo"),
        (
            "At the zoo, {name} lives next door to {other}.",
            "Biologists have written whole books on {name}.",
            "You may meet {name} at dawn, when the park is quiet.",
        ),
    ),
    "plants": Group(
        "Plants and flowers",
        "plant",
        ("plant", "garden", "flower", "nature"),
        (
            "In spring the gardener looks after {name} first.",
            "A bed with {name} and {other} needs little water.",
        ),
    ),
    "food": Group(
        "Food and drink",
        "dish",
        ("food", "kitchen", "menu", "taste"),
        (
            "On the menu you find {name} right after {other}.",
            "The cook serves {name} fresh every morning.",
            "A recipe with {name} takes about twenty minutes.",
        ),
    ),
    "faces": Group(
        "Faces and feelings",
        "face",
        ("face", "emotion", "mood", "smiley"),
        (
            "People send {name} when words are not enough.",
            "Between {name} and {other} lies a whole range of moods.",
        ),
    ),
    "travel": Group(
        "Travel and transport",
        "vehicle",
        ("travel", "transport", "traffic", "trip"),
        (
            "On the road, {name} gives way to {other}.",
            "Tickets and timetables for {name} are sold at the station.",
        ),
    ),
    "places": Group(
        "Places and buildings",
        "place",
        ("city", "building", "map", "place"),
        (
            "The old map of the town shows {name} near the river.",
            "Visitors walk from {name} to {other} in ten minutes.",
        ),
    ),
    "sky": Group(
        "Sky and weather",
        "sight in the sky",
        ("weather", "sky", "season", "forecast"),
        (
            "The forecast for tomorrow mentions {name}.",
            "After {name} often comes {other}, says the almanac.",
        ),
    ),
    "clocks": Group(
        "Clocks and time",
        "time",
        ("time", "clock", "hour", "schedule"),
        (
            "The meeting starts at the hour shown: {name}.",
            "When the dial shows {name}, the shop closes.",
        ),
    ),
    "sports": Group(
        "Sports and games",
        "game",
        ("sport", "game", "play", "match"),
        (
            "The club offers {name} on Mondays and {other} on Fridays.",
            "For beginners {name} is easier than it looks.",
        ),
    ),
    "music": Group(
        "Music and sound",
        "instrument",
        ("music", "sound", "concert", "band"),
        (
            "The band plays with {name} and {other}.",
            "You hear {name} long before you see it.",
        ),
    ),
    "clothes": Group(
        "Clothes and accessories",
        "piece of clothing",
        ("fashion", "clothing", "wardrobe", "style"),
        (
            "In the wardrobe {name} hangs next to {other}.",
            "This season {name} is back in fashion.",
        ),
    ),
    "things": Group(
        "Household and tools",
        "object",
        ("object", "tool", "home", "everyday"),
        (
            "In the drawer you find {name} beside {other}.",
            "A good shop repairs {name} instead of replacing it.",
            "The inventory lists {name} as an everyday object.",
        ),
    ),
    "office": Group(
        "Office and technology",
        "device",
        ("office", "technology", "work", "computer"),
        (
            "On the desk stands {name}, behind it {other}.",
            "Every office has {name} somewhere.",
        ),
    ),
    "flags": Group(
        "Flags of the world",
        "flag",
        ("flag", "country", "nation", "world"),
        (
            "Outside the building flies the {name}.",
            "The {name} hangs between the {other} and a lamp post.",
            "At the games the team walked in behind the {name}.",
        ),
    ),
    "hearts": Group(
        "Hearts and love",
        "heart",
        ("heart", "love", "romance", "valentine"),
        ("A letter that ends with {name} needs no signature.",),
    ),
    "shapes": Group(
        "Shapes and colours",
        "shape",
        ("shape", "colour", "geometry", "design"),
        ("On the chart {name} stands for one group and {other} for the next.",),
    ),
    "signs": Group(
        "Signs and symbols",
        "symbol",
        ("sign", "symbol", "interface", "button"),
        (
            "On the panel {name} is printed above {other}.",
            "The manual explains {name} on page three.",
        ),
    ),
}

# Words (or whole phrases) that assign a name to a group, in the order of trial.
_WORDS: tuple[tuple[str, str], ...] = (
    ("families", "family couple kiss"),
    ("hearts", "heart hearts"),
    (
        "animals",
        "animal ant badger bat bear beaver beetle bird bison blowfish boar bug "
        "butterfly camel cat chick chicken chipmunk cockroach cow crab cricket "
        "crocodile deer dodo dog dolphin donkey dove dragon duck eagle elephant ewe "
        "fish flamingo fly fox frog giraffe goat goose gorilla hamster hedgehog "
        "hippopotamus honeybee horse jellyfish kangaroo koala leopard lion lizard "
        "llama lobster mammoth microbe monkey moose mosquito mouse octopus orangutan "
        "orca otter owl ox oyster panda parrot peacock penguin phoenix pig poodle "
        "rabbit raccoon ram rat rhinoceros rooster sauropod scorpion seal shark "
        "shrimp skunk sloth snail snake spider squid swan t-rex tiger turkey turtle "
        "unicorn whale wolf worm zebra buffalo paw coral feather nest wing creature",
    ),
    (
        "plants",
        "blossom bouquet cactus clover flower hibiscus hyacinth leaf lotus mushroom "
        "plant rose rosette seedling shamrock sheaf sunflower tree tulip herb leafless "
        "wood",
    ),
    (
        "food",
        "apple avocado bacon bagel baguette banana beans bento beer beverage "
        "blueberries "
        "bread broccoli bubble burrito butter cake candy canned carrot cheese cherries "
        "chestnut chocolate chopsticks cocktail coconut cookie cooking corn croissant "
        "cucumber cup cupcake curry custard dango doughnut drink dumpling egg eggplant "
        "falafel flatbread fondue food fork fries garlic ginger glass grapes "
        "hamburger honey ice jar kiwi knife lemon lime lollipop mango mate meat melon "
        "milk oden olive onion pancakes pea peach peanuts pear pepper pie pineapple "
        "pizza popcorn pot potato poultry pretzel rice root sake salad salt sandwich "
        "shortcake spaghetti spoon steaming strawberry sushi taco tamale tangerine "
        "teacup teapot tomato tropical tumbler vegetable waffle watermelon wine "
        "takeout bottle hot bowl shallow leafy cooked",
    ),
    (
        "clocks",
        "o’clock hourglass stopwatch watch clock one-thirty two-thirty "
        "three-thirty four-thirty five-thirty six-thirty seven-thirty eight-thirty "
        "nine-thirty ten-thirty eleven-thirty twelve-thirty",
    ),
    (
        "faces",
        "face alien clown ghost goblin ogre poo robot skull exploding star-struck "
        "rolling lip mouth smiling",
    ),
    (
        "hands",
        "hand hands fist fingers thumbs palm palms index gesture salute biceps ear "
        "foot leg nose eye eyes brain lungs tooth tongue bone nail selfie horns "
        "handshake anatomical mechanical pinching swatch",
    ),
    (
        "sky",
        "cloud comet cyclone dizzy droplet droplets fog foggy milky moon night planet "
        "rainbow snowflake snowman star sun sunrise sunset tornado umbrella volcano "
        "wave wind fire sparkles fireworks sparkler firecracker high landslide",
    ),
    (
        "travel",
        "airplane ambulance anchor automobile bicycle boat bus cableway canoe car "
        "engine "
        "ferry helicopter locomotive lorry metro minibus monorail motorcycle motorway "
        "parachute railway rickshaw rocket sailboat satellite saucer scooter ship "
        "speedboat station taxi tractor train tram tramway trolleybus truck van "
        "vehicle "
        "wheel wheelchair luggage customs passport baggage fuel traffic buoy "
        "skateboard sled",
    ),
    (
        "places",
        "bank beach bridge building camping castle church cityscape desert factory "
        "fountain hospital hotel house houses hut island kaaba map moai mosque mount "
        "mountain mountains office park place post school shrine stadium statue store "
        "synagogue temple tent tower town playground carousel coaster globe world "
        "slide cinema circus springs construction placard",
    ),
    (
        "sports",
        "badminton ball baseball basketball bowling boxing bullseye chess cricket "
        "curling "
        "dart die disc diving fishing football frisbee game goal hockey joker kite "
        "lacrosse mahjong martial medal pool puzzle rugby skate ski skis slot soccer "
        "softball spade suit tennis ping pong trophy volleyball yo-yo boomerang "
        "cards dolls flying",
    ),
    (
        "music",
        "accordion banjo bell bellhop drum flute guitar harp headphone loudspeaker "
        "maracas megaphone microphone musical radio saxophone speaker trombone trumpet "
        "violin horn chime notes",
    ),
    (
        "clothes",
        "backpack bag bikini boot briefs cap cane clothes coat crown dress glasses "
        "gloves "
        "goggles hat helmet jeans kimono lipstick necktie purse ribbon ring sandal "
        "sari "
        "scarf shirt shoe shoes shorts socks sunglasses swimsuit t-shirt uniform vest "
        "handbag beads shopping gem",
    ),
    ("shapes", "circle square diamond triangle"),
    (
        "signs",
        "arrow arrows button sign symbol mark keycap prohibited no input cross "
        "trade copyright registered asterisk loop dash plus minus divide multiply "
        "infinity peace om khanda yin menorah dharma warning radioactive biohazard "
        "aries taurus gemini cancer leo virgo libra scorpio sagittarius capricorn "
        "aquarius pisces ophiuchus medical recycling trident antenna wireless "
        "vibration "
        "room restroom currency dollar information exclamation zzz speech thought "
        "anger children litter potable non-potable water closet passing beginner "
        "circled heavy points part alternation crescent david hole triangular "
        "chequered crossed flag fleur-de-lis high voltage left right",
    ),
    (
        "office",
        "abacus battery book bookmark books briefcase calendar camera card chart "
        "clipboard computer disk dvd e-mail envelope fax file film folder inbox "
        "joystick keyboard laptop ledger letter link mailbox memo mobile newspaper nib "
        "notebook notepad outbox package page pager paper paperclip paperclips pen "
        "pencil phone postbox printer projector pushpin receipt ruler scroll "
        "telephone television trackball video videocassette cabinet clapper crayon "
        "paintbrush tray index",
    ),
    (
        "people",
        "angel baby boy bust busts child detective elf fairy genie girl guard hair "
        "hugging man mage men mermaid merman merperson monster ninja older people "
        "person prince princess santa claus mrs mx superhero supervillain troll "
        "vampire woman women zombie breast-feeding dancer racing snowboarder skier "
        "joker head pregnant astronaut speaking silhouette footprints",
    ),
)

_GROUP_OF_WORD: dict[str, str] = {}
for _group, _words in _WORDS:
    for _word in _words.split():
        _GROUP_OF_WORD.setdefault(_word, _group)
_ORDER = {group: i for i, (group, _) in enumerate(_WORDS)}


def group_of(name: str, *, person: bool) -> str:
    """Returns the key in GROUPS of an English name. `person`: the name has a gender."""
    if person:
        return "people"
    words = name.lower().replace(",", " ").replace(":", " ").split()
    matching = {_GROUP_OF_WORD[word] for word in words if word in _GROUP_OF_WORD}
    if not matching:
        return "things"
    # First, since people share words with food and sports.
    if words[0] in {"man", "woman", "person", "men", "women", "people"}:
        return "people"
    return min(matching, key=_ORDER.__getitem__)
