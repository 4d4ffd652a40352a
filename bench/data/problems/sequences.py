"""Problems about lists and tables."""

from __future__ import annotations


def every_other(items: list[int]) -> list[int]:
    """Return the first, third, fifth, ... item of a list.

    >>> every_other([5, 6, 7, 8])
    [5, 7]
    """
    return items[::2]


def test_every_other() -> None:
    assert every_other([5, 6, 7, 8]) == [5, 7]
    assert every_other([]) == []
    assert every_other([1]) == [1]
    assert every_other([1, 2, 3]) == [1, 3]


def index_of_largest(numbers: list[int]) -> int:
    """Return the index of the largest number, of several the first; -1 for an empty list.

    >>> index_of_largest([3, 8, 2, 8])
    1
    """
    return numbers.index(max(numbers)) if numbers else -1


def test_index_of_largest() -> None:
    assert index_of_largest([3, 8, 2, 8]) == 1
    assert index_of_largest([]) == -1
    assert index_of_largest([-5]) == 0
    assert index_of_largest([1, 2, 3]) == 2


def differences(numbers: list[int]) -> list[int]:
    """Return by how much each number is larger than the one before it.

    >>> differences([1, 4, 2])
    [3, -2]
    """
    return [numbers[i] - numbers[i - 1] for i in range(1, len(numbers))]


def test_differences() -> None:
    assert differences([1, 4, 2]) == [3, -2]
    assert differences([7]) == []
    assert differences([]) == []
    assert differences([5, 5]) == [0]


def is_sorted(numbers: list[int]) -> bool:
    """判断列表是否按从小到大排列，允许相邻的数相等。

    >>> is_sorted([1, 2, 2, 5])
    True
    """
    return numbers == sorted(numbers)


def test_is_sorted() -> None:
    assert is_sorted([1, 2, 2, 5]) is True
    assert is_sorted([3, 1]) is False
    assert is_sorted([]) is True


def running_sums(numbers: list[int]) -> list[int]:
    """For every position return the sum of the numbers up to and including it.

    >>> running_sums([2, 3, -1])
    [2, 5, 4]
    """
    from itertools import accumulate

    return list(accumulate(numbers))


def test_running_sums() -> None:
    assert running_sums([2, 3, -1]) == [2, 5, 4]
    assert running_sums([]) == []
    assert running_sums([7]) == [7]


def remove_value(items: list[int], value: int) -> list[int]:
    """Return a new list without any item that equals the value.

    >>> remove_value([1, 2, 1, 3], 1)
    [2, 3]
    """
    return [item for item in items if item != value]


def test_remove_value() -> None:
    given = [1, 2, 1, 3]
    assert remove_value(given, 1) == [2, 3]
    assert given == [1, 2, 1, 3]
    assert remove_value([], 1) == []
    assert remove_value([4], 5) == [4]


def split_by_sign(numbers: list[int]) -> tuple[list[int], list[int]]:
    """Return the negative numbers and the others, each in their order.

    >>> split_by_sign([3, -1, 0, -7])
    ([-1, -7], [3, 0])
    """
    return [n for n in numbers if n < 0], [n for n in numbers if n >= 0]


def test_split_by_sign() -> None:
    assert tuple(split_by_sign([3, -1, 0, -7])) == ([-1, -7], [3, 0])
    assert tuple(split_by_sign([])) == ([], [])
    assert tuple(split_by_sign([1])) == ([], [1])


def count_above_average(numbers: list[float]) -> int:
    """Count the numbers that are larger than the mean of all. An empty list gives 0.

    >>> count_above_average([1, 2, 6])
    1
    """
    return sum(number * len(numbers) > sum(numbers) for number in numbers)


def test_count_above_average() -> None:
    assert count_above_average([1, 2, 6]) == 1
    assert count_above_average([]) == 0
    assert count_above_average([3, 3]) == 0
    assert count_above_average([0, 10, 10]) == 2


def symmetric_difference(first: list[int], second: list[int]) -> list[int]:
    """Return the numbers that are in exactly one of two lists, each once, in ascending order.

    >>> symmetric_difference([1, 2, 2, 3], [3, 4])
    [1, 2, 4]
    """
    return sorted(set(first) ^ set(second))


def test_symmetric_difference() -> None:
    assert symmetric_difference([1, 2, 2, 3], [3, 4]) == [1, 2, 4]
    assert symmetric_difference([], []) == []
    assert symmetric_difference([5], [5]) == []
    assert symmetric_difference([], [9, 8]) == [8, 9]


def is_subset(first: list[str], second: list[str]) -> bool:
    """Tell whether every item of the first list is in the second one.

    >>> is_subset(["a", "a"], ["b", "a"])
    True
    """
    return set(first) <= set(second)


def test_is_subset() -> None:
    assert is_subset(["a", "a"], ["b", "a"]) is True
    assert is_subset(["c"], ["a"]) is False
    assert is_subset([], ["a"]) is True
    assert is_subset(["a"], []) is False


def product_of_others(numbers: list[int]) -> list[int]:
    """For every position return the product of all numbers at the other positions.

    >>> product_of_others([2, 3, 4])
    [12, 8, 6]
    """
    import math

    return [math.prod(numbers[:index] + numbers[index + 1 :]) for index in range(len(numbers))]


def test_product_of_others() -> None:
    assert product_of_others([2, 3, 4]) == [12, 8, 6]
    assert product_of_others([0, 5, 2]) == [10, 0, 0]
    assert product_of_others([7]) == [1]
    assert product_of_others([0, 0, 3]) == [0, 0, 0]


def move_zeros(numbers: list[int]) -> list[int]:
    """把所有的0移到列表末尾，其他数保持原来的顺序，返回新列表。

    >>> move_zeros([0, 3, 0, 1])
    [3, 1, 0, 0]
    """
    kept = [n for n in numbers if n != 0]
    return kept + [0] * (len(numbers) - len(kept))


def test_move_zeros() -> None:
    assert move_zeros([0, 3, 0, 1]) == [3, 1, 0, 0]
    assert move_zeros([]) == []
    assert move_zeros([1, 2]) == [1, 2]
    assert move_zeros([0]) == [0]


def pair_up(items: list[str]) -> list[tuple[str, str]]:
    """Put neighbours together in pairs: the first with the second, the third with the fourth. A last one without a partner is left out.

    >>> pair_up(["a", "b", "c"])
    [('a', 'b')]
    """
    return [(items[i], items[i + 1]) for i in range(0, len(items) - 1, 2)]


def test_pair_up() -> None:
    assert pair_up(["a", "b", "c"]) == [("a", "b")]
    assert pair_up([]) == []
    assert pair_up(["x", "y", "z", "w"]) == [("x", "y"), ("z", "w")]


def three_largest(numbers: list[int]) -> list[int]:
    """Return the three largest numbers in descending order, fewer where there are fewer. Equal numbers count each.

    >>> three_largest([5, 1, 9, 5])
    [9, 5, 5]
    """
    return sorted(numbers, reverse=True)[:3]


def test_three_largest() -> None:
    assert three_largest([5, 1, 9, 5]) == [9, 5, 5]
    assert three_largest([2, 4]) == [4, 2]
    assert three_largest([]) == []


def kth_smallest(numbers: list[int], k: int) -> int | None:
    """Return the k-th smallest of the different values of a list, counted from 1, or None where there are fewer.

    >>> kth_smallest([7, 3, 3, 5], 2)
    5
    """
    values = sorted(set(numbers))
    return values[k - 1] if k <= len(values) else None


def test_kth_smallest() -> None:
    assert kth_smallest([7, 3, 3, 5], 2) == 5
    assert kth_smallest([7, 3, 3, 5], 1) == 3
    assert kth_smallest([7], 2) is None


def count_inversions(numbers: list[int]) -> int:
    """Count the pairs of positions where the number on the left is larger than the one on the right.

    >>> count_inversions([3, 1, 2])
    2
    """
    return sum(numbers[i] > numbers[j] for i in range(len(numbers)) for j in range(i + 1, len(numbers)))


def test_count_inversions() -> None:
    assert count_inversions([3, 1, 2]) == 2
    assert count_inversions([]) == 0
    assert count_inversions([4, 3, 2, 1]) == 6
    assert count_inversions([1, 1]) == 0


def longest_equal_run(items: list[int]) -> int:
    """Return the length of the longest run of equal neighbours, 0 for an empty list.

    >>> longest_equal_run([1, 1, 2, 2, 2, 1])
    3
    """
    best = run = 0
    for index, item in enumerate(items):
        run = run + 1 if index and item == items[index - 1] else 1
        best = max(best, run)
    return best


def test_longest_equal_run() -> None:
    assert longest_equal_run([1, 1, 2, 2, 2, 1]) == 3
    assert longest_equal_run([]) == 0
    assert longest_equal_run([5]) == 1
    assert longest_equal_run([1, 2, 1, 2]) == 1


def peaks(heights: list[int]) -> list[int]:
    """Return the indices of all heights that are larger than both neighbours. The first and the last are no peaks.

    >>> peaks([1, 5, 2, 2, 7, 3])
    [1, 4]
    """
    return [i for i in range(1, len(heights) - 1) if heights[i - 1] < heights[i] > heights[i + 1]]


def test_peaks() -> None:
    assert peaks([1, 5, 2, 2, 7, 3]) == [1, 4]
    assert peaks([]) == []
    assert peaks([1, 2, 3]) == []
    assert peaks([1, 2, 2, 1]) == []


def split_at(items: list[int], value: int) -> list[list[int]]:
    """Cut a list at every item that equals the value, which is in no part. Parts may be empty.

    >>> split_at([1, 0, 2, 3, 0], 0)
    [[1], [2, 3], []]
    """
    parts: list[list[int]] = [[]]
    for item in items:
        if item == value:
            parts.append([])
        else:
            parts[-1].append(item)
    return parts


def test_split_at() -> None:
    assert split_at([1, 0, 2, 3, 0], 0) == [[1], [2, 3], []]
    assert split_at([], 0) == [[]]
    assert split_at([4, 5], 0) == [[4, 5]]
    assert split_at([0], 0) == [[], []]


def insert_sorted(numbers: list[int], value: int) -> list[int]:
    """Return a new list: the given ascending list with one value more, ascending again.

    >>> insert_sorted([1, 4, 6], 5)
    [1, 4, 5, 6]
    """
    return sorted([*numbers, value])


def test_insert_sorted() -> None:
    given = [1, 4, 6]
    assert insert_sorted(given, 5) == [1, 4, 5, 6]
    assert given == [1, 4, 6]
    assert insert_sorted([], 2) == [2]
    assert insert_sorted([3], 1) == [1, 3]


def selection_swaps(numbers: list[int]) -> int:
    """Sort by selection: for each position from the left, swap its number with the smallest of the rest where that is smaller. Count the swaps.

    >>> selection_swaps([3, 1, 2])
    2
    """
    items, swaps = list(numbers), 0
    for start in range(len(items)):
        least = min(range(start, len(items)), key=items.__getitem__)
        if items[least] < items[start]:
            items[start], items[least] = items[least], items[start]
            swaps += 1
    return swaps


def test_selection_swaps() -> None:
    assert selection_swaps([3, 1, 2]) == 2
    assert selection_swaps([]) == 0
    assert selection_swaps([1, 2, 3]) == 0
    assert selection_swaps([4, 3, 2, 1]) == 2


def row_sums(rows: list[list[int]]) -> list[int]:
    """返回表格每一行的和。

    >>> row_sums([[1, 2], [3, 4, 5]])
    [3, 12]
    """
    return [sum(row) for row in rows]


def test_row_sums() -> None:
    assert row_sums([[1, 2], [3, 4, 5]]) == [3, 12]
    assert row_sums([]) == []
    assert row_sums([[], [7]]) == [0, 7]


def column_maxima(rows: list[list[int]]) -> list[int]:
    """Return the largest number of each column of a table whose rows are of one length.

    >>> column_maxima([[1, 9], [4, 2]])
    [4, 9]
    """
    return [max(column) for column in zip(*rows, strict=True)]


def test_column_maxima() -> None:
    assert column_maxima([[1, 9], [4, 2]]) == [4, 9]
    assert column_maxima([]) == []
    assert column_maxima([[-1, -2, -3]]) == [-1, -2, -3]


def diagonal_sum(rows: list[list[int]]) -> int:
    """Add up the numbers on both diagonals of a square table; one in the very middle counts once.

    >>> diagonal_sum([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    25
    """
    n = len(rows)
    return sum(rows[i][j] for i in range(n) for j in range(n) if i == j or i + j == n - 1)


def test_diagonal_sum() -> None:
    assert diagonal_sum([[1, 2, 3], [4, 5, 6], [7, 8, 9]]) == 25
    assert diagonal_sum([]) == 0
    assert diagonal_sum([[4]]) == 4
    assert diagonal_sum([[1, 2], [3, 4]]) == 10


def is_symmetric(rows: list[list[int]]) -> bool:
    """Tell whether a square table stays the same when rows and columns are exchanged.

    >>> is_symmetric([[1, 2], [2, 3]])
    True
    """
    return all(rows[i][j] == rows[j][i] for i in range(len(rows)) for j in range(i))


def test_is_symmetric() -> None:
    assert is_symmetric([[1, 2], [2, 3]]) is True
    assert is_symmetric([[1, 2], [3, 1]]) is False
    assert is_symmetric([]) is True
    assert is_symmetric([[0, 1, 2], [1, 0, 3], [2, 4, 0]]) is False


def identity(size: int) -> list[list[int]]:
    """Return a square table with ones from the top left to the bottom right and zeros elsewhere.

    >>> identity(2)
    [[1, 0], [0, 1]]
    """
    return [[int(i == j) for j in range(size)] for i in range(size)]


def test_identity() -> None:
    assert identity(2) == [[1, 0], [0, 1]]
    assert identity(0) == []
    assert identity(3) == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    rows = identity(2)
    rows[0][1] = 5
    assert rows[1] == [0, 1]


def border_sum(rows: list[list[int]]) -> int:
    """Add up the numbers on the border of a table: first and last row, first and last column. Each cell counts once.

    >>> border_sum([[1, 1, 1], [1, 5, 1], [1, 1, 1]])
    8
    """
    return sum(value for i, row in enumerate(rows) for j, value in enumerate(row) if i in (0, len(rows) - 1) or j in (0, len(row) - 1))


def test_border_sum() -> None:
    assert border_sum([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) == 8
    assert border_sum([[7]]) == 7
    assert border_sum([]) == 0
    assert border_sum([[1, 2, 3]]) == 6
    assert border_sum([[1, 2], [3, 4]]) == 10


def depth(nested: list) -> int:  # type: ignore[type-arg]
    """Return how deep lists stand in each other: 1 for a list without a list in it.

    >>> depth([1, [2, [3]], []])
    3
    """
    return 1 + max((depth(item) for item in nested if isinstance(item, list)), default=0)


def test_depth() -> None:
    assert depth([1, [2, [3]], []]) == 3
    assert depth([]) == 1
    assert depth([[], []]) == 2
    assert depth([1, 2]) == 1


def sum_nested(nested: list) -> int:  # type: ignore[type-arg]
    """Add up all numbers in a list that may hold lists, which may hold lists again.

    >>> sum_nested([1, [2, [3, 4]], 5])
    15
    """
    return sum(sum_nested(item) if isinstance(item, list) else item for item in nested)


def test_sum_nested() -> None:
    assert sum_nested([1, [2, [3, 4]], 5]) == 15
    assert sum_nested([]) == 0
    assert sum_nested([[[]], [7]]) == 7


def all_subsets(items: list[int]) -> list[list[int]]:
    """Return all subsets of a list of different numbers: shorter ones first, and those of one length in the order of the items.

    >>> all_subsets([1, 2])
    [[], [1], [2], [1, 2]]
    """
    from itertools import combinations

    return [list(chosen) for size in range(len(items) + 1) for chosen in combinations(items, size)]


def test_all_subsets() -> None:
    assert all_subsets([1, 2]) == [[], [1], [2], [1, 2]]
    assert all_subsets([]) == [[]]
    assert all_subsets([3, 1, 2]) == [[], [3], [1], [2], [3, 1], [3, 2], [1, 2], [3, 1, 2]]


def pairs_with_difference(numbers: list[int], difference: int) -> int:
    """Count the pairs of different values of a list whose difference is the given positive number.

    >>> pairs_with_difference([1, 5, 3, 5], 2)
    2
    """
    values = set(numbers)
    return sum(value + difference in values for value in values)


def test_pairs_with_difference() -> None:
    assert pairs_with_difference([1, 5, 3, 5], 2) == 2
    assert pairs_with_difference([], 1) == 0
    assert pairs_with_difference([4, 4], 1) == 0
    assert pairs_with_difference([1, 2, 3, 4], 1) == 3


def balance_point(numbers: list[int]) -> int:
    """Return the first index at which the sum of all numbers before it equals the sum of all behind it, or -1.

    >>> balance_point([1, 7, 3, 6, 5, 6])
    3
    """
    for index in range(len(numbers)):
        if sum(numbers[:index]) == sum(numbers[index + 1 :]):
            return index
    return -1


def test_balance_point() -> None:
    assert balance_point([1, 7, 3, 6, 5, 6]) == 3
    assert balance_point([1, 2, 3]) == -1
    assert balance_point([]) == -1
    assert balance_point([5]) == 0


def is_step_by_one(numbers: list[int]) -> bool:
    """Tell whether the numbers of a list, brought into order, follow each other without a gap and without a double. Empty lists do.

    >>> is_step_by_one([4, 2, 3])
    True
    """
    return not numbers or sorted(numbers) == list(range(min(numbers), max(numbers) + 1))


def test_is_step_by_one() -> None:
    assert is_step_by_one([4, 2, 3]) is True
    assert is_step_by_one([1, 3]) is False
    assert is_step_by_one([1, 1, 2]) is False
    assert is_step_by_one([]) is True


def weave(lists: list[list[int]]) -> list[int]:
    """Take the first item of every list, then the second of every list that has one, and so on.

    >>> weave([[1, 4], [2], [3, 5]])
    [1, 2, 3, 4, 5]
    """
    longest = max(map(len, lists), default=0)
    return [one[index] for index in range(longest) for one in lists if index < len(one)]


def test_weave() -> None:
    assert weave([[1, 4], [2], [3, 5]]) == [1, 2, 3, 4, 5]
    assert weave([]) == []
    assert weave([[], [9]]) == [9]


def last_occurrence(items: list[str], wanted: str) -> int:
    """Return the index of the last item that equals `wanted`, or -1.

    >>> last_occurrence(["a", "b", "a"], "a")
    2
    """
    return max((index for index, item in enumerate(items) if item == wanted), default=-1)


def test_last_occurrence() -> None:
    assert last_occurrence(["a", "b", "a"], "a") == 2
    assert last_occurrence([], "a") == -1
    assert last_occurrence(["x"], "x") == 0


def weighted_mean(values: list[float], weights: list[float]) -> float | None:
    """Return the mean of values by their weights, or None where the weights add up to 0.

    >>> weighted_mean([1.0, 4.0], [1.0, 3.0])
    3.25
    """
    total = sum(weights)
    return sum(v * w for v, w in zip(values, weights, strict=True)) / total if total else None


def test_weighted_mean() -> None:
    assert weighted_mean([1.0, 4.0], [1.0, 3.0]) == 3.25
    assert weighted_mean([], []) is None
    assert weighted_mean([5.0], [2.0]) == 5.0
