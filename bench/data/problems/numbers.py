"""Problems about numbers, measures, money and time."""

from __future__ import annotations


def clamp(value: int, low: int, high: int) -> int:
    """Return the value where it lies between low and high, else the bound that is nearer.

    >>> clamp(15, 0, 10)
    10
    """
    return max(low, min(value, high))


def test_clamp() -> None:
    assert clamp(15, 0, 10) == 10
    assert clamp(-3, 0, 10) == 0
    assert clamp(5, 0, 10) == 5


def sign(number: float) -> int:
    """Return 1 for a positive number, -1 for a negative one, 0 for zero.

    >>> sign(-2.5)
    -1
    """
    return (number > 0) - (number < 0)


def test_sign() -> None:
    assert sign(-2.5) == -1
    assert sign(7) == 1
    assert sign(0) == 0


def sum_of_squares(n: int) -> int:
    """Return 1*1 + 2*2 + ... + n*n.

    >>> sum_of_squares(4)
    30
    """
    return sum(i * i for i in range(1, n + 1))


def test_sum_of_squares() -> None:
    assert sum_of_squares(4) == 30
    assert sum_of_squares(0) == 0
    assert sum_of_squares(10) == 385


def divisors(n: int) -> list[int]:
    """Return all positive divisors of a positive number in ascending order.

    >>> divisors(12)
    [1, 2, 3, 4, 6, 12]
    """
    return [d for d in range(1, n + 1) if n % d == 0]


def test_divisors() -> None:
    assert divisors(12) == [1, 2, 3, 4, 6, 12]
    assert divisors(1) == [1]
    assert divisors(13) == [1, 13]
    assert divisors(25) == [1, 5, 25]


def primes_below(limit: int) -> list[int]:
    """返回小于limit的所有质数，按从小到大排列。

    >>> primes_below(12)
    [2, 3, 5, 7, 11]
    """
    return [n for n in range(2, limit) if all(n % d for d in range(2, int(n**0.5) + 1))]


def test_primes_below() -> None:
    assert primes_below(12) == [2, 3, 5, 7, 11]
    assert primes_below(2) == []
    assert primes_below(3) == [2]
    assert len(primes_below(1000)) == 168


def lowest_common_multiple(a: int, b: int) -> int:
    """Return the smallest positive number that both positive numbers divide.

    >>> lowest_common_multiple(4, 6)
    12
    """
    import math

    return a * b // math.gcd(a, b)


def test_lowest_common_multiple() -> None:
    assert lowest_common_multiple(4, 6) == 12
    assert lowest_common_multiple(7, 1) == 7
    assert lowest_common_multiple(5, 5) == 5
    assert lowest_common_multiple(21, 6) == 42


def reverse_number(n: int) -> int:
    """Reverse the digits of a whole number and keep its sign.

    >>> reverse_number(-120)
    -21
    """
    return (-1 if n < 0 else 1) * int(str(abs(n))[::-1])


def test_reverse_number() -> None:
    assert reverse_number(-120) == -21
    assert reverse_number(0) == 0
    assert reverse_number(345) == 543


def digital_root(n: int) -> int:
    """Add the digits of a number that is not negative, then the digits of the sum, and so on until one digit is left.

    >>> digital_root(493)
    7
    """
    while n > 9:
        n = sum(map(int, str(n)))
    return n


def test_digital_root() -> None:
    assert digital_root(493) == 7
    assert digital_root(0) == 0
    assert digital_root(999999) == 9
    assert digital_root(10) == 1


def count_digit(n: int, digit: int) -> int:
    """Count how often a digit is in a number that is not negative.

    >>> count_digit(2422, 2)
    3
    """
    return str(n).count(str(digit))


def test_count_digit() -> None:
    assert count_digit(2422, 2) == 3
    assert count_digit(0, 0) == 1
    assert count_digit(135, 7) == 0


def to_binary(n: int) -> str:
    """把非负整数写成二进制，不带前缀，不要使用bin函数的前缀。

    >>> to_binary(10)
    '1010'
    """
    return f"{n:b}"


def test_to_binary() -> None:
    assert to_binary(10) == "1010"
    assert to_binary(0) == "0"
    assert to_binary(255) == "11111111"


def from_binary(text: str) -> int:
    """Return the number that is written in binary digits. An empty text is 0.

    >>> from_binary("1101")
    13
    """
    return int(text or "0", 2)


def test_from_binary() -> None:
    assert from_binary("1101") == 13
    assert from_binary("") == 0
    assert from_binary("0001") == 1


def is_square(n: int) -> bool:
    """Tell whether a number is the square of a whole number. Negative numbers are not.

    >>> is_square(49)
    True
    """
    import math

    return n >= 0 and math.isqrt(n) ** 2 == n


def test_is_square() -> None:
    assert is_square(49) is True
    assert is_square(50) is False
    assert is_square(0) is True
    assert is_square(-4) is False


def is_power_of_two(n: int) -> bool:
    """Tell whether a number is 1, 2, 4, 8, 16 and so on.

    >>> is_power_of_two(64)
    True
    """
    return n > 0 and n & (n - 1) == 0


def test_is_power_of_two() -> None:
    assert is_power_of_two(64) is True
    assert is_power_of_two(1) is True
    assert is_power_of_two(0) is False
    assert is_power_of_two(12) is False
    assert is_power_of_two(-8) is False


def nth_triangle(n: int) -> int:
    """Return 1 + 2 + ... + n.

    >>> nth_triangle(5)
    15
    """
    return n * (n + 1) // 2


def test_nth_triangle() -> None:
    assert nth_triangle(5) == 15
    assert nth_triangle(0) == 0
    assert nth_triangle(1000) == 500500


def steps_to_one(n: int) -> int:
    """Halve a positive number while it is even, and subtract 1 where it is odd, until it is 1. Return the count of steps.

    >>> steps_to_one(10)
    4
    """
    steps = 0
    while n > 1:
        n = n - 1 if n % 2 else n // 2
        steps += 1
    return steps


def test_steps_to_one() -> None:
    assert steps_to_one(10) == 4
    assert steps_to_one(1) == 0
    assert steps_to_one(8) == 3
    assert steps_to_one(7) == 4


def average_without_extremes(numbers: list[float]) -> float:
    """Return the mean of the numbers without one smallest and one largest of them. There are at least three.

    >>> average_without_extremes([9, 1, 5, 7])
    6.0
    """
    kept = sorted(numbers)[1:-1]
    return sum(kept) / len(kept)


def test_average_without_extremes() -> None:
    assert average_without_extremes([9, 1, 5, 7]) == 6.0
    assert average_without_extremes([3, 3, 3]) == 3.0
    assert average_without_extremes([0, 10, 10, 10]) == 10.0


def range_of(numbers: list[int]) -> int:
    """Return the difference of the largest and the smallest number, 0 for an empty list.

    >>> range_of([4, 9, -2])
    11
    """
    return max(numbers) - min(numbers) if numbers else 0


def test_range_of() -> None:
    assert range_of([4, 9, -2]) == 11
    assert range_of([]) == 0
    assert range_of([5]) == 0


def percent_of(part: float, whole: float) -> float:
    """Return how many percent of the whole the part is, rounded to one decimal place; 0.0 where the whole is 0.

    >>> percent_of(1, 3)
    33.3
    """
    return round(100 * part / whole, 1) if whole else 0.0


def test_percent_of() -> None:
    assert percent_of(1, 3) == 33.3
    assert percent_of(5, 0) == 0.0
    assert percent_of(2, 2) == 100.0


def distance(first: tuple[float, float], second: tuple[float, float]) -> float:
    """Return the distance of two points in the plane, rounded to two decimal places.

    >>> distance((0, 0), (3, 4))
    5.0
    """
    import math

    return round(math.hypot(first[0] - second[0], first[1] - second[1]), 2)


def test_distance() -> None:
    assert distance((0, 0), (3, 4)) == 5.0
    assert distance((1, 1), (1, 1)) == 0.0
    assert distance((0, 0), (1, 1)) == 1.41
    assert distance((-1, 2), (2, -2)) == 5.0


def is_right_triangle(a: int, b: int, c: int) -> bool:
    """Tell whether three positive lengths, in any order, are the sides of a triangle with a right angle.

    >>> is_right_triangle(5, 3, 4)
    True
    """
    x, y, z = sorted((a, b, c))
    return x * x + y * y == z * z


def test_is_right_triangle() -> None:
    assert is_right_triangle(5, 3, 4) is True
    assert is_right_triangle(2, 3, 4) is False
    assert is_right_triangle(5, 13, 12) is True
    assert is_right_triangle(1, 1, 1) is False


def add_time(time: str, minutes: int) -> str:
    """Add minutes (also negative ones) to a time of day HH:MM and return it in the same form; the day begins again at midnight.

    >>> add_time("23:50", 15)
    '00:05'
    """
    total = (int(time[:2]) * 60 + int(time[3:]) + minutes) % 1440
    return f"{total // 60:02}:{total % 60:02}"


def test_add_time() -> None:
    assert add_time("23:50", 15) == "00:05"
    assert add_time("00:10", -20) == "23:50"
    assert add_time("08:05", 0) == "08:05"
    assert add_time("12:00", 1440) == "12:00"


def to_24_hours(time: str) -> str:
    """Write a time like "7:05 PM" in the form "19:05". 12 AM is midnight and 12 PM is noon.

    >>> to_24_hours("7:05 PM")
    '19:05'
    """
    clock, half = time.split()
    hour, minute = map(int, clock.split(":"))
    return f"{hour % 12 + (12 if half == 'PM' else 0):02}:{minute:02}"


def test_to_24_hours() -> None:
    assert to_24_hours("7:05 PM") == "19:05"
    assert to_24_hours("12:00 AM") == "00:00"
    assert to_24_hours("12:30 PM") == "12:30"
    assert to_24_hours("9:15 AM") == "09:15"


def weekday_name(date: str) -> str:
    """Return the English name of the day of the week of a date YYYY-MM-DD.

    >>> weekday_name("2024-01-01")
    'Monday'
    """
    from datetime import date as day

    return day.fromisoformat(date).strftime("%A")


def test_weekday_name() -> None:
    assert weekday_name("2024-01-01") == "Monday"
    assert weekday_name("2000-02-29") == "Tuesday"
    assert weekday_name("2023-12-31") == "Sunday"


def days_in_month(year: int, month: int) -> int:
    """返回某年某月的天数，注意闰年的二月。

    >>> days_in_month(2024, 2)
    29
    """
    import calendar

    return calendar.monthrange(year, month)[1]


def test_days_in_month() -> None:
    assert days_in_month(2024, 2) == 29
    assert days_in_month(2023, 2) == 28
    assert days_in_month(1900, 2) == 28
    assert days_in_month(2023, 4) == 30
    assert days_in_month(2023, 12) == 31


def age_on(born: str, day: str) -> int:
    """Return how old in full years somebody is on a day. Both dates are YYYY-MM-DD; on the birthday one is a year older.

    >>> age_on("1990-06-15", "2020-06-14")
    29
    """
    return int(day[:4]) - int(born[:4]) - (day[5:] < born[5:])


def test_age_on() -> None:
    assert age_on("1990-06-15", "2020-06-14") == 29
    assert age_on("1990-06-15", "2020-06-15") == 30
    assert age_on("2000-01-01", "2000-12-31") == 0
    assert age_on("2000-12-31", "2001-01-01") == 0


def next_day(date: str) -> str:
    """Return the day after a date, both in the form YYYY-MM-DD.

    >>> next_day("2023-02-28")
    '2023-03-01'
    """
    from datetime import date as day
    from datetime import timedelta

    return (day.fromisoformat(date) + timedelta(days=1)).isoformat()


def test_next_day() -> None:
    assert next_day("2023-02-28") == "2023-03-01"
    assert next_day("2024-02-28") == "2024-02-29"
    assert next_day("1999-12-31") == "2000-01-01"


def swap_date_order(date: str) -> str:
    """Turn a date DD.MM.YYYY, in which zeros in front may lack, into YYYY-MM-DD.

    >>> swap_date_order("3.11.2025")
    '2025-11-03'
    """
    day, month, year = date.split(".")
    return f"{year}-{int(month):02}-{int(day):02}"


def test_swap_date_order() -> None:
    assert swap_date_order("3.11.2025") == "2025-11-03"
    assert swap_date_order("24.1.1999") == "1999-01-24"
    assert swap_date_order("01.02.2003") == "2003-02-01"


def change_coins(cents: int) -> dict[int, int]:
    """Pay an amount with as few coins of 50, 20, 10, 5, 2 and 1 cents as there can be. Return the count of each coin that is used.

    >>> change_coins(88)
    {50: 1, 20: 1, 10: 1, 5: 1, 2: 1, 1: 1}
    """
    used = {}
    for coin in (50, 20, 10, 5, 2, 1):
        if cents >= coin:
            used[coin], cents = divmod(cents, coin)
    return used


def test_change_coins() -> None:
    assert change_coins(88) == {50: 1, 20: 1, 10: 1, 5: 1, 2: 1, 1: 1}
    assert change_coins(0) == {}
    assert change_coins(140) == {50: 2, 20: 2}
    assert change_coins(4) == {2: 2}


def price_with_discount(price: float, quantity: int) -> float:
    """Return the price of so many pieces: from 10 pieces on 5 % less, from 50 on 10 % less; rounded to cents.

    >>> price_with_discount(2.0, 10)
    19.0
    """
    percent = 10 if quantity >= 50 else 5 if quantity >= 10 else 0
    return round(price * quantity * (100 - percent) / 100, 2)


def test_price_with_discount() -> None:
    assert price_with_discount(2.0, 10) == 19.0
    assert price_with_discount(2.0, 9) == 18.0
    assert price_with_discount(1.0, 50) == 45.0
    assert price_with_discount(1.0, 49) == 46.55
    assert price_with_discount(3.5, 0) == 0.0


def grade(points: int) -> str:
    """Return the grade for 0 to 100 points: "A" from 90 on, "B" from 80, "C" from 70, "D" from 60, otherwise "F".

    >>> grade(85)
    'B'
    """
    return "A" if points >= 90 else "B" if points >= 80 else "C" if points >= 70 else "D" if points >= 60 else "F"


def test_grade() -> None:
    assert grade(85) == "B"
    assert grade(90) == "A"
    assert grade(89) == "B"
    assert grade(70) == "C"
    assert grade(60) == "D"
    assert grade(59) == "F"


def postage(grams: int) -> int:
    """Return the postage of a letter in cents: up to 20 g 85, up to 50 g 100, up to 500 g 160; heavier ones 160 and 90 for every further 500 g begun.

    >>> postage(501)
    250
    """
    if grams <= 500:
        return 85 if grams <= 20 else 100 if grams <= 50 else 160
    return 160 + 90 * -(-(grams - 500) // 500)


def test_postage() -> None:
    assert postage(501) == 250
    assert postage(20) == 85
    assert postage(21) == 100
    assert postage(500) == 160
    assert postage(1000) == 250
    assert postage(1001) == 340


def round_to_multiple(number: int, step: int) -> int:
    """Round a number that is not negative to the nearest multiple of `step`; halves are rounded up.

    >>> round_to_multiple(37, 10)
    40
    """
    return (2 * number + step) // (2 * step) * step


def test_round_to_multiple() -> None:
    assert round_to_multiple(37, 10) == 40
    assert round_to_multiple(25, 10) == 30
    assert round_to_multiple(24, 10) == 20
    assert round_to_multiple(0, 7) == 0
    assert round_to_multiple(4, 7) == 7


def hours_worked(shifts: list[tuple[int, int]]) -> int:
    """Add up the hours of shifts (begin, end), full hours from 0 to 23. A shift whose end is smaller than its begin ends on the next day.

    >>> hours_worked([(9, 17), (22, 6)])
    16
    """
    return sum((end - begin) % 24 for begin, end in shifts)


def test_hours_worked() -> None:
    assert hours_worked([(9, 17), (22, 6)]) == 16
    assert hours_worked([]) == 0
    assert hours_worked([(23, 0), (0, 1)]) == 2


def hex_colour(red: int, green: int, blue: int) -> str:
    """Write a colour as "#RRGGBB" with capital hexadecimal digits. Each part is from 0 to 255.

    >>> hex_colour(255, 16, 0)
    '#FF1000'
    """
    return f"#{red:02X}{green:02X}{blue:02X}"


def test_hex_colour() -> None:
    assert hex_colour(255, 16, 0) == "#FF1000"
    assert hex_colour(0, 0, 0) == "#000000"
    assert hex_colour(1, 171, 205) == "#01ABCD"


def count_multiples(low: int, high: int, step: int) -> int:
    """Count the multiples of a positive number from low to high, both included; none of them is negative.

    >>> count_multiples(5, 20, 5)
    4
    """
    return high // step - (low - 1) // step


def test_count_multiples() -> None:
    assert count_multiples(5, 20, 5) == 4
    assert count_multiples(1, 4, 5) == 0
    assert count_multiples(0, 10, 5) == 3
    assert count_multiples(6, 6, 3) == 1


def fibonacci(n: int) -> int:
    """返回第n个斐波那契数：第0个是0，第1个是1，以后每个数是前两个数之和。

    >>> fibonacci(10)
    55
    """
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a


def test_fibonacci() -> None:
    assert fibonacci(10) == 55
    assert fibonacci(0) == 0
    assert fibonacci(1) == 1
    assert fibonacci(50) == 12586269025


def harmonic(n: int) -> float:
    """Return 1 + 1/2 + 1/3 + ... + 1/n, rounded to three decimal places; 0.0 for n = 0.

    >>> harmonic(4)
    2.083
    """
    return round(sum((1 / i for i in range(1, n + 1)), 0.0), 3)


def test_harmonic() -> None:
    assert harmonic(4) == 2.083
    assert harmonic(1) == 1.0
    assert harmonic(0) == 0.0
    assert harmonic(10) == 2.929


def largest_with_digits(n: int) -> int:
    """Return the largest number that the digits of a number (not negative) can form in another order.

    >>> largest_with_digits(2736)
    7632
    """
    return int("".join(sorted(str(n), reverse=True)))


def test_largest_with_digits() -> None:
    assert largest_with_digits(2736) == 7632
    assert largest_with_digits(0) == 0
    assert largest_with_digits(100) == 100
    assert largest_with_digits(19) == 91


def speed_fine(speed: int, limit: int) -> int:
    """Return the fine: nothing up to the limit, else 30, and 10 for every full 5 km/h above the limit.

    >>> speed_fine(63, 50)
    50
    """
    return 0 if speed <= limit else 30 + (speed - limit) // 5 * 10


def test_speed_fine() -> None:
    assert speed_fine(63, 50) == 50
    assert speed_fine(50, 50) == 0
    assert speed_fine(51, 50) == 30
    assert speed_fine(55, 50) == 40


def solve_linear(a: float, b: float) -> float | None:
    """Solve a * x + b = 0 for x. Return None where a is 0.

    >>> solve_linear(2, -8)
    4.0
    """
    return None if a == 0 else -b / a


def test_solve_linear() -> None:
    assert solve_linear(2, -8) == 4.0
    assert solve_linear(0, 3) is None
    assert solve_linear(-4, 2) == 0.5


def real_roots(a: int, b: int, c: int) -> list[float]:
    """Return the real solutions of a*x*x + b*x + c = 0, a not 0, in ascending order; a double one stands once. Round to two decimal places.

    >>> real_roots(1, -3, 2)
    [1.0, 2.0]
    """
    under = b * b - 4 * a * c
    if under < 0:
        return []
    return sorted({round((-b + way * under**0.5) / (2 * a), 2) for way in (-1, 1)})


def test_real_roots() -> None:
    assert real_roots(1, -3, 2) == [1.0, 2.0]
    assert real_roots(1, 0, 1) == []
    assert real_roots(1, 2, 1) == [-1.0]
    assert real_roots(-1, 3, -2) == [1.0, 2.0]


def sum_between(a: int, b: int) -> int:
    """Add up all whole numbers from a to b, both included, whichever of the two is larger.

    >>> sum_between(4, 1)
    10
    """
    return sum(range(min(a, b), max(a, b) + 1))


def test_sum_between() -> None:
    assert sum_between(4, 1) == 10
    assert sum_between(1, 4) == 10
    assert sum_between(3, 3) == 3
    assert sum_between(-2, 2) == 0
