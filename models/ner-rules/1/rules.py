"""Finds entities by patterns and short lists of names. Nothing is learned: a name that no rule covers is not found."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

# Every pattern has a bound, so that no text takes more than a time that grows with its length.
NAME = r"[A-Z][\w'’-]{1,40}"
TITLES = r"(?:Mr|Mrs|Ms|Miss|Dr|Prof|Sir|Herr|Frau|Mme)\.?"
FIRST_NAMES = """
    Ada Alan Alice Amir Ana Andrea Anna Barbara Bob Carlos Charles Chen Clara Daniel David Dennis Donald Edsger
    Elena Emma Eva Fatima Frances Grace Hannah Hans Isabel Jack James Jean Jens Johann John Jose Joseph Julia
    Karen Katherine Ken Laura Lena Linda Linus Lisa Luca Maria Marie Mark Martin Mary Max Michael Mohammed Nina
    Olga Oliver Paul Peter Priya Robert Rosa Sarah Sofia Susan Thomas Tim Wei William Yuki
""".split()  # noqa: SIM905
PLACES = """
    Amsterdam Argentina Athens Australia Austria Bangalore Barcelona Beijing Belgium Berlin Boston Brazil
    Brussels Cairo California Cambridge Canada Chicago China Copenhagen Denmark Dublin Egypt England Europe
    Finland Florence France Geneva Germany Greece Hamburg Helsinki Hungary India Indonesia Ireland Israel
    Istanbul Italy Japan Kenya Korea Lagos Lima Lisbon London Madrid Mexico Milan Montreal Moscow Mumbai Munich
    Nairobi Netherlands Nigeria Norway Oslo Oxford Paris Poland Portugal Prague Rome Scotland Seattle Seoul
    Shanghai Singapore Spain Stockholm Sweden Switzerland Sydney Taiwan Texas Tokyo Toronto Turkey Ukraine
    Vienna Vietnam Wales Warsaw Washington Zurich
""".split()  # noqa: SIM905
PLACES += ["Cape Town", "Hong Kong", "Los Angeles", "New York", "New Zealand", "San Francisco", "South Africa"]
PLACES += ["United Kingdom", "United States", "USA"]
FIRMS = [
    "Google",
    "Hugging Face",
    "IBM",
    "Intel",
    "Microsoft",
    "NASA",
    "NVIDIA",
    "OpenAI",
    "Red Hat",
    "Siemens",
    "UNESCO",
]
LEGAL_FORMS = r"(?:Inc|Ltd|LLC|Corp|GmbH|AG|SE|SA|PLC|plc)\b\.?"
INSTITUTIONS = r"(?:Bank|College|Company|Corporation|Foundation|Group|Hospital|Institute|Museum|University)"
MONTHS = r"(?:January|February|March|April|May|June|July|August|September|October|November|December)"
CURRENCIES = r"(?:[$€£¥]|USD|EUR|GBP|CHF|JPY)"
AMOUNT = r"\d[\d,.]{0,30}\d|\d"


def _any(names: Sequence[str]) -> str:
    return rf"\b(?:{'|'.join(map(re.escape, sorted(names, key=len, reverse=True)))})\b"


# The first that matches a place of the text has it, so the precise ones stand first.
KINDS: dict[str, str] = {
    "email": r"\b[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}\b",
    "url": r"\bhttps?://[^\s<>\"')\]]*[^\s<>\"')\].,;:!?]",
    "ip address": r"\b(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)\b",
    "iban": r"\b[A-Z]{2}\d{2}(?: ?[A-Z\d]{4}){3,7}(?: ?[A-Z\d]{1,3})?\b",
    "credit card": r"\b(?:\d{4}[ -]?){3}\d{4}\b",
    "date": rf"\b\d{{4}}-\d\d-\d\d\b|\b\d{{1,2}}[./]\d{{1,2}}[./]\d{{2,4}}\b"
    rf"|\b\d{{1,2}}(?:st|nd|rd|th|\.)? {MONTHS}(?: \d{{4}})?\b|\b{MONTHS} \d{{1,2}}(?:st|nd|rd|th)?(?:, \d{{4}})?\b",
    "time": r"\b\d{1,2}:\d\d(?::\d\d)?(?: ?[ap]\.?m\b\.?)?|\b\d{1,2} ?[ap]m\b",
    "money": rf"{CURRENCIES} ?(?:{AMOUNT})(?: (?:million|billion))?"
    rf"|\b(?:{AMOUNT}) ?(?:[$€£¥]|(?:dollars|euros|USD|EUR)\b)",
    "phone": r"(?<![\w.])(?:\+\d{1,3}[ -]?)?(?:\(\d{1,5}\)[ -]?)?\d{2,5}(?:[ /-]\d{2,5}){1,4}\b",
    "organization": rf"\b(?:{NAME} (?:& )?){{1,4}}{LEGAL_FORMS}|\b{INSTITUTIONS} of {NAME}(?: {NAME}){{0,3}}"
    rf"|\b(?:{NAME} ){{1,3}}{INSTITUTIONS}\b|{_any(FIRMS)}",
    "person": rf"\b{TITLES} {NAME}(?: {NAME}){{0,2}}|{_any(FIRST_NAMES)}(?: (?:van|von|de|da) {NAME}| {NAME}){{0,2}}",
    "location": _any(PLACES),
}
PATTERNS = {kind: re.compile(pattern) for kind, pattern in KINDS.items()}
OTHER_NAMES = {
    "name": "person",
    "people": "person",
    "organisation": "organization",
    "company": "organization",
    "institution": "organization",
    "place": "location",
    "city": "location",
    "country": "location",
    "address": "location",
    "e-mail": "email",
    "email address": "email",
    "phone number": "phone",
    "telephone": "phone",
    "link": "url",
    "ip": "ip address",
    "amount": "money",
    "price": "money",
    "credit card number": "credit card",
}


def find(text: str, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Entities with one of `labels`, in the order of the text, none inside another.

    Each is `{"start", "end", "text", "label", "score"}`: places in characters, the label as it was asked for, and a
    score of 1, as rules know no doubt. A label that no rule is for finds nothing.
    """
    asked: dict[str, str] = {}
    for label in labels:
        name = label.strip().lower()
        asked.setdefault(OTHER_NAMES.get(name, name), label)
    taken = [False] * len(text)
    spans = []
    # Kinds that were not asked for take their places too: the digits of a date are no phone number.
    for kind, pattern in PATTERNS.items():
        for match in pattern.finditer(text):
            start, end = match.span()
            if any(taken[start:end]) or not _is_valid(kind, match[0]):
                continue
            taken[start:end] = [True] * (end - start)
            if kind in asked:
                spans.append({"start": start, "end": end, "text": match[0], "label": asked[kind], "score": 1.0})
    return sorted(spans, key=lambda span: span["start"])


def _is_valid(kind: str, found: str) -> bool:
    digits = [int(character) for character in found if character.isdigit()]
    if kind == "phone":
        return 7 <= len(digits) <= 15
    if kind == "credit card":
        doubled = [2 * digit - 9 * (digit > 4) for digit in digits[-2::-2]]
        return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0
    return True
