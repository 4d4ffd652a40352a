"""Problems for `qwenbox eval --task code`: each function is a solution, its signature and docstring are the question, `test_` its tests.

Written for this project, here and in the modules beside this one, from very easy to middling. `python -m bench.data.tasks` writes them to
`code.jsonl`.
"""

from __future__ import annotations


def double_all(numbers: list[int]) -> list[int]:
    """Return a list in which every number is doubled.

    >>> double_all([1, -2, 0])
    [2, -4, 0]
    """
    return [2 * number for number in numbers]


def test_double_all() -> None:
    assert double_all([1, -2, 0]) == [2, -4, 0]
    assert double_all([]) == []
    assert double_all([100]) == [200]


def count_negative(numbers: list[float]) -> int:
    """Count the numbers that are smaller than zero.

    >>> count_negative([3, -1, 0, -2.5])
    2
    """
    return sum(number < 0 for number in numbers)


def test_count_negative() -> None:
    assert count_negative([3, -1, 0, -2.5]) == 2
    assert count_negative([]) == 0
    assert count_negative([0, 0.0, 1]) == 0
    assert count_negative([-1, -1]) == 2


def last_word(text: str) -> str:
    """Return the last word of a text. Words are separated by spaces; there may be spaces at the end.

    >>> last_word("bread and butter ")
    'butter'
    >>> last_word("   ")
    ''
    """
    words = text.split()
    return words[-1] if words else ""


def test_last_word() -> None:
    assert last_word("bread and butter ") == "butter"
    assert last_word("   ") == ""
    assert last_word("") == ""
    assert last_word("one") == "one"


def initials(name: str) -> str:
    """Return the initials of a name in capital letters, each followed by a dot.

    >>> initials("ada lovelace")
    'A.L.'
    """
    return "".join(f"{word[0].upper()}." for word in name.split())


def test_initials() -> None:
    assert initials("ada lovelace") == "A.L."
    assert initials("Grace Brewster Murray Hopper") == "G.B.M.H."
    assert initials("") == ""
    assert initials("  plato ") == "P."


def is_leap_year(year: int) -> bool:
    """判断公历年份是否为闰年：能被4整除但不能被100整除，或者能被400整除。

    >>> is_leap_year(2024)
    True
    >>> is_leap_year(1900)
    False
    """
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


def test_is_leap_year() -> None:
    assert is_leap_year(2024) is True
    assert is_leap_year(1900) is False
    assert is_leap_year(2000) is True
    assert is_leap_year(2023) is False


def seconds_to_clock(seconds: int) -> str:
    """Write a number of seconds as hours, minutes and seconds: H:MM:SS.

    >>> seconds_to_clock(3725)
    '1:02:05'
    >>> seconds_to_clock(59)
    '0:00:59'
    """
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def test_seconds_to_clock() -> None:
    assert seconds_to_clock(3725) == "1:02:05"
    assert seconds_to_clock(59) == "0:00:59"
    assert seconds_to_clock(0) == "0:00:00"
    assert seconds_to_clock(36000) == "10:00:00"
    assert seconds_to_clock(360059) == "100:00:59"


def middle_character(text: str) -> str:
    """Return the middle character of a text of odd length, or the two middle ones where the length is even. Empty stays empty.

    >>> middle_character("candle")
    'nd'
    >>> middle_character("apple")
    'p'
    """
    half = len(text) // 2
    return text[half : half + 1] if len(text) % 2 else text[max(half - 1, 0) : half + 1]


def test_middle_character() -> None:
    assert middle_character("candle") == "nd"
    assert middle_character("apple") == "p"
    assert middle_character("") == ""
    assert middle_character("ab") == "ab"
    assert middle_character("x") == "x"


def swap_ends(items: list[int]) -> list[int]:
    """Return a new list in which the first and the last item have changed places. The given list stays as it is.

    >>> swap_ends([1, 2, 3])
    [3, 2, 1]
    """
    if len(items) < 2:
        return list(items)
    return [items[-1], *items[1:-1], items[0]]


def test_swap_ends() -> None:
    given = [1, 2, 3, 4]
    assert swap_ends(given) == [4, 2, 3, 1]
    assert given == [1, 2, 3, 4]
    assert swap_ends([]) == []
    assert swap_ends([7]) == [7]
    assert swap_ends([7, 8]) == [8, 7]


def digit_sum(number: int) -> int:
    """Return the sum of the decimal digits of a whole number. The sign does not count.

    >>> digit_sum(-472)
    13
    """
    return sum(int(digit) for digit in str(abs(number)))


def test_digit_sum() -> None:
    assert digit_sum(-472) == 13
    assert digit_sum(0) == 0
    assert digit_sum(999999) == 54
    assert digit_sum(10) == 1


def factorial(n: int) -> int:
    """返回n的阶乘，n为非负整数，0的阶乘为1。n为负数时抛出ValueError。

    >>> factorial(5)
    120
    """
    if n < 0:
        raise ValueError("n must not be negative")
    result = 1
    for factor in range(2, n + 1):
        result *= factor
    return result


def test_factorial() -> None:
    assert factorial(5) == 120
    assert factorial(0) == 1
    assert factorial(20) == 2432902008176640000
    try:
        factorial(-1)
    except ValueError:
        pass
    else:
        raise AssertionError("no ValueError")


def count_vowels(text: str) -> int:
    """Count the vowels a, e, i, o, u in a text, large and small ones.

    >>> count_vowels("Orange juice")
    6
    """
    return sum(letter in "aeiou" for letter in text.lower())


def test_count_vowels() -> None:
    assert count_vowels("Orange juice") == 6
    assert count_vowels("") == 0
    assert count_vowels("rhythm") == 0
    assert count_vowels("AEIOU aeiou") == 10


def celsius_table(values: list[float]) -> list[float]:
    """Convert temperatures from Fahrenheit to Celsius, each rounded to one decimal place. C = (F - 32) * 5 / 9.

    >>> celsius_table([32, 212, 98.6])
    [0.0, 100.0, 37.0]
    """
    return [round((value - 32) * 5 / 9, 1) for value in values]


def test_celsius_table() -> None:
    assert celsius_table([32, 212, 98.6]) == [0.0, 100.0, 37.0]
    assert celsius_table([]) == []
    assert celsius_table([-40]) == [-40.0]
    assert celsius_table([0]) == [-17.8]


def longest_word(words: list[str]) -> str:
    """Return the longest word; of several the one that comes first. An empty list gives an empty text.

    >>> longest_word(["tea", "milk", "soup"])
    'milk'
    """
    return max(words, key=len, default="")


def test_longest_word() -> None:
    assert longest_word(["tea", "milk", "soup"]) == "milk"
    assert longest_word([]) == ""
    assert longest_word(["", "a"]) == "a"
    assert longest_word(["abc", "de", "fgh"]) == "abc"


def evens_before_odds(numbers: list[int]) -> list[int]:
    """把列表中的偶数放在前面，奇数放在后面，各自保持原来的顺序。

    >>> evens_before_odds([3, 2, 5, 8, 1])
    [2, 8, 3, 5, 1]
    """
    return [n for n in numbers if n % 2 == 0] + [n for n in numbers if n % 2]


def test_evens_before_odds() -> None:
    assert evens_before_odds([3, 2, 5, 8, 1]) == [2, 8, 3, 5, 1]
    assert evens_before_odds([]) == []
    assert evens_before_odds([-3, -2, 0]) == [-2, 0, -3]
    assert evens_before_odds([1, 3]) == [1, 3]


def repeat_letters(text: str, times: int) -> str:
    """Repeat every character of a text so many times.

    >>> repeat_letters("abc", 2)
    'aabbcc'
    """
    return "".join(letter * times for letter in text)


def test_repeat_letters() -> None:
    assert repeat_letters("abc", 2) == "aabbcc"
    assert repeat_letters("abc", 0) == ""
    assert repeat_letters("", 5) == ""
    assert repeat_letters("x y", 3) == "xxx   yyy"


def common_items(first: list[int], second: list[int]) -> list[int]:
    """Return the numbers that are in both lists, each once, in ascending order.

    >>> common_items([4, 1, 4, 7], [7, 4, 9])
    [4, 7]
    """
    return sorted(set(first) & set(second))


def test_common_items() -> None:
    assert common_items([4, 1, 4, 7], [7, 4, 9]) == [4, 7]
    assert common_items([], [1]) == []
    assert common_items([1, 2], [3]) == []
    assert common_items([-1, 5, 5], [5, 5, -1]) == [-1, 5]


def second_largest(numbers: list[int]) -> int | None:
    """Return the second largest of the different values in a list, or None if there are fewer than two different values.

    >>> second_largest([5, 9, 9, 3])
    5
    """
    values = sorted(set(numbers))
    return values[-2] if len(values) > 1 else None


def test_second_largest() -> None:
    assert second_largest([5, 9, 9, 3]) == 5
    assert second_largest([4, 4]) is None
    assert second_largest([]) is None
    assert second_largest([-5, -9]) == -9
    assert second_largest([0, 1]) == 0


def running_maximum(numbers: list[int]) -> list[int]:
    """For every position return the largest number up to and including it.

    >>> running_maximum([2, 5, 1, 8, 3])
    [2, 5, 5, 8, 8]
    """
    result: list[int] = []
    for number in numbers:
        result.append(max(number, result[-1]) if result else number)
    return result


def test_running_maximum() -> None:
    assert running_maximum([2, 5, 1, 8, 3]) == [2, 5, 5, 8, 8]
    assert running_maximum([]) == []
    assert running_maximum([-3, -7, -1]) == [-3, -3, -1]


def caesar(text: str, shift: int) -> str:
    """Shift every letter of the English alphabet by so many places, from z on to a; keep capitals, and all other characters as they are.

    >>> caesar("Xyz, abc!", 3)
    'Abc, def!'
    """
    result = []
    for letter in text:
        if "a" <= letter <= "z":
            result.append(chr((ord(letter) - 97 + shift) % 26 + 97))
        elif "A" <= letter <= "Z":
            result.append(chr((ord(letter) - 65 + shift) % 26 + 65))
        else:
            result.append(letter)
    return "".join(result)


def test_caesar() -> None:
    assert caesar("Xyz, abc!", 3) == "Abc, def!"
    assert caesar("abc", -1) == "zab"
    assert caesar("Hello", 26) == "Hello"
    assert caesar("", 5) == ""
    assert caesar("é1", 1) == "é1"


def is_anagram(first: str, second: str) -> bool:
    """Whether two texts consist of the same letters, without regard to case and spaces.

    >>> is_anagram("Dirty room", "dormitory")
    True
    """
    return sorted(first.lower().replace(" ", "")) == sorted(second.lower().replace(" ", ""))


def test_is_anagram() -> None:
    assert is_anagram("Dirty room", "dormitory") is True
    assert is_anagram("abc", "abd") is False
    assert is_anagram("aab", "abb") is False
    assert is_anagram("", " ") is True


def collatz_length(n: int) -> int:
    """Count the steps until a positive number becomes 1: an even number is halved, an odd one is multiplied by 3 and increased by 1.

    >>> collatz_length(6)
    8
    """
    steps = 0
    while n != 1:
        n = 3 * n + 1 if n % 2 else n // 2
        steps += 1
    return steps


def test_collatz_length() -> None:
    assert collatz_length(6) == 8
    assert collatz_length(1) == 0
    assert collatz_length(2) == 1
    assert collatz_length(27) == 111


def is_prime(n: int) -> bool:
    """判断整数n是否为质数。小于2的数不是质数。

    >>> is_prime(29)
    True
    >>> is_prime(1)
    False
    """
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))


def test_is_prime() -> None:
    assert [n for n in range(-3, 40) if is_prime(n)] == [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37]
    assert is_prime(7919)
    assert not is_prime(7917)


def prime_factors(n: int) -> list[int]:
    """Return the prime factors of a number of at least 2 in ascending order, repeated ones repeatedly.

    >>> prime_factors(360)
    [2, 2, 2, 3, 3, 5]
    """
    factors, divisor = [], 2
    while divisor * divisor <= n:
        while n % divisor == 0:
            factors.append(divisor)
            n //= divisor
        divisor += 1
    return [*factors, n] if n > 1 else factors


def test_prime_factors() -> None:
    assert prime_factors(360) == [2, 2, 2, 3, 3, 5]
    assert prime_factors(2) == [2]
    assert prime_factors(97) == [97]
    assert prime_factors(49) == [7, 7]
    assert prime_factors(1001) == [7, 11, 13]


def run_lengths(text: str) -> list[tuple[str, int]]:
    """Return the runs of equal characters with their lengths, in order.

    >>> run_lengths("aaabcc")
    [('a', 3), ('b', 1), ('c', 2)]
    """
    runs: list[tuple[str, int]] = []
    for letter in text:
        if runs and runs[-1][0] == letter:
            runs[-1] = (letter, runs[-1][1] + 1)
        else:
            runs.append((letter, 1))
    return runs


def test_run_lengths() -> None:
    assert run_lengths("aaabcc") == [("a", 3), ("b", 1), ("c", 2)]
    assert run_lengths("") == []
    assert run_lengths("abab") == [("a", 1), ("b", 1), ("a", 1), ("b", 1)]


def expand_runs(text: str) -> str:
    """Undo a run-length code: each letter is followed by how often it stands there, a number of one or more digits.

    >>> expand_runs("a3b1c12")
    'aaabcccccccccccc'
    """
    import re

    return "".join(letter * int(count) for letter, count in re.findall(r"(\D)(\d+)", text))


def test_expand_runs() -> None:
    assert expand_runs("a3b1c12") == "aaab" + "c" * 12
    assert expand_runs("") == ""
    assert expand_runs("z10") == "z" * 10
    assert expand_runs("a0b2") == "bb"


def merge_sorted(first: list[int], second: list[int]) -> list[int]:
    """Merge two ascending lists into one ascending list that keeps duplicates.

    >>> merge_sorted([1, 4, 6], [2, 4])
    [1, 2, 4, 4, 6]
    """
    return sorted(first + second)


def test_merge_sorted() -> None:
    assert merge_sorted([1, 4, 6], [2, 4]) == [1, 2, 4, 4, 6]
    assert merge_sorted([], []) == []
    assert merge_sorted([], [3, 3]) == [3, 3]
    assert merge_sorted([5], [-1, 9]) == [-1, 5, 9]


def balanced(text: str) -> bool:
    """检查文本中的括号()[]{}是否正确配对和嵌套，其他字符忽略。

    >>> balanced("f(a[1], {2})")
    True
    >>> balanced("(]")
    False
    """
    closing = {")": "(", "]": "[", "}": "{"}
    open_ones: list[str] = []
    for letter in text:
        if letter in "([{":
            open_ones.append(letter)
        elif letter in closing and (not open_ones or open_ones.pop() != closing[letter]):
            return False
    return not open_ones


def test_balanced() -> None:
    assert balanced("f(a[1], {2})") is True
    assert balanced("(]") is False
    assert balanced("(") is False
    assert balanced(")(") is False
    assert balanced("") is True
    assert balanced("([)]") is False


def roman(number: int) -> str:
    """Write a number from 1 to 3999 in Roman numerals.

    >>> roman(1994)
    'MCMXCIV'
    """
    result = ""
    for value, sign in (
        *((1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L")),
        *((40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I")),
    ):
        result += sign * (number // value)
        number %= value
    return result


def test_roman() -> None:
    assert roman(1994) == "MCMXCIV"
    assert roman(1) == "I"
    assert roman(3999) == "MMMCMXCIX"
    assert roman(48) == "XLVIII"
    assert roman(500) == "D"


def from_roman(text: str) -> int:
    """Return the value of a Roman numeral in capital letters.

    >>> from_roman("XLIX")
    49
    """
    values = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}
    total = 0
    for index, letter in enumerate(text):
        value = values[letter]
        total += -value if index + 1 < len(text) and values[text[index + 1]] > value else value
    return total


def test_from_roman() -> None:
    assert from_roman("XLIX") == 49
    assert from_roman("MCMXCIV") == 1994
    assert from_roman("III") == 3
    assert from_roman("MMXXVI") == 2026


def to_base(number: int, base: int) -> str:
    """Write a number that is not negative in a base from 2 to 16, with the digits 0-9 and a-f.

    >>> to_base(255, 16)
    'ff'
    >>> to_base(10, 2)
    '1010'
    """
    digits = ""
    while number:
        digits = "0123456789abcdef"[number % base] + digits
        number //= base
    return digits or "0"


def test_to_base() -> None:
    assert to_base(255, 16) == "ff"
    assert to_base(10, 2) == "1010"
    assert to_base(0, 7) == "0"
    assert to_base(100, 10) == "100"
    assert to_base(26, 3) == "222"


def transpose(rows: list[list[int]]) -> list[list[int]]:
    """Swap rows and columns of a table whose rows are equally long.

    >>> transpose([[1, 2, 3], [4, 5, 6]])
    [[1, 4], [2, 5], [3, 6]]
    """
    return [list(column) for column in zip(*rows, strict=True)]


def test_transpose() -> None:
    assert transpose([[1, 2, 3], [4, 5, 6]]) == [[1, 4], [2, 5], [3, 6]]
    assert transpose([]) == []
    assert transpose([[9]]) == [[9]]


def rotate_left(items: list[int], places: int) -> list[int]:
    """把列表向左循环移动若干位；位数可以大于列表长度，也可以为负（向右移动）。

    >>> rotate_left([1, 2, 3, 4], 1)
    [2, 3, 4, 1]
    """
    if not items:
        return []
    places %= len(items)
    return items[places:] + items[:places]


def test_rotate_left() -> None:
    assert rotate_left([1, 2, 3, 4], 1) == [2, 3, 4, 1]
    assert rotate_left([1, 2, 3, 4], 5) == [2, 3, 4, 1]
    assert rotate_left([1, 2, 3], -1) == [3, 1, 2]
    assert rotate_left([], 3) == []


def chunks(items: list[int], size: int) -> list[list[int]]:
    """Cut a list into pieces of so many items; the last may be shorter.

    >>> chunks([1, 2, 3, 4, 5], 2)
    [[1, 2], [3, 4], [5]]
    """
    return [items[start : start + size] for start in range(0, len(items), size)]


def test_chunks() -> None:
    assert chunks([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4], [5]]
    assert chunks([], 3) == []
    assert chunks([1, 2], 5) == [[1, 2]]
    assert chunks([1, 2, 3], 1) == [[1], [2], [3]]


def flatten(nested: list) -> list:  # type: ignore[type-arg]
    """Return the items of a list of lists of any depth in one flat list.

    >>> flatten([1, [2, [3, []], 4]])
    [1, 2, 3, 4]
    """
    flat = []
    for item in nested:
        if isinstance(item, list):
            flat.extend(flatten(item))
        else:
            flat.append(item)
    return flat


def test_flatten() -> None:
    assert flatten([1, [2, [3, []], 4]]) == [1, 2, 3, 4]
    assert flatten([]) == []
    assert flatten([[[["deep"]]]]) == ["deep"]
    assert flatten(["ab", ["cd"]]) == ["ab", "cd"]


def word_frequencies(text: str) -> dict[str, int]:
    """Count how often every word occurs, in small letters. Words are runs of letters; everything else separates them.

    >>> word_frequencies("The cat, the hat.")
    {'the': 2, 'cat': 1, 'hat': 1}
    """
    counts: dict[str, int] = {}
    for word in "".join(c if c.isalpha() else " " for c in text.lower()).split():
        counts[word] = counts.get(word, 0) + 1
    return counts


def test_word_frequencies() -> None:
    assert word_frequencies("The cat, the hat.") == {"the": 2, "cat": 1, "hat": 1}
    assert word_frequencies("") == {}
    assert word_frequencies("a-b a1b") == {"a": 2, "b": 2}


def most_common(items: list[str]) -> str | None:
    """Return the item that occurs most often; of several the one that comes first in the list. None for an empty list.

    >>> most_common(["x", "y", "y", "x", "z"])
    'x'
    """
    return max(items, key=items.count, default=None)


def test_most_common() -> None:
    assert most_common(["x", "y", "y", "x", "z"]) == "x"
    assert most_common([]) is None
    assert most_common(["b", "a", "a"]) == "a"
    assert most_common(["only"]) == "only"


def pascal_row(n: int) -> list[int]:
    """Return row n of Pascal's triangle; row 0 is [1].

    >>> pascal_row(4)
    [1, 4, 6, 4, 1]
    """
    row = [1]
    for _ in range(n):
        row = [1, *(row[i] + row[i + 1] for i in range(len(row) - 1)), 1]
    return row


def test_pascal_row() -> None:
    assert pascal_row(0) == [1]
    assert pascal_row(1) == [1, 1]
    assert pascal_row(4) == [1, 4, 6, 4, 1]
    assert pascal_row(10)[5] == 252


def fibonacci_until(limit: int) -> list[int]:
    """Return the Fibonacci numbers 1, 1, 2, 3, 5, ... that are not larger than the limit.

    >>> fibonacci_until(10)
    [1, 1, 2, 3, 5, 8]
    """
    result, a, b = [], 1, 1
    while a <= limit:
        result.append(a)
        a, b = b, a + b
    return result


def test_fibonacci_until() -> None:
    assert fibonacci_until(10) == [1, 1, 2, 3, 5, 8]
    assert fibonacci_until(0) == []
    assert fibonacci_until(1) == [1, 1]
    assert fibonacci_until(13) == [1, 1, 2, 3, 5, 8, 13]


def longest_increasing_run(numbers: list[int]) -> int:
    """Return the length of the longest stretch of neighbouring numbers in which each is larger than the one before.

    >>> longest_increasing_run([3, 4, 6, 2, 5])
    3
    """
    best = length = 0
    previous: int | None = None
    for number in numbers:
        length = length + 1 if previous is not None and number > previous else 1
        best = max(best, length)
        previous = number
    return best


def test_longest_increasing_run() -> None:
    assert longest_increasing_run([3, 4, 6, 2, 5]) == 3
    assert longest_increasing_run([]) == 0
    assert longest_increasing_run([5, 5, 5]) == 1
    assert longest_increasing_run([1, 2, 3, 4]) == 4


def binary_search(numbers: list[int], wanted: int) -> int:
    """Return the position of a number in an ascending list without duplicates, or -1 if it is not there.

    >>> binary_search([2, 5, 8, 11], 8)
    2
    """
    low, high = 0, len(numbers)
    while low < high:
        middle = (low + high) // 2
        if numbers[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low if low < len(numbers) and numbers[low] == wanted else -1


def test_binary_search() -> None:
    numbers = list(range(0, 1000, 3))
    assert all(binary_search(numbers, number) == index for index, number in enumerate(numbers))
    assert binary_search(numbers, 4) == -1
    assert binary_search([], 4) == -1
    assert binary_search([2, 5, 8, 11], 12) == -1


def insertion_point(numbers: list[int], value: int) -> int:
    """Return where a value has to be inserted into an ascending list so that it stays ascending, before all equal values.

    >>> insertion_point([1, 3, 3, 7], 3)
    1
    """
    return sum(number < value for number in numbers)


def test_insertion_point() -> None:
    assert insertion_point([1, 3, 3, 7], 3) == 1
    assert insertion_point([], 3) == 0
    assert insertion_point([1, 3], 9) == 2
    assert insertion_point([1, 3], 0) == 0


def bubble_passes(numbers: list[int]) -> int:
    """Count the exchanges that bubble sort makes to put the numbers into ascending order, which are as many as there are inversions.

    >>> bubble_passes([3, 1, 2])
    2
    """
    return sum(a > b for i, a in enumerate(numbers) for b in numbers[i + 1 :])


def test_bubble_passes() -> None:
    assert bubble_passes([3, 1, 2]) == 2
    assert bubble_passes([]) == 0
    assert bubble_passes([5, 4, 3, 2, 1]) == 10
    assert bubble_passes([1, 1, 1]) == 0


def hamming(first: str, second: str) -> int:
    """Count the places at which two texts of the same length differ. Raise ValueError if the lengths differ.

    >>> hamming("karolin", "kathrin")
    3
    """
    if len(first) != len(second):
        raise ValueError("the lengths differ")
    return sum(a != b for a, b in zip(first, second, strict=True))


def test_hamming() -> None:
    assert hamming("karolin", "kathrin") == 3
    assert hamming("", "") == 0
    assert hamming("abc", "abc") == 0
    try:
        hamming("a", "ab")
    except ValueError:
        pass
    else:
        raise AssertionError("no ValueError")


def edit_distance(first: str, second: str) -> int:
    """返回把第一个字符串变成第二个所需的最少操作次数，操作可以是插入、删除或替换一个字符。

    >>> edit_distance("kitten", "sitting")
    3
    """
    previous = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        current = [i]
        for j, b in enumerate(second, 1):
            current.append(min(previous[j] + 1, current[j - 1] + 1, previous[j - 1] + (a != b)))
        previous = current
    return previous[-1]


def test_edit_distance() -> None:
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance("", "abc") == 3
    assert edit_distance("abc", "") == 3
    assert edit_distance("flaw", "lawn") == 2
    assert edit_distance("same", "same") == 0


def common_prefix(words: list[str]) -> str:
    """Return the longest beginning that all words share.

    >>> common_prefix(["flower", "flow", "flight"])
    'fl'
    """
    if not words:
        return ""
    low, high = min(words), max(words)
    length = 0
    while length < len(low) and low[length] == high[length]:
        length += 1
    return low[:length]


def test_common_prefix() -> None:
    assert common_prefix(["flower", "flow", "flight"]) == "fl"
    assert common_prefix([]) == ""
    assert common_prefix(["a", "b"]) == ""
    assert common_prefix(["same", "same"]) == "same"
    assert common_prefix(["", "x"]) == ""


def longest_palindrome(text: str) -> str:
    """Return the longest stretch of a text that reads the same backwards; of several the leftmost.

    >>> longest_palindrome("xabbay")
    'abba'
    """
    best = ""
    for start in range(len(text)):
        for end in range(start + len(best) + 1, len(text) + 1):
            if text[start:end] == text[start:end][::-1]:
                best = text[start:end]
    return best


def test_longest_palindrome() -> None:
    assert longest_palindrome("xabbay") == "abba"
    assert longest_palindrome("") == ""
    assert longest_palindrome("abc") == "a"
    assert longest_palindrome("racecar") == "racecar"
    assert longest_palindrome("aabb") == "aa"


def two_that_sum(numbers: list[int], target: int) -> tuple[int, int] | None:
    """Return the positions (i, j), i < j, of two numbers whose sum is the target, with the smallest j; None if there are none.

    There is at most one i for that j in the tests.

    >>> two_that_sum([8, 3, 5, 2], 7)
    (2, 3)
    """
    seen: dict[int, int] = {}
    for j, number in enumerate(numbers):
        if target - number in seen:
            return seen[target - number], j
        seen[number] = j
    return None


def test_two_that_sum() -> None:
    assert tuple(two_that_sum([8, 3, 5, 2], 7)) == (2, 3)
    assert two_that_sum([1, 2], 4) is None
    assert tuple(two_that_sum([3, 3], 6)) == (0, 1)
    assert two_that_sum([], 0) is None
    assert tuple(two_that_sum([-4, 1, 4], 0)) == (0, 2)


def largest_sum_of_neighbours(numbers: list[int]) -> int:
    """Return the largest sum of one or more neighbouring numbers. The list has at least one number.

    >>> largest_sum_of_neighbours([4, -9, 3, 5, -1])
    8
    """
    best = current = numbers[0]
    for number in numbers[1:]:
        current = max(number, current + number)
        best = max(best, current)
    return best


def test_largest_sum_of_neighbours() -> None:
    assert largest_sum_of_neighbours([4, -9, 3, 5, -1]) == 8
    assert largest_sum_of_neighbours([-3, -2, -7]) == -2
    assert largest_sum_of_neighbours([5]) == 5
    assert largest_sum_of_neighbours([1, 2, -1, 4]) == 6


def coin_count(amount: int, coins: list[int]) -> int:
    """Return the smallest number of coins that make up an amount, or -1 if it cannot be done. Each coin may be used any number of times.

    >>> coin_count(11, [1, 5, 6])
    2
    """
    best = [0] + [amount + 1] * amount
    for value in range(1, amount + 1):
        for coin in coins:
            if coin <= value:
                best[value] = min(best[value], best[value - coin] + 1)
    return best[amount] if best[amount] <= amount else -1


def test_coin_count() -> None:
    assert coin_count(11, [1, 5, 6]) == 2
    assert coin_count(0, [3]) == 0
    assert coin_count(7, [2, 4]) == -1
    assert coin_count(100, [1, 20, 50]) == 2
    assert coin_count(15, [1, 5, 6, 9]) == 2


def ways_to_climb(steps: int) -> int:
    """一次可以爬一级或两级台阶，返回爬上steps级台阶的不同方法数。零级台阶有一种方法。

    >>> ways_to_climb(4)
    5
    """
    a, b = 1, 1
    for _ in range(steps):
        a, b = b, a + b
    return a


def test_ways_to_climb() -> None:
    assert [ways_to_climb(n) for n in range(7)] == [1, 1, 2, 3, 5, 8, 13]
    assert ways_to_climb(40) == 165580141


def grid_paths(rows: int, columns: int, blocked: list[tuple[int, int]]) -> int:
    """Count the ways from the upper left to the lower right cell of a grid, going only right or down, never through a blocked cell.

    Cells are (row, column), counted from 0.

    >>> grid_paths(2, 3, [])
    3
    """
    ways = [[0] * columns for _ in range(rows)]
    closed = {tuple(cell) for cell in blocked}
    for r in range(rows):
        for c in range(columns):
            if (r, c) in closed:
                continue
            ways[r][c] = 1 if r == c == 0 else (ways[r - 1][c] if r else 0) + (ways[r][c - 1] if c else 0)
    return ways[-1][-1]


def test_grid_paths() -> None:
    assert grid_paths(2, 3, []) == 3
    assert grid_paths(3, 3, [(1, 1)]) == 2
    assert grid_paths(1, 1, []) == 1
    assert grid_paths(2, 2, [(0, 1), (1, 0)]) == 0
    assert grid_paths(5, 5, []) == 70


def spiral(rows: list[list[int]]) -> list[int]:
    """Read a table in a spiral: along the first row, down the last column, back along the last row, up, and so on inwards.

    >>> spiral([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    [1, 2, 3, 6, 9, 8, 7, 4, 5]
    """
    rows = [list(row) for row in rows]
    result: list[int] = []
    while rows:
        result += rows.pop(0)
        rows = [list(column) for column in zip(*rows, strict=True)][::-1]
    return result


def test_spiral() -> None:
    assert spiral([[1, 2, 3], [4, 5, 6], [7, 8, 9]]) == [1, 2, 3, 6, 9, 8, 7, 4, 5]
    assert spiral([]) == []
    assert spiral([[1, 2], [3, 4], [5, 6]]) == [1, 2, 4, 6, 5, 3]
    assert spiral([[1, 2, 3]]) == [1, 2, 3]


def multiply_matrices(a: list[list[int]], b: list[list[int]]) -> list[list[int]]:
    """Return the product of two matrices, given as lists of rows.

    >>> multiply_matrices([[1, 2], [3, 4]], [[0, 1], [1, 0]])
    [[2, 1], [4, 3]]
    """
    return [[sum(x * y for x, y in zip(row, column, strict=True)) for column in zip(*b, strict=True)] for row in a]


def test_multiply_matrices() -> None:
    assert multiply_matrices([[1, 2], [3, 4]], [[0, 1], [1, 0]]) == [[2, 1], [4, 3]]
    assert multiply_matrices([[1, 2, 3]], [[4], [5], [6]]) == [[32]]
    assert multiply_matrices([[2], [3]], [[4, 5]]) == [[8, 10], [12, 15]]


def island_count(grid: list[str]) -> int:
    """Count the islands on a map of '#' (land) and '.' (water). Land cells belong together if they share a side.

    >>> island_count(["#..", ".##", "#.."])
    3
    """
    land = {(r, c) for r, row in enumerate(grid) for c, cell in enumerate(row) if cell == "#"}
    count = 0
    while land:
        count += 1
        reached = [land.pop()]
        while reached:
            r, c = reached.pop()
            for near in ((r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)):
                if near in land:
                    land.remove(near)
                    reached.append(near)
    return count


def test_island_count() -> None:
    assert island_count(["#..", ".##", "#.."]) == 3
    assert island_count([]) == 0
    assert island_count(["..."]) == 0
    assert island_count(["###", "#.#", "###"]) == 1
    assert island_count(["#.#", ".#.", "#.#"]) == 5


def shortest_path(edges: dict[str, list[str]], start: str, goal: str) -> int:
    """Return the number of steps on the shortest way from start to goal in a directed graph, or -1 if there is no way.

    >>> shortest_path({"a": ["b", "c"], "b": ["d"], "c": [], "d": []}, "a", "d")
    2
    """
    steps, reached, seen = 0, [start], {start}
    while reached:
        if goal in reached:
            return steps
        following = []
        for node in reached:
            for target in edges.get(node, []):
                if target not in seen:
                    seen.add(target)
                    following.append(target)
        reached = following
        steps += 1
    return -1


def test_shortest_path() -> None:
    graph = {"a": ["b", "c"], "b": ["d"], "c": ["a"], "d": ["e"], "e": []}
    assert shortest_path(graph, "a", "d") == 2
    assert shortest_path(graph, "a", "a") == 0
    assert shortest_path(graph, "e", "a") == -1
    assert shortest_path(graph, "c", "e") == 4


def topological_order(needs: dict[str, list[str]]) -> list[str] | None:
    """Return all tasks so that each comes after those it needs; of those that could come next the alphabetically first comes first.

    None if the needs go in a circle. Every task is a key.

    >>> topological_order({"cake": ["flour", "eggs"], "eggs": [], "flour": []})
    ['eggs', 'flour', 'cake']
    """
    done: list[str] = []
    left = dict(needs)
    while left:
        ready = [task for task, needed in left.items() if all(one in done for one in needed)]
        if not ready:
            return None
        done.append(min(ready))
        del left[min(ready)]
    return done


def test_topological_order() -> None:
    assert topological_order({"cake": ["flour", "eggs"], "eggs": [], "flour": []}) == ["eggs", "flour", "cake"]
    assert topological_order({}) == []
    assert topological_order({"a": ["b"], "b": ["a"]}) is None
    assert topological_order({"b": [], "a": ["b"], "c": []}) == ["b", "a", "c"]


def merge_intervals(intervals: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """合并有重叠或首尾相接的区间，按起点升序返回。区间(1, 3)和(3, 5)算作相接。

    >>> merge_intervals([(6, 8), (1, 3), (2, 4)])
    [(1, 4), (6, 8)]
    """
    merged: list[tuple[int, int]] = []
    for begin, end in sorted(intervals):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((begin, end))
    return merged


def test_merge_intervals() -> None:
    def pairs(result: list[tuple[int, int]]) -> list[tuple[int, ...]]:
        return [tuple(one) for one in result]

    assert pairs(merge_intervals([(6, 8), (1, 3), (2, 4)])) == [(1, 4), (6, 8)]
    assert pairs(merge_intervals([])) == []
    assert pairs(merge_intervals([(1, 3), (3, 5)])) == [(1, 5)]
    assert pairs(merge_intervals([(1, 10), (2, 3)])) == [(1, 10)]
    assert pairs(merge_intervals([(5, 6), (1, 2)])) == [(1, 2), (5, 6)]


def free_rooms(meetings: list[tuple[int, int]]) -> int:
    """Return how many rooms are needed so that all meetings (begin, end) can take place. A room is free again at the end of a meeting.

    >>> free_rooms([(9, 11), (10, 12), (11, 13)])
    2
    """
    return max((sum(b <= begin < e for b, e in meetings) for begin, _ in meetings), default=0)


def test_free_rooms() -> None:
    assert free_rooms([(9, 11), (10, 12), (11, 13)]) == 2
    assert free_rooms([]) == 0
    assert free_rooms([(1, 2), (2, 3), (3, 4)]) == 1
    assert free_rooms([(1, 9), (2, 8), (3, 7)]) == 3


def parse_query(text: str) -> dict[str, str]:
    """Turn a query such as "a=1&b=two" into a dictionary. A name without "=" has an empty value; of equal names the last one counts.

    >>> parse_query("a=1&b=two&c")
    {'a': '1', 'b': 'two', 'c': ''}
    """
    result = {}
    for part in text.split("&"):
        if part:
            name, _, value = part.partition("=")
            result[name] = value
    return result


def test_parse_query() -> None:
    assert parse_query("a=1&b=two&c") == {"a": "1", "b": "two", "c": ""}
    assert parse_query("") == {}
    assert parse_query("x=1&x=2") == {"x": "2"}
    assert parse_query("e=m=c") == {"e": "m=c"}


def snake_case(name: str) -> str:
    """Turn a camelCase or PascalCase name into snake_case. The names have no neighbouring capital letters.

    >>> snake_case("parseHttpHeader")
    'parse_http_header'
    """
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")


def test_snake_case() -> None:
    assert snake_case("parseHttpHeader") == "parse_http_header"
    assert snake_case("Point") == "point"
    assert snake_case("") == ""
    assert snake_case("already") == "already"
    assert snake_case("RunLength2Code") == "run_length2_code"


def camel_case(name: str) -> str:
    """Turn a snake_case name into camelCase.

    >>> camel_case("read_all_lines")
    'readAllLines'
    """
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)


def test_camel_case() -> None:
    assert camel_case("read_all_lines") == "readAllLines"
    assert camel_case("one") == "one"
    assert camel_case("") == ""
    assert camel_case("a_b") == "aB"


def title_case(text: str, small: list[str]) -> str:
    """Capitalise the first letter of every word, except for the small words, which stay small unless they come first.

    Words are separated by single spaces and given in small letters.

    >>> title_case("the end of the road", ["of", "the"])
    'The End of the Road'
    """
    words = text.split(" ")
    return " ".join(word if index and word in small else word[:1].upper() + word[1:] for index, word in enumerate(words))


def test_title_case() -> None:
    assert title_case("the end of the road", ["of", "the"]) == "The End of the Road"
    assert title_case("", ["a"]) == ""
    assert title_case("of mice and men", ["of", "and"]) == "Of Mice and Men"
    assert title_case("hello", []) == "Hello"


def wrap(text: str, width: int) -> list[str]:
    """Break a text into lines of at most `width` characters, between words only. No word is longer than a line.

    >>> wrap("the quick brown fox", 10)
    ['the quick', 'brown fox']
    """
    lines: list[str] = []
    for word in text.split():
        if lines and len(lines[-1]) + 1 + len(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def test_wrap() -> None:
    assert wrap("the quick brown fox", 10) == ["the quick", "brown fox"]
    assert wrap("", 5) == []
    assert wrap("a b c", 1) == ["a", "b", "c"]
    assert wrap("aa bb", 5) == ["aa bb"]


def is_valid_ipv4(text: str) -> bool:
    """Whether a text is an IPv4 address: four numbers from 0 to 255 with dots between them, without leading zeros.

    >>> is_valid_ipv4("192.168.0.1")
    True
    >>> is_valid_ipv4("1.2.3.04")
    False
    """
    parts = text.split(".")
    return len(parts) == 4 and all(p.isascii() and p.isdigit() and int(p) < 256 and str(int(p)) == p for p in parts)


def test_is_valid_ipv4() -> None:
    assert is_valid_ipv4("192.168.0.1") is True
    assert is_valid_ipv4("1.2.3.04") is False
    assert is_valid_ipv4("256.1.1.1") is False
    assert is_valid_ipv4("1.2.3") is False
    assert is_valid_ipv4("1.2.3.4.5") is False
    assert is_valid_ipv4("a.b.c.d") is False
    assert is_valid_ipv4("") is False
    assert is_valid_ipv4("0.0.0.0") is True


def luhn(number: str) -> bool:
    """用Luhn算法检验卡号：从右向左，每隔一位（从倒数第二位开始）乘以2，乘积大于9则减去9，所有数字之和能被10整除即为有效。

    >>> luhn("79927398713")
    True
    """
    total = 0
    for index, digit in enumerate(reversed(number)):
        value = int(digit) * (2 if index % 2 else 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def test_luhn() -> None:
    assert luhn("79927398713") is True
    assert luhn("79927398710") is False
    assert luhn("0") is True
    assert luhn("18") is True
    assert luhn("4539578763621486") is True


def isbn13_digit(digits: str) -> int:
    """Return the check digit of the first twelve digits of an ISBN-13.

    They are multiplied by 1 and 3 in turn; the check digit makes the sum a multiple of 10.

    >>> isbn13_digit("978030640615")
    7
    """
    return -sum(int(d) * (3 if i % 2 else 1) for i, d in enumerate(digits)) % 10


def test_isbn13_digit() -> None:
    assert isbn13_digit("978030640615") == 7
    assert isbn13_digit("000000000000") == 0
    assert isbn13_digit("978316148410") == 0
    assert isbn13_digit("111111111111") == 6


def evaluate_postfix(text: str) -> int:
    """Compute an expression in postfix notation: whole numbers and + - * separated by spaces.

    >>> evaluate_postfix("3 4 + 2 *")
    14
    """
    stack: list[int] = []
    for part in text.split():
        if part in ("+", "-", "*"):
            b, a = stack.pop(), stack.pop()
            stack.append(a + b if part == "+" else a - b if part == "-" else a * b)
        else:
            stack.append(int(part))
    return stack[0]


def test_evaluate_postfix() -> None:
    assert evaluate_postfix("3 4 + 2 *") == 14
    assert evaluate_postfix("5") == 5
    assert evaluate_postfix("10 2 8 * + 3 -") == 23
    assert evaluate_postfix("-3 4 *") == -12
    assert evaluate_postfix("1 2 -") == -1


def calculate(text: str) -> int:
    """Compute a sum and product of whole numbers that are not negative, such as "2+3*4", without brackets and spaces. * binds tighter than + and -.

    >>> calculate("2+3*4-5")
    9
    """
    import re

    total = 0
    for sign, product in re.findall(r"([+-]?)([\d*]+)", text):
        value = 1
        for factor in product.split("*"):
            value *= int(factor)
        total += -value if sign == "-" else value
    return total


def test_calculate() -> None:
    assert calculate("2+3*4-5") == 9
    assert calculate("7") == 7
    assert calculate("2*3*4") == 24
    assert calculate("10-2-3") == 5
    assert calculate("1-2*3+4*5") == 15


def polynomial(coefficients: list[int], x: int) -> int:
    """Return the value of a polynomial at x. The first coefficient belongs to the highest power.

    >>> polynomial([2, 0, -1], 3)
    17
    """
    value = 0
    for coefficient in coefficients:
        value = value * x + coefficient
    return value


def test_polynomial() -> None:
    assert polynomial([2, 0, -1], 3) == 17
    assert polynomial([], 5) == 0
    assert polynomial([4], 100) == 4
    assert polynomial([1, 1, 1, 1], -1) == 0


def derivative(coefficients: list[int]) -> list[int]:
    """Return the coefficients of the derivative of a polynomial. Coefficient i belongs to x to the power of i; a constant gives [].

    >>> derivative([5, 3, 0, 2])
    [3, 0, 6]
    """
    return [power * value for power, value in enumerate(coefficients)][1:]


def test_derivative() -> None:
    assert derivative([5, 3, 0, 2]) == [3, 0, 6]
    assert derivative([7]) == []
    assert derivative([]) == []
    assert derivative([1, -1]) == [-1]


def mean_and_median(numbers: list[float]) -> tuple[float, float]:
    """Return mean and median of at least one number. The median of an even count is the mean of the two in the middle.

    >>> mean_and_median([1, 2, 3, 10])
    (4.0, 2.5)
    """
    ordered = sorted(numbers)
    half = len(ordered) // 2
    median = ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
    return sum(numbers) / len(numbers), median


def test_mean_and_median() -> None:
    assert tuple(mean_and_median([1, 2, 3, 10])) == (4.0, 2.5)
    assert tuple(mean_and_median([5])) == (5, 5)
    assert tuple(mean_and_median([9, 1, 5])) == (5, 5)


def moving_average(numbers: list[float], size: int) -> list[float]:
    """Return the means of every `size` neighbouring numbers; nothing where there are fewer numbers than that.

    >>> moving_average([2, 4, 6, 8], 2)
    [3.0, 5.0, 7.0]
    """
    return [sum(numbers[i : i + size]) / size for i in range(len(numbers) - size + 1)]


def test_moving_average() -> None:
    assert moving_average([2, 4, 6, 8], 2) == [3.0, 5.0, 7.0]
    assert moving_average([1, 2], 3) == []
    assert moving_average([1, 2, 3], 3) == [2.0]
    assert moving_average([5, 7], 1) == [5.0, 7.0]


def histogram(values: list[int]) -> str:
    """Draw one line a value, with so many stars as the value says; lines are separated by a line end.

    >>> histogram([3, 1])
    '***\\n*'
    """
    return "\n".join("*" * value for value in values)


def test_histogram() -> None:
    assert histogram([3, 1]) == "***\n*"
    assert histogram([]) == ""
    assert histogram([0, 2]) == "\n**"


def diamond(size: int) -> list[str]:
    """Return the lines of a diamond of stars whose middle line has `size` stars; `size` is odd. No spaces at the ends of lines.

    >>> diamond(3)
    [' *', '***', ' *']
    """
    widths = [*range(1, size + 1, 2), *range(size - 2, 0, -2)]
    return [" " * ((size - width) // 2) + "*" * width for width in widths]


def test_diamond() -> None:
    assert diamond(3) == [" *", "***", " *"]
    assert diamond(1) == ["*"]
    assert diamond(5) == ["  *", " ***", "*****", " ***", "  *"]


def multiplication_table(size: int) -> list[list[int]]:
    """返回从1到size的乘法表，第i行第j列（从1数起）是i乘以j。

    >>> multiplication_table(3)
    [[1, 2, 3], [2, 4, 6], [3, 6, 9]]
    """
    return [[i * j for j in range(1, size + 1)] for i in range(1, size + 1)]


def test_multiplication_table() -> None:
    assert multiplication_table(3) == [[1, 2, 3], [2, 4, 6], [3, 6, 9]]
    assert multiplication_table(0) == []
    assert multiplication_table(9)[8][8] == 81


def is_magic_square(rows: list[list[int]]) -> bool:
    """Whether all rows, all columns and both diagonals of a square have the same sum.

    >>> is_magic_square([[2, 7, 6], [9, 5, 1], [4, 3, 8]])
    True
    """
    size = len(rows)
    sums = {sum(row) for row in rows} | {sum(column) for column in zip(*rows, strict=True)}
    sums |= {sum(rows[i][i] for i in range(size)), sum(rows[i][size - 1 - i] for i in range(size))}
    return len(sums) == 1


def test_is_magic_square() -> None:
    assert is_magic_square([[2, 7, 6], [9, 5, 1], [4, 3, 8]]) is True
    assert is_magic_square([[1, 2], [2, 1]]) is False
    assert is_magic_square([[5]]) is True
    assert is_magic_square([[2, 7, 6], [9, 5, 1], [4, 8, 3]]) is False


def perfect_number(n: int) -> bool:
    """Whether a positive number is the sum of its divisors that are smaller than itself.

    >>> perfect_number(28)
    True
    """
    return n > 1 and sum(d for d in range(1, n // 2 + 1) if n % d == 0) == n


def test_perfect_number() -> None:
    assert [n for n in range(1, 500) if perfect_number(n)] == [6, 28, 496]


def armstrong(n: int) -> bool:
    """Whether a number equals the sum of its digits, each raised to the power of how many digits there are.

    >>> armstrong(153)
    True
    """
    return n == sum(int(d) ** len(str(n)) for d in str(n))


def test_armstrong() -> None:
    assert [n for n in range(10, 1000) if armstrong(n)] == [153, 370, 371, 407]
    assert armstrong(9474)
    assert armstrong(5)
    assert not armstrong(9475)


def gcd_of_all(numbers: list[int]) -> int:
    """Return the greatest common divisor of all numbers of a list, 0 for an empty list. The numbers are not negative.

    >>> gcd_of_all([12, 18, 30])
    6
    """
    import math

    return math.gcd(*numbers)


def test_gcd_of_all() -> None:
    assert gcd_of_all([12, 18, 30]) == 6
    assert gcd_of_all([]) == 0
    assert gcd_of_all([7]) == 7
    assert gcd_of_all([8, 9]) == 1
    assert gcd_of_all([0, 5]) == 5


def add_fractions(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    """Add two positive fractions (numerator, denominator) and reduce the result.

    >>> add_fractions((1, 6), (1, 3))
    (1, 2)
    """
    from fractions import Fraction

    total = Fraction(*a) + Fraction(*b)
    return total.numerator, total.denominator


def test_add_fractions() -> None:
    assert tuple(add_fractions((1, 6), (1, 3))) == (1, 2)
    assert tuple(add_fractions((1, 2), (1, 2))) == (1, 1)
    assert tuple(add_fractions((3, 4), (5, 6))) == (19, 12)


def days_between(first: str, second: str) -> int:
    """Return how many days lie between two dates in the form YYYY-MM-DD, whichever is earlier.

    >>> days_between("2024-02-28", "2024-03-01")
    2
    """
    from datetime import date

    return abs((date.fromisoformat(first) - date.fromisoformat(second)).days)


def test_days_between() -> None:
    assert days_between("2024-02-28", "2024-03-01") == 2
    assert days_between("2023-03-01", "2023-02-28") == 1
    assert days_between("2020-01-01", "2020-01-01") == 0
    assert days_between("1999-12-31", "2000-12-31") == 366


def minutes_between(start: str, end: str) -> int:
    """Return the minutes from one time of day to another, both HH:MM. An end before the start is on the next day.

    >>> minutes_between("23:50", "00:20")
    30
    """
    a, b = (int(time[:2]) * 60 + int(time[3:]) for time in (start, end))
    return (b - a) % 1440


def test_minutes_between() -> None:
    assert minutes_between("23:50", "00:20") == 30
    assert minutes_between("08:00", "09:15") == 75
    assert minutes_between("12:00", "12:00") == 0
    assert minutes_between("12:00", "11:59") == 1439


def human_bytes(size: int) -> str:
    """把字节数写成易读的形式：小于1024时写作"512 B"，否则依次用KB、MB、GB（每级1024），保留一位小数。超过1024 GB仍用GB。

    >>> human_bytes(1536)
    '1.5 KB'
    """
    if size < 1024:
        return f"{size} B"
    value = float(size)
    for unit in ("KB", "MB", "GB"):
        value /= 1024
        if value < 1024 or unit == "GB":
            break
    return f"{value:.1f} {unit}"


def test_human_bytes() -> None:
    assert human_bytes(1536) == "1.5 KB"
    assert human_bytes(0) == "0 B"
    assert human_bytes(1023) == "1023 B"
    assert human_bytes(1024) == "1.0 KB"
    assert human_bytes(5 * 1024**2) == "5.0 MB"
    assert human_bytes(3 * 1024**4) == "3072.0 GB"


def pig_latin(word: str) -> str:
    """Move the consonants at the beginning of a word to its end and add "ay"; a word that begins with a vowel only gets "way".

    The word is in small letters and has a vowel (a, e, i, o, u).

    >>> pig_latin("string")
    'ingstray'
    >>> pig_latin("apple")
    'appleway'
    """
    first = next(index for index, letter in enumerate(word) if letter in "aeiou")
    return word[first:] + word[:first] + "ay" if first else word + "way"


def test_pig_latin() -> None:
    assert pig_latin("string") == "ingstray"
    assert pig_latin("apple") == "appleway"
    assert pig_latin("banana") == "ananabay"
    assert pig_latin("o") == "oway"


def acronym_matches(words: list[str], short: str) -> bool:
    """Whether the first letters of the words, in order, make up the short form, without regard to case.

    >>> acronym_matches(["Random", "access", "memory"], "RAM")
    True
    """
    return "".join(word[0] for word in words).lower() == short.lower()


def test_acronym_matches() -> None:
    assert acronym_matches(["Random", "access", "memory"], "RAM") is True
    assert acronym_matches(["a", "b"], "abc") is False
    assert acronym_matches([], "") is True
    assert acronym_matches(["x", "y"], "yx") is False


def censor(text: str, words: list[str]) -> str:
    """Replace every listed word by as many stars as it has letters. Only whole words count, without regard to case; words are separated by spaces.

    >>> censor("a Bad apple", ["bad"])
    'a *** apple'
    """
    listed = {word.lower() for word in words}
    return " ".join("*" * len(word) if word.lower() in listed else word for word in text.split(" "))


def test_censor() -> None:
    assert censor("a Bad apple", ["bad"]) == "a *** apple"
    assert censor("badly bad", ["bad"]) == "badly ***"
    assert censor("", ["x"]) == ""
    assert censor("x y x", ["X", "y"]) == "* * *"


def first_unique(text: str) -> str | None:
    """返回文本中第一个只出现一次的字符；没有这样的字符时返回None。

    >>> first_unique("swiss")
    'w'
    """
    return next((letter for letter in text if text.count(letter) == 1), None)


def test_first_unique() -> None:
    assert first_unique("swiss") == "w"
    assert first_unique("aabb") is None
    assert first_unique("") is None
    assert first_unique("z") == "z"


def group_by_length(words: list[str]) -> dict[int, list[str]]:
    """Group words by their length; within a group they are in alphabetical order.

    >>> group_by_length(["pear", "fig", "kiwi", "date"])
    {4: ['date', 'kiwi', 'pear'], 3: ['fig']}
    """
    groups: dict[int, list[str]] = {}
    for word in sorted(words):
        groups.setdefault(len(word), []).append(word)
    return groups


def test_group_by_length() -> None:
    assert group_by_length(["pear", "fig", "kiwi", "date"]) == {4: ["date", "kiwi", "pear"], 3: ["fig"]}
    assert group_by_length([]) == {}
    assert group_by_length(["b", "a", "b"]) == {1: ["a", "b", "b"]}


def invert(mapping: dict[str, int]) -> dict[int, list[str]]:
    """Turn a dictionary round: every value becomes a key, with the sorted list of the keys that had it.

    >>> invert({"a": 1, "b": 2, "c": 1})
    {1: ['a', 'c'], 2: ['b']}
    """
    result: dict[int, list[str]] = {}
    for key in sorted(mapping):
        result.setdefault(mapping[key], []).append(key)
    return result


def test_invert() -> None:
    assert invert({"a": 1, "b": 2, "c": 1}) == {1: ["a", "c"], 2: ["b"]}
    assert invert({}) == {}
    assert invert({"z": 0, "y": 0}) == {0: ["y", "z"]}


def deep_get(data: dict, path: str, default: object = None) -> object:  # type: ignore[type-arg]
    """Return the value at a path such as "user.address.city" in nested dictionaries, or the default if a part of it is missing.

    >>> deep_get({"user": {"name": "Li"}}, "user.name")
    'Li'
    """
    for key in path.split("."):
        if not isinstance(data, dict) or key not in data:
            return default
        data = data[key]
    return data


def test_deep_get() -> None:
    data = {"user": {"name": "Li", "address": {"city": "Xi'an"}}, "empty": None}
    assert deep_get(data, "user.name") == "Li"
    assert deep_get(data, "user.address.city") == "Xi'an"
    assert deep_get(data, "user.phone") is None
    assert deep_get(data, "user.name.first", "?") == "?"
    assert deep_get(data, "empty", 3) is None


def merge_counts(first: dict[str, int], second: dict[str, int]) -> dict[str, int]:
    """Add two dictionaries of counts; keys whose sum is 0 are left out. The given ones do not change.

    >>> merge_counts({"a": 1, "b": 2}, {"b": -2, "c": 3})
    {'a': 1, 'c': 3}
    """
    sums = {key: first.get(key, 0) + second.get(key, 0) for key in {**first, **second}}
    return {key: value for key, value in sums.items() if value}


def test_merge_counts() -> None:
    a, b = {"a": 1, "b": 2}, {"b": -2, "c": 3}
    assert merge_counts(a, b) == {"a": 1, "c": 3}
    assert a == {"a": 1, "b": 2} and b == {"b": -2, "c": 3}
    assert merge_counts({}, {}) == {}
    assert merge_counts({"x": 5}, {"x": 5}) == {"x": 10}


def rank_scores(scores: dict[str, int]) -> list[str]:
    """Return the names by falling score; equal scores in alphabetical order.

    >>> rank_scores({"Bo": 7, "Al": 7, "Cy": 9})
    ['Cy', 'Al', 'Bo']
    """
    return sorted(scores, key=lambda name: (-scores[name], name))


def test_rank_scores() -> None:
    assert rank_scores({"Bo": 7, "Al": 7, "Cy": 9}) == ["Cy", "Al", "Bo"]
    assert rank_scores({}) == []
    assert rank_scores({"b": -1, "a": -2}) == ["b", "a"]


def places(times: list[int]) -> list[int]:
    """Return the place of each runner by time, 1 for the shortest. Equal times share a place, and the places after them are skipped.

    >>> places([50, 42, 50, 60])
    [2, 1, 2, 4]
    """
    return [1 + sum(other < time for other in times) for time in times]


def test_places() -> None:
    assert places([50, 42, 50, 60]) == [2, 1, 2, 4]
    assert places([]) == []
    assert places([3, 3, 3]) == [1, 1, 1]
    assert places([3, 2, 1]) == [3, 2, 1]


def water_between(heights: list[int]) -> int:
    """Return how much rain stays between walls of these heights, each one wide.

    >>> water_between([3, 0, 2])
    2
    """
    return sum(max(0, min(max(heights[:i], default=0), max(heights[i + 1 :], default=0)) - height) for i, height in enumerate(heights))


def test_water_between() -> None:
    assert water_between([3, 0, 2]) == 2
    assert water_between([]) == 0
    assert water_between([1, 2, 3]) == 0
    assert water_between([4, 2, 0, 3, 2, 5]) == 9
    assert water_between([0, 1, 0, 2, 1, 0, 1, 3, 2, 1, 2, 1]) == 6


def best_profit(prices: list[int]) -> int:
    """股票每天一个价格，最多买入一次并在之后的某天卖出一次。返回最大利润，不能获利时返回0。

    >>> best_profit([7, 1, 5, 3, 6, 4])
    5
    """
    best, cheapest = 0, None
    for price in prices:
        cheapest = price if cheapest is None else min(cheapest, price)
        best = max(best, price - cheapest)
    return best


def test_best_profit() -> None:
    assert best_profit([7, 1, 5, 3, 6, 4]) == 5
    assert best_profit([7, 6, 4]) == 0
    assert best_profit([]) == 0
    assert best_profit([2, 4, 1]) == 2


def next_larger(numbers: list[int]) -> list[int]:
    """For every number return the first larger one to its right, or -1 if there is none.

    >>> next_larger([2, 1, 3, 2])
    [3, 3, -1, -1]
    """
    return [next((other for other in numbers[i + 1 :] if other > number), -1) for i, number in enumerate(numbers)]


def test_next_larger() -> None:
    assert next_larger([2, 1, 3, 2]) == [3, 3, -1, -1]
    assert next_larger([]) == []
    assert next_larger([1, 2, 3]) == [2, 3, -1]
    assert next_larger([5, 5]) == [-1, -1]


def majority(votes: list[str]) -> str | None:
    """Return who has more than half of the votes, or None.

    >>> majority(["a", "b", "a"])
    'a'
    """
    return next((name for name in set(votes) if votes.count(name) * 2 > len(votes)), None)


def test_majority() -> None:
    assert majority(["a", "b", "a"]) == "a"
    assert majority(["a", "b"]) is None
    assert majority([]) is None
    assert majority(["x"]) == "x"


def missing_number(numbers: list[int]) -> int:
    """列表包含0到n中除一个以外的所有整数，各出现一次，返回缺少的那个。n等于列表的长度。

    >>> missing_number([3, 0, 1])
    2
    """
    return len(numbers) * (len(numbers) + 1) // 2 - sum(numbers)


def test_missing_number() -> None:
    assert missing_number([3, 0, 1]) == 2
    assert missing_number([]) == 0
    assert missing_number([0]) == 1
    assert missing_number([1]) == 0
    assert missing_number([*range(50), *range(51, 101)]) == 50


def subsets_with_sum(numbers: list[int], target: int) -> int:
    """Count the ways to choose some of the numbers (perhaps none), each at its position at most once, so that their sum is the target.

    >>> subsets_with_sum([1, 2, 3], 3)
    2
    """
    ways = {0: 1}
    for number in numbers:
        after = dict(ways)
        for total, count in ways.items():
            after[total + number] = after.get(total + number, 0) + count
        ways = after
    return ways.get(target, 0)


def test_subsets_with_sum() -> None:
    assert subsets_with_sum([1, 2, 3], 3) == 2
    assert subsets_with_sum([], 0) == 1
    assert subsets_with_sum([1, 1, 1], 2) == 3
    assert subsets_with_sum([5], 4) == 0
    assert subsets_with_sum([2, -2], 0) == 2


def permutations_of(text: str) -> list[str]:
    """Return all different orders of the letters of a text, in alphabetical order.

    >>> permutations_of("aab")
    ['aab', 'aba', 'baa']
    """
    from itertools import permutations

    return sorted({"".join(one) for one in permutations(text)})


def test_permutations_of() -> None:
    assert permutations_of("aab") == ["aab", "aba", "baa"]
    assert permutations_of("") == [""]
    assert len(permutations_of("abcde")) == 120


def pairs_of_brackets(n: int) -> list[str]:
    """Return all correct arrangements of n pairs of round brackets in alphabetical order ("(" comes before ")").

    >>> pairs_of_brackets(2)
    ['(())', '()()']
    """

    def grow(text: str, opened: int, closed: int) -> list[str]:
        if closed == n:
            return [text]
        found = grow(text + "(", opened + 1, closed) if opened < n else []
        return found + (grow(text + ")", opened, closed + 1) if closed < opened else [])

    return grow("", 0, 0)


def test_pairs_of_brackets() -> None:
    assert pairs_of_brackets(2) == ["(())", "()()"]
    assert pairs_of_brackets(1) == ["()"]
    assert pairs_of_brackets(0) == [""]
    assert len(pairs_of_brackets(5)) == 42


def phone_words(digits: str) -> list[str]:
    """Return all letter combinations of the keys of a telephone in alphabetical order: 2 abc, 3 def, 4 ghi, 5 jkl, 6 mno, 7 pqrs, 8 tuv, 9 wxyz.

    No digits give an empty list.

    >>> phone_words("23")
    ['ad', 'ae', 'af', 'bd', 'be', 'bf', 'cd', 'ce', 'cf']
    """
    keys = {"2": "abc", "3": "def", "4": "ghi", "5": "jkl", "6": "mno", "7": "pqrs", "8": "tuv", "9": "wxyz"}
    words = [""] if digits else []
    for digit in digits:
        words = [word + letter for word in words for letter in keys[digit]]
    return words


def test_phone_words() -> None:
    assert phone_words("23") == ["ad", "ae", "af", "bd", "be", "bf", "cd", "ce", "cf"]
    assert phone_words("") == []
    assert len(phone_words("79")) == 16
    assert phone_words("9") == ["w", "x", "y", "z"]


def queens(n: int) -> int:
    """Count the ways to put n queens on a board of n by n squares so that none attacks another.

    >>> queens(4)
    2
    """

    def place(row: int, columns: tuple[int, ...]) -> int:
        if row == n:
            return 1
        return sum(
            place(row + 1, (*columns, c)) for c in range(n) if all(c != other and abs(c - other) != row - r for r, other in enumerate(columns))
        )

    return place(0, ())


def test_queens() -> None:
    assert [queens(n) for n in range(1, 7)] == [1, 0, 0, 2, 10, 4]


def valid_sudoku_row(row: list[int]) -> bool:
    """Whether a row of nine cells has no number from 1 to 9 twice. 0 is an empty cell; other numbers are not allowed.

    >>> valid_sudoku_row([1, 0, 3, 0, 5, 0, 7, 0, 9])
    True
    """
    filled = [cell for cell in row if cell]
    return len(row) == 9 and len(filled) == len(set(filled)) and all(0 <= cell <= 9 for cell in row)


def test_valid_sudoku_row() -> None:
    assert valid_sudoku_row([1, 0, 3, 0, 5, 0, 7, 0, 9]) is True
    assert valid_sudoku_row([1, 1, 0, 0, 0, 0, 0, 0, 0]) is False
    assert valid_sudoku_row([0] * 9) is True
    assert valid_sudoku_row([10, 0, 0, 0, 0, 0, 0, 0, 0]) is False


def life_step(rows: list[str]) -> list[str]:
    """Return the next generation of Conway's game of life; '#' lives, '.' does not, and outside of the board nothing lives.

    A cell lives next if it has three living neighbours (of eight), or two and lives now.

    >>> life_step(["...", "###", "..."])
    ['.#.', '.#.', '.#.']
    """
    alive = {(r, c) for r, row in enumerate(rows) for c, cell in enumerate(row) if cell == "#"}

    def lives(r: int, c: int) -> bool:
        near = sum((r + dr, c + dc) in alive for dr in (-1, 0, 1) for dc in (-1, 0, 1) if dr or dc)
        return near == 3 or (near == 2 and (r, c) in alive)

    return ["".join("#" if lives(r, c) else "." for c in range(len(row))) for r, row in enumerate(rows)]


def test_life_step() -> None:
    assert life_step(["...", "###", "..."]) == [".#.", ".#.", ".#."]
    assert life_step(["##", "##"]) == ["##", "##"]
    assert life_step(["#"]) == ["."]
    assert life_step([]) == []
    assert life_step(["#.#", "...", "#.#"]) == ["...", "...", "..."]


def knight_moves(square: str) -> list[str]:
    """Return the squares that a knight reaches from a square of a chess board such as "b1", in alphabetical order.

    >>> knight_moves("a1")
    ['b3', 'c2']
    """
    column, row = ord(square[0]) - 97, int(square[1]) - 1
    jumps = [(1, 2), (2, 1), (-1, 2), (-2, 1), (1, -2), (2, -1), (-1, -2), (-2, -1)]
    reached = [(column + dc, row + dr) for dc, dr in jumps]
    return sorted(f"{chr(97 + c)}{r + 1}" for c, r in reached if 0 <= c < 8 and 0 <= r < 8)


def test_knight_moves() -> None:
    assert knight_moves("a1") == ["b3", "c2"]
    assert knight_moves("d4") == ["b3", "b5", "c2", "c6", "e2", "e6", "f3", "f5"]
    assert knight_moves("h8") == ["f7", "g6"]


def tic_tac_toe(board: list[str]) -> str | None:
    """Return "X" or "O", whoever has three in a row on a board of three lines of three characters, or None if nobody has.

    >>> tic_tac_toe(["XXX", "OO.", "..."])
    'X'
    """
    lines = [*board, *("".join(row[c] for row in board) for c in range(3))]
    lines += ["".join(board[i][i] for i in range(3)), "".join(board[i][2 - i] for i in range(3))]
    return next((player for player in "XO" if player * 3 in lines), None)


def test_tic_tac_toe() -> None:
    assert tic_tac_toe(["XXX", "OO.", "..."]) == "X"
    assert tic_tac_toe(["XO.", "XO.", ".O."]) == "O"
    assert tic_tac_toe(["X.O", ".O.", "O.X"]) == "O"
    assert tic_tac_toe(["X..", ".X.", "..X"]) == "X"
    assert tic_tac_toe(["...", "...", "..."]) is None


def version_order(versions: list[str]) -> list[str]:
    """Sort version numbers such as "1.10.2" by their numbers, not as text. Shorter ones come first if all their numbers are equal.

    >>> version_order(["1.10", "1.9", "1.9.1"])
    ['1.9', '1.9.1', '1.10']
    """
    return sorted(versions, key=lambda version: [int(part) for part in version.split(".")])


def test_version_order() -> None:
    assert version_order(["1.10", "1.9", "1.9.1"]) == ["1.9", "1.9.1", "1.10"]
    assert version_order([]) == []
    assert version_order(["2.0", "10.0", "1"]) == ["1", "2.0", "10.0"]


def natural_order(names: list[str]) -> list[str]:
    """按自然顺序排列文件名：名字由字母后跟一个整数组成，先按字母比较，再按整数大小比较。

    >>> natural_order(["img12", "img2", "doc10"])
    ['doc10', 'img2', 'img12']
    """
    import re

    def key(name: str) -> tuple[str, int]:
        found = re.fullmatch(r"([a-zA-Z]*)(\d+)", name)
        assert found is not None
        return found[1], int(found[2])

    return sorted(names, key=key)


def test_natural_order() -> None:
    assert natural_order(["img12", "img2", "doc10"]) == ["doc10", "img2", "img12"]
    assert natural_order([]) == []
    assert natural_order(["a10", "a9", "a100"]) == ["a9", "a10", "a100"]


def simplify_path(path: str) -> str:
    """Simplify an absolute path: "." stays where it is, ".." goes up (at the root it does nothing), several slashes count as one.

    >>> simplify_path("/a/./b/../c/")
    '/a/c'
    """
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)


def test_simplify_path() -> None:
    assert simplify_path("/a/./b/../c/") == "/a/c"
    assert simplify_path("/") == "/"
    assert simplify_path("/../x") == "/x"
    assert simplify_path("//home//user") == "/home/user"
    assert simplify_path("/a/b/../..") == "/"


def csv_line(fields: list[str]) -> str:
    """Join fields with commas. A field with a comma, a quotation mark or a line end is put into quotation marks, and those inside are doubled.

    >>> csv_line(["a", "b,c", 'say "hi"'])
    'a,"b,c","say ""hi\"""'
    """
    return ",".join('"' + field.replace('"', '""') + '"' if any(c in field for c in ',"\n') else field for field in fields)


def test_csv_line() -> None:
    assert csv_line(["a", "b,c", 'say "hi"']) == 'a,"b,c","say ""hi"""'
    assert csv_line([]) == ""
    assert csv_line(["", ""]) == ","
    assert csv_line(["two\nlines"]) == '"two\nlines"'


def parse_duration(text: str) -> int:
    """Return the seconds of a duration such as "1h30m" or "45s": hours, minutes and seconds in this order, each may be missing.

    >>> parse_duration("1h30m")
    5400
    """
    import re

    return sum(int(number) * {"h": 3600, "m": 60, "s": 1}[unit] for number, unit in re.findall(r"(\d+)([hms])", text))


def test_parse_duration() -> None:
    assert parse_duration("1h30m") == 5400
    assert parse_duration("45s") == 45
    assert parse_duration("2h5s") == 7205
    assert parse_duration("") == 0
    assert parse_duration("1h1m1s") == 3661


def number_words(n: int) -> str:
    """Write a number from 0 to 99 in English words, with a hyphen from twenty-one on.

    >>> number_words(42)
    'forty-two'
    """
    small = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
    small += [f"{stem}teen" for stem in ("thir", "four", "fif", "six", "seven", "eigh", "nine")]
    tens = [f"{stem}ty" for stem in ("twen", "thir", "for", "fif", "six", "seven", "eigh", "nine")]
    if n < 20:
        return small[n]
    return tens[n // 10 - 2] + (f"-{small[n % 10]}" if n % 10 else "")


def test_number_words() -> None:
    assert number_words(42) == "forty-two"
    assert number_words(0) == "zero"
    assert number_words(13) == "thirteen"
    assert number_words(90) == "ninety"
    assert number_words(99) == "ninety-nine"


def ordinal(n: int) -> str:
    """Write a positive number as an English ordinal with digits.

    >>> [ordinal(n) for n in (1, 2, 3, 4, 11, 22)]
    ['1st', '2nd', '3rd', '4th', '11th', '22nd']
    """
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"


def test_ordinal() -> None:
    assert [ordinal(n) for n in (1, 2, 3, 4, 11, 22)] == ["1st", "2nd", "3rd", "4th", "11th", "22nd"]
    assert ordinal(112) == "112th"
    assert ordinal(101) == "101st"
    assert ordinal(1013) == "1013th"


def thousands(n: int) -> str:
    """Write a whole number with a comma after every three digits, counted from the right.

    >>> thousands(-1234567)
    '-1,234,567'
    """
    return f"{n:,}"


def test_thousands() -> None:
    assert thousands(-1234567) == "-1,234,567"
    assert thousands(0) == "0"
    assert thousands(999) == "999"
    assert thousands(1000) == "1,000"


def bit_count(n: int) -> int:
    """返回非负整数n的二进制表示中1的个数。

    >>> bit_count(13)
    3
    """
    return bin(n).count("1")


def test_bit_count() -> None:
    assert bit_count(13) == 3
    assert bit_count(0) == 0
    assert bit_count(2**40 - 1) == 40


def gray_code(bits: int) -> list[str]:
    """Return the Gray code of so many bits: all bit patterns, from all zeros on, in which neighbours differ in one bit.

    The second half is the first half backwards with a 1 before each pattern instead of a 0.

    >>> gray_code(2)
    ['00', '01', '11', '10']
    """
    return [f"{n ^ n >> 1:0{bits}b}" for n in range(2**bits)]


def test_gray_code() -> None:
    assert gray_code(1) == ["0", "1"]
    assert gray_code(2) == ["00", "01", "11", "10"]
    assert gray_code(3) == ["000", "001", "011", "010", "110", "111", "101", "100"]


def power_mod(base: int, exponent: int, modulus: int) -> int:
    """Return base to the power of exponent, modulo modulus, for exponents up to a billion.

    >>> power_mod(3, 4, 5)
    1
    """
    return pow(base, exponent, modulus)


def test_power_mod() -> None:
    assert power_mod(3, 4, 5) == 1
    assert power_mod(2, 10, 1000) == 24
    assert power_mod(7, 0, 13) == 1
    assert power_mod(2, 1_000_000_000, 1_000_000_007) == 140625001


def square_root_floor(n: int) -> int:
    """Return the largest whole number whose square is not larger than n, exactly also for very large n.

    >>> square_root_floor(17)
    4
    """
    import math

    return math.isqrt(n)


def test_square_root_floor() -> None:
    assert square_root_floor(17) == 4
    assert square_root_floor(0) == 0
    assert square_root_floor(25) == 5
    assert square_root_floor(10**40 - 1) == 10**20 - 1


def triangle_kind(a: float, b: float, c: float) -> str:
    """Return "equilateral", "isosceles" or "scalene" for three sides.

    "none" if they do not make a triangle: one is as long as the others together.

    >>> triangle_kind(3, 4, 5)
    'scalene'
    """
    a, b, c = sorted((a, b, c))
    if a <= 0 or a + b <= c:
        return "none"
    return {1: "equilateral", 2: "isosceles", 3: "scalene"}[len({a, b, c})]


def test_triangle_kind() -> None:
    assert triangle_kind(3, 4, 5) == "scalene"
    assert triangle_kind(2, 2, 2) == "equilateral"
    assert triangle_kind(2, 3, 2) == "isosceles"
    assert triangle_kind(1, 2, 3) == "none"
    assert triangle_kind(0, 1, 1) == "none"
    assert triangle_kind(5, 1, 1) == "none"


def polygon_area(points: list[tuple[int, int]]) -> float:
    """Return the area of a simple polygon from its corners in order (shoelace formula).

    >>> polygon_area([(0, 0), (4, 0), (4, 3)])
    6.0
    """
    twice = sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in zip(points, points[1:] + points[:1], strict=True))
    return abs(twice) / 2


def test_polygon_area() -> None:
    assert polygon_area([(0, 0), (4, 0), (4, 3)]) == 6.0
    assert polygon_area([(0, 0), (0, 2), (2, 2), (2, 0)]) == 4.0
    assert polygon_area([(0, 0), (2, 0), (2, 1), (1, 1), (1, 2), (0, 2)]) == 3.0


def rectangles_overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> int:
    """Return the area that two rectangles (left, bottom, right, top) have in common, 0 if there is none.

    >>> rectangles_overlap((0, 0, 4, 4), (2, 1, 6, 3))
    4
    """
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)


def test_rectangles_overlap() -> None:
    assert rectangles_overlap((0, 0, 4, 4), (2, 1, 6, 3)) == 4
    assert rectangles_overlap((0, 0, 1, 1), (1, 0, 2, 1)) == 0
    assert rectangles_overlap((0, 0, 1, 1), (5, 5, 6, 6)) == 0
    assert rectangles_overlap((0, 0, 9, 9), (1, 1, 2, 2)) == 1


def walk(commands: str) -> tuple[int, int]:
    """一个机器人从(0, 0)出发，面朝北（y轴正方向）。F前进一格，L左转，R右转。返回最后的位置(x, y)。

    >>> walk("FFRF")
    (1, 2)
    """
    x, y, dx, dy = 0, 0, 0, 1
    for command in commands:
        if command == "F":
            x, y = x + dx, y + dy
        elif command == "L":
            dx, dy = -dy, dx
        else:
            dx, dy = dy, -dx
    return x, y


def test_walk() -> None:
    assert tuple(walk("FFRF")) == (1, 2)
    assert tuple(walk("")) == (0, 0)
    assert tuple(walk("LFLFLFLF")) == (0, 0)
    assert tuple(walk("LFF")) == (-2, 0)
    assert tuple(walk("RRF")) == (0, -1)


def robot_score(rounds: list[str]) -> int:
    """Keep a score: a number is added to the record, "+" records the sum of the last two, "D" twice the last, "C" removes the last. Return the sum.

    >>> robot_score(["5", "2", "C", "D", "+"])
    30
    """
    record: list[int] = []
    for one in rounds:
        if one == "+":
            record.append(record[-1] + record[-2])
        elif one == "D":
            record.append(2 * record[-1])
        elif one == "C":
            record.pop()
        else:
            record.append(int(one))
    return sum(record)


def test_robot_score() -> None:
    assert robot_score(["5", "2", "C", "D", "+"]) == 30
    assert robot_score([]) == 0
    assert robot_score(["5", "-2", "4", "C", "D", "9", "+", "+"]) == 27
    assert robot_score(["1", "C"]) == 0


def josephus(people: int, step: int) -> int:
    """People 1, 2, ... stand in a circle; counting from person 1 every step-th leaves until one is left. Return who is left.

    >>> josephus(5, 2)
    3
    """
    circle, position = list(range(1, people + 1)), 0
    while len(circle) > 1:
        position = (position + step - 1) % len(circle)
        circle.pop(position)
    return circle[0]


def test_josephus() -> None:
    assert josephus(5, 2) == 3
    assert josephus(1, 7) == 1
    assert josephus(7, 3) == 4
    assert josephus(41, 3) == 31


def look_and_say(n: int) -> str:
    """Return the n-th term of the sequence that starts with "1" and describes the term before: one 1 is "11", two 1s are "21", and so on.

    >>> look_and_say(4)
    '1211'
    """
    from itertools import groupby

    term = "1"
    for _ in range(n - 1):
        term = "".join(f"{len(list(run))}{digit}" for digit, run in groupby(term))
    return term


def test_look_and_say() -> None:
    assert [look_and_say(n) for n in range(1, 7)] == ["1", "11", "21", "1211", "111221", "312211"]


def interleave(first: list[int], second: list[int]) -> list[int]:
    """Take items from two lists in turn, beginning with the first list; what is left of the longer one comes at the end.

    >>> interleave([1, 2, 3], [9])
    [1, 9, 2, 3]
    """
    result = []
    for index in range(max(len(first), len(second))):
        result += first[index : index + 1] + second[index : index + 1]
    return result


def test_interleave() -> None:
    assert interleave([1, 2, 3], [9]) == [1, 9, 2, 3]
    assert interleave([], [1, 2]) == [1, 2]
    assert interleave([1, 3], [2, 4]) == [1, 2, 3, 4]
    assert interleave([], []) == []


def remove_duplicates(items: list[str]) -> list[str]:
    """Return the items without repetitions; of equal ones the last stays where it is.

    >>> remove_duplicates(["a", "b", "a", "c"])
    ['b', 'a', 'c']
    """
    return list(dict.fromkeys(reversed(items)))[::-1]


def test_remove_duplicates() -> None:
    assert remove_duplicates(["a", "b", "a", "c"]) == ["b", "a", "c"]
    assert remove_duplicates([]) == []
    assert remove_duplicates(["x", "x", "x"]) == ["x"]
    assert remove_duplicates(["a", "b", "c", "b", "a"]) == ["c", "b", "a"]


def split_bill(total_cents: int, people: int) -> list[int]:
    """Split an amount so that the shares differ by one cent at most and the larger shares come first.

    >>> split_bill(100, 3)
    [34, 33, 33]
    """
    share, rest = divmod(total_cents, people)
    return [share + (index < rest) for index in range(people)]


def test_split_bill() -> None:
    assert split_bill(100, 3) == [34, 33, 33]
    assert split_bill(0, 2) == [0, 0]
    assert split_bill(5, 5) == [1] * 5
    assert split_bill(11, 4) == [3, 3, 3, 2]


def password_problems(password: str) -> list[str]:
    """Return what is wrong with a password.

    In this order: "short" (fewer than 8 characters), "digit" (none), "upper" (no capital letter), "space" (has one).

    >>> password_problems("abc 1")
    ['short', 'upper', 'space']
    """
    problems = []
    if len(password) < 8:
        problems.append("short")
    if not any(c.isdigit() for c in password):
        problems.append("digit")
    if not any(c.isupper() for c in password):
        problems.append("upper")
    if " " in password:
        problems.append("space")
    return problems


def test_password_problems() -> None:
    assert password_problems("abc 1") == ["short", "upper", "space"]
    assert password_problems("Abcdefg1") == []
    assert password_problems("") == ["short", "digit", "upper"]
    assert password_problems("ABCDEFGH") == ["digit"]


def stock_after(start: dict[str, int], orders: list[tuple[str, int]]) -> dict[str, int]:
    """库存为字典；依次处理订单（商品，数量）：库存足够才扣减，否则跳过该订单。返回处理后的新字典，数量为0的商品也保留。

    >>> stock_after({"pen": 5}, [("pen", 3), ("pen", 3), ("ink", 1)])
    {'pen': 2}
    """
    stock = dict(start)
    for item, count in orders:
        if stock.get(item, 0) >= count:
            stock[item] -= count
    return stock


def test_stock_after() -> None:
    given = {"pen": 5, "pad": 1}
    assert stock_after(given, [("pen", 3), ("pen", 3), ("ink", 1), ("pad", 1)]) == {"pen": 2, "pad": 0}
    assert given == {"pen": 5, "pad": 1}
    assert stock_after({}, [("a", 1)]) == {}


def compound(amount: float, percent: float, years: int) -> float:
    """Return what an amount has become after so many years at a yearly interest in percent that is added each year, rounded to two decimals.

    >>> compound(1000, 5, 2)
    1102.5
    """
    return round(amount * (1 + percent / 100) ** years, 2)


def test_compound() -> None:
    assert compound(1000, 5, 2) == 1102.5
    assert compound(200, 0, 10) == 200
    assert compound(50, 100, 3) == 400
    assert compound(1000, 3.5, 0) == 1000


def tax(income: int) -> float:
    """Return a tax: nothing on the first 10000, 20 percent on what lies between 10000 and 40000, 40 percent on what lies above.

    >>> tax(50000)
    10000.0
    """
    return max(min(income, 40000) - 10000, 0) * 0.2 + max(income - 40000, 0) * 0.4


def test_tax() -> None:
    assert abs(tax(50000) - 10000) < 1e-6
    assert tax(9000) == 0
    assert abs(tax(10000)) < 1e-6
    assert abs(tax(25000) - 3000) < 1e-6
    assert abs(tax(40000) - 6000) < 1e-6


def knapsack(capacity: int, items: list[tuple[int, int]]) -> int:
    """Return the largest value of items (weight, value) that together weigh no more than the capacity, each taken at most once.

    >>> knapsack(5, [(2, 3), (3, 4), (4, 5)])
    7
    """
    best = [0] * (capacity + 1)
    for weight, value in items:
        for room in range(capacity, weight - 1, -1):
            best[room] = max(best[room], best[room - weight] + value)
    return best[capacity]


def test_knapsack() -> None:
    assert knapsack(5, [(2, 3), (3, 4), (4, 5)]) == 7
    assert knapsack(0, [(1, 10)]) == 0
    assert knapsack(10, []) == 0
    assert knapsack(6, [(3, 5), (3, 5), (6, 9)]) == 10
    assert knapsack(4, [(2, 3)]) == 3


def longest_common_subsequence(first: str, second: str) -> int:
    """Return the length of the longest sequence of characters that occurs in both texts in the same order, not necessarily side by side.

    >>> longest_common_subsequence("abcde", "ace")
    3
    """
    previous = [0] * (len(second) + 1)
    for a in first:
        current = [0]
        for j, b in enumerate(second):
            current.append(previous[j] + 1 if a == b else max(previous[j + 1], current[j]))
        previous = current
    return previous[-1]


def test_longest_common_subsequence() -> None:
    assert longest_common_subsequence("abcde", "ace") == 3
    assert longest_common_subsequence("", "abc") == 0
    assert longest_common_subsequence("abc", "xyz") == 0
    assert longest_common_subsequence("aggtab", "gxtxayb") == 4


def longest_without_repeat(text: str) -> int:
    """返回不含重复字符的最长连续子串的长度。

    >>> longest_without_repeat("abcabcbb")
    3
    """
    best, start, last = 0, 0, {}
    for index, letter in enumerate(text):
        start = max(start, last.get(letter, -1) + 1)
        last[letter] = index
        best = max(best, index - start + 1)
    return best


def test_longest_without_repeat() -> None:
    assert longest_without_repeat("abcabcbb") == 3
    assert longest_without_repeat("") == 0
    assert longest_without_repeat("bbbb") == 1
    assert longest_without_repeat("pwwkew") == 3
    assert longest_without_repeat("abba") == 2


def smallest_window(numbers: list[int], target: int) -> int:
    """Return the smallest count of neighbouring positive numbers whose sum is at least the target, or 0 if there is none.

    >>> smallest_window([2, 3, 1, 2, 4, 3], 7)
    2
    """
    best, start, total = 0, 0, 0
    for end, number in enumerate(numbers):
        total += number
        while total >= target:
            best = min(best or end - start + 1, end - start + 1)
            total -= numbers[start]
            start += 1
    return best


def test_smallest_window() -> None:
    assert smallest_window([2, 3, 1, 2, 4, 3], 7) == 2
    assert smallest_window([1, 1], 5) == 0
    assert smallest_window([9], 9) == 1
    assert smallest_window([1, 2, 3, 4, 5], 15) == 5


def binary_tree_depth(tree: list | None) -> int:  # type: ignore[type-arg]
    """Return the depth of a tree. A node is a list [value, left, right]; a missing branch is None, and an empty tree has depth 0.

    >>> binary_tree_depth([1, [2, None, None], None])
    2
    """
    return 0 if tree is None else 1 + max(binary_tree_depth(tree[1]), binary_tree_depth(tree[2]))


def test_binary_tree_depth() -> None:
    assert binary_tree_depth([1, [2, None, None], None]) == 2
    assert binary_tree_depth(None) == 0
    assert binary_tree_depth([1, None, None]) == 1
    assert binary_tree_depth([1, [2, None, [3, None, None]], [4, None, None]]) == 3


def sum_of_multiples(limit: int) -> int:
    """Return the sum of all positive numbers below the limit that are multiples of 3 or 5.

    >>> sum_of_multiples(10)
    23
    """
    return sum(n for n in range(limit) if n % 3 == 0 or n % 5 == 0)


def test_sum_of_multiples() -> None:
    assert sum_of_multiples(10) == 23
    assert sum_of_multiples(0) == 0
    assert sum_of_multiples(16) == 60
    assert sum_of_multiples(1000) == 233168


def fizz(n: int) -> list[str]:
    """For 1 to n return "Tick" for multiples of 4, "Tock" of 6, "TickTock" of both, otherwise the number as text.

    >>> fizz(6)
    ['1', '2', '3', 'Tick', '5', 'Tock']
    """
    return [("Tick" if i % 4 == 0 else "") + ("Tock" if i % 6 == 0 else "") or str(i) for i in range(1, n + 1)]


def test_fizz() -> None:
    assert fizz(6) == ["1", "2", "3", "Tick", "5", "Tock"]
    assert fizz(12)[-1] == "TickTock"
    assert fizz(0) == []
    assert fizz(8)[-1] == "Tick"


def vowel_start(words: list[str]) -> list[str]:
    """Return the words that begin with a vowel (a, e, i, o, u, large or small), in their order.

    >>> vowel_start(["Apple", "pear", "orange"])
    ['Apple', 'orange']
    """
    return [word for word in words if word[:1].lower() in ("a", "e", "i", "o", "u")]


def test_vowel_start() -> None:
    assert vowel_start(["Apple", "pear", "orange"]) == ["Apple", "orange"]
    assert vowel_start([]) == []
    assert vowel_start(["", "x"]) == []


def difference_of_squares(n: int) -> int:
    """Add the first n positive numbers and square the result; return how much more that is than their squares added up.

    >>> difference_of_squares(3)
    22
    """
    return sum(range(n + 1)) ** 2 - sum(i * i for i in range(n + 1))


def test_difference_of_squares() -> None:
    assert difference_of_squares(3) == 22
    assert difference_of_squares(0) == 0
    assert difference_of_squares(1) == 0
    assert difference_of_squares(100) == 25164150


def palindromes_between(low: int, high: int) -> list[int]:
    """返回从low到high（含两端）的所有回文数，即从左读和从右读相同的非负整数。

    >>> palindromes_between(95, 125)
    [99, 101, 111, 121]
    """
    return [n for n in range(low, high + 1) if str(n) == str(n)[::-1]]


def test_palindromes_between() -> None:
    assert palindromes_between(95, 125) == [99, 101, 111, 121]
    assert palindromes_between(0, 11) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11]
    assert palindromes_between(12, 21) == []


def zigzag(text: str, rows: int) -> str:
    """Write a text in a zigzag down and up over so many rows and return the rows one after another.

    >>> zigzag("ABCDEFG", 3)
    'AEBDFCG'
    """
    lines, row, step = [""] * rows, 0, 1
    for letter in text:
        lines[row] += letter
        if row == 0:
            step = 1
        elif row == rows - 1:
            step = -1
        row += step if rows > 1 else 0
    return "".join(lines)


def test_zigzag() -> None:
    assert zigzag("ABCDEFG", 3) == "AEBDFCG"
    assert zigzag("ABC", 1) == "ABC"
    assert zigzag("ABCD", 2) == "ACBD"
    assert zigzag("", 4) == ""
    assert zigzag("AB", 5) == "AB"


def topk_words(text: str, k: int) -> list[str]:
    """Return the k most frequent words of a text, the most frequent first, equally frequent ones in alphabetical order. Spaces separate words.

    >>> topk_words("b a b c a b", 2)
    ['b', 'a']
    """
    words = text.split()
    return sorted(set(words), key=lambda word: (-words.count(word), word))[:k]


def test_topk_words() -> None:
    assert topk_words("b a b c a b", 2) == ["b", "a"]
    assert topk_words("", 3) == []
    assert topk_words("z y x", 2) == ["x", "y"]
    assert topk_words("one", 5) == ["one"]


def matrix_rotate(rows: list[list[int]]) -> list[list[int]]:
    """Turn a table clockwise by a quarter.

    >>> matrix_rotate([[1, 2], [3, 4], [5, 6]])
    [[5, 3, 1], [6, 4, 2]]
    """
    return [list(column) for column in zip(*rows[::-1], strict=True)]


def test_matrix_rotate() -> None:
    assert matrix_rotate([[1, 2], [3, 4], [5, 6]]) == [[5, 3, 1], [6, 4, 2]]
    assert matrix_rotate([[1]]) == [[1]]
    assert matrix_rotate([[1, 2, 3]]) == [[1], [2], [3]]


def last_stone(stones: list[int]) -> int:
    """The two heaviest stones are knocked together: equal ones vanish, else the difference stays; and so on. Return what is left, or 0.

    >>> last_stone([2, 7, 4, 1, 8, 1])
    1
    """
    stones = sorted(stones)
    while len(stones) > 1:
        first, second = stones.pop(), stones.pop()
        if first != second:
            stones = sorted([*stones, first - second])
    return stones[0] if stones else 0


def test_last_stone() -> None:
    assert last_stone([2, 7, 4, 1, 8, 1]) == 1
    assert last_stone([]) == 0
    assert last_stone([5, 5]) == 0
    assert last_stone([3]) == 3
    given = [4, 1]
    assert last_stone(given) == 3


def decode_message(text: str) -> int:
    """Count the ways to read a text of digits as letters, where "1" is A, "2" is B, ... "26" is Z. "06" is no letter.

    >>> decode_message("226")
    3
    """
    before, ways = 0, 1
    for index, digit in enumerate(text):
        two = int(text[index - 1 : index + 1]) if index else 0
        before, ways = ways, (ways if digit != "0" else 0) + (before if 10 <= two <= 26 else 0)
    return ways


def test_decode_message() -> None:
    assert decode_message("226") == 3
    assert decode_message("12") == 2
    assert decode_message("06") == 0
    assert decode_message("10") == 1
    assert decode_message("11106") == 2
