"""Makes the conversations of the calibration text, with a seed: `python -m bench.data.calibration` writes them again, a test compares.

`src/qwenbox/quantize/calibration.jsonl` has one JSON object a line, mixed so that any beginning of it is as diverse as the whole. Its texts are
kept as they are: prose and code that were written for this file, and parts of this project's own documents and sources as they stood once
(`source`). The conversations between them are those of coding.jsonl, programs that somebody asks for, and those that are made here, with and without
thoughts and calls of tools. All of it is this project's own work.

Languages: Chinese (simplified, traditional, classical), English, German, French, Spanish, Portuguese, Italian, Dutch, Russian, Ukrainian, Polish,
Czech, Japanese, Korean, Arabic, Hebrew, Persian, Hindi, Thai, Vietnamese, Indonesian, Turkish. Code: Python, C++, C, JavaScript, TypeScript, Rust,
Go, Java, Kotlin, Haskell, Ruby, SQL, Bash, HTML, CSS, Jinja, LaTeX, Make, CMake, TOML, YAML.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from datetime import date, timedelta
from fractions import Fraction
from itertools import pairwise
from math import comb, gcd, isqrt
from pathlib import Path
from typing import Any

TALK = Path(__file__).with_name("talk.jsonl")
CODING = Path(__file__).with_name("coding.jsonl")
FILE = Path(__file__).resolve().parents[2] / "src" / "qwenbox" / "quantize" / "calibration.jsonl"
SEED = 7
COUNT = 220
"""Conversations that are made."""

Chat = dict[str, Any]


def said(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def chat(question: str, thought: str, answer: str, system: str | None = None) -> Chat:
    messages = [] if system is None else [said("system", system)]
    messages += [said("user", question), said("assistant", answer, **({"reasoning_content": thought} if thought else {}))]
    return {"kind": "chat", "messages": messages, "thinking": bool(thought)}


# --- mathematics -----------------------------------------------------------------------------------------------------

_BOUGHT = {
    "en": (
        "{name} buys {a} {thing} at {p} cents each and pays with a note of {note} euros. How much change is there?",
        "{a} {thing} cost {a} × {p} = {cost} cents. The note is worth {note} × 100 = {cents} cents. The change is {cents} - {cost} = {rest} cents.",
        "{name} gets {rest} cents back, that is {euros} euros.",
        ("pencils", "apples", "postcards", "rolls", "tickets"),
    ),
    "zh": (
        "{name}买了{a}个{thing}，每个{p}分，付了一张{note}元的钞票。应该找回多少钱？",
        "先算总价：{a}×{p}={cost}分。{note}元等于{cents}分。找零是{cents}-{cost}={rest}分。",
        "应找回{rest}分，也就是{euros}元。",
        ("苹果", "信封", "面包", "橘子", "徽章"),
    ),
    "de": (
        "{name} kauft {a} {thing} zu je {p} Cent und zahlt mit einem {note}-Euro-Schein. Wie viel Wechselgeld gibt es?",
        "{a} mal {p} sind {cost} Cent. {note} Euro sind {cents} Cent. {cents} minus {cost} ergibt {rest}.",
        "Das Wechselgeld beträgt {rest} Cent, also {euros} Euro.",
        ("Brötchen", "Hefte", "Äpfel", "Briefmarken"),
    ),
    "fr": (
        "{name} achète {a} {thing} à {p} centimes pièce et paie avec un billet de {note} euros. Combien lui rend-on ?",
        "Le prix est {a} × {p} = {cost} centimes. Le billet vaut {cents} centimes. Il reste {cents} - {cost} = {rest} centimes.",
        "On lui rend {rest} centimes, soit {euros} euros.",
        ("croissants", "crayons", "timbres", "pommes"),
    ),
    "es": (
        "{name} compra {a} {thing} a {p} céntimos cada uno y paga con un billete de {note} euros. ¿Cuánto le devuelven?",
        "Cuestan {a} × {p} = {cost} céntimos. El billete vale {cents}. La vuelta es {cents} - {cost} = {rest}.",
        "Le devuelven {rest} céntimos, es decir, {euros} euros.",
        ("lápices", "panes", "limones", "sellos"),
    ),
    "ja": (
        "{name}さんは1つ{p}セントの{thing}を{a}個買い、{note}ユーロ札で払いました。おつりはいくらですか。",
        "代金は{a}×{p}={cost}セント。{note}ユーロは{cents}セントなので、おつりは{cents}-{cost}={rest}セント。",
        "おつりは{rest}セント、つまり{euros}ユーロです。",
        ("りんご", "切手", "パン", "ノート"),
    ),
}
_NAMES = {
    "en": ("Nora", "Malik", "Ivy", "Tobias", "Greta", "Owen"),
    "zh": ("小林", "陈静", "阿强", "美玲", "周航"),
    "de": ("Lena", "Jonas", "Frau Kramer", "Emil"),
    "fr": ("Camille", "Hugo", "Madame Petit", "Inès"),
    "es": ("Lucía", "Mateo", "Carmen", "Andrés"),
    "ja": ("佐藤", "田中", "美咲", "健太"),
}


def bought(rng: random.Random) -> Chat:
    language = rng.choice(list(_BOUGHT))
    question, thought, answer, things = _BOUGHT[language]
    a, p = rng.randint(3, 24), rng.randint(12, 95)
    note = next(n for n in (5, 10, 20, 50) if n * 100 > a * p)
    rest = note * 100 - a * p
    values = {"name": rng.choice(_NAMES[language]), "thing": rng.choice(things), "a": a, "p": p, "note": note}
    values |= {"cost": a * p, "cents": note * 100, "rest": rest, "euros": f"{rest / 100:.2f}"}
    return chat(question.format(**values), thought.format(**values) if rng.random() < 0.7 else "", answer.format(**values))


def equation(rng: random.Random) -> Chat:
    x, a, c = rng.randint(-12, 15), rng.choice([2, 3, 4, 5, 7, 9, 11]), rng.randint(-6, 6)
    b = rng.randint(-30, 40)
    if c == a:
        c -= 1
    right = a * x + b - c * x
    thought = (
        f"Equation: {a}x + ({b}) = {c}x + ({right}). Bring the terms with x to the left: ({a} - ({c}))x = {right} - ({b}), "
        f"so {a - c}x = {right - b}. Dividing, x = {Fraction(right - b, a - c)}. Check: {a}·({x}) + ({b}) = {a * x + b} and "
        f"{c}·({x}) + ({right}) = {c * x + right}. Both sides agree."
    )
    if rng.random() < 0.5:
        return chat(f"Solve for x: {a}x + {b} = {c}x + {right}", thought, f"**x = {x}**\n\nBoth sides are then {a * x + b}.")
    chinese = f"移项得({a}-({c}))x={right}-({b})，即{a - c}x={right - b}，所以x={x}。代回去检验：左边{a * x + b}，右边{c * x + right}，相等。"
    return chat(f"解方程：{a}x+({b})={c}x+({right})", chinese, f"解为 $x={x}$。")


def divisor(rng: random.Random) -> Chat:
    factor = rng.randint(2, 36)
    a, b = factor * rng.randint(5, 60), factor * rng.randint(5, 60)
    steps, m, n = [], max(a, b), min(a, b)
    while n:
        steps.append(f"{m} = {m // n} · {n} + {m % n}")
        m, n = n, m % n
    answer = f"gcd({a}, {b}) = {m}, and lcm({a}, {b}) = {a * b // gcd(a, b)}."
    thought = "Euclid's algorithm:\n" + "\n".join(steps) + f"\nThe last remainder that is not zero is {m}. The product of both numbers is {a * b}."
    return chat(f"What are the greatest common divisor and the least common multiple of {a} and {b}?", thought, answer)


def prime(rng: random.Random) -> Chat:
    n = rng.randrange(101, 1200, 2)
    divisors = [d for d in range(2, isqrt(n) + 1) if n % d == 0]
    tried = ", ".join(
        f"{n} mod {d} = {n % d}" for d in range(3, min(isqrt(n), divisors[0] if divisors else n) + 1, 2) if all(d % e for e in (3, 5, 7) if e < d)
    )
    verdict = f"divisible by {divisors[0]}: {n} = {divisors[0]} × {n // divisors[0]}" if divisors else f"prime: no number up to {isqrt(n)} divides it"
    if rng.random() < 0.4:
        chinese = (
            f"{n}能被{divisors[0]}整除，{n}={divisors[0]}×{n // divisors[0]}，所以不是质数。"
            if divisors
            else f"{n}是质数，因为不超过{isqrt(n)}的质数都不能整除它。"
        )
        return chat(f"{n}是质数吗？请说明理由。", f"只需检查到√{n}，约为{isqrt(n)}。逐个计算余数：{tried}。", chinese)
    return chat(f"Is {n} a prime number?", f"I need divisors up to sqrt({n}), about {isqrt(n)}. Trying odd ones: {tried}.", f"{n} is {verdict}.")


def urn(rng: random.Random) -> Chat:
    red, blue = rng.randint(2, 9), rng.randint(2, 9)
    both = Fraction(comb(red, 2), comb(red + blue, 2))
    question = f"An urn holds {red} red and {blue} blue balls. Two are drawn without putting back. How likely are two red ones?"
    thought = (
        f"There are C({red + blue}, 2) = {comb(red + blue, 2)} pairs, all equally likely. Pairs of two red balls: C({red}, 2) = {comb(red, 2)}. "
        f"So the probability is {comb(red, 2)}/{comb(red + blue, 2)} = {both}. Another way: {red}/{red + blue} · {red - 1}/{red + blue - 1} = {both}."
    )
    return chat(question, thought, f"The probability is $\\frac{{{both.numerator}}}{{{both.denominator}}} \\approx {float(both):.4f}$.")


def sequence(rng: random.Random) -> Chat:
    kind, start, step = rng.randrange(3), rng.randint(1, 12), rng.randint(2, 9)
    if kind == 0:
        terms, rule = [start + step * i for i in range(7)], f"each term is {step} more than the one before"
    elif kind == 1:
        terms, rule = [start * 2**i for i in range(7)], "each term is twice the one before"
    else:
        terms = [start, step]
        while len(terms) < 7:
            terms.append(terms[-1] + terms[-2])
        rule = "each term is the sum of the two before it"
    shown = ", ".join(map(str, terms[:5]))
    differences = ", ".join(str(b - a) for a, b in pairwise(terms[:5]))
    return chat(
        f"Continue the sequence by two terms: {shown}, ...", f"The differences are {differences}. So {rule}.", f"{terms[5]}, {terms[6]}: {rule}."
    )


def weekday(rng: random.Random) -> Chat:
    day = date(2024, 1, 1) + timedelta(days=rng.randrange(1500))
    ahead = rng.randint(9, 400)
    then = day + timedelta(days=ahead)
    chinese = "一二三四五六日"
    if rng.random() < 0.5:
        thought = f"{ahead}除以7余{ahead % 7}。从星期{chinese[day.weekday()]}往后数{ahead % 7}天，是星期{chinese[then.weekday()]}。"
        return chat(
            f"今天是{day:%Y年%m月%d日}，星期{chinese[day.weekday()]}。{ahead}天以后是星期几？",
            thought,
            f"星期{chinese[then.weekday()]}，日期是{then:%Y-%m-%d}。",
        )
    thought = f"{ahead} = {ahead // 7} · 7 + {ahead % 7}. Whole weeks change nothing, so I count {ahead % 7} days on from {day:%A}."
    return chat(f"Today is {day:%A}, {day:%d %B %Y}. Which weekday is it in {ahead} days?", thought, f"A {then:%A} ({then:%Y-%m-%d}).")


# --- tools -----------------------------------------------------------------------------------------------------------


def tool(name: str, description: str, required: int = 1, /, **properties: Mapping[str, Any]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)[:required]}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


_TEXT = {"type": "string"}
_WEATHER = tool("get_weather", "Weather of a place now or on a day to come.", city=_TEXT, day={"type": "string", "enum": ["today", "tomorrow"]})
_ROUTE = tool("find_route", "Fastest way between two places.", 2, start=_TEXT, goal=_TEXT, by={"type": "string", "enum": ["car", "train", "bicycle"]})
_QUERY = tool("run_sql", "Run a read-only query on the shop's database and return its rows as JSON.", query=_TEXT, limit={"type": "integer"})
_FILES = tool("read_file", "Return a text file of the workspace.", path=_TEXT, first_line={"type": "integer"}, last_line={"type": "integer"})
_EDIT = tool("replace_in_file", "Replace text that occurs exactly once.", 3, path=_TEXT, old=_TEXT, new=_TEXT)
_EVENT = tool(
    "add_event", "Put an event into the calendar.", 2, title=_TEXT, begin={"type": "string", "format": "date-time"}, minutes={"type": "integer"}
)
_CONVERT = tool("convert_money", "Convert an amount at today's rate.", 3, amount={"type": "number"}, source=_TEXT, target=_TEXT)
_ALL = (_WEATHER, _ROUTE, _QUERY, _FILES, _EDIT, _EVENT, _CONVERT)


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def told(question: str, thought: str, calls: list[dict[str, Any]], results: list[Any], answer: str) -> list[dict[str, Any]]:
    """A question, the calls that the assistant makes, what they return and the answer."""
    asked = said("assistant", "", tool_calls=calls, **({"reasoning_content": thought} if thought else {}))
    returned = [said("tool", result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)) for result in results]
    return [said("user", question), asked, *returned, said("assistant", answer)]


_CITIES = (
    ("Bergen", "卑尔根"),
    ("Lima", "利马"),
    ("成都", "成都"),
    ("Nairobi", "内罗毕"),
    ("Québec", "魁北克"),
    ("Kraków", "克拉科夫"),
    ("札幌", "札幌"),
)
_SKIES = (("light rain", "小雨"), ("clear sky", "晴"), ("fog until noon", "上午有雾"), ("snow showers", "阵雪"), ("thunderstorms", "雷阵雨"))


def weather(rng: random.Random) -> list[dict[str, Any]]:
    places = rng.sample(_CITIES, rng.choice([1, 1, 2]))
    skies = [(rng.choice(_SKIES), rng.randint(-8, 34)) for _ in places]
    day = rng.choice(["today", "tomorrow"])
    results = [{"city": place[0], "day": day, "sky": sky[0], "celsius": warm} for place, (sky, warm) in zip(places, skies, strict=True)]
    calls = [call("get_weather", city=place[0], day=day) for place in places]
    if rng.random() < 0.5:
        when = {"today": "今天", "tomorrow": "明天"}[day]
        report = "；".join(f"{place[1]}{sky[1]}，{warm}度" for place, (sky, warm) in zip(places, skies, strict=True))
        thought = f"用户想知道{'和'.join(place[1] for place in places)}{when}的天气，需要查询{len(places)}次。"
        return told(f"{'和'.join(place[1] for place in places)}{when}天气怎么样？", thought, calls, results, f"{when}{report}。")
    report = "; ".join(f"{place[0]}: {sky[0]}, {warm} °C" for place, (sky, warm) in zip(places, skies, strict=True))
    asked = f"What will the weather be like {day} in {' and '.join(place[0] for place in places)}?"
    return told(asked, f"I can look that up with get_weather, once for each of {len(places)}.", calls, results, f"{report}.")


def shop(rng: random.Random) -> list[dict[str, Any]]:
    month, item = rng.randint(1, 12), rng.choice(["kettles", "headlamps", "rucksacks", "notebooks", "raincoats"])
    sold, returned = rng.randint(40, 900), rng.randint(0, 39)
    query = f"SELECT COUNT(*) AS sold, SUM(returned) AS returned FROM sale WHERE item = '{item}' AND strftime('%m', day) = '{month:02}'"
    thought = f"The table sale has item, day and returned. I count the rows of month {month:02} and sum the returns."
    answer = f"In month {month}, {sold} {item} were sold and {returned} came back, a share of {returned / sold:.1%}."
    return told(
        f"How many {item} did we sell in month {month}, and how many came back?",
        thought,
        [call("run_sql", query=query)],
        [[{"sold": sold, "returned": returned}]],
        answer,
    )


def repair(rng: random.Random) -> list[dict[str, Any]]:
    name, old, new, why = rng.choice(_FAULTS)
    path = f"{rng.choice(['src', 'lib', 'app/core'])}/{name}.py"
    question = rng.choice([f"Why does {path} give wrong results? Please mend it.", f"{path} 的结果不对，请帮我修好。"])
    first = told(question, f"I read {path} before I change anything.", [call("read_file", path=path)], [f"def {name}(values):\n{old}\n"], "")
    then = said("assistant", "", tool_calls=[call("replace_in_file", path=path, old=old, new=new)], reasoning_content=why)
    return [*first[:-1], then, said("tool", "1 replacement"), said("assistant", f"{why} It reads now:\n\n```python\ndef {name}(values):\n{new}\n```")]


_FAULTS = (
    (
        "mean",
        "    return sum(values) / (len(values) - 1)",
        "    return sum(values) / len(values)",
        "The sum was divided by one less than the number of values.",
    ),
    (
        "largest",
        "    best = 0\n    for value in values:\n        best = max(best, value)\n    return best",
        "    return max(values)",
        "With best = 0 at the start, negative values could never win.",
    ),
    ("unique", "    return list(set(values))", "    return list(dict.fromkeys(values))", "A set forgets the order; a dict keeps the first of each."),
    (
        "pairs",
        "    return [(a, b) for a in values for b in values]",
        "    return list(zip(values, values[1:]))",
        "Neighbours were wanted, not every combination.",
    ),
    (
        "running",
        "    total = 0\n    out = []\n    for value in values:\n        out.append(total)\n        total += value\n    return out",
        "    total = 0\n    out = []\n    for value in values:\n        total += value\n        out.append(total)\n    return out",
        "The total was appended before the value was added to it.",
    ),
)


def appointment(rng: random.Random) -> list[dict[str, Any]]:
    begin = date(2027, 1, 4) + timedelta(days=rng.randrange(300))
    hour, minutes = rng.randint(8, 18), rng.choice([15, 30, 45, 60, 90])
    title, chinese = rng.choice(
        [("dentist", "看牙医"), ("review of the budget", "预算评审"), ("piano lesson", "钢琴课"), ("call with Osaka", "和大阪通电话")]
    )
    calls = [call("add_event", title=title, begin=f"{begin}T{hour:02}:00:00", minutes=minutes)]
    if rng.random() < 0.5:
        answer = f"已添加：{title}，{begin:%m月%d日}{hour}点，{minutes}分钟。"
        return told(f"帮我在{begin:%m月%d日}{hour}点加一个日程：{chinese}，{minutes}分钟。", "", calls, ["ok"], answer)
    asked = f"Put '{title}' into my calendar on {begin:%d %B} at {hour}:00 for {minutes} minutes."
    return told(asked, "", calls, ["ok"], f"Done: {title}, {begin:%A %d %B}, {hour}:00, {minutes} minutes.")


def money(rng: random.Random) -> list[dict[str, Any]]:
    source, target = rng.sample(["EUR", "USD", "CNY", "JPY", "BRL", "INR"], 2)
    amount, rate = rng.randint(5, 4000), rng.randint(2, 900) / 100
    value = round(amount * rate, 2)
    asked = f"How much are {amount} {source} in {target}?"
    thought = f"First the conversion of {amount} from {source} to {target}; the comparison follows from it."
    return told(
        asked,
        thought,
        [call("convert_money", amount=amount, source=source, target=target)],
        [{"amount": value, "rate": rate}],
        f"{amount} {source} are {value:,.2f} {target} at a rate of {rate}.",
    )


def with_tools(rng: random.Random) -> Chat:
    make: Callable[[random.Random], list[dict[str, Any]]] = rng.choice([weather, weather, shop, repair, appointment, money])
    messages = make(rng)
    needed = {item["function"]["name"] for message in messages for item in message.get("tool_calls", ())}
    tools = [one for one in _ALL if one["function"]["name"] in needed or rng.random() < 0.3]
    rng.shuffle(tools)
    if rng.random() < 0.3:
        messages.insert(
            0, said("system", rng.choice(["You are a careful assistant. Use tools where they help.", "你是一个可靠的助手，必要时调用工具。"]))
        )
    thinks = any("reasoning_content" in message for message in messages)
    return {"kind": "chat", "messages": messages, "tools": tools, "thinking": thinks}


# --- forms -----------------------------------------------------------------------------------------------------------


def extraction(rng: random.Random) -> Chat:
    order = {
        "order": rng.randint(10000, 99999),
        "customer": rng.choice(["Amara Diallo", "王建国", "Søren Friis", "Yuki Mori", "Fátima Reis"]),
        "items": [
            {"name": name, "count": rng.randint(1, 9), "price": rng.randint(100, 9900) / 100}
            for name in rng.sample(["lamp", "chair", "茶杯", "rug", "shelf", "clock"], 2)
        ],
        "express": rng.random() < 0.5,
    }
    listed = " and ".join(f"{item['count']} × {item['name']} at {item['price']}" for item in order["items"])
    hurry = ("Please send it by express", "要求加急") if order["express"] else ("There is no hurry", "不需要加急")
    letter = rng.choice(
        [
            f"Hello, this is {order['customer']}. About order {order['order']}: I wanted {listed}. {hurry[0]}.",
            f"客户{order['customer']}来信：订单号{order['order']}，内容是{listed}，{hurry[1]}。",
        ]
    )
    indent = rng.choice([None, 2])
    answer = json.dumps(order, ensure_ascii=False, indent=indent)
    question = f"{letter}\n\nReturn it as JSON with the fields order, customer, items (name, count, price) and express. Only JSON."
    return chat(question, "", answer if indent is None else f"```json\n{answer}\n```")


def table(rng: random.Random) -> Chat:
    rows = [
        (rng.choice(["Ohm", "Vega", "Lyra", "Atlas", "Nova"]) + f"-{rng.randint(2, 90)}", rng.randint(3, 99), rng.randint(100, 9999))
        for _ in range(rng.randint(3, 6))
    ]
    given = "\n".join(f"{name};{mass};{cost}" for name, mass, cost in rows)
    best = max(rows, key=lambda row: row[2] / row[1])
    shown = "\n".join(f"| {name} | {mass} | {cost} | {cost / mass:.2f} |" for name, mass, cost in sorted(rows, key=lambda row: -row[2] / row[1]))
    question = f"Sort these lines (name;kg;price) by price per kilogram and answer with a Markdown table:\n\n{given}"
    thought = "Price by mass: " + ", ".join(f"{name} {cost}/{mass} = {cost / mass:.2f}" for name, mass, cost in rows) + f". The largest is {best[0]}."
    return chat(question, thought, f"| name | kg | price | per kg |\n|---|---|---|---|\n{shown}")


def program(rng: random.Random) -> Chat:
    language, text, answer = rng.choice(_OUTPUTS)
    a, b, c = rng.randint(2, 9), rng.randint(2, 9), rng.randint(1, 6)
    question = rng.choice(["What does this print?", "这段代码输出什么？", "Que affiche ce programme ?", "Was gibt dieses Programm aus?"])
    source = text.replace("A_", str(a)).replace("B_", str(b)).replace("C_", str(c))
    value = answer(a, b, c)
    thought = f"With the numbers {a}, {b} and {c} I go through it line by line; at the end the value is {value}."
    return chat(f"{question}\n\n```{language}\n{source}\n```", thought, f"`{value}`")


_OUTPUTS: tuple[tuple[str, str, Callable[[int, int, int], Any]], ...] = (
    ("python", "total = 0\nfor i in range(A_):\n    total += i * B_\nprint(total + C_)", lambda a, b, c: sum(i * b for i in range(a)) + c),
    (
        "javascript",
        "const xs = Array.from({ length: A_ }, (_, i) => i + B_);\nconsole.log(xs.filter((x) => x % 2 === 0).length - C_);",
        lambda a, b, c: sum((i + b) % 2 == 0 for i in range(a)) - c,
    ),
    ("c", 'int f(int n) { return n < 2 ? C_ : f(n - 1) + f(n - 2); }\nint main(void) { printf("%d\\n", f(A_)); }', lambda a, b, c: _sum_of_two(a, c)),
    (
        "rust",
        "fn main() {\n    let word: String = (0..A_).map(|i| char::from(b'a' + ((i * B_) % 26) as u8)).collect();\n    println!(\"{word}\");\n}",
        lambda a, b, c: "".join(chr(97 + i * b % 26) for i in range(a)),
    ),
    (
        "python",
        "table = {n: n ** 2 for n in range(1, A_ + 1)}\nprint(sorted(table.values(), reverse=True)[:C_])",
        lambda a, b, c: sorted((n * n for n in range(1, a + 1)), reverse=True)[:c],
    ),
    ("go", "x := A_\nfor x < 100 {\n\tx = x*B_ + C_\n}\nfmt.Println(x)", lambda a, b, c: _grown(a, b, c)),
)


def _sum_of_two(n: int, first: int) -> int:
    return first if n < 2 else _sum_of_two(n - 1, first) + _sum_of_two(n - 2, first)


def _grown(x: int, factor: int, more: int) -> int:
    while x < 100:
        x = x * factor + more
    return x


# --- conversations ---------------------------------------------------------------------------------------------------


def conversation(rng: random.Random, left: list[tuple[str, str]]) -> Chat:
    """Some of the questions that are left, one after another."""
    messages = (
        [said("system", rng.choice(["You are a helpful assistant.", "Answer briefly and in the user's language.", "你是一个乐于助人的助手。"]))]
        if rng.random() < 0.4
        else []
    )
    for _ in range(rng.choice([1, 1, 2, 3])):
        if left:
            question, answer = left.pop()
            messages += [said("user", question), said("assistant", answer)]
    return {"kind": "chat", "messages": messages, "thinking": False}


def asked(path: Path) -> list[tuple[str, str]]:
    """Questions and answers."""
    return [(one["question"], one["answer"]) for one in map(json.loads, path.read_text(encoding="utf-8").splitlines())]


def conversations() -> Iterator[Chat]:
    """All of them, the same each time."""
    rng = random.Random(SEED)
    left = asked(TALK)
    rng.shuffle(left)
    makers = [bought, equation, divisor, prime, urn, sequence, weekday, extraction, table, program, *[with_tools] * 6]
    for number in range(COUNT):
        if left and number % 5 == 0:
            yield conversation(rng, left)
        yield rng.choice(makers)(rng)


def texts() -> list[str]:
    """The lines that are kept."""
    return [line for line in FILE.read_text(encoding="utf-8").splitlines() if '"kind": "text"' in line]


def lines() -> list[str]:
    """Texts and conversations, each evenly among the others."""
    programs = [chat(question, "", answer) for question, answer in asked(CODING)]
    kinds = [texts(), *([json.dumps(one, ensure_ascii=False) for one in chats] for chats in (conversations(), programs))]
    return [line for _, _, line in sorted((index / len(kind), number, line) for number, kind in enumerate(kinds) for index, line in enumerate(kind))]


if __name__ == "__main__":
    FILE.write_text("".join(f"{line}\n" for line in lines()), encoding="utf-8")
