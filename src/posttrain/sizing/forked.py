"""Work in a copy of this process, which leaves no trace in it."""

from __future__ import annotations

import logging
import os
import pickle
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def forked(work: Callable[[], T]) -> T:
    """Return what `work` returns in a forked process, or raise the ValueError that it raises.

    Its heap is then as this process left it, whatever ran before in other copies.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        torch.set_num_threads(1)  # threads of this process do not exist in the copy
        warnings.simplefilter("ignore")  # torch's, of views and the order of sums
        logging.disable(logging.WARNING)
        try:
            answer: Any = (True, work())
        except ValueError as error:
            answer = (False, str(error))
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        with os.fdopen(write, "wb") as pipe:
            pickle.dump(answer, pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        content = pipe.read()
    os.waitpid(child, 0)
    if not content:
        raise RuntimeError("a rehearsed step failed; its traceback is above")
    done, value = pickle.loads(content)
    if not done:
        raise ValueError(value)
    found: T = value
    return found
