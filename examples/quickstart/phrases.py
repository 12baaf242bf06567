"""The texts of the sample web: for pictures, and for articles.

Every text is built from a picture's name, its group and its tags, chosen by hash.
"""

from collections.abc import Mapping

from examples.quickstart.groups import GROUPS
from examples.quickstart.names import Picture
from examples.quickstart.picks import draw, pick

# {Name}, {name}: the plain name. {subject}: without tones. {a}: with an article.
# {tones}: "dark skin tone". Repeats make a form more frequent.
_WITH_TONES = (
    "{Name}",
    "{Name}",
    "{Name}",
    "{name}",
    "{name}",
    "{Subject}: {tones}",
    "{Subject} ({tones})",
    "{Subject} with {tones}",
    "{a} with {tones}",
    "an illustration of {a} with {tones}",
    "icon of {subject}: {tones}",
    "icon of {name}",
    "a drawing of {a}, {tones}",
    "{tones}, {subject}",
    "{Name} – {tag} icon",
    "clip art of {a} with {tones}",
    "emoji: {name}",
)
_PLAIN = (
    "{Name}",
    "{Name}",
    "{Name}",
    "{name}",
    "{name}",
    "{a}",
    "an illustration of {a}",
    "icon of {subject}",
    "a drawing of {a}",
    "a simple picture of {a}",
    "{Name} – {tag} icon",
    "{Name}, {tag} and {tag2}",
    "clip art of {a} on white",
    "emoji: {name}",
    "{kind}: {name}",
)
_PRODUCT = (
    "{Name} sticker",
    "{Name} – sticker, 5 cm",
    "Buy {name} sticker online",
    "Sticker: {name}",
    "{Name} (set of 10)",
    "{Name} | Sample Shop",
)
HEAD_TEXTS = ("image", "icon", "logo", "picture", "photo", "img", "thumbnail")
TEMPLATE_TEXTS = (
    "icon of {name}",
    "image of {name}",
    "picture of {name}",
    "logo {name}",
    "icon {name}",
    "photo of {a}",
)

_OPENINGS = (
    "{A} is drawn with a few clear lines and flat colours.",
    "The picture of {a} belongs to the section {title}.",
    "This {kind} is easy to recognise: {name}.",
    "Readers who look for {name} also look for {other}.",
    "Our collection holds several drawings on {tag}, and {a} is one of them.",
    "The next drawing shows {a}.",
    "Here you see {a}, drawn for screens and for print.",
    "When people talk about {tag}, they often mention {name}.",
    "A page on {tag} would not be complete without {name}.",
    "The first sketch of {name} was made with a soft pencil.",
)
_CLOSINGS = (
    "Compare it with {other}, which uses the same colours.",
    "In short messages {name} stands for {tag} and {tag2}.",
    "Teachers use {name} to explain the word {tag}.",
    "You can download the icon of {name} in two sizes.",
    "The outline of {name} stays readable even when it is small.",
    "Both {name} and {other} are popular on posters.",
    "See also: {other}.",
    "A visitor wrote to us that {name} reminded her of {tag2} at home.",
    "",
)
_COUNTABLE = frozenset(
    "people animals travel music clothes things office places flags hearts".split()
)


def english(picture: Picture, *key: str | int, seed: int) -> str:
    """Returns a natural English text for a picture, chosen by the key."""
    forms = _WITH_TONES if picture.tones else _PLAIN
    return _fill(pick(seed, forms, picture.code, "text", *key), picture, seed=seed)


def product(picture: Picture, *key: str | int, seed: int) -> str:
    """Returns a product title, as from a shop's template."""
    return _fill(
        pick(seed, _PRODUCT, picture.code, "product", *key), picture, seed=seed
    )


def template(picture: Picture, *key: str | int, seed: int) -> str:
    """Returns a text from a careless template: "icon of fox", "image", ""."""
    if draw(seed, picture.code, "careless", *key) < 0.4:
        return pick(seed, (*HEAD_TEXTS, "", ""), picture.code, "head", *key)
    form = pick(seed, TEMPLATE_TEXTS, picture.code, "template", *key)
    return _fill(form, picture, seed=seed)


def keywords(picture: Picture, *, seed: int) -> str:
    """Returns the comma separated keywords of a picture."""
    group = GROUPS[picture.group]
    words = [*picture.subject.replace(",", "").replace(":", "").split(), *group.tags]
    if picture.tones:
        words.append(picture.tone_text)
    start = int(draw(seed, picture.code, "keywords") * 2)
    return ", ".join(dict.fromkeys(words[: len(words) - start]))


def paragraph(picture: Picture, other: Picture, *, seed: int) -> str:
    """Returns two or three English sentences about a picture and its neighbour."""
    facts = GROUPS[picture.group].facts
    forms = [
        pick(seed, options, picture.code, part)
        for part, options in (("o", _OPENINGS), ("f", facts), ("c", _CLOSINGS))
    ]
    filled = [_fill(form, picture, other=other, seed=seed) for form in forms if form]
    return " ".join(sentence[:1].upper() + sentence[1:] for sentence in filled)


def a(picture: Picture) -> str:
    """Returns the subject, with an article if it takes one: "a woman firefighter"."""
    subject = picture.subject
    words = subject.split()
    if picture.group == "flags":
        return f"the {subject}"
    plural = words[0] in {"men", "women", "people"} or words[-1].endswith("s")
    countable = picture.group in _COUNTABLE or bool(picture.gender)
    if not countable or (plural and not picture.gender) or subject[0].isupper():
        return subject
    return f"{'an' if subject[0] in 'aeiou' else 'a'} {subject}"


def heading(text: str) -> str:
    """Returns a text with a capital first letter, the rest untouched."""
    return text[:1].upper() + text[1:]


def _fill(
    form: str, picture: Picture, *, seed: int, other: Picture | None = None
) -> str:
    group = GROUPS[picture.group]
    first = int(draw(seed, picture.code, form) * len(group.tags))
    values: Mapping[str, str] = {
        "name": picture.name,
        "Name": heading(picture.name),
        "subject": picture.subject,
        "Subject": heading(picture.subject),
        "a": a(picture),
        "A": heading(a(picture)),
        "tones": picture.tone_text,
        "kind": group.kind,
        "title": group.title,
        "tag": group.tags[first],
        "tag2": group.tags[first - 1],
        "other": a(other) if other else "",
    }
    return form.format_map(values)
