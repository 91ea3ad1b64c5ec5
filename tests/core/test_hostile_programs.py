"""Programs that do more than compute are refused before they are loaded."""

import ast
import copy
import os
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.core.program_check import (
    RefusedProgramError,
    _allowed,
    _operators,
    checked_program,
    unknown_operators,
)
from tests.conftest import ROOT

Records = dict[str, bytes]


class Honest(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(4.0))

    def forward(self, values: Tensor) -> Tensor:
        return values + self.weight[0]


class OnLoad(nn.Module):
    """Writes a file as soon as it is loaded."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path = state[0]
        self.training = state[1]
        torch.save(torch.ones(1), self.path)

    def forward(self, values: Tensor) -> Tensor:
        return values


class Forever(nn.Module):
    """Never ends to load, with no operator that is not allowed."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path = state[0]
        while len(self.path) > 0:
            self.training = state[1]

    def forward(self, values: Tensor) -> Tensor:
        return values


class Named(Honest):
    """Honest, of a type of its own for each name."""

    __constants__ = ("name",)

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


def scripted(name: str) -> torch.jit.ScriptModule:
    """Module with a method that holds a line in TorchScript."""
    module = torch.jit.script(Named(name))
    module.define(f"def act(self, x: Tensor) -> Tensor:\n    {BODIES[name]}\n    return x\n")
    return module


BODIES = {
    "from_file": 'x = x + torch.from_file("planted", True, 4)',
    "save": 'torch.save(x, "planted")',
    "print": "print(x)",
    "warn": 'warnings.warn("a line of the log")',
    "str": "x = x + len(str(x))",
    "hash": "x = x + hash(x)",
    "format": 'x = x + len("{}".format(x))',
    "fork": "x = torch.jit.wait(torch.jit.fork(self.forward, x))",
    "set_data": "x.set_data(x)",
    "set_": "x.set_(x)",
    "record_function": 'y = torch.ops.profiler._record_function_enter_new("x", None)',
    "collective": "x = torch.ops._c10d_functional.wait_tensor(x)",
    "_unsafe_index": "x = torch.ops.aten._unsafe_index(x, [x])",
    "_unsafe_view": "x = torch.ops.aten._unsafe_view(x, [4])",
    "nested": "x = torch.ops.aten._nested_view_from_buffer(x, x, x, x)",
    "sparse": "x = torch.ops.aten._sparse_coo_tensor_unsafe(x, x, [4])",
    "pool_backward": "x = torch.ops.aten.max_pool2d_with_indices_backward("
    "x, x, [2, 2], [2, 2], [0, 0], [1, 1], False, x)",
    "embedding_backward": "x = torch.ops.aten.embedding_dense_backward(x, x, 4, -1, True)",
    "batch_norm": "x, y, z = torch.ops.aten._native_batch_norm_legit_no_training("
    "x, None, None, x, x, 0.1, 0.1)",
    "backward": "x.backward()",
    "manual_seed": "torch.manual_seed(0)",
    "mkldnn": "x = torch.ops.aten.to_mkldnn(x)",
    "quantized": "x = torch.ops.quantized.add_relu(x, x, 1.0, 0)",
}
"""Ways to files, the log, addresses, other threads and processes, and memory outside of tensors."""


def save(module: torch.jit.ScriptModule, path: Path) -> Records:
    """Write a program without its source positions, and return its records."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(module, path)
    with zipfile.ZipFile(path) as archive:
        names = [n for n in archive.namelist() if not n.endswith("debug_pkl")]
        records = {name: archive.read(name) for name in names}
    write(records, path)
    return records


def write(records: Records, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content)


def refusal(path: Path) -> str:
    """Message of the check, which is one line with the name of the file."""
    with pytest.raises(RefusedProgramError) as caught, checked_program(path):
        pytest.fail("it would be loaded")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path} ")
    return message


@pytest.mark.parametrize("name", BODIES)
def test_a_program_that_does_more_than_compute_is_refused(name: str, tmp_path: Path) -> None:
    save(scripted(name), tmp_path / "model.pt")
    assert "which no model needs" in refusal(tmp_path / "model.pt")


def test_an_honest_program_is_loaded(tmp_path: Path) -> None:
    save(torch.jit.script(Named("honest")), tmp_path / "model.pt")
    with checked_program(tmp_path / "model.pt") as copy:
        assert torch.jit.load(copy)(torch.zeros(4)).tolist() == [0.0] * 4


@pytest.mark.parametrize("module", ["__main__", "shop", "shop.models.v2._top"])
def test_a_program_with_classes_of_any_module_is_loaded(module: str, tmp_path: Path) -> None:
    """As `torch.jit.save` writes it, with records that torch would trust and no model needs."""
    path = tmp_path / "model.pt"
    top = type("Top", (Honest,), {"__module__": module, "forward": Honest.forward})
    torch.jit.save(torch.jit.trace(top(), torch.zeros(4)), path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    unused = [name for name in records if "debug_pkl" in name or "traced_inputs" in name]
    folder = "" if module == "__main__" else f"/{module.replace('.', '/')}"
    assert any(name.endswith(f"code/__torch__{folder}.py.debug_pkl") for name in unused)
    write(records | dict.fromkeys(unused, b"no pickled record"), path)
    with checked_program(path) as copy:
        assert torch.jit.load(copy)(torch.zeros(4)).tolist() == [0.0] * 4
        with zipfile.ZipFile(copy) as archive:
            assert {*archive.namelist()} == {*records} - {*unused}


def test_a_program_that_acts_while_it_is_loaded_is_refused(tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    program = torch.jit.script(OnLoad(str(planted)))
    save(program, tmp_path / "model.pt")
    assert "'__getstate__'" in refusal(tmp_path / "model.pt")
    assert not planted.exists()
    torch.jit.load(tmp_path / "model.pt")  # what the check is for
    assert planted.exists()
    save(torch.jit.script(Forever("x")), tmp_path / "forever.pt")
    assert "'__getstate__'" in refusal(tmp_path / "forever.pt")


def test_no_operator_outside_of_the_list_has_a_name(tmp_path: Path) -> None:
    """By any of the ways in which a text may name one, for each that this torch has."""
    _operators.cache_clear()  # another test may have imported a module with operators since
    missed = []
    for schema in torch._C._jit_get_all_schemas():
        space, _, name = schema.name.partition("::")
        if name in _allowed() or not name.isidentifier():
            continue
        calls = [
            f"ops.{space}.{name}(x)",
            f"torch.{name}(x)",
            f"x.{name}()",
            f'getattr(x, "{name}")',
        ]
        missed += [call for call in calls if not [*unknown_operators([ast.parse(call)])]]
    assert missed == []


def number_of_items(records: Records) -> None:
    swap(records, "data.pkl", b"K\x04t", b"J\0\0\x10\0t")


def position_in_the_memo(records: Records) -> None:
    swap(records, "data.pkl", b"q\0", b"r\xff\xff\xff\x3f")


def nesting(records: Records) -> None:
    swap(records, "data.pkl", b"Nu", b")" + b"\x85" * 1_000_000 + b"u")


def length_of_a_text(records: Records) -> None:
    swap(records, "data.pkl", b"X\x06\0\0\0weight", b"X\xff\xff\xff\x7fweight")


def other_object(records: Records) -> None:
    """An object without attributes where one has some, which are then read behind its end."""
    swap(records, "data.pkl", b"Nu", b"c__torch__.plain\nOther\n)\x81}(ubu")
    records["model/code/__torch__/plain.py"] = (
        b"class Other(Module):\n  __parameters__ = []\n  __buffers__ = []\n"
    )


def cast_to_a_class(records: Records) -> None:
    name = next(name for name in records if name.endswith(".py"))
    swap(records, name, b"return ", b"y = unchecked_cast(__torch__.plain.Other, self)\n    return ")


def object_of_cpp(records: Records) -> None:
    swap(
        records, "data.pkl", b"Nu", b"c__torch__.torch.classes.rnn\nCellParamsBase\n)\x81}b" + b"u"
    )


def sparse_tensor(records: Records) -> None:
    swap(records, "data.pkl", b"_rebuild_tensor_v2", b"_rebuild_sparse_tensor")


def type_as_text(records: Records) -> None:
    swap(
        records,
        "data.pkl",
        b"ctorch._utils\n_rebuild_tensor_v2",
        b"ctorch.jit._pickle\nrestore_type_tag",
    )


def code_outside(records: Records) -> None:
    records["model/code/other.py"] = b""


def extra_file(records: Records) -> None:
    records["model/extra/config.json"] = b"{}"


def mobile_code(records: Records) -> None:
    records["model/bytecode.pkl"] = b"\x80\x02)."


def code_above(records: Records) -> None:
    records["model/code/__torch__/../other.py"] = b""


def absolute_code(records: Records) -> None:
    records["/code/__torch__/other.py"] = b""


def code_without_a_name(records: Records) -> None:
    records["model/code/__torch__/shop//other.py"] = b""


def positions_above(records: Records) -> None:
    records["model/code/__torch__/../other.py.debug_pkl"] = b"\x80\x02)."


def positions_of_objects(records: Records) -> None:
    records["model/data.debug_pkl"] = b"\x80\x02)."


def positions_with_a_line(records: Records) -> None:
    records["model/code/__torch__/other.py.debug_pkl\n"] = b"\x80\x02)."


def traced_code(records: Records) -> None:
    records["model/traced_inputs/x.py"] = b""


def second_program(records: Records) -> None:
    records["other/data.pkl"] = records["model/data.pkl"]


def name_in_other_letters(records: Records) -> None:
    records["model/DATA.PKL"] = records["model/data.pkl"]


def long_code(records: Records) -> None:
    records["model/code/__torch__/long.py"] = b"x=1\n" * 500_000


def deep_code(records: Records) -> None:
    records["model/code/__torch__/deep.py"] = b"-" * 1_000_000 + b"1"


def swap(records: Records, ending: str, old: bytes, new: bytes) -> None:
    name = next(name for name in records if name.endswith(ending))
    assert old in records[name]
    records[name] = records[name].replace(old, new, 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (number_of_items, r"a tensor of 1,048,576 numbers in model/data/0, which has 16 bytes"),
        (position_in_the_memo, r"objects in model/data\.pkl that no export writes"),
        (nesting, r"objects in model/data\.pkl that no export writes"),
        (length_of_a_text, r"objects in model/data\.pkl that no export writes"),
        (other_object, r"objects in model/data\.pkl that no export writes"),
        (cast_to_a_class, "'unchecked_cast', which no model needs"),
        (object_of_cpp, "torch.classes.rnn CellParamsBase', which no model needs"),
        (sparse_tensor, "_rebuild_sparse_tensor', which no model needs"),
        (type_as_text, "restore_type_tag', which no model needs"),
        (code_outside, r"the record 'model/code/other\.py', which no export writes"),
        (extra_file, r"the record 'model/extra/config\.json'"),
        (mobile_code, r"the record 'model/bytecode\.pkl'"),
        (code_above, r"the record 'model/code/__torch__/\.\./other\.py'"),
        (absolute_code, r"the record '/code/__torch__/other\.py'"),
        (code_without_a_name, r"the record 'model/code/__torch__/shop//other\.py'"),
        (positions_above, r"the record 'model/code/__torch__/\.\./other\.py\.debug_pkl'"),
        (positions_of_objects, r"the record 'model/data\.debug_pkl'"),
        (positions_with_a_line, r"the record 'model/code/__torch__/other\.py\.debug_pkl\\n'"),
        (traced_code, r"the record 'model/traced_inputs/x\.py'"),
        (second_program, "records of two programs"),
        (name_in_other_letters, "is not a program that this project wrote"),
        (long_code, "text that is no TorchScript"),
        (deep_code, "text that is no TorchScript"),
    ],
)
def test_records_that_torch_would_trust_are_refused(
    change: Callable[[Records], None], words: str, tmp_path: Path
) -> None:
    records = save(torch.jit.script(Named("honest")), tmp_path / "model.pt")
    change(records)
    write(records, tmp_path / "model.pt")
    assert re.search(words, refusal(tmp_path / "model.pt"))


def test_records_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    """Many records at the same place of a small file would be copied as a large one."""
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data/0", bytes(1 << 16))
        (record,) = archive.infolist()
        for number in range(1, 100):
            again = copy.copy(record)
            again.filename = f"model/data/{number}"
            archive.filelist.append(again)
            archive.NameToInfo[again.filename] = again
    assert path.stat().st_size < 100_000
    assert "is not a program that this project wrote" in refusal(path)


def test_a_pipe_in_place_of_a_program_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.pt")
    assert "is not a program that this project wrote" in refusal(tmp_path / "model.pt")


def test_every_program_goes_through_the_check() -> None:
    """`torch.jit.load` reads the copy that `checked_program` has made, everywhere."""
    files = [*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "triton_models").rglob("*.py")]
    loads, checked = [], []
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("jit.load"):
                loads.append((file, node.lineno))
            if isinstance(node, ast.With):
                (item, *_) = node.items
                if not ast.unparse(item.context_expr).endswith("checked_program(path)"):
                    continue
                copies = ast.unparse(item.optional_vars) if item.optional_vars else None
                checked += [
                    (file, call.lineno)
                    for call in ast.walk(node)
                    if isinstance(call, ast.Call)
                    and ast.unparse(call.func).endswith("jit.load")
                    and ast.unparse(call.args[0]) == copies
                ]
    assert len(loads) >= 2
    assert sorted(loads) == sorted(checked)
