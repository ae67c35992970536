"""Run `llm` on a given number of threads, for which its SmolLM2 plugin has no option, and with all layers on a GPU.

Usage, with the Python of `llm`: python -m benchmarks.llm_threads THREADS ARGUMENTS...

By itself, llama-cpp-python generates on half of the cores, and offloads nothing.
"""

from __future__ import annotations

import functools
import runpy
import sys

import llama_cpp

threads = int(sys.argv.pop(1))
llama_cpp.Llama = functools.partial(llama_cpp.Llama, n_threads=threads, n_threads_batch=threads, n_gpu_layers=-1)
runpy.run_module("llm", run_name="__main__")
