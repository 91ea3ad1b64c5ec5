"""Transformers4Rec's side of the benchmark, in an environment of its own.

`program.py TURNS` gets its task from the parent as `benchmarks/turns.py` says, the file
that is TURNS. Nothing of pipeline is installed here.
"""

import importlib.util
import sys


def _read_turns(path):
    spec = importlib.util.spec_from_file_location("turns", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["turns"] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    # before the imports below: threads that they start have this process's core
    channel, task = _read_turns(sys.argv[1]).open_channel()

    import tasks
    import torch

    torch.set_num_threads(1)
    tasks.TASKS[task["task"]](task, channel)
