"""Problems in which something moves on step by step: machines, games, recursion."""

from __future__ import annotations


def elevator(start: int, calls: list[int]) -> int:
    """A lift goes to each floor that calls it, one after the other. Return how many floors it passes on its way in all.

    >>> elevator(0, [3, 1])
    5
    """
    total = 0
    for floor in calls:
        total += abs(floor - start)
        start = floor
    return total


def test_elevator() -> None:
    assert elevator(0, [3, 1]) == 5
    assert elevator(2, []) == 0
    assert elevator(-1, [-1, 4]) == 5


def snail_days(height: int, up: int, down: int) -> int:
    """A snail climbs a wall: `up` every day, and slips `down` every night; up is larger. Return on which day it reaches the top.

    >>> snail_days(10, 3, 2)
    8
    """
    at, days = 0, 0
    while True:
        days += 1
        at += up
        if at >= height:
            return days
        at -= down


def test_snail_days() -> None:
    assert snail_days(10, 3, 2) == 8
    assert snail_days(3, 3, 1) == 1
    assert snail_days(4, 3, 0) == 2
    assert snail_days(5, 3, 2) == 3


def traffic_light(steps: int) -> str:
    """A light changes from "red" to "green", from there to "yellow", and then to "red" again. It begins red; return its colour after the steps.

    >>> traffic_light(4)
    'green'
    """
    return ("red", "green", "yellow")[steps % 3]


def test_traffic_light() -> None:
    assert traffic_light(4) == "green"
    assert traffic_light(0) == "red"
    assert traffic_light(2) == "yellow"
    assert traffic_light(300) == "red"


def doors(count: int) -> list[int]:
    """Doors 1 to count are closed. In round r every r-th door is opened or, where it is open, closed; there are `count` rounds. Return the open ones.

    >>> doors(10)
    [1, 4, 9]
    """
    return [door for door in range(1, count + 1) if sum(door % r == 0 for r in range(1, door + 1)) % 2]


def test_doors() -> None:
    assert doors(10) == [1, 4, 9]
    assert doors(0) == []
    assert doors(3) == [1]
    assert doors(25) == [1, 4, 9, 16, 25]


def rock_paper_scissors(first: str, second: str) -> int:
    """石头("rock")赢剪刀("scissors")，剪刀赢布("paper")，布赢石头。第一个人赢返回1，第二个人赢返回2，平局返回0。

    >>> rock_paper_scissors("rock", "paper")
    2
    """
    wins = {("rock", "scissors"), ("scissors", "paper"), ("paper", "rock")}
    return 0 if first == second else 1 if (first, second) in wins else 2


def test_rock_paper_scissors() -> None:
    assert rock_paper_scissors("rock", "paper") == 2
    assert rock_paper_scissors("rock", "scissors") == 1
    assert rock_paper_scissors("paper", "paper") == 0
    assert rock_paper_scissors("scissors", "paper") == 1


def vending(coins: list[int], price: int) -> tuple[bool, int]:
    """Coins go into a machine until they reach the price; further ones fall through. Return whether it was reached, and what comes back: the change
    and the coins that fell through, or all coins where the price was not reached.

    >>> vending([50, 100, 20], 120)
    (True, 50)
    """
    return (True, sum(coins) - price) if sum(coins) >= price else (False, sum(coins))


def test_vending() -> None:
    assert tuple(vending([50, 100, 20], 120)) == (True, 50)
    assert tuple(vending([50], 120)) == (False, 50)
    assert tuple(vending([], 10)) == (False, 0)
    assert tuple(vending([10], 10)) == (True, 0)


def dice_game(rolls: list[int]) -> int:
    """Add up rolls of a die. A 6 counts double, and a 1 sets the sum to 0.

    >>> dice_game([3, 6, 1, 4])
    4
    """
    total = 0
    for roll in rolls:
        total = 0 if roll == 1 else total + roll * (2 if roll == 6 else 1)
    return total


def test_dice_game() -> None:
    assert dice_game([3, 6, 1, 4]) == 4
    assert dice_game([]) == 0
    assert dice_game([6, 5]) == 17
    assert dice_game([1]) == 0


def stack_machine(commands: list[str]) -> list[int]:
    """Run commands on an empty stack: "push N", "pop", "dup" (the top once more), "add" (the two top ones become their sum). Return the stack.

    A command for which there are too few numbers does nothing.

    >>> stack_machine(["push 2", "dup", "add"])
    [4]
    """
    stack: list[int] = []
    for command in commands:
        if command.startswith("push"):
            stack.append(int(command.split()[1]))
        elif command == "pop" and stack:
            stack.pop()
        elif command == "dup" and stack:
            stack.append(stack[-1])
        elif command == "add" and len(stack) > 1:
            stack.append(stack.pop() + stack.pop())
    return stack


def test_stack_machine() -> None:
    assert stack_machine(["push 2", "dup", "add"]) == [4]
    assert stack_machine([]) == []
    assert stack_machine(["push 1", "push -5", "pop"]) == [1]
    assert stack_machine(["pop", "push 3", "add"]) == [3]


def turn(direction: str, turns: str) -> str:
    """Somebody looks to "N", "E", "S" or "W" and turns by quarters: each "R" to the right, each "L" to the left. Return where they look then.

    >>> turn("N", "RRL")
    'E'
    """
    return "NESW"[("NESW".index(direction) + turns.count("R") - turns.count("L")) % 4]


def test_turn() -> None:
    assert turn("N", "RRL") == "E"
    assert turn("W", "R") == "N"
    assert turn("N", "L") == "W"
    assert turn("S", "") == "S"


def count_visited(moves: str) -> int:
    """Somebody walks on squares by U, D, L and R. Return how many different squares they stood on, the first one included.

    >>> count_visited("UDR")
    3
    """
    x = y = 0
    seen = {(x, y)}
    for move in moves:
        x += {"L": -1, "R": 1}.get(move, 0)
        y += {"D": -1, "U": 1}.get(move, 0)
        seen.add((x, y))
    return len(seen)


def test_count_visited() -> None:
    assert count_visited("UDR") == 3
    assert count_visited("") == 1
    assert count_visited("URDL") == 4
    assert count_visited("UUUU") == 5


def queue_time(customers: list[int]) -> list[int]:
    """One clerk serves customers in their order, each for so many minutes. Return how long each one waits before being served.

    >>> queue_time([3, 5, 2])
    [0, 3, 8]
    """
    waits, now = [], 0
    for minutes in customers:
        waits.append(now)
        now += minutes
    return waits


def test_queue_time() -> None:
    assert queue_time([3, 5, 2]) == [0, 3, 8]
    assert queue_time([]) == []
    assert queue_time([4]) == [0]


def hanoi_moves(discs: int) -> int:
    """返回把n个盘子的汉诺塔从一根柱子移到另一根柱子最少需要的步数。

    >>> hanoi_moves(3)
    7
    """
    return 2**discs - 1


def test_hanoi_moves() -> None:
    assert hanoi_moves(3) == 7
    assert hanoi_moves(0) == 0
    assert hanoi_moves(1) == 1
    assert hanoi_moves(10) == 1023


def count_down(n: int) -> list[int]:
    """Return the numbers from n down to 1 and behind them 0.

    >>> count_down(3)
    [3, 2, 1, 0]
    """
    return list(range(n, -1, -1))


def test_count_down() -> None:
    assert count_down(3) == [3, 2, 1, 0]
    assert count_down(0) == [0]
    assert count_down(1) == [1, 0]


def rabbits(months: int) -> int:
    """There is one new pair of rabbits in month 1. A pair has a new pair every month, for the first time when it is two months old. How many pairs
    are there in a month?

    >>> rabbits(5)
    5
    """
    a, b = 1, 1
    for _ in range(months - 1):
        a, b = b, a + b
    return a


def test_rabbits() -> None:
    assert rabbits(5) == 5
    assert rabbits(1) == 1
    assert rabbits(2) == 1
    assert rabbits(3) == 2
    assert rabbits(12) == 144


def tree_sum(tree: list | None) -> int:  # type: ignore[type-arg]
    """Add up the values of a tree. A node is [value, left, right], and what is missing is None.

    >>> tree_sum([1, [2, None, None], [3, None, None]])
    6
    """
    return 0 if tree is None else tree[0] + tree_sum(tree[1]) + tree_sum(tree[2])


def test_tree_sum() -> None:
    assert tree_sum([1, [2, None, None], [3, None, None]]) == 6
    assert tree_sum(None) == 0
    assert tree_sum([-4, None, [1, None, None]]) == -3


def tree_values(tree: list | None) -> list[int]:  # type: ignore[type-arg]
    """Return the values of a tree from left to right: first those on the left of a node, then its own, then those on the right.

    A node is [value, left, right]; what is missing is None.

    >>> tree_values([2, [1, None, None], [3, None, None]])
    [1, 2, 3]
    """
    return [] if tree is None else [*tree_values(tree[1]), tree[0], *tree_values(tree[2])]


def test_tree_values() -> None:
    assert tree_values([2, [1, None, None], [3, None, None]]) == [1, 2, 3]
    assert tree_values(None) == []
    assert tree_values([5, None, [4, [6, None, None], None]]) == [5, 6, 4]


def folder_size(folder: dict) -> int:  # type: ignore[type-arg]
    """A folder says for each name either the size of a file or, as a dictionary, a folder in it. Return the size of all files together.

    >>> folder_size({"a.txt": 10, "more": {"b.txt": 5}})
    15
    """
    return sum(folder_size(inside) if isinstance(inside, dict) else inside for inside in folder.values())


def test_folder_size() -> None:
    assert folder_size({"a.txt": 10, "more": {"b.txt": 5}}) == 15
    assert folder_size({}) == 0
    assert folder_size({"x": {"y": {"z": 7}}, "w": 1}) == 8


def flood_fill(grid: list[str], row: int, column: int, mark: str) -> list[str]:
    """Paint with `mark` the cell at (row, column) and all that hang together with it: neighbours above, below, left, right of the same character.

    >>> flood_fill(["aab", "abb"], 0, 0, "x")
    ['xxb', 'xbb']
    """
    cells = [list(line) for line in grid]
    old = cells[row][column]
    waiting = [(row, column)] if old != mark else []
    while waiting:
        r, c = waiting.pop()
        if 0 <= r < len(cells) and 0 <= c < len(cells[r]) and cells[r][c] == old:
            cells[r][c] = mark
            waiting += [(r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)]
    return ["".join(line) for line in cells]


def test_flood_fill() -> None:
    assert flood_fill(["aab", "abb"], 0, 0, "x") == ["xxb", "xbb"]
    assert flood_fill(["ab", "ba"], 0, 0, "z") == ["zb", "ba"]
    assert flood_fill(["aa"], 0, 1, "a") == ["aa"]


def mines_near(field: list[str]) -> list[str]:
    """Mines are "*". Replace every "." by the count of mines on the up to eight cells around it.

    >>> mines_near(["*.", ".."])
    ['*1', '11']
    """

    def count(r: int, c: int) -> int:
        return sum(field[i][j] == "*" for i in range(max(r - 1, 0), min(r + 2, len(field))) for j in range(max(c - 1, 0), min(c + 2, len(field[r]))))

    return ["".join("*" if cell == "*" else str(count(r, c)) for c, cell in enumerate(line)) for r, line in enumerate(field)]


def test_mines_near() -> None:
    assert mines_near(["*.", ".."]) == ["*1", "11"]
    assert mines_near(["..."]) == ["000"]
    assert mines_near(["*.*"]) == ["*2*"]
    assert mines_near([]) == []


def bowling_simple(pins: list[tuple[int, int]]) -> int:
    """Add up frames of two rolls. Where both rolls of a frame are 10 together, the first roll of the next frame, if there is one, counts twice.

    >>> bowling_simple([(4, 6), (3, 2)])
    18
    """
    total = 0
    for index, frame in enumerate(pins):
        total += sum(frame)
        if sum(frame) == 10 and index + 1 < len(pins):
            total += pins[index + 1][0]
    return total


def test_bowling_simple() -> None:
    assert bowling_simple([(4, 6), (3, 2)]) == 18
    assert bowling_simple([]) == 0
    assert bowling_simple([(1, 2), (5, 5)]) == 13
    assert bowling_simple([(5, 5), (5, 5), (0, 1)]) == 26


def cache_hits(requests: list[str], size: int) -> int:
    """A cache keeps the `size` names that were asked for last, size at least 1. Count the requests whose name is in it at that time.

    >>> cache_hits(["a", "b", "a", "c", "b"], 2)
    1
    """
    kept: list[str] = []
    hits = 0
    for name in requests:
        if name in kept:
            hits += 1
            kept.remove(name)
        kept = [*kept, name][-size:]
    return hits


def test_cache_hits() -> None:
    assert cache_hits(["a", "b", "a", "c", "b"], 2) == 1
    assert cache_hits([], 3) == 0
    assert cache_hits(["x", "x", "x"], 1) == 2
    assert cache_hits(["a", "b", "a", "c", "b"], 3) == 2


def undo_typing(keys: str) -> str:
    """Somebody types characters; "<" removes the last one that is there, and does nothing where there is none. Return the text at the end.

    >>> undo_typing("abc<d<<e")
    'ae'
    """
    text = ""
    for key in keys:
        text = text[:-1] if key == "<" else text + key
    return text


def test_undo_typing() -> None:
    assert undo_typing("abc<d<<e") == "ae"
    assert undo_typing("<<") == ""
    assert undo_typing("hi") == "hi"


def battery(start: int, events: list[str]) -> int:
    """A battery has 0 to 100 percent. "use" takes 15, "charge" gives 20, and it never leaves its bounds. Return what it has after the events.

    >>> battery(50, ["use", "use", "charge"])
    40
    """
    for event in events:
        start = max(0, start - 15) if event == "use" else min(100, start + 20)
    return start


def test_battery() -> None:
    assert battery(50, ["use", "use", "charge"]) == 40
    assert battery(90, ["charge", "use"]) == 85
    assert battery(10, ["use", "charge"]) == 20
    assert battery(7, []) == 7


def tournament(players: list[tuple[str, int]]) -> str:
    """Players (name, strength) stand in a row; their count is a power of two. In each round neighbours play, and the stronger one, or the left one
    of equals, goes on. Return the name of the last one.

    >>> tournament([("Al", 3), ("Bo", 5), ("Cy", 4), ("Di", 1)])
    'Bo'
    """
    while len(players) > 1:
        players = [a if a[1] >= b[1] else b for a, b in zip(players[::2], players[1::2], strict=True)]
    return players[0][0]


def test_tournament() -> None:
    assert tournament([("Al", 3), ("Bo", 5), ("Cy", 4), ("Di", 1)]) == "Bo"
    assert tournament([("Eva", 1)]) == "Eva"
    assert tournament([("A", 2), ("B", 2)]) == "A"


def rule_step(cells: str) -> str:
    """Cells are "#" or ".". In the next generation a cell is "#" where exactly one of its two neighbours is; outside all are ".".

    >>> rule_step("..#..")
    '.#.#.'
    """
    padded = f".{cells}."
    return "".join("#" if padded[i - 1] != padded[i + 1] else "." for i in range(1, len(cells) + 1))


def test_rule_step() -> None:
    assert rule_step("..#..") == ".#.#."
    assert rule_step(".#.#.") == "#...#"
    assert rule_step("...") == "..."
    assert rule_step("") == ""
    assert rule_step("##") == "##"


def sort_by_parity_then_size(numbers: list[int]) -> list[int]:
    """Sort: first the even numbers in ascending order, then the odd ones in descending order.

    >>> sort_by_parity_then_size([3, 8, 5, 2])
    [2, 8, 5, 3]
    """
    return sorted(n for n in numbers if n % 2 == 0) + sorted((n for n in numbers if n % 2), reverse=True)


def test_sort_by_parity_then_size() -> None:
    assert sort_by_parity_then_size([3, 8, 5, 2]) == [2, 8, 5, 3]
    assert sort_by_parity_then_size([]) == []
    assert sort_by_parity_then_size([1, 3]) == [3, 1]
    assert sort_by_parity_then_size([4, -2]) == [-2, 4]


def partitions(n: int, largest: int) -> int:
    """Count the ways to write a number as a sum of positive numbers, none above `largest`; the order does not count. 0 has one way: no numbers.

    >>> partitions(4, 3)
    4
    """
    if n == 0:
        return 1
    if n < 0 or largest == 0:
        return 0
    return partitions(n - largest, largest) + partitions(n, largest - 1)


def test_partitions() -> None:
    assert partitions(4, 3) == 4
    assert partitions(0, 5) == 1
    assert partitions(5, 5) == 7
    assert partitions(3, 0) == 0
    assert partitions(10, 1) == 1
