"""Exact match, the reference, and what a teacher is shown: pure decisions, no server."""

import asyncio

import pytest

from services.contracts.answers import Feedback, FeedbackSpan
from services.contracts.base import Json
from services.contracts.experts import ConsultAbstain, ConsultResult, ContextAnswer
from services.contracts.tasks import Message, Precedent
from services.contracts.templates import Template, build_teacher_messages, render_feedback
from services.experts.own.calls import equals
from services.experts.own.execution import extract_python
from services.experts.own.precedents import PrecedentsExpert
from services.experts.own.reference import ReferenceExpert
from services.experts.own.scorers import ExactMatchExpert, find_final_answer, matches
from services.experts.own.teacher import choose_context
from tests.experts.samples import make_question


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 42.", "42"),
        ("2 + 3 = 5", "5"),
        ("so it is \\boxed{\\frac{1}{2}} indeed", "\\frac{1}{2}"),
        ("\\boxed{1} or rather \\boxed{2}", "2"),
        ("first 3, then\n#### 1,234", "1,234"),
        ("**Answer: 7**", "7"),
        ("Answer: B", "B"),
        ("it costs 1,000.50 in all", "1,000.50"),
        ("minus -3", "-3"),
        ("B", "B"),
        ("no number\nat all", None),
        ("", None),
        ("\\boxed{", None),
    ],
)
def test_the_final_answer_is_found(text: str, answer: str | None) -> None:
    assert find_final_answer(text) == answer


@pytest.mark.parametrize(
    ("given", "expected", "same"),
    [
        ("5", "5", True),
        ("5.0", "5", True),
        ("5.000001", "5", True),
        ("5.001", "5", False),
        ("1/2", "0.5", True),
        ("\\frac{1}{2}", "0.5", True),
        ("-\\frac{1}{2}", "-0.5", True),
        ("50%", "0.5", True),
        ("1,234", "1234", True),
        ("12,34", "1234", False),
        ("$7$", "7", True),
        ("1e3", "1000", True),
        ("1/0", "0", False),
        ("9" * 5000, "9", False),
        ("1e999", "1", False),
        ("seven", "7", False),
        ("", "0", False),
        (".", "0", False),
        ("(b)", "B", True),
        (" Blue  whale. ", "blue whale", True),
        ("\\text{blue}", "blue", True),
        ("blue", "green", False),
        ("3", "x + 3", False),
    ],
)
def test_answers_are_compared_by_value_or_as_text(given: str, expected: str, same: bool) -> None:
    assert matches(given, expected) is same


def exact_match(text: str, answer: Json) -> ConsultResult | ConsultAbstain:
    return asyncio.run(ExactMatchExpert().consult(make_question(text, metadata={"answer": answer})))


def command(text: str) -> ConsultResult | ConsultAbstain:
    question = make_question(text, domain="command", metadata={"answer": "/heron 37"})
    return asyncio.run(ExactMatchExpert().consult(question))


def test_a_command_is_right_letter_by_letter_and_a_miss_does_not_tell_it() -> None:
    assert command(" /heron 37\n") == ConsultResult(score=1.0, evidence={"given": "/heron 37"})
    for wrong in ("/heron 38", "/Heron 37", "heron 37", "/heron  37", "37", "The answer is /heron 37", ""):
        verdict = command(wrong)
        assert isinstance(verdict, ConsultResult)
        assert verdict.score == 0.0
        assert verdict.feedback is not None
        assert ("/heron 37" in verdict.feedback.text) == ("/heron 37" in wrong), "only what the answer had itself"


def test_a_match_scores_one_and_a_miss_says_what_was_expected() -> None:
    assert exact_match("The answer is 5.", "5") == ConsultResult(score=1.0, evidence={"given": "5"})
    assert exact_match("The answer is 5.", 5) == ConsultResult(score=1.0, evidence={"given": "5"})
    miss = exact_match("The answer is 6.", "5")
    assert isinstance(miss, ConsultResult)
    assert miss.score == 0.0
    assert miss.feedback == Feedback(text="The final answer was 6, expected 5.")


def test_an_answer_that_is_no_value_is_abstained_from() -> None:
    unusable: list[Json] = [None, True, [5], {"x": 5}]
    for answer in unusable:
        assert isinstance(exact_match("5", answer), ConsultAbstain)


def test_text_without_a_final_answer_is_a_format_error() -> None:
    miss = exact_match("well\nwho knows", "5")
    assert isinstance(miss, ConsultResult)
    assert miss.feedback is not None
    assert miss.feedback.text.startswith("Format error")


@pytest.mark.parametrize(
    ("got", "expected", "same"),
    [
        (1, 1, True),
        (True, True, True),
        (True, 1, False),
        (0, False, False),
        (1, 1.0, True),
        (1.0000001, 1, True),
        (1.00001, 1, False),
        (10**400, 1.0, False),
        ("1", 1, False),
        (None, False, False),
        ([1, [2]], [1, [2]], True),
        ([1, True], [1, 1], False),
        ([1], [1, 2], False),
        ({"a": 1}, {"a": 1.0}, True),
        ({"a": 1}, {"a": 1, "b": None}, False),
        ({}, [], False),
    ],
)
def test_values_are_equal_only_as_the_same_kind_of_plain_data(got: Json, expected: Json, same: bool) -> None:
    assert equals(got, expected) is same


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("```python\nx = 1\n```", "x = 1\n"),
        ("a\n```py\nx = 1\n```\nb\n```python\ny\n```", "x = 1\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```json\n{}\n```", None),
        ("```json\n{}\n```\n```python\nx = 1\n```", "x = 1\n"),
        ("```python\nx = 1", None),
        ("```python\nx = '```'\n```", "x = '```'\n"),
        ("x = 1", None),
    ],
)
def test_the_first_closed_python_block_is_taken(text: str, source: str | None) -> None:
    assert extract_python(text) == source


def test_the_reference_is_given_as_a_solution() -> None:
    expert = ReferenceExpert()
    given = asyncio.run(expert.consult(make_question(metadata={"reference": "```python\nx\n```"})))
    assert given == ConsultResult(solution="```python\nx\n```")
    assert isinstance(asyncio.run(expert.consult(make_question(metadata={"reference": " "}))), ConsultAbstain)


def test_precedents_are_given_as_the_task_has_them() -> None:
    precedents: Json = [{"messages": [{"role": "user", "content": "What is 4 + 4?"}], "answer": "8"}]
    expert = PrecedentsExpert()
    given = asyncio.run(expert.consult(make_question(metadata={"precedents": precedents})))
    shown = Precedent(messages=[Message(role="user", content="What is 4 + 4?")], answer="8")
    assert given == ConsultResult(precedents=[shown])
    wrong = asyncio.run(expert.consult(make_question(metadata={"precedents": [{"answer": "8"}]})))
    assert isinstance(wrong, ConsultAbstain)


SYSTEM = Message(role="system", content="Be brief.")
USER = Message(role="user", content="What is 2 + 3?")


def test_the_template_turns_shows_the_solution_as_a_turn_and_asks_again() -> None:
    shown = build_teacher_messages(Template.TURNS, [SYSTEM, USER], "<think>hm\n</think>\n5", "it was 6")
    assert shown == [SYSTEM, USER, Message(role="assistant", content="5"), USER]


def test_without_a_solution_every_template_puts_the_feedback_in_the_last_turn() -> None:
    for template in Template:
        shown = build_teacher_messages(template, [SYSTEM, USER], None, " The answer was 6. ")
        assert shown[0] == SYSTEM
        assert shown[1].content == (
            "What is 2 + 3?\n\nThe following is feedback from your unsuccessful earlier attempt:\n\n"
            "The answer was 6.\n\nCorrectly solve the original question."
        )


def test_the_template_reprompt_shows_the_solution_before_the_feedback() -> None:
    (shown,) = build_teacher_messages(Template.REPROMPT, [USER], "5", "it was 6")
    assert shown.role == "user"
    order = [shown.content.index(part) for part in ("What is", "Correct solution:\n\n5", "it was 6", "Correctly solve")]
    assert order == sorted(order)


def test_with_neither_solution_nor_feedback_there_is_no_teacher() -> None:
    for solution, feedback in ((None, None), ("", " "), ("<think>only</think>", None)):
        with pytest.raises(ValueError, match="needs a solution, precedents or feedback"):
            build_teacher_messages(Template.TURNS, [USER], solution, feedback)


def test_feedback_on_spans_is_shown_in_their_order_without_the_steps_themselves() -> None:
    spans = [FeedbackSpan(start=5, end=6, text="second"), FeedbackSpan(start=1, end=2, text="first")]
    assert render_feedback(Feedback(text="whole", spans=spans)) == "whole\nfirst\nsecond"
    assert render_feedback(Feedback(spans=spans)) == "first\nsecond"


def test_a_teacher_is_shown_the_first_solution_and_all_feedback() -> None:
    answers = [
        ContextAnswer(expert="a", score=0.0, feedback=Feedback(text="wrong")),
        ContextAnswer(expert="b", solution="  "),
        ContextAnswer(expert="c", solution="5", feedback=Feedback(text="very wrong")),
        ContextAnswer(expert="d", solution="five"),
    ]
    assert choose_context(answers) == ("5", "wrong\nvery wrong")
    assert choose_context([ContextAnswer(expert="a", score=1.0)]) == (None, None)
