"""Program of Transformers4Rec's side, in an environment without this project.

`program.py TURNS` loads `benchmarks/turns.py` from the path TURNS and receives its task by the
protocol of that file.
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
    # before the imports below, whose threads inherit the core
    channel, task = _read_turns(sys.argv[1]).open_channel()

    import tasks
    import torch

    torch.set_num_threads(1)
    tasks.TASKS[task["task"]](task, channel)
