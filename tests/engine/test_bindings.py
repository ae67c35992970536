"""What is relied on of llama-cpp-python beyond its documentation; CONTRIBUTING.md says when to look at it again."""

import ctypes
import os
import signal
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from cerebrum_cli.core.llama_cpp import REQUIREMENT
from cerebrum_cli.engine.llama.bindings import llama
from cerebrum_cli.engine.machine import CPU_FLAGS

ROOT = Path(__file__).parents[2]
CHECKED = ("0.3.36", "0.3.37")  # the version all of this was read in, and the first that may differ

SAMPLERS: dict[str, tuple[Any, ...]] = {
    "init_penalties": (ctypes.c_int32, ctypes.c_int32, ctypes.c_float, ctypes.c_float, ctypes.c_float),
    "init_logit_bias": (ctypes.c_int32, ctypes.c_int32, ctypes.POINTER(llama.llama_logit_bias)),
    "init_dry": (
        *(ctypes.c_void_p, ctypes.c_float, ctypes.c_float, ctypes.c_int32, ctypes.c_int32),
        *(ctypes.POINTER(ctypes.c_char_p), ctypes.c_size_t),
    ),
    "clone": (ctypes.POINTER(llama.llama_sampler),),
    "init_top_k": (ctypes.c_int32,),
    "init_top_p": (ctypes.c_float, ctypes.c_size_t),
    "init_min_p": (ctypes.c_float, ctypes.c_size_t),
    "init_temp": (ctypes.c_float,),
    "init_dist": (ctypes.c_uint32,),
    "init_greedy": (),
}
SYMBOLS = (
    *("ggml_backend_dev_count", "ggml_backend_dev_get", "ggml_backend_dev_type", "ggml_backend_dev_memory"),
    *("ggml_backend_dev_name", "ggml_backend_dev_description", "ggml_backend_reg_count", "ggml_backend_reg_get"),
    *("ggml_backend_reg_name", "ggml_quantize_chunk", "ggml_quantize_requires_imatrix", "ggml_version"),
    *("ggml_type_name", "ggml_blck_size", "ggml_type_size", "ggml_backend_load_all_from_path"),
    *("ggml_backend_dev_by_type", "ggml_backend_dev_buffer_type"),
)
FEATURES = [f"ggml_cpu_has_{name.lower()}" for name in CPU_FLAGS]


def test_dependency_is_bounded_to_the_checked_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirement = next(each for each in project["dependencies"] if each.startswith("llama-cpp-python"))
    assert requirement == "llama-cpp-python>={},<{}".format(*CHECKED)
    assert requirement == REQUIREMENT
    assert version("llama-cpp-python") == CHECKED[0]


def test_library_has_the_functions_and_fields_that_are_used() -> None:
    arguments = {name: tuple(getattr(llama, f"llama_sampler_{name}").argtypes or ()) for name in SAMPLERS}
    assert arguments == SAMPLERS
    sizes = [(name, ctypes.sizeof(type)) for name, type in llama.llama_token_data._fields_]
    assert sizes == [("id", 4), ("logit", 4), ("p", 4)]
    assert [name for name, _ in llama.llama_token_data_array._fields_] == ["data", "size", "selected", "sorted"]
    assert [name for name in SYMBOLS if not hasattr(llama._lib, name)] == []
    found = [name for name in FEATURES if hasattr(llama._lib, name)]
    assert found in (FEATURES, [])  # the wheel for any processor has them in the libraries that it loads later


@pytest.mark.skipif(
    Path(llama.__file__).resolve().parent.name == "cerebrum_llama", reason="the wheel for any processor has no Llama"
)
def test_llama_cpp_can_be_imported_beside_the_bindings() -> None:
    program = "from cerebrum_cli.engine.llama.bindings import llama; from llama_cpp import Llama, llama_cpp; "
    subprocess.run([sys.executable, "-c", program + "assert llama_cpp is llama"], check=True)


def test_variables_for_llama_cpp_do_not_reach_child_processes() -> None:
    names = ("GOMP_SPINCOUNT", "GGML_NO_BACKTRACE")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    program = "import cerebrum_cli.engine.llama.bindings, subprocess; subprocess.run(['env'])"
    done = subprocess.run([sys.executable, "-c", program], env=clean, capture_output=True, text=True, check=True)
    assert done.stdout and not [name for name in names if name in done.stdout]
    kept = {**clean, "GOMP_SPINCOUNT": "7"}
    done = subprocess.run([sys.executable, "-c", program], env=kept, capture_output=True, text=True, check=True)
    assert "GOMP_SPINCOUNT=7" in done.stdout


def test_spin_count_is_set_while_the_library_is_loaded() -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_"))}
    program = "import cerebrum_cli.engine.llama.bindings"
    verbose = {**clean, "OMP_DISPLAY_ENV": "VERBOSE"}
    done = subprocess.run([sys.executable, "-c", program], env=verbose, capture_output=True, text=True, check=True)
    assert "GOMP_SPINCOUNT = '3000'" in done.stderr or "OPENMP" not in done.stderr  # of another OpenMP, or none


def test_failed_assertion_is_printed_without_a_debugger() -> None:
    program = "from cerebrum_cli.engine.llama.bindings import llama; llama._lib.ggml_abort(b'a.c', 7, b'no')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGABRT, "a.c:7: no\n")
