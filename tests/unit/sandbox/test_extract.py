"""What of a completion is its program: which block counts, and what is added to it."""

from __future__ import annotations

import ast
import time
import warnings
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.sandbox import extract
from posttrain.sandbox.pieces import LONGEST, free_names, hoisted

RIGHT = "def f(x):\n    return 2 * x\n"
WRONG = "def f(x):\n    return -1\n"


def fenced(code: str, language: str = "python", fence: str = "```") -> str:
    return f"{fence}{language}\n{code}{fence}\n"


def listed(code: str, indent: str) -> str:
    return "".join(f"{indent}{line}\n" for line in fenced(code).splitlines())


# Completions whose answer is a function f with f(2) == 4.
ANSWERS = {
    "bare": RIGHT,
    "fenced": f"Here it is.\n\n{fenced(RIGHT)}\nIt doubles.",
    "usage last": fenced(RIGHT) + "Usage:\n" + fenced("print(f(3))\n"),
    "usage by import": fenced(RIGHT) + fenced("from solution import f\n\nassert f(1) == 2\n"),
    "usage twice": fenced(RIGHT) + fenced("f(1)\n") + fenced("result = f(2)\nprint(result)\n"),
    "tests last": fenced(RIGHT)
    + fenced("import unittest\n\nclass T(unittest.TestCase):\n    def test(self):\n        f(1)\n"),
    "corrected": fenced(WRONG) + "That is wrong. Corrected:\n" + fenced(RIGHT),
    "corrected, usage": fenced(WRONG) + fenced(RIGHT) + fenced("print(f(3))\n"),
    "helper first": fenced("def twice(x):\n    return 2 * x\n")
    + fenced("def f(x):\n    return twice(x)\n"),
    "helper corrected": fenced("def twice(x):\n    return -1\n")
    + fenced("def twice(x):\n    return 2 * x\n")
    + fenced("def f(x):\n    return twice(x)\n"),
    "helpers of helpers": fenced("import operator\nTWO = 2\n")
    + fenced("def twice(x):\n    return operator.mul(TWO, x)\nprint(twice(undefined))\n")
    + fenced("def f(x):\n    return twice(x)\n"),
    "decorator in a block": fenced("def same(g):\n    return g\n")
    + fenced("@same\ndef twice(x):\n    return 2 * x\n")
    + fenced("f = twice\n"),
    "imports first": fenced("import math\n") + fenced("def f(x):\n    return math.prod([2, x])\n"),
    "import in a usage block": fenced("class Two:\n    n = 2\n")
    + fenced("from solution import Two\nprint(Two)\n")
    + fenced("def f(x):\n    return Two.n * x\n"),
    "a failing example before": fenced(WRONG + "assert f(2) == 4\n") + fenced(RIGHT),
    "future in another block": fenced(
        "from __future__ import annotations\nclass A:\n    x: Later\n"
    )
    + fenced("def f(x):\n    return A and 2 * x\n"),
    "output block": fenced(RIGHT) + fenced("4\n", "") + fenced("4\n", "text"),
    "all without language": fenced(RIGHT, "") + "Output:\n" + fenced("4\n", ""),
    "other languages": fenced(RIGHT) + fenced("f = x => 2 * x\n", "js") + fenced("f(1)\n", "sh"),
    "shell last": fenced(RIGHT) + fenced("python solution.py\n", "bash"),
    "unclosed": f"```python\n{RIGHT}",
    "first unclosed": f"```python\n{WRONG}\nWait, no.\n\n```python\n{RIGHT}```",
    "bare one unclosed": f"```\nsome output\n\n```python\n{RIGHT}```",
    "cut off": fenced(RIGHT) + "Or:\n```python\ndef f(x):\n    return 2 *",
    "tildes": fenced(RIGHT, "python", "~~~"),
    "long fence": fenced(f's = """\n```\n"""\n{RIGHT}', "python", "`````"),
    "in a longer fence": f"````markdown\n{fenced(RIGHT)}````\n",
    "Py": fenced(RIGHT, "Python3"),
    "py3": fenced(RIGHT, "py3"),
    "python3.11": fenced(RIGHT, "python3.11"),
    "braces": fenced(RIGHT, "{.python}"),
    "title": fenced(RIGHT, 'python title="f.py"'),
    "space": fenced(RIGHT, " python "),
    "file name": fenced(RIGHT, "python:f.py"),
    "list": "1. Write it:\n\n" + listed(RIGHT, "   "),
    "list, deep": "- a\n  - b\n"
    + listed(RIGHT, "      ")
    + "- Call it:\n"
    + listed("f(3)\n", "  "),
    "list, tab": "1.\tDo:\n" + listed(RIGHT, "\t"),
    "docstring": fenced(
        'def f(x):\n    """Double.\n\n    ```\n    f(2)\n    ```\n    """\n' + RIGHT[10:]
    ),
    "docstring, language": fenced(
        'def f(x):\n    """Double.\n\n    ```python\n    f(2)\n    ```\n    """\n' + RIGHT[10:]
    ),
    "docstring of the module": fenced(f'"""Doubles.\n\n```\nf(2)\n```\n"""\n{RIGHT}'),
    "thinking": f"<think>\n{fenced(WRONG)}No, ```python is\n</think>\n\n{fenced(RIGHT)}",
    "thinking, unclosed fence": f"<think>```\n{WRONG}</think>{RIGHT}",
    "thinking, begun by the prompt": f"Perhaps\n{WRONG}\n</think>\n{RIGHT}",
    "prose after": f"{RIGHT}\nThis doubles the argument.",
    "prose before": f"Here is the function:\n\n{RIGHT}",
    "prose around": f"Sure! Here it is.\n\nimport math\n{RIGHT}\nIt's O(1).\n",
    "prose that begins like code": f"from what I see, it is\n\n{RIGHT}",
    "marker": f"{RIGHT}[DONE]\nassert f(1) == 1\n",
    "markers": f"[BEGIN]\n{RIGHT}[DONE]",
    "tags": f"[PYTHON]\n{RIGHT}[/PYTHON]\n[TESTS]\nassert f(1) == 3\n[/TESTS]",
    "label": f"Solution\n\n{RIGHT}\nExplanation\n\nIt doubles.",
    "closing fence only": f"{RIGHT}```\n\nIt doubles.",
    "closing fence, output": f"{RIGHT}```\nOutput:\n```\n4\n```",
    "usage in a fence": f"{RIGHT}\nUsage:\n" + fenced("print(f(3))\n"),
    "carriage returns": fenced(RIGHT).replace("\n", "\r\n"),
    "old line ends": fenced(RIGHT).replace("\n", "\r"),
    "byte order mark": f"\ufeff{RIGHT}",
    "form feed": f"import math\n\f\n{RIGHT}",
    "tabs": "def f(x):\n\treturn 2 * x\n",
    "separators in a text": f"s = 'a\u2028b\x0bc\x85'\n{RIGHT}",
    "lambda": fenced("f = lambda x: 2 * x\n"),
    "conditional": fenced("if True:\n    def f(x):\n        return 2 * x\n"),
    "try": fenced(f"try:\n    import numpy\nexcept ImportError:\n    numpy = None\n{RIGHT}"),
    "import": "from operator import neg as g\n" + RIGHT + "h = g\n",
    "future": f"from __future__ import annotations\n\n{RIGHT}",
    "escapes that Python warns of": f"s = '\\d'\n{RIGHT}",
}


def result_of(program: str) -> Any:
    space: dict[str, Any] = {"__name__": "candidate"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(program, "program", "exec"), space)
    return space["f"](2)


@pytest.mark.parametrize("name", ANSWERS)
def test_which_block_counts(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        program = extract.python_of(ANSWERS[name], ["f"])
        whole = extract.program_of(ANSWERS[name], 'def f(x):\n    """Double x."""\n', "f")
        chat = extract.program_of(ANSWERS[name], "Write a function f that doubles.", "f")
    assert whole is not None
    assert chat == program
    assert result_of(program) == result_of(whole) == 4


def test_a_block_that_defines_nothing_asked_for_is_still_a_program() -> None:
    """Whose verdict is that of a program without the function, or with one made by other means."""
    text = fenced("globals()['f'] = lambda x: 2 * x\n")
    assert result_of(extract.python_of(text, ["f"])) == 4
    assert extract.python_of(fenced(WRONG) + fenced("x = 1\n")) == "x = 1\n"
    assert result_of(extract.python_of(fenced("from math import sqrt as f\n"), ["f"])) == 2**0.5


def test_names_from_several_blocks() -> None:
    text = fenced("class A:\n    x = 1\n\nprint(A)\n") + fenced("def g():\n    return A.x\n")
    program = extract.python_of(text + fenced("print(g())\n"), ["A", "g"])
    space: dict[str, Any] = {}
    exec(program, space)
    assert space["g"]() == space["A"].x == 1
    assert "print" not in program


PROMPTS = {
    "docstring": 'def f(x):\n    """Double x."""\n',
    "none": "def f(x):\n",
    "no newline": "def f(x):",
    "blank line": "def f(x):\n\n",
    "comment": "def f(x):\n    # Double x.\n",
    "comment after the colon": "def f(x):  # double\n",
    "indentation": "def f(x):\n    ",
    "types": "from typing import List\n\n\ndef f(x: int) -> int:\n",
    "several lines": "def f(\n    x,\n):\n",
    "helper": "def g(x):\n    return x\n\n\ndef f(x):\n",
    "future": "from __future__ import annotations\n\ndef f(x: int) -> int:\n",
    "decorator": "import functools\n\n@functools.cache\ndef f(x):\n",
    "begun": "def f(x):\n    y = 0\n",
    "fence": "Complete this:\n```python\ndef f(x):\n```\nOnly write the rest.",
    "fence, docstring": 'Complete:\n```python\ndef f(x):\n    """Double."""\n```',
    "chat": "Complete the following function.\n\ndef f(x):\n",
    "carriage returns": "def f(x):\r\n    # Double\r\n",
}
# The rest of a function f(x) that returns 2 * x.
BODIES = {
    "body": "    return 2 * x\n",
    "no newline": "    return 2 * x",
    "newline first": "\n    return 2 * x\n",
    "lines": "    y = x\n    y += x\n\n    return y\n",
    "usage after": "    return 2 * x\n\n\nassert f(1) == 2\n",
    "helper after": "    return h(x)\n\n\ndef h(x):\n    return 2 * x\n\nThis doubles.",
    "prose after": "    return 2 * x\n\nThis doubles x.",
    "stop word": "    return 2 * x\n\nif __name__ == '__main__':\n    print(f(",
    "fence after": "    return 2 * x\n```\n\nThis doubles.",
    "usage in a fence": "    return 2 * x\n\n```python\nprint(f(3))\n```\n",
    "fenced": "```python\n    return 2 * x\n```",
    "first line without indentation": "y = 2 * x\n    return y\n",
    "no indentation": "y = 2 * x\nreturn y\n",
    "fenced, no indentation": "The rest:\n```python\nif x:\n    return 2 * x\nreturn 0\n```",
    "two spaces": "  return 2 * x\n",
    "tab": "\treturn 2 * x\n",
}
APART = {("begun", "two spaces"), ("begun", "tab")}  # indentation that differs within a function
APART |= {("docstring", body) for body in ("two spaces", "tab")}
APART |= {("fence, docstring", body) for body in ("two spaces", "tab")}


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_rest_of_a_function(prompt: str) -> None:
    """Also of one that does not parse without its rest."""
    assert ast.parse(extract.prompt_code(PROMPTS[prompt], "f"))
    for body, text in BODIES.items():
        if (prompt, body) not in APART:
            program = extract.program_of(text, PROMPTS[prompt], "f")
            assert program is not None, body
            assert result_of(program) == 4, body
    whole = extract.program_of(f"from __future__ import annotations\n{RIGHT}", PROMPTS[prompt], "f")
    assert whole is not None
    assert result_of(whole) == 4


NO_ANSWERS = ["", "\n", "It doubles.", "```python\n```", "def g(x):\n"]
NO_ANSWERS += [f"<think>\n{fenced(RIGHT)}Or is it", f"{RIGHT}</think>", f"</think><think>{RIGHT}"]


@pytest.mark.parametrize("text", NO_ANSWERS)
def test_what_is_not_the_rest_of_a_function(text: str) -> None:
    assert extract.program_of(text, PROMPTS["docstring"], "f") is None


def test_imports_from_the_future_are_hoisted() -> None:
    top = "from __future__ import annotations"
    for text in (
        f"import os\n{top}\n",
        f"'''Doc.'''\nx = 1\n{top}; y = 'é'; {top}\n",
        "def é(): pass\nfrom __future__ import (\n    annotations,\n    division,\n)\n",
    ):
        with pytest.raises(SyntaxError):
            compile(text, "text", "exec", dont_inherit=True)
        compile(hoisted(text), "text", "exec", dont_inherit=True)
    for text in (
        f"{top}\nx = 1\n",
        f"'''Doc.'''\n{top}\n{top}\nx = 1\n",
        "s = '__future__'\n",
        "(",
    ):
        assert hoisted(text) == text


def test_free_names() -> None:
    assert free_names("import a\ndef f(x):\n    return a, b, x, len(c)\nd = e") == {"b", "c", "e"}
    assert free_names("def f(") == free_names("\0") == set()


# --- any text -------------------------------------------------------------------------------------

PIECES = st.sampled_from(
    [
        *(
            "```",
            "```python\n",
            "~~~",
            "`",
            "\n",
            "\r",
            "\r\n",
            "\f",
            "\x0b",
            "\u2028",
            "\t",
            "    ",
        ),
        *(
            "\0",
            "\ud800",
            "\ufeff",
            "\u202e",
            "é",
            "'",
            '"',
            '"""',
            "'''",
            "\\",
            "(",
            "[",
            "{",
            ")",
        ),
        *("def f(x):\n", "return x\n", "class A:\n", "import a\n", "from __future__ import b\n"),
        *(
            "if f:\n",
            "f(1)\n",
            "@f\n",
            "# x\n",
            "lambda:",
            "f'{",
            "</think>",
            "Some words.",
            "[DONE]",
        ),
        *(
            "x = 1\n",
            ";",
            "await ",
            "match x:\n",
            "print(input())\n",
            "0x",
            "1_",
            "async def f(): ",
        ),
    ]
)
TEXTS = st.builds(
    lambda pieces, times: "".join(piece * n for piece, n in zip(pieces, times)),
    st.lists(PIECES | st.text(max_size=5), max_size=30),
    st.lists(st.sampled_from([1, 1, 1, 2, 3, 50, 500]), min_size=30, max_size=30),
)
PROMPT = PROMPTS["docstring"]
SECONDS = 15.0  # processor time for the slowest text in all ways; most take milliseconds


def read_in_every_way(text: str) -> None:
    begun = time.process_time()
    for program in (
        extract.python_of(text),
        extract.python_of(text, ["f", "A"]),
        extract.script_of(text),
        extract.program_of(text, PROMPT, "f") or "",
        extract.program_of("    return 1\n", text, "f") or "",
        extract.prompt_code(text, "f"),
    ):
        assert len(program) <= 2 * LONGEST
        assert program == "" or extract.parsed(program) is not None or len(program) > LONGEST
    assert time.process_time() - begun < SECONDS


@settings(max_examples=150, deadline=None)
@given(TEXTS)
def test_any_completion_is_read(text: str) -> None:
    read_in_every_way(text)


@pytest.mark.slow
@settings(max_examples=20_000, deadline=None)
@given(TEXTS)
def test_any_completion_is_read_at_length(text: str) -> None:
    read_in_every_way(text)


# Texts of up to 1 MiB whose reading was, or could be, slow or deep.
M, L = 1 << 20, LONGEST
HOSTILE = {
    "spaces after a fence": "```" + " " * 120_000,
    "spaces": " " * M,
    "a fenced line": "```python\n" + " " * M + "\n```",
    "indented fences": "".join(" " * n + "```python\n" for n in range(1400)),
    "backticks": "`" * M,
    "lines of backticks": ("`" * 1000 + "\n") * 1000,
    "parentheses": "(" * 100_000,
    "parentheses, fenced": fenced("(" * 100_000),
    "brackets": "f(x)[" * 20_000,
    "braces in f-strings": "f'{" * 30_000,
    "NUL": "\0" * M,
    "surrogates": "\udc80" * M,
    "returns": "\r" * M,
    "form feeds": "\f" * M,
    "separators": "a\u2028" * (M // 2),
    "marks": "\ufeff" * M,
    "tabs": "\t" * M,
    "directions": "\u202e" * M,
    "thoughts": "</think>" * 100_000,
    "prose": "The quick brown fox.\n" * 50_000,
    "prose like code": "def we note that\n" * 60_000,
    "minus": "-" * 60_000 + "1",
    "dots": "f" + ".b" * 30_000,
    "digits": "f=" + "9" * 60_000,
    "lambdas": "lambda:" * 9_000 + "1",
    "indentation": "".join(" " * n + "if a:\n" for n in range(350)),
    "comprehensions": "f=" + "[a for a in " * 90 + "b" + "]" * 90,
    "continued lines": "\\\n" * 30_000,
    "quotes": "'''" * 20_000,
    "imports from the future": "x=1\n" + "from __future__ import division\n" * 1500 + RIGHT,
}
SLOW = {
    "Python fences": "```python\n" * 100_000,
    "fences in quotes": "```python\n'''\n```\n" * 50_000,
    "fences": "```\n" * 100_000,
    "calls": "f" + "()" * 30_000,
    "sums": "f" + "+f" * 30_000,
    "a chain of blocks": fenced("".join(f"def f{n}(): f{n + 1}()\n" for n in range(2500)))
    + fenced("def f(): f0()\n"),
    "blocks that need each other": "".join(
        fenced("".join(f"g{j}_{n} = g{j}_{n + 1}\n" for n in range(100)) + f"h = g{j}_0\n")
        for j in range(20)
    ),
    "statements": "a;" * (L // 2 - 9),
    "lines": "a\n" * (L // 2 - 9),
    "an error at the end": "a\n" * (L // 2 - 9) + ")",
    "fields": "f'" + "{f}" * (L // 3 - 2) + "'",
    "fields, an error at the end": "f'" + "{f}" * (L // 3 - 5) + "'\n)",
    "decorators": "@f\n" * (L // 3),
    "annotations": "a:f\n" * (L // 4),
    "bodies": "    a\n" * (L // 6 - 2) + ")",
    "tildes": "~~~\n" * 250_000,
    "cases": "match f:\n case " + "1|" * 30_000 + "1: pass",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_completion_is_read(name: str) -> None:
    read_in_every_way(HOSTILE[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_a_slow_completion_is_read(name: str) -> None:
    read_in_every_way(SLOW[name])
    read_in_every_way(fenced(SLOW[name] + "\n"))
