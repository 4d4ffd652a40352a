"""Problems of shops, kitchens, schools, calendars and journeys."""

from __future__ import annotations


def total_minutes(times: list[tuple[int, int]]) -> int:
    """Add up durations (hours, minutes) and return them in minutes.

    >>> total_minutes([(1, 30), (0, 45)])
    135
    """
    return sum(60 * hours + minutes for hours, minutes in times)


def test_total_minutes() -> None:
    assert total_minutes([(1, 30), (0, 45)]) == 135
    assert total_minutes([]) == 0
    assert total_minutes([(2, 0)]) == 120


def cheapest(prices: dict[str, float]) -> str:
    """Return the name of the cheapest product, of several the one that comes first in the alphabet. There is at least one.

    >>> cheapest({"pear": 0.9, "fig": 0.5, "date": 0.5})
    'date'
    """
    return min(sorted(prices), key=prices.__getitem__)


def test_cheapest() -> None:
    assert cheapest({"pear": 0.9, "fig": 0.5, "date": 0.5}) == "date"
    assert cheapest({"x": 3.0}) == "x"
    assert cheapest({"a": 2.0, "b": 1.0}) == "b"


def can_cook(pantry: dict[str, int], recipe: dict[str, int]) -> bool:
    """Tell whether the pantry holds at least as much of everything as the recipe needs.

    >>> can_cook({"egg": 3, "flour": 500}, {"egg": 2})
    True
    """
    return all(pantry.get(name, 0) >= amount for name, amount in recipe.items())


def test_can_cook() -> None:
    assert can_cook({"egg": 3, "flour": 500}, {"egg": 2}) is True
    assert can_cook({"egg": 1}, {"egg": 2}) is False
    assert can_cook({}, {}) is True
    assert can_cook({"egg": 9}, {"salt": 1}) is False


def scale_recipe(recipe: dict[str, float], people: int, wanted: int) -> dict[str, float]:
    """A recipe is for so many people. Return the amounts for `wanted` people, rounded to one decimal place.

    >>> scale_recipe({"rice": 200}, 4, 6)
    {'rice': 300.0}
    """
    return {name: round(amount * wanted / people, 1) for name, amount in recipe.items()}


def test_scale_recipe() -> None:
    assert scale_recipe({"rice": 200}, 4, 6) == {"rice": 300.0}
    assert scale_recipe({}, 2, 3) == {}
    assert scale_recipe({"egg": 1, "oil": 10}, 3, 1) == {"egg": 0.3, "oil": 3.3}


def passed_students(marks: dict[str, list[int]]) -> list[str]:
    """返回平均分不低于60的学生姓名，按字母顺序排列；没有成绩的学生不算通过。

    >>> passed_students({"Tom": [50, 80], "Amy": [59]})
    ['Tom']
    """
    return sorted(name for name, given in marks.items() if given and sum(given) / len(given) >= 60)


def test_passed_students() -> None:
    assert passed_students({"Tom": [50, 80], "Amy": [59]}) == ["Tom"]
    assert passed_students({}) == []
    assert passed_students({"B": [60], "A": [100], "C": []}) == ["A", "B"]


def seats_left(rows: list[str]) -> int:
    """Each row of a cinema is a text of "x" (taken) and "." (free). Count the free seats.

    >>> seats_left(["x.x", "..."])
    4
    """
    return sum(row.count(".") for row in rows)


def test_seats_left() -> None:
    assert seats_left(["x.x", "..."]) == 4
    assert seats_left([]) == 0
    assert seats_left(["xx"]) == 0


def seats_together(row: str, people: int) -> int:
    """A row is a text of "x" (taken) and "." (free). Return the first index at which so many free seats begin beside each other, or -1.

    >>> seats_together("x..x...", 3)
    4
    """
    return row.find("." * people)


def test_seats_together() -> None:
    assert seats_together("x..x...", 3) == 4
    assert seats_together("x..x", 2) == 1
    assert seats_together("xx", 1) == -1
    assert seats_together("....", 4) == 0


def next_bus(times: list[str], now: str) -> str | None:
    """Buses leave at ascending times HH:MM. Return the first one that does not leave before now, or None where there is none today.

    >>> next_bus(["08:00", "09:30"], "08:10")
    '09:30'
    """
    return next((time for time in times if time >= now), None)


def test_next_bus() -> None:
    assert next_bus(["08:00", "09:30"], "08:10") == "09:30"
    assert next_bus(["08:00"], "08:00") == "08:00"
    assert next_bus(["08:00"], "20:00") is None
    assert next_bus([], "00:00") is None


def bmi_group(kilograms: float, metres: float) -> str:
    """Divide the weight by the square of the height: below 18.5 return "low", below 25 "normal", otherwise "high".

    >>> bmi_group(70, 1.75)
    'normal'
    """
    value = kilograms / metres**2
    return "low" if value < 18.5 else "normal" if value < 25 else "high"


def test_bmi_group() -> None:
    assert bmi_group(70, 1.75) == "normal"
    assert bmi_group(50, 1.8) == "low"
    assert bmi_group(100, 1.7) == "high"
    assert bmi_group(25, 1.0) == "high"


def parking_fee(minutes: int) -> float:
    """The first 30 minutes cost nothing; after that each hour that has begun costs 2.50, at most 20.00 in all.

    >>> parking_fee(95)
    5.0
    """
    return 0.0 if minutes <= 30 else min(20.0, 2.5 * -(-(minutes - 30) // 60))


def test_parking_fee() -> None:
    assert parking_fee(95) == 5.0
    assert parking_fee(30) == 0.0
    assert parking_fee(31) == 2.5
    assert parking_fee(90) == 2.5
    assert parking_fee(2000) == 20.0


def shopping_list(needed: dict[str, int], at_home: dict[str, int]) -> dict[str, int]:
    """Return what has to be bought: how much of each thing lacks at home. Things of which there is enough are left out.

    >>> shopping_list({"egg": 6, "milk": 1}, {"egg": 2, "milk": 3})
    {'egg': 4}
    """
    return {name: count - at_home.get(name, 0) for name, count in needed.items() if count > at_home.get(name, 0)}


def test_shopping_list() -> None:
    assert shopping_list({"egg": 6, "milk": 1}, {"egg": 2, "milk": 3}) == {"egg": 4}
    assert shopping_list({}, {"a": 1}) == {}
    assert shopping_list({"tea": 2}, {}) == {"tea": 2}


def journey_length(towns: list[str], kilometres: dict[tuple[str, str], int]) -> int:
    """Add up the way through towns in their order. The table holds each pair of towns in one of its two orders.

    >>> journey_length(["A", "B", "A"], {("A", "B"): 7})
    14
    """
    from itertools import pairwise

    return sum(kilometres[a, b] if (a, b) in kilometres else kilometres[b, a] for a, b in pairwise(towns))


def test_journey_length() -> None:
    assert journey_length(["A", "B", "A"], {("A", "B"): 7}) == 14
    assert journey_length(["A"], {}) == 0
    assert journey_length(["C", "B", "A"], {("A", "B"): 1, ("B", "C"): 2}) == 3


def fuel_needed(kilometres: float, litres_per_100: float) -> float:
    """Return the litres for a way, rounded to one decimal place.

    >>> fuel_needed(250, 6)
    15.0
    """
    return round(kilometres * litres_per_100 / 100, 1)


def test_fuel_needed() -> None:
    assert fuel_needed(250, 6) == 15.0
    assert fuel_needed(0, 6) == 0.0
    assert fuel_needed(33, 7.5) == 2.5


def season(month: int) -> str:
    """把月份（1到12）转换为季节：3到5月为"spring"，6到8月为"summer"，9到11月为"autumn"，其余为"winter"。

    >>> season(4)
    'spring'
    """
    return ("winter", "spring", "summer", "autumn")[month % 12 // 3]


def test_season() -> None:
    assert season(4) == "spring"
    assert season(12) == "winter"
    assert season(2) == "winter"
    assert season(8) == "summer"
    assert season(9) == "autumn"


def quarter(month: int) -> int:
    """Return the quarter of the year, 1 to 4, in which a month, 1 to 12, lies.

    >>> quarter(5)
    2
    """
    return (month + 2) // 3


def test_quarter() -> None:
    assert quarter(5) == 2
    assert quarter(1) == 1
    assert quarter(3) == 1
    assert quarter(12) == 4


def is_weekend(date: str) -> bool:
    """Tell whether a date YYYY-MM-DD is a Saturday or a Sunday.

    >>> is_weekend("2024-06-01")
    True
    """
    from datetime import date as day

    return day.fromisoformat(date).weekday() >= 5


def test_is_weekend() -> None:
    assert is_weekend("2024-06-01") is True
    assert is_weekend("2024-06-03") is False
    assert is_weekend("2023-12-31") is True
    assert is_weekend("2024-05-31") is False


def countdown_text(days: int) -> str:
    """Return "today" for 0 days, "tomorrow" for 1, otherwise "in N days"; negative ones give "over".

    >>> countdown_text(5)
    'in 5 days'
    """
    return "over" if days < 0 else ("today", "tomorrow")[days] if days < 2 else f"in {days} days"


def test_countdown_text() -> None:
    assert countdown_text(5) == "in 5 days"
    assert countdown_text(0) == "today"
    assert countdown_text(1) == "tomorrow"
    assert countdown_text(-3) == "over"


def join_names(names: list[str]) -> str:
    """Join names as people say them: commas between them, and "and" before the last one.

    >>> join_names(["Ann", "Bea", "Cid"])
    'Ann, Bea and Cid'
    """
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def test_join_names() -> None:
    assert join_names(["Ann", "Bea", "Cid"]) == "Ann, Bea and Cid"
    assert join_names([]) == ""
    assert join_names(["Ann"]) == "Ann"
    assert join_names(["Ann", "Bea"]) == "Ann and Bea"


def receipt_line(name: str, cents: int, width: int) -> str:
    """Write a line of a receipt: the name on the left, the price in euros with two decimals on the right, so many characters in all.

    >>> receipt_line("tea", 250, 12)
    'tea     2.50'
    """
    price = f"{cents // 100}.{cents % 100:02}"
    return name + price.rjust(width - len(name))


def test_receipt_line() -> None:
    assert receipt_line("tea", 250, 12) == "tea     2.50"
    assert receipt_line("x", 5, 6) == "x 0.05"
    assert receipt_line("cake", 1000, 10) == "cake 10.00"


def score_table(games: list[tuple[str, str, int, int]]) -> dict[str, int]:
    """Games are (home, guest, goals of home, goals of guest). A win gives 3 points, a draw 1 to each. Return the points of all teams.

    >>> score_table([("A", "B", 2, 1), ("B", "C", 0, 0)])
    {'A': 3, 'B': 1, 'C': 1}
    """
    points: dict[str, int] = {}
    for home, guest, own, other in games:
        points[home] = points.get(home, 0) + (3 if own > other else 1 if own == other else 0)
        points[guest] = points.get(guest, 0) + (3 if other > own else 1 if own == other else 0)
    return points


def test_score_table() -> None:
    assert score_table([("A", "B", 2, 1), ("B", "C", 0, 0)]) == {"A": 3, "B": 1, "C": 1}
    assert score_table([]) == {}
    assert score_table([("A", "B", 0, 4)]) == {"A": 0, "B": 3}


def warmest_days(temperatures: list[float]) -> list[int]:
    """Return the numbers of the days, from 1, on which it was as warm as on the warmest.

    >>> warmest_days([18.5, 21.0, 21.0])
    [2, 3]
    """
    return [number for number, value in enumerate(temperatures, 1) if value == max(temperatures)]


def test_warmest_days() -> None:
    assert warmest_days([18.5, 21.0, 21.0]) == [2, 3]
    assert warmest_days([]) == []
    assert warmest_days([-5.0]) == [1]


def rainy_streak(rain: list[float]) -> int:
    """Return how many days in a row it rained (more than 0) at most.

    >>> rainy_streak([0, 1.5, 2, 0, 3])
    2
    """
    best = run = 0
    for amount in rain:
        run = run + 1 if amount > 0 else 0
        best = max(best, run)
    return best


def test_rainy_streak() -> None:
    assert rainy_streak([0, 1.5, 2, 0, 3]) == 2
    assert rainy_streak([]) == 0
    assert rainy_streak([0, 0]) == 0
    assert rainy_streak([1, 1, 1]) == 3


def borrow_days_over(borrowed: str, returned: str, allowed: int) -> int:
    """A book was borrowed and returned on dates YYYY-MM-DD. Return by how many days it was late; 0 where it was not.

    >>> borrow_days_over("2024-01-01", "2024-01-20", 14)
    5
    """
    from datetime import date

    return max(0, (date.fromisoformat(returned) - date.fromisoformat(borrowed)).days - allowed)


def test_borrow_days_over() -> None:
    assert borrow_days_over("2024-01-01", "2024-01-20", 14) == 5
    assert borrow_days_over("2024-01-01", "2024-01-10", 14) == 0
    assert borrow_days_over("2024-02-20", "2024-03-20", 28) == 1


def room_of(number: int) -> tuple[int, int]:
    """Hotel rooms are numbered floor by floor: room 304 is the 4th one on floor 3. Return (floor, place).

    >>> room_of(304)
    (3, 4)
    """
    return divmod(number, 100)


def test_room_of() -> None:
    assert tuple(room_of(304)) == (3, 4)
    assert tuple(room_of(1215)) == (12, 15)
    assert tuple(room_of(7)) == (0, 7)


def stairs_text(height: int) -> str:
    """Draw stairs of "#": line i has i of them, beginning with 1; lines are joined by line ends.

    >>> stairs_text(3)
    '#\\n##\\n###'
    """
    return "\n".join("#" * i for i in range(1, height + 1))


def test_stairs_text() -> None:
    assert stairs_text(3) == "#\n##\n###"
    assert stairs_text(0) == ""
    assert stairs_text(1) == "#"


def box(width: int, height: int) -> list[str]:
    """Draw the frame of a box of "*" with blanks inside. Width and height are at least 2.

    >>> box(4, 3)
    ['****', '*  *', '****']
    """
    return ["*" * width, *["*" + " " * (width - 2) + "*"] * (height - 2), "*" * width]


def test_box() -> None:
    assert box(4, 3) == ["****", "*  *", "****"]
    assert box(2, 2) == ["**", "**"]
    assert box(3, 4) == ["***", "* *", "* *", "***"]


def chessboard(size: int) -> list[str]:
    """Draw a board of "#" and "." in turn; the top left one is "#".

    >>> chessboard(3)
    ['#.#', '.#.', '#.#']
    """
    return ["".join("#."[(row + column) % 2] for column in range(size)) for row in range(size)]


def test_chessboard() -> None:
    assert chessboard(3) == ["#.#", ".#.", "#.#"]
    assert chessboard(0) == []
    assert chessboard(1) == ["#"]
    assert chessboard(2) == ["#.", ".#"]


def split_teams(players: list[str], teams: int) -> list[list[str]]:
    """Give players to teams in turn: the first to team 1, the second to team 2, and so on, again from team 1.

    >>> split_teams(["a", "b", "c"], 2)
    [['a', 'c'], ['b']]
    """
    return [players[first::teams] for first in range(teams)]


def test_split_teams() -> None:
    assert split_teams(["a", "b", "c"], 2) == [["a", "c"], ["b"]]
    assert split_teams([], 2) == [[], []]
    assert split_teams(["a"], 3) == [["a"], [], []]


def rotate_duty(names: list[str], week: int) -> list[str]:
    """Names stand in the order of week 0. Every week the first one goes to the end. Return the order of a week.

    >>> rotate_duty(["Ada", "Ben", "Cem"], 1)
    ['Ben', 'Cem', 'Ada']
    """
    places = week % len(names) if names else 0
    return names[places:] + names[:places]


def test_rotate_duty() -> None:
    assert rotate_duty(["Ada", "Ben", "Cem"], 1) == ["Ben", "Cem", "Ada"]
    assert rotate_duty([], 4) == []
    assert rotate_duty(["A", "B"], 5) == ["B", "A"]


def most_popular(choices: list[list[str]]) -> str | None:
    """Each person names some dishes. Return the dish that most people named, of several the first in the alphabet; one person counts once a dish.

    >>> most_popular([["soup", "soup"], ["rice"], ["rice"]])
    'rice'
    """
    counts: dict[str, int] = {}
    for named in choices:
        for dish in set(named):
            counts[dish] = counts.get(dish, 0) + 1
    return min(counts, key=lambda dish: (-counts[dish], dish), default=None)


def test_most_popular() -> None:
    assert most_popular([["soup", "soup"], ["rice"], ["rice"]]) == "rice"
    assert most_popular([]) is None
    assert most_popular([["b"], ["a"]]) == "a"


def remove_expired(food: dict[str, str], today: str) -> list[str]:
    """Food has a last day, YYYY-MM-DD. Return in alphabetical order what is still good today, its last day included.

    >>> remove_expired({"milk": "2024-05-02", "ham": "2024-04-30"}, "2024-05-02")
    ['milk']
    """
    return sorted(name for name, last in food.items() if last >= today)


def test_remove_expired() -> None:
    assert remove_expired({"milk": "2024-05-02", "ham": "2024-04-30"}, "2024-05-02") == ["milk"]
    assert remove_expired({}, "2024-01-01") == []
    assert remove_expired({"b": "2030-01-01", "a": "2025-01-01"}, "2024-12-31") == ["a", "b"]


def crate_count(bottles: int, size: int) -> int:
    """返回装下所有瓶子需要的箱子数，每箱装size瓶，最后一箱可以不满。

    >>> crate_count(25, 12)
    3
    """
    return -(-bottles // size)


def test_crate_count() -> None:
    assert crate_count(25, 12) == 3
    assert crate_count(0, 6) == 0
    assert crate_count(24, 12) == 2
    assert crate_count(1, 6) == 1


def phone_format(digits: str) -> str:
    """Write a number of digits in groups of three from the left, joined by "-"; a last group of one digit joins the group before it.

    >>> phone_format("12345678")
    '123-456-78'
    """
    groups = [digits[i : i + 3] for i in range(0, len(digits), 3)]
    if len(groups) > 1 and len(groups[-1]) == 1:
        groups[-2:] = [groups[-2] + groups[-1]]
    return "-".join(groups)


def test_phone_format() -> None:
    assert phone_format("12345678") == "123-456-78"
    assert phone_format("1234") == "1234"
    assert phone_format("") == ""
    assert phone_format("1234567") == "123-4567"
    assert phone_format("123456") == "123-456"


def meeting_overlap(first: tuple[str, str], second: tuple[str, str]) -> bool:
    """Tell whether two meetings (begin, end), times HH:MM of one day, have some time in common. One may begin when the other ends.

    >>> meeting_overlap(("09:00", "10:00"), ("09:30", "11:00"))
    True
    """
    return first[0] < second[1] and second[0] < first[1]


def test_meeting_overlap() -> None:
    assert meeting_overlap(("09:00", "10:00"), ("09:30", "11:00")) is True
    assert meeting_overlap(("09:00", "10:00"), ("10:00", "11:00")) is False
    assert meeting_overlap(("12:00", "13:00"), ("08:00", "18:00")) is True
    assert meeting_overlap(("12:00", "13:00"), ("08:00", "09:00")) is False


def pocket_money(age: int, chores: int) -> int:
    """A child gets its age in euros a month, nothing before 6 and at most 16, and 2 euros for each chore, of which at most 5 count.

    >>> pocket_money(10, 3)
    16
    """
    return (0 if age < 6 else min(age, 16)) + 2 * min(chores, 5)


def test_pocket_money() -> None:
    assert pocket_money(10, 3) == 16
    assert pocket_money(5, 1) == 2
    assert pocket_money(18, 0) == 16
    assert pocket_money(6, 9) == 16
    assert pocket_money(7, 0) == 7


def reading_days(pages: int, daily: list[int]) -> int:
    """Somebody reads `daily[0]` pages on the first day, `daily[1]` on the next, and so on, again from the first. After how many days is a book of
    `pages` pages read? All numbers are positive.

    >>> reading_days(50, [20, 10])
    3
    """
    days = 0
    while pages > 0:
        pages -= daily[days % len(daily)]
        days += 1
    return days


def test_reading_days() -> None:
    assert reading_days(50, [20, 10]) == 3
    assert reading_days(1, [5]) == 1
    assert reading_days(51, [20, 10]) == 4
    assert reading_days(10, [1]) == 10


def compare_prices(old: dict[str, int], new: dict[str, int]) -> dict[str, str]:
    """For every product that is in both lists say whether it is now "dearer", "cheaper" or the "same".

    >>> compare_prices({"tea": 3, "nut": 5}, {"tea": 4, "fig": 1})
    {'tea': 'dearer'}
    """
    words = {-1: "cheaper", 0: "same", 1: "dearer"}
    return {name: words[(new[name] > old[name]) - (new[name] < old[name])] for name in old if name in new}


def test_compare_prices() -> None:
    assert compare_prices({"tea": 3, "nut": 5}, {"tea": 4, "fig": 1}) == {"tea": "dearer"}
    assert compare_prices({}, {}) == {}
    assert compare_prices({"a": 2, "b": 2}, {"a": 1, "b": 2}) == {"a": "cheaper", "b": "same"}


def tickets(ages: list[int]) -> int:
    """A ticket costs 12; children below 6 pay nothing, those from 6 to 14 half, and people from 65 on 9. Return what a group pays.

    >>> tickets([40, 10, 3])
    18
    """
    return sum(0 if age < 6 else 6 if age <= 14 else 9 if age >= 65 else 12 for age in ages)


def test_tickets() -> None:
    assert tickets([40, 10, 3]) == 18
    assert tickets([]) == 0
    assert tickets([65, 64]) == 21
    assert tickets([14, 15, 5, 6]) == 24


def longest_drought(days: list[str]) -> int:
    """Days are "sun", "rain" or "cloud". Return the most days between two days of rain that follow each other; 0 with fewer than two.

    >>> longest_drought(["rain", "sun", "cloud", "rain", "rain"])
    2
    """
    wet = [index for index, day in enumerate(days) if day == "rain"]
    return max((wet[i] - wet[i - 1] - 1 for i in range(1, len(wet))), default=0)


def test_longest_drought() -> None:
    assert longest_drought(["rain", "sun", "cloud", "rain", "rain"]) == 2
    assert longest_drought([]) == 0
    assert longest_drought(["sun", "rain", "sun"]) == 0
    assert longest_drought(["rain", "sun", "rain", "sun", "sun", "sun", "rain"]) == 3
