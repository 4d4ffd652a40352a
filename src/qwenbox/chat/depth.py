"""How deeply a request deserves to be thought about, by what stands in it: a table of cues and their points, no model.

Another policy is another function from messages and tools to a `DepthChoice`. How far this one agrees with people is what
`PYTHONPATH=src python -m tests.chat.depth` prints.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from qwenbox.types import Message

Depth = Literal["off", "short", "medium", "long"]

BUDGETS: Mapping[Depth, int | None] = {"off": 0, "short": 512, "medium": 2048, "long": None}
"""Tokens that a thought of each depth may have; None: as many as the request has room for."""

THRESHOLDS: Mapping[Depth, int] = {"long": 9, "medium": 5, "short": 2}
"""Points from which on a depth is chosen, deepest first; below all of them it is off."""

REASONS: Mapping[str, str] = {
    "hurry": "asks for an answer without thought",
    "given": "works on a given text",
    "free": "is free writing",
    "word": "asks what a word means",
    "conditions": "sets conditions",
    "form": "has a form to keep",
    "proof": "asks for a proof or a derivation",
    "contest": "is a contest question",
    "puzzle": "is a puzzle",
    "premises": "has many premises",
    "design": "asks for a design",
    "care": "asks for care",
    "science": "is mathematics or science",
    "result": "asks for a result",
    "conclusion": "asks for a conclusion",
    "code": "asks for code",
    "engineering": "asks for code that meets conditions",
    "fault": "looks for a fault",
    "plan": "asks for a plan",
    "judgement": "asks for a judgement",
    "analysis": "asks for an analysis",
    "composed": "has to be composed",
    "figures": "has figures",
    "formulas": "has formulas",
    "source": "has code",
    "sum": "has a sum",
    "error": "has an error",
    "parts": "has several parts",
    "long": "is long",
    "tools": "may take several tools",
    "nothing": "nothing in it asks for thought",
    "sure": "the model was sure of its answer",
    "unsure": "the model was not sure without thought",
}
"""What speaks for a depth, by the code under which the page knows it; the last two are of a trial without thought."""

HEAD, TAIL = 800, 400
"""Characters that are read of the last message: what is wanted stands before or behind what was pasted."""
OPENING = 80
"""Characters at whose beginning a request says what kind of work it is."""


class DepthChoice(NamedTuple):
    depth: Depth
    cues: tuple[str, ...]
    """What decided, the strongest first: codes of `REASONS`."""
    is_brief: bool = False
    """The answer is a word or a number: how sure the model is of it tells whether it needs a thought."""


class Cue(NamedTuple):
    """Phrases that mean the same to the policy. Each one found gives `points`, at most `most` of them count."""

    code: str
    points: int
    phrases: tuple[str, ...]
    """In lower case; a blank is the edge of a word."""
    most: int


def _cue(code: str, points: int, phrases: str, most: int = 1) -> Cue:
    return Cue(code, points, tuple(phrases.split("|")), most)


HURRY = _cue(
    "hurry",
    0,
    " don't think| without thinking| don't reason| no reasoning| quick answer| just answer | just the answer|"
    " just give me the | no explanation| one word | yes or no |不用思考|不要思考|别想|不用想|直接回答|直接给答案|直接告诉|"
    "只回答|只要答案|一句话回答|不要解释|不用解释",
)
"""A person who says how much thought is wanted is right, whatever else stands there."""

DIRECT: tuple[Cue, ...] = (
    # Done while the text is read; what the text is about asks nothing.
    _cue(
        "given",
        0,
        " translat| summar| tldr| tl dr | rewrite in| rewrite this| rewrite the| rephrase| paraphrase| proofread| grammar|"
        " extract | polite| sentiment| how do you say | shorten | from the text | text below |翻译|润色|总结|"
        "概括|提取|改写|改得|缩写成|病句|用英语|要点|情感",
    ),
    # Free writing flows; thoughts make it no better.
    _cue(
        "free",
        0,
        " poem | haiku | story | joke | names for | birthday | tagline | slogan | song |写一首|写首|童话|写个故事|讲个|起个名|"
        "起几个|生日|聊聊天|情书|微信",
    ),
    # What everybody knows.
    _cue(
        "word",
        0,
        " mean? | stand for? | meaning of |什么意思|的缩写|什么是",
    ),
)
"""Kinds of requests whose subject does not matter. Such a request opens with one; of the rest only `FORM` counts."""

FORM: tuple[Cue, ...] = (
    # Each is one more thing to keep in mind.
    _cue(
        "conditions",
        1,
        " must | at most | at least | no more than | cannot | can't | without | budget | exactly | not before | under | only |"
        "不能|至少|最多|要求|预算|必须|而且|以内|只能|不想|不含",
        most=3,
    ),
    # Looked at before each line.
    _cue(
        "form",
        2,
        " first letters | acrostic| json | a table | csv |藏头|json|表格",
    ),
)
"""How an answer has to be."""

DEEP: tuple[Cue, ...] = (
    # Nobody writes one down in one go.
    _cue(
        "proof",
        9,
        " prove | proof | show that | derive | rigorous| is optimal | full solution |证明|推导|逐个论证",
    ),
    # Every case has to be found.
    _cue(
        "contest",
        7,
        " find all | determine all | how many integers | aime | olympiad| putnam | ordered triples |"
        " integers |求所有|竞赛|奥数|奥赛|恒成立|整数解|整除",
    ),
    # Guesses are tried and taken back.
    _cue(
        "puzzle",
        6,
        " knave| always lie| tells the truth | puzzle| riddle| cryptarithm| logic grid| sudoku| who owns | counterfeit |"
        " weighings | the boat | prisoners |真话|说谎|谜题|谁养|过河|天平|囚犯|数独|推理题",
    ),
    # They have to hold together.
    _cue(
        "premises",
        2,
        " lives | next to | the owner | left of | each of |隔壁|紧挨|住在|左边",
        most=3,
    ),
    # Its parts have to fit each other.
    _cue(
        "design",
        5,
        " design | devise | lock free | distributed | time limit | memory limit | algorithm| strategy |设计|架构|无锁|算法|时序|容灾|的方案",
        most=2,
    ),
)
"""Only these make a thought long."""

CUES: tuple[Cue, ...] = (
    # The person expects depth.
    _cue(
        "care",
        3,
        " think hard | carefully | step by step | every step | each step | in detail | are you sure |"
        " complete |仔细|认真|详细|一步一步|每一步|完整|深入|确定吗|逐条|过程|写清楚|所有可能",
    ),
    # More than one calculation, each on the other's result.
    _cue(
        "science",
        4,
        " integral | eigen| probabilit| polynomial| equation of | matrix | differentiate |"
        " compounded | friction | incline | how many ways | triangle | theorem| recurrence | determinant|"
        " derivative| vector| divisible | remainder | permutation| interest | velocity |积分|特征值|概率|函数 f|极值|数列|椭圆|"
        "矩阵|摩擦|不等式|导数|极限|向量|行列式|排列|组合数|余数|利率|浓度|加速度|质量分数|选法|相遇|质点|单调",
        most=2,
    ),
    # Little alone: figures and formulas beside it tell how much is to be calculated.
    _cue(
        "result",
        1,
        " how much | how many | solve | calculate | compute | how long | bigger | split | cheapest | in total |多少|解方程|"
        "计算|几点|几颗|几只|几个字|哪个大|面积|平均|便宜|求",
    ),
    # A step or two, and tempting to guess.
    _cue(
        "conclusion",
        2,
        " taller than | older than | who is the | if all | multiple choice| which of these | which is bigger |谁最|"
        "所有的|该叫|选择题|下列|哪个大|几个字|还剩",
    ),
    # Signature, body and edges in one's head first.
    _cue(
        "code",
        2,
        " function | class | component | endpoint | sql | regex | regular expression | one liner | a script | css | a program |"
        " unit test| bash | a query | comprehension |一个函数|sql：|正则|脚本|写代码|一段代码|"
        "命令统计|excel",
    ),
    # Each of them has to be checked against the code.
    _cue(
        "engineering",
        3,
        " implement | o 1 | o n| complexity | concurrent | thread safe | with tests | edge cases | refactor | c++|实现|复杂度|"
        "并发|单元测试|重构|优雅退出",
        most=2,
    ),
    # The code has to be run in one's head.
    _cue(
        "fault",
        3,
        " why and | find it| how do i fix | what's wrong | segfault | race condition | memory leak| not working |"
        " doesn't work | crash| forever| restructure| debug | bug | deadlock| fix it |崩溃|卡死|内存泄漏|死循环|原因|"
        "哪里有问题|怎么改|报错|优化|不更新|异常",
    ),
    # Parts are moved until all conditions hold.
    _cue(
        "plan",
        4,
        " plan | itinerary | roadmap | timetable | schedule | slot |计划|安排|行程|规划|攻略|日程",
    ),
    # Several sides, each looked at.
    _cue(
        "judgement",
        2,
        " compare| trade offs | advantages | recommend one | pros and cons | should i | vs | help me decide| which one |"
        " choose between |比较|对比|优缺点|利弊|哪个好|还是|怎么选",
        most=2,
    ),
    # Causes behind causes.
    _cue(
        "analysis",
        4,
        " analyse | analyze | critique | consequences | explain why | what would happen | fallac| is it because |"
        " likely |分析|影响|漏洞|退化|批改|利弊|后果",
    ),
    # An order to find before the first word.
    _cue(
        "composed",
        2,
        " outline | suggest | a table |提纲|做什么|整理成|区别",
    ),
)
MOST = 8
"""Points that everything that is not deep gives together at most."""

BRIEF = ("result", "conclusion", "figures", "sum")
"""Where nothing deep is asked, these want a word or a number, ..."""
MANY_FIGURES = 7
"""... which nobody guesses from so many digits or more."""

_CODE = re.compile(
    r"```[\s\S]*?(?:```|\Z)"
    r"|^(?:[ \t]{2,}\S|\t|(?:def|class|import|return|for|if|while|function|FROM|RUN|COPY|Traceback)\b|\w+ ?[-+*]?= |\w[\w.]*\(.*\)$).*$"
    r"|^.*[;{}]$",
    re.MULTILINE,
)
_FILE = re.compile(r'^<file name="[^"\n]*">\n[\s\S]*?\n</file>\n+', re.MULTILINE)
"""A file that the page put before the question: what stands in it asks nothing."""
_ERROR = re.compile(r"(?:Error|Exception)\b|^Traceback", re.MULTILINE)
_FORMULA = re.compile(r"[=^≤≥<>∫√²³₁₂ⁿ∈]")
_PART = re.compile(r"[?？]|[(（]\d[)）]|^(?:[-*] |\d+[.)、]\s)", re.MULTILINE)
_SUM = re.compile(r"\d{2,}\s?(?:[+*/×÷乘除加减]|- )|\d\s?(?:[+*×÷]|- )\s?\d|(?<![\d-])\d-\d(?![\d-])")
_DIGIT = re.compile(r"\d")
_WIDE = re.compile(r"[\u3000-\u9fff]")
_EDGE = re.compile(r"[\s\".,;:!()\[\]*`‘“”-]+")


def choose_depth(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> DepthChoice:
    """The depth that the last message of the user deserves. Reads at most `HEAD` + `TAIL` characters of it."""
    asked = next((message.content for message in reversed(messages) if message.role == "user"), "")
    if len(asked) > HEAD + TAIL:
        asked = asked[:HEAD] + "\n" + asked[-TAIL:]
    asked = _FILE.sub("", asked)
    prose = _CODE.sub("\n", asked)
    words = _edged(prose)
    if any(_found((HURRY,), words)):
        return DepthChoice("off", (HURRY.code,))
    form = [*_found(FORM, words)]
    deep: list[tuple[int, str]] = []
    if kind := [*_found(DIRECT, words[:OPENING])]:
        plain = kind[:1] + form
    else:
        plain, deep = [*form, *_found(CUES, words), *_shape(asked, prose, bool(tools))], [*_found(DEEP, words)]
    points = sum(points for points, _ in deep) + min(MOST, sum(points for points, _ in plain))
    found = sorted(deep + plain, key=lambda one: -one[0])
    depth: Depth = next((depth for depth, least in THRESHOLDS.items() if points >= least), "off")
    simple = not kind and not tools and points < THRESHOLDS["medium"] and len(_DIGIT.findall(prose)) < MANY_FIGURES
    is_brief = simple and any(code in BRIEF for _, code in found)
    return DepthChoice(depth, tuple(code for _, code in found) or ("nothing",), is_brief)


def _edged(text: str) -> str:
    """`text` in lower case, with one blank at each edge of a word."""
    return f" {_EDGE.sub(' ', text.lower().replace('’', chr(39)))} "


def _found(cues: Sequence[Cue], words: str) -> Iterator[tuple[int, str]]:
    for cue in cues:
        if count := min(cue.most, sum(phrase in words for phrase in cue.phrases)):
            yield count * cue.points, cue.code


def _shape(asked: str, prose: str, tools: bool) -> Iterator[tuple[int, str]]:
    """What is seen without reading."""
    if digits := min(3, (len(_DIGIT.findall(prose)) + 1) // 4):
        yield digits, "figures"
    if len(_FORMULA.findall(prose)) >= 3:
        yield 1, "formulas"
    if len(asked) - len(prose) >= 20:
        yield 1 + (asked.count("\n") >= 6), "source"
    if (sum_ := _SUM.search(prose)) is not None:
        yield int(sum_[0][:2].isdigit()), "sum"
    if _ERROR.search(asked):
        yield 2, "error"
    if (parts := len(_PART.findall(prose))) >= 2:
        yield min(2, parts // 2), "parts"
    # A Chinese character says as much as about three letters.
    length = len(prose) + 2 * len(_WIDE.findall(prose))
    if length >= 160:
        yield 1 + (length >= 320), "long"
    if tools and length >= 60:
        yield 2, "tools"
