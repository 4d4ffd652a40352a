"""Problems about dictionaries, records and texts that hold data."""

from __future__ import annotations


def count_items(items: list[str]) -> dict[str, int]:
    """Count how often each item is in a list.

    >>> count_items(["a", "b", "a"])
    {'a': 2, 'b': 1}
    """
    return {item: items.count(item) for item in items}


def test_count_items() -> None:
    assert count_items(["a", "b", "a"]) == {"a": 2, "b": 1}
    assert count_items([]) == {}


def swap_keys_and_values(mapping: dict[str, str]) -> dict[str, str]:
    """Make values keys and keys values. All values differ.

    >>> swap_keys_and_values({"a": "1", "b": "2"})
    {'1': 'a', '2': 'b'}
    """
    return {value: key for key, value in mapping.items()}


def test_swap_keys_and_values() -> None:
    assert swap_keys_and_values({"a": "1", "b": "2"}) == {"1": "a", "2": "b"}
    assert swap_keys_and_values({}) == {}


def key_of_largest(mapping: dict[str, int]) -> str | None:
    """Return the key with the largest value, of several the first in the alphabet, or None.

    >>> key_of_largest({"tea": 3, "milk": 5, "cola": 5})
    'cola'
    """
    return min(mapping, key=lambda key: (-mapping[key], key), default=None)


def test_key_of_largest() -> None:
    assert key_of_largest({"tea": 3, "milk": 5, "cola": 5}) == "cola"
    assert key_of_largest({}) is None
    assert key_of_largest({"x": -1}) == "x"


def only_keys(mapping: dict[str, int], keys: list[str]) -> dict[str, int]:
    """Return a dictionary with only the given keys; those that are not there are left out.

    >>> only_keys({"a": 1, "b": 2}, ["b", "c"])
    {'b': 2}
    """
    return {key: mapping[key] for key in keys if key in mapping}


def test_only_keys() -> None:
    assert only_keys({"a": 1, "b": 2}, ["b", "c"]) == {"b": 2}
    assert only_keys({}, ["a"]) == {}
    assert only_keys({"a": 1}, []) == {}


def total_price(prices: dict[str, float], basket: list[str]) -> float:
    """返回购物篮中商品的总价，保留两位小数；价目表中没有的商品不计价。

    >>> total_price({"tea": 2.5, "cake": 3.2}, ["tea", "tea", "nut"])
    5.0
    """
    return round(sum(prices.get(item, 0.0) for item in basket), 2)


def test_total_price() -> None:
    assert total_price({"tea": 2.5, "cake": 3.2}, ["tea", "tea", "nut"]) == 5.0
    assert total_price({}, ["a"]) == 0
    assert total_price({"a": 0.1}, ["a", "a", "a"]) == 0.3


def group_by_first_letter(words: list[str]) -> dict[str, list[str]]:
    """Group words, none of them empty, by their first letter, in the order of the list.

    >>> group_by_first_letter(["ant", "bee", "asp"])
    {'a': ['ant', 'asp'], 'b': ['bee']}
    """
    groups: dict[str, list[str]] = {}
    for word in words:
        groups.setdefault(word[0], []).append(word)
    return groups


def test_group_by_first_letter() -> None:
    assert group_by_first_letter(["ant", "bee", "asp"]) == {"a": ["ant", "asp"], "b": ["bee"]}
    assert group_by_first_letter([]) == {}


def average_by_name(marks: list[tuple[str, int]]) -> dict[str, float]:
    """Return the mean of the marks of each name.

    >>> average_by_name([("Ada", 1), ("Bo", 3), ("Ada", 2)])
    {'Ada': 1.5, 'Bo': 3.0}
    """
    found: dict[str, list[int]] = {}
    for name, mark in marks:
        found.setdefault(name, []).append(mark)
    return {name: sum(given) / len(given) for name, given in found.items()}


def test_average_by_name() -> None:
    assert average_by_name([("Ada", 1), ("Bo", 3), ("Ada", 2)]) == {"Ada": 1.5, "Bo": 3.0}
    assert average_by_name([]) == {}


def oldest(people: list[dict]) -> str | None:  # type: ignore[type-arg]
    """Return the "name" of the person with the largest "age", of several the first, or None.

    >>> oldest([{"name": "Ian", "age": 30}, {"name": "Eve", "age": 41}])
    'Eve'
    """
    return max(people, key=lambda person: person["age"])["name"] if people else None


def test_oldest() -> None:
    assert oldest([{"name": "Ian", "age": 30}, {"name": "Eve", "age": 41}]) == "Eve"
    assert oldest([]) is None
    assert oldest([{"name": "A", "age": 5}, {"name": "B", "age": 5}]) == "A"


def sort_people(people: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Sort (name, age): the oldest first, those of one age by name.

    >>> sort_people([("Bo", 20), ("Al", 20), ("Cy", 33)])
    [('Cy', 33), ('Al', 20), ('Bo', 20)]
    """
    return sorted(people, key=lambda person: (-person[1], person[0]))


def test_sort_people() -> None:
    assert sort_people([("Bo", 20), ("Al", 20), ("Cy", 33)]) == [("Cy", 33), ("Al", 20), ("Bo", 20)]
    assert sort_people([]) == []


def nested_total(orders: dict[str, dict[str, int]]) -> dict[str, int]:
    """Orders say for every customer how many pieces of each product. Return how many pieces of each product are ordered in all.

    >>> nested_total({"Kim": {"nut": 2}, "Lee": {"nut": 1, "fig": 4}})
    {'nut': 3, 'fig': 4}
    """
    totals: dict[str, int] = {}
    for order in orders.values():
        for product, count in order.items():
            totals[product] = totals.get(product, 0) + count
    return totals


def test_nested_total() -> None:
    assert nested_total({"Kim": {"nut": 2}, "Lee": {"nut": 1, "fig": 4}}) == {"nut": 3, "fig": 4}
    assert nested_total({}) == {}
    assert nested_total({"Kim": {}}) == {}


def flatten_keys(data: dict) -> dict[str, int]:  # type: ignore[type-arg]
    """Make a dictionary that holds dictionaries flat: keys are joined by dots.

    >>> flatten_keys({"a": 1, "b": {"c": 2, "d": {"e": 3}}})
    {'a': 1, 'b.c': 2, 'b.d.e': 3}
    """
    flat: dict[str, int] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            flat.update({f"{key}.{inner}": found for inner, found in flatten_keys(value).items()})
        else:
            flat[key] = value
    return flat


def test_flatten_keys() -> None:
    assert flatten_keys({"a": 1, "b": {"c": 2, "d": {"e": 3}}}) == {"a": 1, "b.c": 2, "b.d.e": 3}
    assert flatten_keys({}) == {}
    assert flatten_keys({"x": {}}) == {}


def changed_keys(before: dict[str, int], after: dict[str, int]) -> list[str]:
    """Return in alphabetical order the keys that were added, removed, or have another value.

    >>> changed_keys({"a": 1, "b": 2}, {"b": 3, "c": 4})
    ['a', 'b', 'c']
    """
    return sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key) or (key in before) != (key in after))


def test_changed_keys() -> None:
    assert changed_keys({"a": 1, "b": 2}, {"b": 3, "c": 4}) == ["a", "b", "c"]
    assert changed_keys({"a": 1}, {"a": 1}) == []
    assert changed_keys({}, {"z": 0}) == ["z"]


def parse_settings(text: str) -> dict[str, str]:
    """Read lines "name = value": blanks around both do not count; empty lines and lines that begin with "#" are left out.

    >>> parse_settings("# colours\\nback = blue\\n\\nfront=red")
    {'back': 'blue', 'front': 'red'}
    """
    found = {}
    for line in text.split("\n"):
        if line.strip() and not line.strip().startswith("#"):
            name, _, value = line.partition("=")
            found[name.strip()] = value.strip()
    return found


def test_parse_settings() -> None:
    assert parse_settings("# colours\nback = blue\n\nfront=red") == {"back": "blue", "front": "red"}
    assert parse_settings("") == {}
    assert parse_settings("sum = 1 = 1") == {"sum": "1 = 1"}


def parse_table(text: str) -> list[dict[str, str]]:
    """Read lines of values between commas; the first line holds the names of the columns. No value holds a comma.

    >>> parse_table("name,age\\nIda,7\\nMax,9")
    [{'name': 'Ida', 'age': '7'}, {'name': 'Max', 'age': '9'}]
    """
    names, *rows = [line.split(",") for line in text.strip().split("\n")]
    return [dict(zip(names, row, strict=True)) for row in rows]


def test_parse_table() -> None:
    assert parse_table("name,age\nIda,7\nMax,9") == [{"name": "Ida", "age": "7"}, {"name": "Max", "age": "9"}]
    assert parse_table("a,b") == []
    assert parse_table("x\n1\n") == [{"x": "1"}]


def column_total(text: str, column: int) -> int:
    """Each line of a text holds whole numbers between blanks. Add up those of one column, counted from 0; lines that are too short are skipped.

    >>> column_total("1 2\\n3 4\\n5", 1)
    6
    """
    return sum(int(words[column]) for words in map(str.split, text.split("\n")) if len(words) > column)


def test_column_total() -> None:
    assert column_total("1 2\n3 4\n5", 1) == 6
    assert column_total("1 2\n3 4\n5", 0) == 9
    assert column_total("", 0) == 0


def parse_range(text: str) -> list[int]:
    """Read pages like "1-3,7": numbers and ranges between commas, in their order.

    >>> parse_range("1-3,7")
    [1, 2, 3, 7]
    """
    pages: list[int] = []
    for part in text.split(",") if text else []:
        first, _, last = part.partition("-")
        pages += range(int(first), int(last or first) + 1)
    return pages


def test_parse_range() -> None:
    assert parse_range("1-3,7") == [1, 2, 3, 7]
    assert parse_range("") == []
    assert parse_range("5") == [5]
    assert parse_range("2-2,10-11") == [2, 10, 11]


def format_range(pages: list[int]) -> str:
    """Write ascending different numbers short: three or more that follow each other as "first-last", all parts between commas.

    >>> format_range([1, 2, 3, 5, 6])
    '1-3,5,6'
    """
    runs: list[list[int]] = []
    for page in pages:
        if runs and runs[-1][-1] + 1 == page:
            runs[-1].append(page)
        else:
            runs.append([page])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs)


def test_format_range() -> None:
    assert format_range([1, 2, 3, 5, 6]) == "1-3,5,6"
    assert format_range([]) == ""
    assert format_range([4]) == "4"
    assert format_range([1, 2, 3, 4, 9]) == "1-4,9"


def file_extension(path: str) -> str:
    """Return the extension of a file in small letters without the dot, or "". A dot at the beginning of the name makes no extension.

    >>> file_extension("photos/cat.JPG")
    'jpg'
    """
    name = path.split("/")[-1].lstrip(".")
    return name.rsplit(".", 1)[1].lower() if "." in name else ""


def test_file_extension() -> None:
    assert file_extension("photos/cat.JPG") == "jpg"
    assert file_extension("a.tar.gz") == "gz"
    assert file_extension("v1.2/readme") == ""
    assert file_extension(".profile") == ""


def email_domain(address: str) -> str | None:
    """返回电子邮件地址中@后面的部分（小写）；如果@不是恰好一个，或者前后有一边为空，返回None。

    >>> email_domain("ann@Mail.org")
    'mail.org'
    """
    parts = address.split("@")
    return parts[1].lower() if len(parts) == 2 and all(parts) else None


def test_email_domain() -> None:
    assert email_domain("ann@Mail.org") == "mail.org"
    assert email_domain("no address") is None
    assert email_domain("a@b@c") is None
    assert email_domain("@b") is None
    assert email_domain("x@y.z") == "y.z"


def count_levels(lines: list[str]) -> dict[str, int]:
    """Lines of a log are like "12:00 ERROR disk full". Count the second words.

    >>> count_levels(["12:00 ERROR disk full", "12:01 INFO ok", "12:02 ERROR again"])
    {'ERROR': 2, 'INFO': 1}
    """
    counts: dict[str, int] = {}
    for line in lines:
        level = line.split()[1]
        counts[level] = counts.get(level, 0) + 1
    return counts


def test_count_levels() -> None:
    assert count_levels(["12:00 ERROR disk full", "12:01 INFO ok", "12:02 ERROR again"]) == {"ERROR": 2, "INFO": 1}
    assert count_levels([]) == {}


def busiest_hour(times: list[str]) -> int | None:
    """Times are HH:MM. Return the hour in which most of them lie, of several the earliest; None for none.

    >>> busiest_hour(["09:10", "17:05", "09:59"])
    9
    """
    hours = [int(time[:2]) for time in times]
    return min(hours, key=lambda hour: (-hours.count(hour), hour), default=None)


def test_busiest_hour() -> None:
    assert busiest_hour(["09:10", "17:05", "09:59"]) == 9
    assert busiest_hour([]) is None
    assert busiest_hour(["23:00", "01:00"]) == 1


def election(votes: list[str]) -> str:
    """Return the winner: the name with most votes. Where several have as many, return "tie"; "none" where nobody voted.

    >>> election(["Ann", "Bob", "Ann"])
    'Ann'
    """
    counts = sorted(((votes.count(name), name) for name in set(votes)), reverse=True)
    if not counts:
        return "none"
    return "tie" if len(counts) > 1 and counts[0][0] == counts[1][0] else counts[0][1]


def test_election() -> None:
    assert election(["Ann", "Bob", "Ann"]) == "Ann"
    assert election(["Ann", "Bob"]) == "tie"
    assert election([]) == "none"
    assert election(["Zoe"]) == "Zoe"


def balance_after(entries: list[tuple[str, float]]) -> float:
    """Return what is on an account that begins with 0: "in" adds the amount, "out" takes it away unless there is too little, then nothing happens.

    >>> balance_after([("in", 50.0), ("out", 20.0), ("out", 40.0)])
    30.0
    """
    total = 0.0
    for kind, amount in entries:
        if kind == "in":
            total += amount
        elif amount <= total:
            total -= amount
    return total


def test_balance_after() -> None:
    assert balance_after([("in", 50.0), ("out", 20.0), ("out", 40.0)]) == 30.0
    assert balance_after([]) == 0.0
    assert balance_after([("out", 5.0)]) == 0.0
    assert balance_after([("in", 5.0), ("out", 5.0)]) == 0.0
    assert balance_after([("in", 5.0)]) == 5.0


def markdown_table(names: list[str], rows: list[list[str]]) -> str:
    """Write a table: each line is "| a | b |"; the second line has "---" in every column.

    >>> markdown_table(["x", "y"], [["1", "2"]])
    '| x | y |\\n| --- | --- |\\n| 1 | 2 |'
    """
    return "\n".join(f"| {' | '.join(row)} |" for row in [names, ["---"] * len(names), *rows])


def test_markdown_table() -> None:
    assert markdown_table(["x", "y"], [["1", "2"]]) == "| x | y |\n| --- | --- |\n| 1 | 2 |"
    assert markdown_table(["a"], []) == "| a |\n| --- |"


def friends_of_friends(friends: dict[str, list[str]], name: str) -> list[str]:
    """Return in alphabetical order the friends of somebody's friends who are neither friends of that person nor the person itself.

    >>> friends_of_friends({"Al": ["Bo"], "Bo": ["Al", "Cy"], "Cy": ["Bo"]}, "Al")
    ['Cy']
    """
    mine = set(friends.get(name, []))
    return sorted({other for friend in mine for other in friends.get(friend, [])} - mine - {name})


def test_friends_of_friends() -> None:
    assert friends_of_friends({"Al": ["Bo"], "Bo": ["Al", "Cy"], "Cy": ["Bo"]}, "Al") == ["Cy"]
    assert friends_of_friends({}, "Al") == []
    assert friends_of_friends({"A": ["B", "C"], "B": ["C", "D"], "C": ["E"]}, "A") == ["D", "E"]


def unread_counts(messages: list[tuple[str, bool]]) -> dict[str, int]:
    """Messages are (sender, whether it was read). Count the unread ones of each sender; senders without any are left out.

    >>> unread_counts([("Eva", False), ("Jim", True), ("Eva", False)])
    {'Eva': 2}
    """
    counts: dict[str, int] = {}
    for sender, read in messages:
        if not read:
            counts[sender] = counts.get(sender, 0) + 1
    return counts


def test_unread_counts() -> None:
    assert unread_counts([("Eva", False), ("Jim", True), ("Eva", False)]) == {"Eva": 2}
    assert unread_counts([]) == {}
    assert unread_counts([("A", True)]) == {}


def template_fill(text: str, values: dict[str, str]) -> str:
    """Replace every {name} in a text by its value; names that have none stay as they are.

    >>> template_fill("Dear {who}, {what}!", {"who": "Lu"})
    'Dear Lu, {what}!'
    """
    for name, value in values.items():
        text = text.replace("{" + name + "}", value)
    return text


def test_template_fill() -> None:
    assert template_fill("Dear {who}, {what}!", {"who": "Lu"}) == "Dear Lu, {what}!"
    assert template_fill("", {"a": "b"}) == ""
    assert template_fill("{a}{a}", {"a": "x"}) == "xx"
