"""Rewrites check so that each of its tests is recorded, for partial credit."""

import ast


def record_tests(body: list[ast.stmt]) -> tuple[list[ast.stmt], int]:
    """Return statements that record each test of `body` in `__tally__`, and the number of tests.

    A test is a statement that asserts something, directly or in its parts, or calls something for
    its effect. After a failed test, the next one runs.
    """
    recorded: list[ast.stmt] = []
    count = 0
    for statement in body:
        if is_test(statement):
            (wrapper,) = ast.parse(_RECORDED.format(count)).body
            assert isinstance(wrapper, ast.Try)
            wrapper.body = [statement]
            recorded.append(wrapper)
            count += 1
        else:
            recorded.append(statement)
    return recorded, count


def is_test(statement: ast.stmt) -> bool:
    """Whether a statement of check is a test."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return False
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Call)
    return any(isinstance(node, ast.Assert) for node in ast.walk(statement))


_RECORDED = """
try: pass
except BaseException as __error__: __tally__.record({0}, __error__)
else: __tally__.record({0}, None)
"""
