# Included after project() of llama.cpp: what the build needs beyond options.

set(LLAMA_BUILD_COMMON OFF)  # llama-cpp-python turns it on, and only its programs use it
install(FILES "${CMAKE_CURRENT_SOURCE_DIR}/LICENSE" DESTINATION llama_cpp RENAME LICENSE.llama.cpp)

# A fifth of the time to compile is that of these headers.
cmake_language(DEFER CALL target_precompile_headers llama PRIVATE
    <algorithm> <functional> <map> <memory> <regex> <set> <sstream> <stdexcept> <string> <unordered_map> <vector>
    "${CMAKE_CURRENT_SOURCE_DIR}/src/llama-model.h")

# Without OpenMP, threads busy-wait for each other. Two processes on the same cores then wait for threads that are not
# scheduled: on 2 cores, generation fell from 38 to 0.4 tokens per second each. With this yield, it fell to 11.
set(threads "${CMAKE_CURRENT_SOURCE_DIR}/ggml/src/ggml-cpu/ggml-cpu.c")
set(wait "    while (atomic_load_explicit(&tp->n_barrier_passed, memory_order_relaxed) == n_passed) {
        ggml_thread_cpu_relax();
    }")
set(yield "    for (int spins = 0; atomic_load_explicit(&tp->n_barrier_passed, memory_order_relaxed) == n_passed; spins++) {
        if (spins < 3000) { ggml_thread_cpu_relax(); } else { sched_yield(); }
    }")
file(READ "${threads}" code)
string(FIND "${code}" "${wait}" found)
if(found EQUAL -1)
    message(FATAL_ERROR "ggml_barrier() has changed: see scripts/llama.cmake")
endif()
string(REPLACE "${wait}" "${yield}" code "${code}")
file(WRITE "${threads}" "${code}")
