# Included after project() of llama.cpp: llama-cpp-python turns on what only its programs use.
set(LLAMA_BUILD_COMMON OFF)
# A fifth of the time to compile is that of these headers.
cmake_language(DEFER CALL target_precompile_headers llama PRIVATE
    <algorithm> <functional> <map> <memory> <regex> <set> <sstream> <stdexcept> <string> <unordered_map> <vector>
    "${CMAKE_CURRENT_SOURCE_DIR}/src/llama-model.h")
install(FILES "${CMAKE_CURRENT_SOURCE_DIR}/LICENSE" DESTINATION llama_cpp RENAME LICENSE.llama.cpp)
