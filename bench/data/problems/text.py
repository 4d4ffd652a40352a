"""Problems about words, lines and codes."""

from __future__ import annotations


def count_lines(text: str) -> int:
    """Count the lines of a text that hold something other than blanks.

    >>> count_lines("one\\n\\n  \\ntwo")
    2
    """
    return sum(bool(line.strip()) for line in text.split("\n"))


def test_count_lines() -> None:
    assert count_lines("one\n\n  \ntwo") == 2
    assert count_lines("") == 0
    assert count_lines("a\nb\nc") == 3


def shout(text: str) -> str:
    """Put a text into capital letters and end it with exactly one exclamation mark.

    >>> shout("come here")
    'COME HERE!'
    >>> shout("stop!!")
    'STOP!'
    """
    return text.upper().rstrip("!") + "!"


def test_shout() -> None:
    assert shout("come here") == "COME HERE!"
    assert shout("stop!!") == "STOP!"
    assert shout("") == "!"


def remove_vowels(text: str) -> str:
    """Leave out the letters a, e, i, o and u, small and capital.

    >>> remove_vowels("Umbrella")
    'mbrll'
    """
    return "".join(letter for letter in text if letter not in "aeiouAEIOU")


def test_remove_vowels() -> None:
    assert remove_vowels("Umbrella") == "mbrll"
    assert remove_vowels("") == ""
    assert remove_vowels("why try") == "why try"
    assert remove_vowels("AEIou") == ""


def reverse_words(text: str) -> str:
    """Put the words of a text in reverse order, with single blanks between them.

    >>> reverse_words("  tea  and cake ")
    'cake and tea'
    """
    return " ".join(reversed(text.split()))


def test_reverse_words() -> None:
    assert reverse_words("  tea  and cake ") == "cake and tea"
    assert reverse_words("") == ""
    assert reverse_words("one") == "one"


def reverse_each_word(text: str) -> str:
    """Reverse the letters of every word and leave the words where they are. Single blanks separate them.

    >>> reverse_each_word("lamp on desk")
    'pmal no ksed'
    """
    return " ".join(word[::-1] for word in text.split(" "))


def test_reverse_each_word() -> None:
    assert reverse_each_word("lamp on desk") == "pmal no ksed"
    assert reverse_each_word("") == ""
    assert reverse_each_word("noon abc") == "noon cba"


def is_palindrome_phrase(text: str) -> bool:
    """判断一句话是否为回文：只看字母和数字，不分大小写。

    >>> is_palindrome_phrase("Was it a car or a cat I saw?")
    True
    """
    letters = [letter.lower() for letter in text if letter.isalnum()]
    return letters == letters[::-1]


def test_is_palindrome_phrase() -> None:
    assert is_palindrome_phrase("Was it a car or a cat I saw?") is True
    assert is_palindrome_phrase("hello") is False
    assert is_palindrome_phrase("") is True
    assert is_palindrome_phrase("1, 2, 1") is True


def count_letter(text: str, letter: str) -> int:
    """Count how often a letter is in a text, small or capital.

    >>> count_letter("Anna bakes bread", "a")
    4
    """
    return text.lower().count(letter.lower())


def test_count_letter() -> None:
    assert count_letter("Anna bakes bread", "a") == 4
    assert count_letter("Anna", "N") == 2
    assert count_letter("", "x") == 0


def center_in_stars(text: str, width: int) -> str:
    """Surround a text with stars so that the line has `width` characters; where they cannot be equal, one star more stands on the right.

    A text that is too long stays as it is.

    >>> center_in_stars("hi", 7)
    '**hi***'
    """
    left = (width - len(text)) // 2
    return text if width <= len(text) else "*" * left + text + "*" * (width - len(text) - left)


def test_center_in_stars() -> None:
    assert center_in_stars("hi", 7) == "**hi***"
    assert center_in_stars("hi", 6) == "**hi**"
    assert center_in_stars("long", 3) == "long"
    assert center_in_stars("", 3) == "***"


def alternate_case(text: str) -> str:
    """Write the letters in turn large and small, the first one large. Other characters stay and do not count.

    >>> alternate_case("ab-cd e")
    'Ab-Cd E'
    """
    result, large = "", True
    for letter in text:
        if letter.isalpha():
            result += letter.upper() if large else letter.lower()
            large = not large
        else:
            result += letter
    return result


def test_alternate_case() -> None:
    assert alternate_case("ab-cd e") == "Ab-Cd E"
    assert alternate_case("HELLO") == "HeLlO"
    assert alternate_case("") == ""
    assert alternate_case("1a2b") == "1A2b"


def remove_digits(text: str) -> str:
    """去掉文本中的所有数字0到9，其他字符保持不变。

    >>> remove_digits("a1b22c")
    'abc'
    """
    return "".join(letter for letter in text if letter not in "0123456789")


def test_remove_digits() -> None:
    assert remove_digits("a1b22c") == "abc"
    assert remove_digits("2024") == ""
    assert remove_digits("no") == "no"


def sum_of_numbers_in(text: str) -> int:
    """Add up all numbers that stand in a text. Digits beside each other are one number; there are no signs.

    >>> sum_of_numbers_in("3 apples and 12 pears")
    15
    """
    import re

    return sum(map(int, re.findall(r"\d+", text)))


def test_sum_of_numbers_in() -> None:
    assert sum_of_numbers_in("3 apples and 12 pears") == 15
    assert sum_of_numbers_in("none") == 0
    assert sum_of_numbers_in("a1b2c33") == 36


def mask_card(number: str) -> str:
    """Replace all but the last four digits of a card number by "#". Shorter numbers stay.

    >>> mask_card("1234567890")
    '######7890'
    """
    return "#" * (len(number) - 4) + number[-4:]


def test_mask_card() -> None:
    assert mask_card("1234567890") == "######7890"
    assert mask_card("123") == "123"
    assert mask_card("1234") == "1234"
    assert mask_card("12345") == "#2345"


def first_repeated(text: str) -> str | None:
    """Return the first character that has been there before, reading from the left, or None.

    >>> first_repeated("abcdbca")
    'b'
    """
    seen = set()
    for letter in text:
        if letter in seen:
            return letter
        seen.add(letter)
    return None


def test_first_repeated() -> None:
    assert first_repeated("abcdbca") == "b"
    assert first_repeated("abc") is None
    assert first_repeated("aa") == "a"
    assert first_repeated("abba") == "b"


def word_lengths(text: str) -> list[int]:
    """Return the lengths of the words of a text. Blanks separate words; commas and full stops are no part of them.

    >>> word_lengths("Rain, then sun.")
    [4, 4, 3]
    """
    return [len(word) for word in text.replace(",", "").replace(".", "").split()]


def test_word_lengths() -> None:
    assert word_lengths("Rain, then sun.") == [4, 4, 3]
    assert word_lengths("") == []
    assert word_lengths("a bb  ccc") == [1, 2, 3]


def starts_and_ends_same(words: list[str]) -> int:
    """Count the words of two letters or more that begin and end with the same letter.

    >>> starts_and_ends_same(["level", "a", "moon", "dad"])
    2
    """
    return sum(len(word) >= 2 and word[0] == word[-1] for word in words)


def test_starts_and_ends_same() -> None:
    assert starts_and_ends_same(["level", "a", "moon", "dad"]) == 2
    assert starts_and_ends_same([]) == 0
    assert starts_and_ends_same(["aa", "ab", ""]) == 1


def replace_every_nth(text: str, n: int, mark: str) -> str:
    """Replace every n-th character (the n-th, the 2n-th, ...) by a mark.

    >>> replace_every_nth("abcdefg", 3, "_")
    'ab_de_g'
    """
    return "".join(mark if index % n == 0 else letter for index, letter in enumerate(text, 1))


def test_replace_every_nth() -> None:
    assert replace_every_nth("abcdefg", 3, "_") == "ab_de_g"
    assert replace_every_nth("abc", 1, "x") == "xxx"
    assert replace_every_nth("abc", 5, "x") == "abc"
    assert replace_every_nth("", 2, "x") == ""


def squeeze(text: str) -> str:
    """Replace runs of the same character by that character once.

    >>> squeeze("aabbbca")
    'abca'
    """
    result = ""
    for letter in text:
        if not result or result[-1] != letter:
            result += letter
    return result


def test_squeeze() -> None:
    assert squeeze("aabbbca") == "abca"
    assert squeeze("") == ""
    assert squeeze("abc") == "abc"
    assert squeeze("    ") == " "


def is_pangram(text: str) -> bool:
    """Tell whether every letter of the English alphabet is in a text, small or capital.

    >>> is_pangram("Pack my box with five dozen liquor jugs")
    True
    """
    return set("abcdefghijklmnopqrstuvwxyz") <= set(text.lower())


def test_is_pangram() -> None:
    assert is_pangram("Pack my box with five dozen liquor jugs") is True
    assert is_pangram("Pack my box") is False
    assert is_pangram("") is False
    assert is_pangram("ABCDEFGHIJKLMNOPQRSTUVWXYZ") is True


def unique_letters_sorted(text: str) -> str:
    """Return the different letters of a text, small, in alphabetical order. Other characters are left out.

    >>> unique_letters_sorted("Book, cook!")
    'bcko'
    """
    return "".join(sorted({letter for letter in text.lower() if letter.isalpha()}))


def test_unique_letters_sorted() -> None:
    assert unique_letters_sorted("Book, cook!") == "bcko"
    assert unique_letters_sorted("") == ""
    assert unique_letters_sorted("123") == ""
    assert unique_letters_sorted("zZa") == "az"


def to_morse(word: str) -> str:
    """Write a word of the letters s, o and e in Morse code, a blank between letters: s is "...", o is "---", e is ".".

    >>> to_morse("sos")
    '... --- ...'
    """
    return " ".join({"s": "...", "o": "---", "e": "."}[letter] for letter in word)


def test_to_morse() -> None:
    assert to_morse("sos") == "... --- ..."
    assert to_morse("") == ""
    assert to_morse("see") == "... . ."


def rot13(text: str) -> str:
    """Replace every English letter by the one thirteen places on, from z on to a; capitals stay capitals, the rest stays.

    >>> rot13("Hello, you")
    'Uryyb, lbh'
    """
    import codecs

    return codecs.encode(text, "rot13")


def test_rot13() -> None:
    assert rot13("Hello, you") == "Uryyb, lbh"
    assert rot13("") == ""
    assert rot13("nN9") == "aA9"


def atbash(text: str) -> str:
    """Exchange a with z, b with y, c with x and so on, small letters only; other characters stay.

    >>> atbash("cab x1")
    'xzy c1'
    """
    return "".join(chr(ord("a") + ord("z") - ord(letter)) if "a" <= letter <= "z" else letter for letter in text)


def test_atbash() -> None:
    assert atbash("cab x1") == "xzy c1"
    assert atbash("") == ""
    assert atbash("Az") == "Aa"


def split_camel(name: str) -> list[str]:
    """Split a name in camel case into its words, in small letters.

    >>> split_camel("maxLineLength")
    ['max', 'line', 'length']
    """
    words = [""]
    for letter in name:
        if letter.isupper() and words[-1]:
            words.append("")
        words[-1] += letter.lower()
    return [word for word in words if word]


def test_split_camel() -> None:
    assert split_camel("maxLineLength") == ["max", "line", "length"]
    assert split_camel("name") == ["name"]
    assert split_camel("FileName") == ["file", "name"]
    assert split_camel("") == []


def kebab(title: str) -> str:
    """Make a title the end of an address: small letters, words joined by "-"; all but letters, digits and blanks is left out.

    >>> kebab("How to Bake: Bread!")
    'how-to-bake-bread'
    """
    return "-".join("".join(letter for letter in title.lower() if letter.isalnum() or letter == " ").split())


def test_kebab() -> None:
    assert kebab("How to Bake: Bread!") == "how-to-bake-bread"
    assert kebab("  Two  blanks ") == "two-blanks"
    assert kebab("") == ""
    assert kebab("C3PO?") == "c3po"


def longest_line(text: str) -> str:
    """返回文本中最长的一行；若有多行一样长，返回最前面的一行。

    >>> longest_line("ab\\nabcd\\nabc")
    'abcd'
    """
    return max(text.split("\n"), key=len)


def test_longest_line() -> None:
    assert longest_line("ab\nabcd\nabc") == "abcd"
    assert longest_line("") == ""
    assert longest_line("xx\nyy") == "xx"


def indent_lines(text: str, blanks: int) -> str:
    """Put so many blanks before every line that is not empty.

    >>> indent_lines("a\\n\\nb", 2)
    '  a\\n\\n  b'
    """
    return "\n".join(" " * blanks + line if line else line for line in text.split("\n"))


def test_indent_lines() -> None:
    assert indent_lines("a\n\nb", 2) == "  a\n\n  b"
    assert indent_lines("", 4) == ""
    assert indent_lines("x", 0) == "x"


def count_sentences(text: str) -> int:
    """Count the sentences of a text. A sentence ends with ".", "!" or "?"; several such marks beside each other end one sentence.

    >>> count_sentences("Really?! Yes. Wait...")
    3
    """
    import re

    return len(re.findall(r"[.!?]+", text))


def test_count_sentences() -> None:
    assert count_sentences("Really?! Yes. Wait...") == 3
    assert count_sentences("") == 0
    assert count_sentences("One. Two.") == 2


def hide_middle(word: str) -> str:
    """Keep the first and the last letter of a word and replace each letter between them by a dot.

    >>> hide_middle("garden")
    'g....n'
    """
    return word if len(word) < 3 else word[0] + "." * (len(word) - 2) + word[-1]


def test_hide_middle() -> None:
    assert hide_middle("garden") == "g....n"
    assert hide_middle("at") == "at"
    assert hide_middle("") == ""
    assert hide_middle("cat") == "c.t"


def letters_in_common(first: str, second: str) -> str:
    """Return the letters that are in both words, each once, in the order of the first word.

    >>> letters_in_common("planet", "tenant")
    'anet'
    """
    return "".join(dict.fromkeys(letter for letter in first if letter in second))


def test_letters_in_common() -> None:
    assert letters_in_common("planet", "tenant") == "anet"
    assert letters_in_common("abc", "xyz") == ""
    assert letters_in_common("aab", "ba") == "ab"


def is_rotation(first: str, second: str) -> bool:
    """Tell whether one text becomes the other by moving some characters from its beginning to its end.

    >>> is_rotation("waterfall", "fallwater")
    True
    """
    return len(first) == len(second) and second in first + first


def test_is_rotation() -> None:
    assert is_rotation("waterfall", "fallwater") is True
    assert is_rotation("abc", "acb") is False
    assert is_rotation("abc", "abcabc") is False
    assert is_rotation("", "") is True


def extract_hashtags(text: str) -> list[str]:
    """Return the tags of a post: words that begin with "#", without it, in their order. A lone "#" is no tag.

    >>> extract_hashtags("Sun and #sea in #May # !")
    ['sea', 'May']
    """
    return [word[1:] for word in text.split() if word.startswith("#") and len(word) > 1]


def test_extract_hashtags() -> None:
    assert extract_hashtags("Sun and #sea in #May # !") == ["sea", "May"]
    assert extract_hashtags("") == []
    assert extract_hashtags("no tags here") == []


def is_valid_name(text: str) -> bool:
    """Tell whether a text can be a name in a program: letters a-z and A-Z, digits and "_", not empty, and the first character no digit.

    >>> is_valid_name("max_2")
    True
    """
    import re

    return re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text) is not None


def test_is_valid_name() -> None:
    assert is_valid_name("max_2") is True
    assert is_valid_name("2max") is False
    assert is_valid_name("") is False
    assert is_valid_name("a-b") is False
    assert is_valid_name("_") is True


def same_letters_count(first: str, second: str) -> int:
    """比较两个字符串，返回相同位置上字符相同的个数；较长者多出的部分不计。

    >>> same_letters_count("house", "mouth")
    2
    """
    return sum(a == b for a, b in zip(first, second, strict=False))


def test_same_letters_count() -> None:
    assert same_letters_count("house", "mouth") == 2
    assert same_letters_count("", "abc") == 0
    assert same_letters_count("abcd", "abc") == 3


def plural(word: str) -> str:
    """Form a simple English plural: "es" after s, x, z, ch and sh; "ies" for a y behind a consonant; otherwise "s".

    >>> plural("city")
    'cities'
    >>> plural("box")
    'boxes'
    """
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2:-1] not in ("a", "e", "i", "o", "u"):
        return word[:-1] + "ies"
    return word + "s"


def test_plural() -> None:
    assert plural("city") == "cities"
    assert plural("box") == "boxes"
    assert plural("day") == "days"
    assert plural("dish") == "dishes"
    assert plural("cat") == "cats"


def abbreviate(text: str, width: int) -> str:
    """Shorten a text to at most `width` characters; what is cut ends with "..." within the width, which is at least 3.

    >>> abbreviate("a long story", 9)
    'a long...'
    """
    return text if len(text) <= width else text[: width - 3] + "..."


def test_abbreviate() -> None:
    assert abbreviate("a long story", 9) == "a long..."
    assert abbreviate("short", 5) == "short"
    assert abbreviate("shorts", 5) == "sh..."
    assert abbreviate("abcdef", 3) == "..."


def count_pairs_of_letters(text: str) -> dict[str, int]:
    """Count the pairs of neighbouring characters of a text.

    >>> count_pairs_of_letters("abab")
    {'ab': 2, 'ba': 1}
    """
    counts: dict[str, int] = {}
    for start in range(len(text) - 1):
        pair = text[start : start + 2]
        counts[pair] = counts.get(pair, 0) + 1
    return counts


def test_count_pairs_of_letters() -> None:
    assert count_pairs_of_letters("abab") == {"ab": 2, "ba": 1}
    assert count_pairs_of_letters("a") == {}
    assert count_pairs_of_letters("aaa") == {"aa": 2}


def binary_text(text: str) -> str:
    """Write each character of a text as eight binary digits of its code, a blank between characters. All codes are below 256.

    >>> binary_text("Hi")
    '01001000 01101001'
    """
    return " ".join(f"{ord(letter):08b}" for letter in text)


def test_binary_text() -> None:
    assert binary_text("Hi") == "01001000 01101001"
    assert binary_text("") == ""
    assert binary_text("A") == "01000001"


def columns_of(rows: list[str]) -> list[str]:
    """Read rows of characters, all of one length, as columns from left to right.

    >>> columns_of(["abc", "def"])
    ['ad', 'be', 'cf']
    """
    return ["".join(column) for column in zip(*rows, strict=True)]


def test_columns_of() -> None:
    assert columns_of(["abc", "def"]) == ["ad", "be", "cf"]
    assert columns_of([]) == []
    assert columns_of(["xy"]) == ["x", "y"]


def strip_comments(code: str) -> str:
    """Remove from every line what stands from the first "#" on, and the blanks at the end of the line.

    >>> strip_comments("a = 1  # one\\nb = 2")
    'a = 1\\nb = 2'
    """
    return "\n".join(line.split("#")[0].rstrip() for line in code.split("\n"))


def test_strip_comments() -> None:
    assert strip_comments("a = 1  # one\nb = 2") == "a = 1\nb = 2"
    assert strip_comments("# all") == ""
    assert strip_comments("x") == "x"


def most_frequent_letter(text: str) -> str:
    """Return the letter that is most often in a text, in small; of equally frequent ones the first in the alphabet; "" where there is no letter.

    >>> most_frequent_letter("Pepper tree")
    'e'
    """
    letters = [letter for letter in text.lower() if letter.isalpha()]
    return min(letters, key=lambda letter: (-letters.count(letter), letter), default="")


def test_most_frequent_letter() -> None:
    assert most_frequent_letter("Pepper tree") == "e"
    assert most_frequent_letter("ba") == "a"
    assert most_frequent_letter("12 !") == ""
    assert most_frequent_letter("zzZa") == "z"
