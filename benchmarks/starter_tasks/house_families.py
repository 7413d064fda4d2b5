"""The starter's desk of a house: private command words for eight objects, and the wordings they are asked for in.

A request names an object and its number; the right answer is the object's private word and that number. Nothing but the
desk's handbook tells the words. A family is one wording, asked about every object: a held-out family is an unseen way
to ask about known objects, with numbers that no train task has.
"""

from collections.abc import Mapping, Sequence
from typing import Final, Literal

HOUSE_SYSTEM: Final = (
    "You are the desk of a house. Answer every request with one command of the form /word number and nothing else."
)

HOUSE_WORDINGS: Final = {
    "please_check": "Please check {object} {number}.",
    "needs_a_check": "{Object} {number} needs a check.",
    "send_someone": "Send someone to {object} {number}.",
    "have_a_look": "Could you have a look at {object} {number}?",
    "out_of_order": "{Object} {number} is out of order.",
    "does_not_work": "{Object} number {number} does not work.",
    "broken_again": "The {object} with the number {number} is broken again.",
    "repair": "We need a repair of {object} {number}.",
    "fix": "Fix {object} {number}, please.",
    "something_wrong": "Something is wrong with {object} {number}.",
    "strange_noise": "There is a strange noise from {object} {number}.",
    "guest_complains": "A guest complains about {object} {number}.",
    "see_to": "Please see to {object} {number}.",
    "report": "I want to report {object} {number}.",
    "stopped": "{Object} {number} has stopped.",
    "trouble": "We have trouble with {object} {number}.",
    "who_can": "Who can come for {object} {number}?",
    "attention": "{Object} {number} wants attention.",
    "since_morning": "{Object} {number} has been faulty since the morning.",
    "service": "Book a service for {object} {number}.",
    "inspect": "Have {object} {number} inspected.",
    "call": "I am calling about {object} {number}.",
    "ticket": "Open a ticket for {object} {number}.",
    "urgent": "Urgent: {object} {number}.",
    "help": "Help, it is {object} {number}!",
    "maintenance": "Maintenance is due for {object} {number}.",
    "look_after": "Can somebody look after {object} {number}?",
    "odd": "{Object} {number} behaves oddly.",
    "last_night": "{Object} {number} failed last night.",
    "put_right": "Put {object} {number} right, please.",
    "worry": "I worry about {object} {number}.",
    "list": "Put {object} {number} on the list.",
    "next_round": "On your next round, take {object} {number}.",
    "colleague": "My colleague says that {object} {number} has a fault.",
    "smell": "There is a smell near {object} {number}.",
    "stuck": "{Object} {number} is stuck.",
    "warning": "A warning came up for {object} {number}.",
    "test": "Run a test of {object} {number}.",
    "note": "A note for you: {object} {number}.",
    "again": "It is {object} {number} again.",
    "expect": "They expect you at {object} {number}.",
    "today": "Is there time for {object} {number} today?",
}
"""Ways to ask, by the name of their family."""

HOUSE_NUMBERS: Final[Mapping[Literal["train", "validation", "heldout"], Sequence[int]]] = {
    "train": [number for number in range(10, 100) if number % 9 < 5],
    "validation": [number for number in range(10, 100) if number % 9 in (5, 6)],
    "heldout": [number for number in range(10, 100) if number % 9 in (7, 8)],
}
"""The numbers that the requests of a split use; no two splits share one."""
