"""Takes what names a person out of short texts: instructions and comments.

Level partial: e-mail addresses, phone numbers, US social security numbers, payment cards (Luhn) and IP addresses.
Level full: names and postal addresses besides, by rules of context. How much of each is found stands in
docs/privacy.md; rules, not a model, because a model of names takes "Hand the Phillips screwdriver" for a person.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable

import phonenumbers

from runtime.consent import Level

#: Without a country code a number is read as one of here.
_REGION = "US"
_EMAIL = re.compile(r"[\w.+%-]+@(?:[\w-]+\.)+[A-Za-z]{2,}")
_SSN = re.compile(r"\b\d{3}[- ]\d{2}[- ]\d{4}\b")
_CARD = re.compile(r"\b\d(?:[ -]?\d){12,18}\b")
_IP = re.compile(r"(?<![\w:.])(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7})(?![\w:])")
_STREET = "street|st|avenue|ave|road|rd|boulevard|blvd|lane|ln|drive|dr|court|ct|square|sq|place|pl|way|terrace|parkway"
_ADDRESS = re.compile(
    rf"\b\d{{1,5}}[A-Za-z]?\s+(?:[A-Z][\w'.-]*\s+){{1,4}}(?i:{_STREET})\b\.?"
    r"(?:,?\s+(?:Apt|Suite|Unit)\.?\s*\w+)?(?:,\s*[A-Z][\w'. -]*)?(?:,?\s+[A-Z]{2})?(?:\s+\d{5}(?:-\d{4})?)?"
)
_CAPITAL = r"[A-Z][a-z]+(?:[-'][A-Z]?[a-z]+)*"
_TITLED = re.compile(rf"\b(?:Mr|Mrs|Ms|Miss|Dr|Prof|Sir|Madam)\.?\s+{_CAPITAL}(?:\s+{_CAPITAL})?")
_INTRODUCED = re.compile(
    rf"(?i:\b(?:my name is|i am|i'm|this is|call me|named|name:|patient|employee|customer|operator|colleague))"
    rf"\s+({_CAPITAL}(?:\s+{_CAPITAL})?)"
)
#: A verb or preposition that takes a person, then a capital in the middle of a sentence.
_ADDRESSED = re.compile(
    rf"\b(?:to|for|from|with|give|hand|bring|ask|tell|by|help|follow)\s+({_CAPITAL}(?:\s+{_CAPITAL})?)(?!\s+[a-z])"
)
#: "Anna's cup", but not at the start of a sentence, where every word has a capital.
_OWNING = re.compile(rf"(?<=[a-z,;]\s)({_CAPITAL}(?:\s+{_CAPITAL})?)(?='s\b)")
#: Two capitals in a row in the middle of a sentence.
_FULL_NAME = re.compile(rf"(?<=[a-z,;]\s){_CAPITAL}\s+(?:[A-Z]\.\s+)?{_CAPITAL}(?!\s+[a-z])")

Replace = Callable[[re.Match[str]], str]


def text(value: str, level: Level) -> str:
    """The text with placeholders such as [EMAIL] where something was. Idempotent; level none changes nothing."""
    if level == "none":
        return value
    value = _EMAIL.sub("[EMAIL]", value)
    value = _SSN.sub("[SSN]", value)
    value = _CARD.sub(_card, value)
    value = _IP.sub(_address, value)
    value = _phones(value)
    return _people(value) if level == "full" else value


def _people(value: str) -> str:
    value = _ADDRESS.sub("[ADDRESS]", value)
    value = _TITLED.sub("[NAME]", value)
    for pattern in (_INTRODUCED, _ADDRESSED, _OWNING):
        value = pattern.sub(_group, value)
    return _FULL_NAME.sub("[NAME]", value)


def _group(match: re.Match[str]) -> str:
    """The whole match with its first group replaced."""
    whole, start = match.group(0), match.start(0)
    return whole[: match.start(1) - start] + "[NAME]" + whole[match.end(1) - start :]


def _card(match: re.Match[str]) -> str:
    digits = [int(character) for character in match.group(0) if character.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return "[CARD]" if (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0 else match.group(0)


def _address(match: re.Match[str]) -> str:
    try:
        ipaddress.ip_address(match.group(0))
    except ValueError:
        return match.group(0)
    return "[IP]"


def _phones(value: str) -> str:
    found = list(phonenumbers.PhoneNumberMatcher(value, _REGION))
    for match in reversed(found):
        value = value[: match.start] + "[PHONE]" + value[match.end :]
    return value
