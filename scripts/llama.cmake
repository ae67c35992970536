# Included after project() of llama.cpp: what the build needs beyond options.

set(LLAMA_BUILD_COMMON OFF)  # llama-cpp-python turns it on, and only its programs use it
install(FILES "${CMAKE_CURRENT_SOURCE_DIR}/LICENSE" DESTINATION llama_cpp RENAME LICENSE.llama.cpp)

# A fifth of the time to compile is that of these headers.
cmake_language(DEFER CALL target_precompile_headers llama PRIVATE
    <algorithm> <functional> <map> <memory> <regex> <set> <sstream> <stdexcept> <string> <unordered_map> <vector>
    "${CMAKE_CURRENT_SOURCE_DIR}/src/llama-model.h")

# Replaces a passage of llama.cpp's code.
function(replace_code file passage replacement)
    file(READ "${CMAKE_CURRENT_SOURCE_DIR}/${file}" code)
    string(FIND "${code}" "${passage}" found)
    if(found EQUAL -1)
        message(FATAL_ERROR "${file} has changed: see scripts/llama.cmake")
    endif()
    string(REPLACE "${passage}" "${replacement}" code "${code}")
    file(WRITE "${CMAKE_CURRENT_SOURCE_DIR}/${file}" "${code}")
endfunction()

# Without OpenMP, threads busy-wait for each other. Two processes on the same cores then wait for threads that are not
# scheduled: on 2 cores, generation fell from 38 to 0.4 tokens per second each. With this yield, it fell to 11.
replace_code(ggml/src/ggml-cpu/ggml-cpu.c
"    while (atomic_load_explicit(&tp->n_barrier_passed, memory_order_relaxed) == n_passed) {
        ggml_thread_cpu_relax();
    }"
"    for (int spins = 0; atomic_load_explicit(&tp->n_barrier_passed, memory_order_relaxed) == n_passed; spins++) {
        if (spins < 3000) { ggml_thread_cpu_relax(); } else { sched_yield(); }
    }")

# A new KV cache is filled with zeros, which takes a second for a gigabyte, although most of it may never be used. Linux
# replaces pages that are not needed by zeros when they are next used. A buffer without
# free_buffer is another's memory, such as a mapped file.
replace_code(ggml/src/ggml-backend.cpp
"    GGML_ASSERT(buffer);
    memset(buffer->context, value, buffer->size);
}"
"    GGML_ASSERT(buffer);
    char * begin = (char *) buffer->context;
    char * end = begin + buffer->size;
#ifdef __linux__
    const uintptr_t page = (uintptr_t) sysconf(_SC_PAGESIZE);
    char * first = (char *) (((uintptr_t) begin + page - 1) / page * page);
    char * last = (char *) ((uintptr_t) end / page * page);
    if (value == 0 && buffer->iface.free_buffer && first < last && madvise(first, last - first, MADV_DONTNEED) == 0) {
        memset(begin, 0, first - begin);
        begin = last;
    }
#endif
    memset(begin, value, end - begin);
}")
replace_code(ggml/src/ggml-backend.cpp
"#ifdef __APPLE__
#include <sys/types.h>"
"#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

#ifdef __APPLE__
#include <sys/types.h>")

# Kernels for AMX crash if GCC 12 compiles them (ggml-org/llama.cpp#20824, #26954), and with several sequences of a
# recurrent model they read and write beyond their tensors: offsets in bytes are added to pointers to floats.
replace_code(ggml/src/ggml-cpu/amx/amx.cpp
"static bool ggml_amx_init() {"
"static bool ggml_amx_init() {
    return false;")

# A wheel for the tests of one machine has only the kernels that these run, two of the 14 for x86-64.
if(KERNELS)
    replace_code(ggml/src/CMakeLists.txt
"function(ggml_add_cpu_backend_variant tag_name)"
"function(ggml_add_cpu_backend_variant tag_name)
    if(NOT tag_name IN_LIST KERNELS)
        return()
    endif()")
endif()
