"""The starter's small Python functions, by family: what is asked, a right answer, and the inputs it is tried on.

A family is a theme whose members share one signature and one set of inputs. It refuses to say which family trains:
`build.py` deals whole families to the splits. Expected values are computed from the reference, never typed by hand.
Arguments and results are plain JSON values without floats, so that equality needs no tolerance.
"""

from dataclasses import dataclass

from pydantic import JsonValue


@dataclass(frozen=True)
class FunctionFamily:
    """A theme: `inputs` are argument lists; each member is (name, what it returns, the lines of its body)."""

    name: str
    parameters: str
    inputs: tuple[list[JsonValue], ...]
    members: tuple[tuple[str, str, str], ...]


def _family(
    name: str, parameters: str, inputs: list[list[JsonValue]], members: list[tuple[str, str, str]]
) -> FunctionFamily:
    return FunctionFamily(name, parameters, tuple(inputs), tuple(members))


_NUMBERS: list[list[JsonValue]] = [[[3, -1, 4, 0, 9]], [[5]], [[-2, -7, 6, 6]], [[10, 3, -8, 0, 2, 7]]]
_TEXTS: list[list[JsonValue]] = [["Hello World"], ["a"], ["banana split"], ["Python 3 Rocks"], ["LEVEL up"]]
_WORDS: list[list[JsonValue]] = [
    [["apple", "fig", "banana"]],
    [["Zoo"]],
    [["red", "Green", "blue", "teal"]],
    [["an", "elephant", "ate", "oats"]],
]
_SMALL: list[list[JsonValue]] = [[1], [2], [5], [9], [12]]
_SIGNED: list[list[JsonValue]] = [[7], [0], [-4], [15], [-9], [30]]
_PAIRS: list[list[JsonValue]] = [[7, 3], [2, 5], [10, 4], [6, 6], [1, 9]]

FUNCTION_FAMILIES: tuple[FunctionFamily, ...] = (
    _family(
        "scaling",
        "n",
        _SIGNED,
        [
            ("double", "twice the number n", "return n * 2"),
            ("triple", "three times the number n", "return n * 3"),
            ("times_ten", "n multiplied by ten", "return n * 10"),
            ("negate", "the number n with its sign flipped", "return -n"),
            ("half_down", "n divided by 2 with integer division", "return n // 2"),
        ],
    ),
    _family(
        "shifting",
        "n",
        _SIGNED,
        [
            ("next_number", "n plus one", "return n + 1"),
            ("previous_number", "n minus one", "return n - 1"),
            ("add_ten", "n plus ten", "return n + 10"),
            ("subtract_five", "n minus five", "return n - 5"),
            ("from_hundred", "one hundred minus n", "return 100 - n"),
        ],
    ),
    _family(
        "two_numbers",
        "a, b",
        _PAIRS,
        [
            ("add", "the sum of a and b", "return a + b"),
            ("subtract", "a minus b", "return a - b"),
            ("multiply", "the product of a and b", "return a * b"),
            ("quotient", "a divided by b with integer division", "return a // b"),
            ("remainder", "the remainder of a divided by b", "return a % b"),
        ],
    ),
    _family(
        "picking_one",
        "a, b",
        _PAIRS,
        [
            ("larger", "the larger of a and b", "return max(a, b)"),
            ("smaller", "the smaller of a and b", "return min(a, b)"),
            ("distance_between", "the absolute difference of a and b", "return abs(a - b)"),
            ("sum_of_squares", "the square of a plus the square of b", "return a ** 2 + b ** 2"),
            ("twice_larger", "two times the larger of a and b", "return 2 * max(a, b)"),
        ],
    ),
    _family(
        "three_numbers",
        "a, b, c",
        [[1, 2, 3], [9, 4, 6], [5, 5, 2], [0, 7, 8]],
        [
            ("sum_three", "the sum of a, b and c", "return a + b + c"),
            ("product_three", "the product of a, b and c", "return a * b * c"),
            ("largest_of_three", "the largest of a, b and c", "return max(a, b, c)"),
            ("smallest_of_three", "the smallest of a, b and c", "return min(a, b, c)"),
            ("middle_of_three", "the middle value of a, b and c", "return sorted([a, b, c])[1]"),
        ],
    ),
    _family(
        "parity",
        "n",
        _SIGNED,
        [
            ("is_even", "True if n is even, otherwise False", "return n % 2 == 0"),
            ("is_odd", "True if n is odd, otherwise False", "return n % 2 == 1"),
            ("parity_bit", "0 if n is even and 1 if n is odd", "return n % 2"),
            (
                "even_or_odd",
                "the string 'even' if n is even, otherwise 'odd'",
                "return 'even' if n % 2 == 0 else 'odd'",
            ),
            ("make_even", "n if n is even, otherwise n plus one", "return n if n % 2 == 0 else n + 1"),
        ],
    ),
    _family(
        "divisibility",
        "n",
        [[15], [10], [9], [7], [21], [30]],
        [
            ("divisible_by_three", "True if n is divisible by 3", "return n % 3 == 0"),
            ("divisible_by_five", "True if n is divisible by 5", "return n % 5 == 0"),
            ("divisible_by_seven", "True if n is divisible by 7", "return n % 7 == 0"),
            (
                "divisible_by_three_and_five",
                "True if n is divisible by both 3 and 5",
                "return n % 3 == 0 and n % 5 == 0",
            ),
            ("remainder_by_four", "the remainder of n divided by 4", "return n % 4"),
        ],
    ),
    _family(
        "sign",
        "n",
        _SIGNED,
        [
            ("is_positive", "True if n is greater than zero", "return n > 0"),
            ("is_negative", "True if n is less than zero", "return n < 0"),
            ("is_zero", "True if n equals zero", "return n == 0"),
            ("is_nonzero", "True if n is not equal to zero", "return n != 0"),
            ("absolute_value", "the absolute value of n", "return abs(n)"),
        ],
    ),
    _family(
        "powers",
        "n",
        [[1], [2], [3], [5], [10]],
        [
            ("square", "the square of n", "return n ** 2"),
            ("cube", "the cube of n", "return n ** 3"),
            ("fourth_power", "n to the power of 4", "return n ** 4"),
            ("power_of_two", "2 to the power of n", "return 2 ** n"),
            ("square_plus_one", "the square of n, plus one", "return n ** 2 + 1"),
        ],
    ),
    _family(
        "digits",
        "n",
        [[7], [42], [305], [9081], [120]],
        [
            ("count_digits", "how many digits the number n has", "return len(str(n))"),
            ("sum_digits", "the sum of the digits of n", "return sum(int(d) for d in str(n))"),
            ("last_digit", "the last digit of n", "return n % 10"),
            ("first_digit", "the first digit of n as an integer", "return int(str(n)[0])"),
            ("largest_digit", "the largest digit of n as an integer", "return max(int(d) for d in str(n))"),
        ],
    ),
    _family(
        "series",
        "n",
        [[1], [2], [3], [5], [6]],
        [
            ("sum_up_to", "the sum of the integers from 1 to n", "return sum(range(1, n + 1))"),
            ("sum_below", "the sum of the integers from 0 to n - 1", "return sum(range(n))"),
            ("sum_of_first_squares", "the sum of the squares of 1 to n", "return sum(i ** 2 for i in range(1, n + 1))"),
            ("sum_of_first_cubes", "the sum of the cubes of 1 to n", "return sum(i ** 3 for i in range(1, n + 1))"),
            ("factorial", "the factorial of n", "return 1 if n <= 1 else n * factorial(n - 1)"),
        ],
    ),
    _family(
        "counting_lists",
        "n",
        [[1], [2], [4], [7], [0]],
        [
            ("one_to_n", "the list of integers from 1 to n", "return list(range(1, n + 1))"),
            ("zero_to_n", "the list of integers from 0 to n", "return list(range(n + 1))"),
            ("countdown", "the list of integers from n down to 1", "return list(range(n, 0, -1))"),
            ("list_of_zeros", "a list with n zeros", "return [0] * n"),
            ("first_squares", "the list of the squares of 1 to n", "return [i ** 2 for i in range(1, n + 1)]"),
        ],
    ),
    _family(
        "points",
        "x, y",
        [[3, 4], [0, 0], [-2, 5], [1, -6], [7, 0]],
        [
            ("steps_from_origin", "the absolute value of x plus the absolute value of y", "return abs(x) + abs(y)"),
            ("is_origin", "True if x and y are both zero", "return x == 0 and y == 0"),
            ("both_positive", "True if x and y are both greater than zero", "return x > 0 and y > 0"),
            ("on_x_axis", "True if y equals zero", "return y == 0"),
            ("swap_coordinates", "a list with y first and then x", "return [y, x]"),
        ],
    ),
    _family(
        "time_units",
        "n",
        _SMALL,
        [
            ("minutes_to_seconds", "the number of seconds in n minutes", "return n * 60"),
            ("hours_to_seconds", "the number of seconds in n hours", "return n * 3600"),
            ("days_to_hours", "the number of hours in n days", "return n * 24"),
            ("weeks_to_days", "the number of days in n weeks", "return n * 7"),
            ("years_to_months", "the number of months in n years", "return n * 12"),
        ],
    ),
    _family(
        "exam_scores",
        "score",
        [[100], [50], [49], [92], [13]],
        [
            ("has_passed", "True if the score is at least 50", "return score >= 50"),
            ("has_failed", "True if the score is less than 50", "return score < 50"),
            ("is_perfect_score", "True if the score equals 100", "return score == 100"),
            (
                "pass_or_fail",
                "the string 'pass' if the score is at least 50, otherwise 'fail'",
                "return 'pass' if score >= 50 else 'fail'",
            ),
            (
                "grade_a_or_b",
                "the string 'A' if the score is at least 90, otherwise 'B'",
                "return 'A' if score >= 90 else 'B'",
            ),
        ],
    ),
    _family(
        "years",
        "year",
        [[1999], [2000], [2024], [1900], [2051]],
        [
            (
                "is_leap_year",
                "True if the year is a leap year",
                "return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)",
            ),
            ("is_after_2000", "True if the year is greater than 2000", "return year > 2000"),
            ("years_since_1900", "the year minus 1900", "return year - 1900"),
            ("year_in_century", "the last two digits of the year as an integer", "return year % 100"),
            ("decade_start", "the year with its last digit replaced by 0, as an integer", "return year // 10 * 10"),
        ],
    ),
    _family(
        "totals",
        "numbers",
        _NUMBERS,
        [
            ("total", "the sum of a list of numbers", "return sum(numbers)"),
            ("total_of_squares", "the sum of the squares of a list of numbers", "return sum(x ** 2 for x in numbers)"),
            (
                "total_absolute",
                "the sum of the absolute values of a list of numbers",
                "return sum(abs(x) for x in numbers)",
            ),
            ("total_positive", "the sum of the positive numbers in a list", "return sum(x for x in numbers if x > 0)"),
            ("total_even", "the sum of the even numbers in a list", "return sum(x for x in numbers if x % 2 == 0)"),
        ],
    ),
    _family(
        "extremes",
        "numbers",
        _NUMBERS,
        [
            ("largest", "the largest number in a list", "return max(numbers)"),
            ("smallest", "the smallest number in a list", "return min(numbers)"),
            ("spread", "the largest minus the smallest number in a list", "return max(numbers) - min(numbers)"),
            ("index_of_largest", "the index of the largest number in a list", "return numbers.index(max(numbers))"),
            ("index_of_smallest", "the index of the smallest number in a list", "return numbers.index(min(numbers))"),
        ],
    ),
    _family(
        "list_ends",
        "items",
        [[[3, 1, 4]], [[8, 9]], [["a", "b", "c", "d"]], [[5, 5, 6, 0]]],
        [
            ("first_item", "the first item of a list", "return items[0]"),
            ("last_item", "the last item of a list", "return items[-1]"),
            ("second_item", "the second item of a list", "return items[1]"),
            ("without_first", "a list without its first item", "return items[1:]"),
            ("without_last", "a list without its last item", "return items[:-1]"),
        ],
    ),
    _family(
        "list_sizes",
        "items",
        [[[3, 1, 4]], [[]], [["a", "b", "c", "d"]], [[5]]],
        [
            ("num_items", "the number of items in a list", "return len(items)"),
            ("is_empty_list", "True if a list has no items", "return len(items) == 0"),
            ("has_items", "True if a list has at least one item", "return len(items) > 0"),
            ("has_one_item", "True if a list has exactly one item", "return len(items) == 1"),
            ("last_index", "the number of items in a list minus one", "return len(items) - 1"),
        ],
    ),
    _family(
        "list_filters",
        "numbers",
        _NUMBERS,
        [
            ("only_positive", "a list of the positive numbers", "return [x for x in numbers if x > 0]"),
            ("only_negative", "a list of the negative numbers", "return [x for x in numbers if x < 0]"),
            ("only_nonzero", "a list of the numbers that are not zero", "return [x for x in numbers if x != 0]"),
            ("only_even", "a list of the even numbers", "return [x for x in numbers if x % 2 == 0]"),
            ("only_odd", "a list of the odd numbers", "return [x for x in numbers if x % 2 == 1]"),
        ],
    ),
    _family(
        "list_counts",
        "numbers",
        _NUMBERS,
        [
            ("count_positive", "how many numbers are positive", "return sum(1 for x in numbers if x > 0)"),
            ("count_negative", "how many numbers are negative", "return sum(1 for x in numbers if x < 0)"),
            ("count_zeros", "how many numbers are zero", "return numbers.count(0)"),
            ("count_even", "how many numbers are even", "return sum(1 for x in numbers if x % 2 == 0)"),
            ("count_odd", "how many numbers are odd", "return sum(1 for x in numbers if x % 2 == 1)"),
        ],
    ),
    _family(
        "list_maps",
        "numbers",
        _NUMBERS,
        [
            ("double_all", "a list with every number doubled", "return [x * 2 for x in numbers]"),
            ("square_all", "a list with every number squared", "return [x ** 2 for x in numbers]"),
            ("increment_all", "a list with one added to every number", "return [x + 1 for x in numbers]"),
            ("negate_all", "a list with the sign of every number flipped", "return [-x for x in numbers]"),
            ("absolute_all", "a list with the absolute value of every number", "return [abs(x) for x in numbers]"),
        ],
    ),
    _family(
        "list_order",
        "numbers",
        _NUMBERS,
        [
            ("sort_ascending", "the numbers sorted from low to high", "return sorted(numbers)"),
            ("sort_descending", "the numbers sorted from high to low", "return sorted(numbers, reverse=True)"),
            ("reverse_list", "the list in reverse order", "return numbers[::-1]"),
            ("is_sorted", "True if the list is sorted from low to high", "return numbers == sorted(numbers)"),
            ("two_smallest", "a sorted list of the two smallest numbers", "return sorted(numbers)[:2]"),
        ],
    ),
    _family(
        "list_search",
        "numbers, x",
        [[[1, 2, 3, 2], 2], [[4, 5], 4], [[0, 7, 7, 7], 7], [[9, 8, 1], 1]],
        [
            ("appears_twice", "True if x appears at least two times in the list", "return numbers.count(x) >= 2"),
            ("index_of", "the index of x in the list", "return numbers.index(x)"),
            ("remove_all", "the list without any x in it", "return [n for n in numbers if n != x]"),
            ("append_item", "the list with x added at its end", "return numbers + [x]"),
            ("is_first", "True if x is the first item of the list", "return numbers[0] == x"),
        ],
    ),
    _family(
        "thresholds",
        "numbers, limit",
        [[[1, 5, 9], 4], [[10, 2], 10], [[3, 3, 8, 12], 3], [[6], 7]],
        [
            ("above", "a list of the numbers greater than limit", "return [x for x in numbers if x > limit]"),
            ("below", "a list of the numbers less than limit", "return [x for x in numbers if x < limit]"),
            ("count_above", "how many numbers are greater than limit", "return sum(1 for x in numbers if x > limit)"),
            ("any_above", "True if any number is greater than limit", "return any(x > limit for x in numbers)"),
            ("all_below", "True if all numbers are less than limit", "return all(x < limit for x in numbers)"),
        ],
    ),
    _family(
        "list_slices",
        "items, n",
        [[[1, 2, 3, 4], 2], [["a", "b", "c"], 1], [[9, 8, 7, 6, 5], 3], [[4, 4, 2], 2]],
        [
            ("take", "the first n items of a list", "return items[:n]"),
            ("take_last", "the last n items of a list", "return items[-n:]"),
            ("drop", "a list without its first n items", "return items[n:]"),
            ("item_at", "the item at index n of a list", "return items[n]"),
            ("every_nth", "every n-th item of a list, starting with the first", "return items[::n]"),
        ],
    ),
    _family(
        "two_lists",
        "a, b",
        [[[1, 2, 3], [3, 4, 1]], [[5], [6]], [[7, 8], [8, 7]], [[0, 2, 4], [1, 2, 9]]],
        [
            ("concatenate", "the items of list a followed by those of list b", "return a + b"),
            (
                "common_items",
                "a list of the items of list a that are also in list b",
                "return [x for x in a if x in b]",
            ),
            (
                "missing_items",
                "a list of the items of list a that are not in list b",
                "return [x for x in a if x not in b]",
            ),
            (
                "add_pairwise",
                "a list of the sums of the items of a and b at each index",
                "return [x + y for x, y in zip(a, b)]",
            ),
            ("equal_sums", "True if lists a and b have the same sum", "return sum(a) == sum(b)"),
        ],
    ),
    _family(
        "duplicates",
        "items",
        [[[1, 2, 2, 3]], [[4]], [[7, 7, 7]], [[3, 1, 2]]],
        [
            ("num_unique", "the number of different items in a list", "return len(set(items))"),
            ("has_duplicates", "True if a list has duplicate items", "return len(items) != len(set(items))"),
            ("all_unique", "True if all items of a list are different", "return len(items) == len(set(items))"),
            ("all_same", "True if all items of a list are the same", "return len(set(items)) == 1"),
            ("sorted_unique", "a sorted list of the different items of a list", "return sorted(set(items))"),
        ],
    ),
    _family(
        "flags",
        "flags",
        [[[True, True]], [[False, True, False]], [[False, False]], [[True]]],
        [
            ("all_true", "True if every flag in the list is True", "return all(flags)"),
            ("any_true", "True if at least one flag in the list is True", "return any(flags)"),
            ("none_true", "True if no flag in the list is True", "return not any(flags)"),
            ("count_true", "how many flags in the list are True", "return sum(flags)"),
            ("flip_all", "a list with every flag negated", "return [not x for x in flags]"),
        ],
    ),
    _family(
        "letter_case",
        "text",
        _TEXTS,
        [
            ("to_upper", "the text in upper case", "return text.upper()"),
            ("to_lower", "the text in lower case", "return text.lower()"),
            ("to_title", "the text in title case", "return text.title()"),
            ("swap_case", "the text with upper and lower case swapped", "return text.swapcase()"),
            ("capitalize_text", "the text capitalized", "return text.capitalize()"),
        ],
    ),
    _family(
        "text_ends",
        "text",
        [["Hello"], ["ab"], ["Python rocks"], ["xyz"]],
        [
            ("first_character", "the first character of the text", "return text[0]"),
            ("last_character", "the last character of the text", "return text[-1]"),
            ("first_two_characters", "the first two characters of the text", "return text[:2]"),
            ("without_first_character", "the text without its first character", "return text[1:]"),
            ("without_last_character", "the text without its last character", "return text[:-1]"),
        ],
    ),
    _family(
        "text_length",
        "text",
        [["Hello"], [""], ["Python rocks"], ["xyzw"]],
        [
            ("text_length", "the number of characters in the text", "return len(text)"),
            ("is_empty_text", "True if the text is empty", "return len(text) == 0"),
            ("is_long_text", "True if the text has more than 4 characters", "return len(text) > 4"),
            ("has_even_length", "True if the length of the text is even", "return len(text) % 2 == 0"),
            ("double_length", "twice the number of characters in the text", "return 2 * len(text)"),
        ],
    ),
    _family(
        "mirroring",
        "text",
        [["level"], ["abc"], ["noon"], ["Python"]],
        [
            ("reverse_text", "the text reversed", "return text[::-1]"),
            ("is_palindrome", "True if the text reads the same reversed", "return text == text[::-1]"),
            ("mirror_text", "the text followed by its reverse", "return text + text[::-1]"),
            ("reverse_upper", "the text reversed and in upper case", "return text[::-1].upper()"),
            ("ends_match", "True if the first and last characters of the text are equal", "return text[0] == text[-1]"),
        ],
    ),
    _family(
        "character_counts",
        "text",
        _TEXTS,
        [
            (
                "count_vowels",
                "the number of vowels in the text, in either case",
                "return sum(1 for c in text.lower() if c in 'aeiou')",
            ),
            ("count_spaces", "the number of spaces in the text", "return text.count(' ')"),
            (
                "count_uppercase",
                "the number of upper case letters in the text",
                "return sum(1 for c in text if c.isupper())",
            ),
            ("count_letter_a", "how often the letter 'a' is in the text", "return text.count('a')"),
            (
                "count_number_characters",
                "the number of digits in the text",
                "return sum(1 for c in text if c.isdigit())",
            ),
        ],
    ),
    _family(
        "trimming",
        "text",
        [["  hi there "], ["ok"], ["left  "], ["  right"]],
        [
            ("trim", "the text without spaces at both ends", "return text.strip()"),
            ("trim_start", "the text without spaces at its start", "return text.lstrip()"),
            ("trim_end", "the text without spaces at its end", "return text.rstrip()"),
            ("remove_spaces", "the text without any spaces", "return text.replace(' ', '')"),
            ("trimmed_length", "the length of the text without spaces at both ends", "return len(text.strip())"),
        ],
    ),
    _family(
        "replacing",
        "text",
        [["a-b c.d"], ["one, two"], ["x"], ["to be-or not. ok"]],
        [
            ("spaces_to_underscores", "the text with spaces replaced by underscores", "return text.replace(' ', '_')"),
            ("dashes_to_spaces", "the text with dashes replaced by spaces", "return text.replace('-', ' ')"),
            ("remove_commas", "the text without commas", "return text.replace(',', '')"),
            ("dots_to_commas", "the text with dots replaced by commas", "return text.replace('.', ',')"),
            ("o_to_zero", "the text with every letter 'o' replaced by '0'", "return text.replace('o', '0')"),
        ],
    ),
    _family(
        "text_kinds",
        "text",
        [["123"], ["abc"], ["ABC"], ["a1"], ["A b"]],
        [
            ("is_digits", "True if the text has only digits", "return text.isdigit()"),
            ("is_letters", "True if the text has only letters", "return text.isalpha()"),
            ("is_upper_text", "True if the text is in upper case", "return text.isupper()"),
            ("is_lower_text", "True if the text is in lower case", "return text.islower()"),
            ("is_alphanumeric", "True if the text has only letters and digits", "return text.isalnum()"),
        ],
    ),
    _family(
        "endings",
        "text",
        [["why?"], ["go!"], ["run.py"], ["#tag"], ["The end"]],
        [
            ("is_question", "True if the text ends with '?'", "return text.endswith('?')"),
            ("is_exclamation", "True if the text ends with '!'", "return text.endswith('!')"),
            ("is_python_file", "True if the text ends with '.py'", "return text.endswith('.py')"),
            ("is_hashtag", "True if the text starts with '#'", "return text.startswith('#')"),
            ("starts_with_the", "True if the text starts with 'The'", "return text.startswith('The')"),
        ],
    ),
    _family(
        "wrapping",
        "text",
        [["hi"], ["a b"], [""], ["Word"]],
        [
            ("in_parentheses", "the text between parentheses", "return '(' + text + ')'"),
            ("in_brackets", "the text between square brackets", "return '[' + text + ']'"),
            ("with_exclamation", "the text with '!' added at its end", "return text + '!'"),
            ("with_hash", "the text with '#' added at its start", "return '#' + text"),
            ("between_stars", "the text with '*' added at both ends", "return '*' + text + '*'"),
        ],
    ),
    _family(
        "text_and_number",
        "text, n",
        [["abcd", 2], ["xyz", 1], ["hello!", 3], ["no", 1]],
        [
            ("repeat_text", "the text repeated n times", "return text * n"),
            ("first_characters", "the first n characters of the text", "return text[:n]"),
            ("last_characters", "the last n characters of the text", "return text[-n:]"),
            ("character_at", "the character of the text at index n", "return text[n]"),
            ("skip_characters", "the text without its first n characters", "return text[n:]"),
        ],
    ),
    _family(
        "two_texts",
        "a, b",
        [["cat", "dog"], ["Hi", "hi"], ["x", "long"], ["same", "same"]],
        [
            ("join_with_space", "the texts a and b joined by a space", "return a + ' ' + b"),
            ("join_with_dash", "the texts a and b joined by a dash", "return a + '-' + b"),
            ("same_length", "True if texts a and b have the same length", "return len(a) == len(b)"),
            (
                "same_ignoring_case",
                "True if texts a and b are equal when case is ignored",
                "return a.lower() == b.lower()",
            ),
            ("total_length", "the number of characters in a and b together", "return len(a) + len(b)"),
        ],
    ),
    _family(
        "parts_of_text",
        "text, part",
        [["banana", "an"], ["hello", "he"], ["data", "ta"], ["kayak", "x"]],
        [
            ("contains", "True if part is in the text", "return part in text"),
            ("count_part", "how many times part occurs in the text", "return text.count(part)"),
            ("starts_with", "True if the text starts with part", "return text.startswith(part)"),
            ("ends_with", "True if the text ends with part", "return text.endswith(part)"),
            ("remove_part", "the text with every part removed", "return text.replace(part, '')"),
        ],
    ),
    _family(
        "sentences",
        "sentence",
        [["the quick brown fox"], ["hello"], ["to be or not"], ["we like python a lot"]],
        [
            ("split_words", "a list of the words of the sentence", "return sentence.split()"),
            ("num_words", "the number of words in the sentence", "return len(sentence.split())"),
            ("first_word", "the first word of the sentence", "return sentence.split()[0]"),
            ("last_word", "the last word of the sentence", "return sentence.split()[-1]"),
            ("longest_word_of", "the longest word of the sentence", "return max(sentence.split(), key=len)"),
        ],
    ),
    _family(
        "word_lists",
        "words",
        _WORDS,
        [
            ("join_words", "the words joined by spaces", "return ' '.join(words)"),
            ("join_with_commas", "the words joined by commas", "return ','.join(words)"),
            ("glue_words", "the words joined without anything between them", "return ''.join(words)"),
            ("word_lengths", "a list of the lengths of the words", "return [len(w) for w in words]"),
            ("total_letters", "the total number of letters in the words", "return sum(len(w) for w in words)"),
        ],
    ),
    _family(
        "word_changes",
        "words",
        _WORDS,
        [
            ("upper_words", "a list of the words in upper case", "return [w.upper() for w in words]"),
            ("lower_words", "a list of the words in lower case", "return [w.lower() for w in words]"),
            ("capitalize_words", "a list of the words capitalized", "return [w.capitalize() for w in words]"),
            ("first_letters", "a list of the first letters of the words", "return [w[0] for w in words]"),
            ("reverse_words", "a list of the words, each one reversed", "return [w[::-1] for w in words]"),
        ],
    ),
    _family(
        "word_choices",
        "words",
        _WORDS,
        [
            ("short_words", "a list of the words with fewer than 4 letters", "return [w for w in words if len(w) < 4]"),
            ("long_words", "a list of the words with more than 4 letters", "return [w for w in words if len(w) > 4]"),
            ("words_with_e", "a list of the words that contain 'e'", "return [w for w in words if 'e' in w]"),
            (
                "words_starting_with_a",
                "a list of the words that start with 'a'",
                "return [w for w in words if w.startswith('a')]",
            ),
            (
                "lower_case_words",
                "a list of the words that are in lower case",
                "return [w for w in words if w.islower()]",
            ),
        ],
    ),
    _family(
        "greetings",
        "name",
        [["Ann"], ["Bob"], ["Maria"], ["Lee"]],
        [
            ("greet", "'Hello, ' followed by the name", "return 'Hello, ' + name"),
            ("say_goodbye", "'Goodbye, ' followed by the name", "return 'Goodbye, ' + name"),
            ("welcome", "'Welcome ' followed by the name and '!'", "return 'Welcome ' + name + '!'"),
            ("shout_name", "the name in upper case followed by '!'", "return name.upper() + '!'"),
            ("dear_name", "'Dear ' followed by the name and ','", "return 'Dear ' + name + ','"),
        ],
    ),
    _family(
        "dictionaries",
        "d",
        [[{"b": 2, "a": 1}], [{"x": 9}], [{"k": 4, "c": 7, "m": 1}], [{"p": 3, "o": 3}]],
        [
            ("sorted_keys", "a sorted list of the keys of dictionary d", "return sorted(d.keys())"),
            ("sorted_values", "a sorted list of the values of dictionary d", "return sorted(d.values())"),
            ("num_entries", "the number of entries in dictionary d", "return len(d)"),
            ("sum_values", "the sum of the values of dictionary d", "return sum(d.values())"),
            ("largest_value", "the largest value in dictionary d", "return max(d.values())"),
        ],
    ),
    _family(
        "lookups",
        "d, key",
        [[{"a": 1, "b": 2}, "a"], [{"x": 5}, "y"], [{"k": 0, "m": 7}, "m"], [{}, "q"]],
        [
            ("get_or_empty", "the value of key in dictionary d, or '' if it is missing", "return d.get(key, '')"),
            (
                "key_with_value",
                "a list of key and its value in dictionary d, or None for the value if it is missing",
                "return [key, d.get(key)]",
            ),
            ("get_or_zero", "the value of key in dictionary d, or 0 if it is missing", "return d.get(key, 0)"),
            ("get_or_none", "the value of key in dictionary d, or None if it is missing", "return d.get(key)"),
            ("without_key", "a copy of dictionary d without key", "return {k: v for k, v in d.items() if k != key}"),
        ],
    ),
    _family(
        "comparisons",
        "a, b",
        _PAIRS,
        [
            ("is_equal", "True if a equals b", "return a == b"),
            ("is_greater", "True if a is greater than b", "return a > b"),
            ("is_less", "True if a is less than b", "return a < b"),
            ("is_at_least", "True if a is greater than or equal to b", "return a >= b"),
            ("are_different", "True if a is not equal to b", "return a != b"),
        ],
    ),
    _family(
        "logic",
        "a, b",
        [[True, True], [True, False], [False, True], [False, False]],
        [
            ("both", "True if a and b are both True", "return a and b"),
            ("either", "True if a or b is True", "return a or b"),
            ("neither", "True if neither a nor b is True", "return not a and not b"),
            ("exactly_one", "True if exactly one of a and b is True", "return a != b"),
            ("not_both", "True if a and b are not both True", "return not (a and b)"),
        ],
    ),
    _family(
        "number_ranges",
        "n",
        [[0], [5], [13], [25], [100], [-3]],
        [
            ("is_teen", "True if n is between 13 and 19", "return 13 <= n <= 19"),
            ("is_percentage", "True if n is between 0 and 100", "return 0 <= n <= 100"),
            ("is_single_digit", "True if n is between 0 and 9", "return 0 <= n <= 9"),
            ("is_two_digit", "True if n is between 10 and 99", "return 10 <= n <= 99"),
            ("is_hour", "True if n is between 0 and 23", "return 0 <= n <= 23"),
        ],
    ),
    _family(
        "limits",
        "n",
        [[-5], [0], [7], [50], [250]],
        [
            ("at_least_zero", "the larger of n and 0", "return max(n, 0)"),
            ("at_most_ten", "the smaller of n and 10", "return min(n, 10)"),
            ("at_most_hundred", "the smaller of n and 100", "return min(n, 100)"),
            ("at_least_one", "the larger of n and 1", "return max(n, 1)"),
            ("zero_if_negative", "0 if n is negative, otherwise n", "return 0 if n < 0 else n"),
        ],
    ),
    _family(
        "characters",
        "c",
        [["a"], ["b"], ["e"], ["z"], ["7"]],
        [
            ("character_code", "the integer code of the character c", "return ord(c)"),
            ("next_character", "the character after c", "return chr(ord(c) + 1)"),
            ("is_vowel", "True if c is a vowel", "return c in 'aeiou'"),
            ("is_digit_character", "True if c is a digit", "return c.isdigit()"),
            ("three_times", "the character c three times in a row", "return c * 3"),
        ],
    ),
    _family(
        "number_texts",
        "n",
        _SMALL,
        [
            ("as_text", "the number n as a string", "return str(n)"),
            ("as_binary", "the binary digits of n as a string without '0b'", "return bin(n)[2:]"),
            ("as_hex", "the hexadecimal digits of n as a string without '0x'", "return hex(n)[2:]"),
            ("with_percent", "the number n as a string followed by '%'", "return str(n) + '%'"),
            ("with_dollar", "'$' followed by the number n as a string", "return '$' + str(n)"),
        ],
    ),
    _family(
        "tables",
        "rows",
        [[[[1, 2], [3]]], [[[5]]], [[[4, 4], [0, 1], [7, 2]]], [[[9, 8, 7], [1]]]],
        [
            ("num_rows", "the number of rows in a list of rows", "return len(rows)"),
            ("row_sums", "a list of the sums of the rows", "return [sum(row) for row in rows]"),
            ("first_column", "a list of the first item of each row", "return [row[0] for row in rows]"),
            ("flatten", "one list with the items of all rows", "return [x for row in rows for x in row]"),
            ("row_maxima", "a list of the largest item of each row", "return [max(row) for row in rows]"),
        ],
    ),
    _family(
        "factors",
        "n",
        [[2], [6], [7], [9], [12]],
        [
            ("is_prime", "True if n is a prime number", "return n > 1 and all(n % i for i in range(2, n))"),
            (
                "divisors",
                "a list of the divisors of n from 1 to n",
                "return [i for i in range(1, n + 1) if n % i == 0]",
            ),
            (
                "num_divisors",
                "how many integers from 1 to n divide n",
                "return sum(1 for i in range(1, n + 1) if n % i == 0)",
            ),
            ("is_perfect_square", "True if n is a perfect square", "return int(n ** 0.5) ** 2 == n"),
            (
                "smallest_factor",
                "the smallest integer above 1 that divides n",
                "return next(i for i in range(2, n + 1) if n % i == 0)",
            ),
        ],
    ),
)
