# Included after project() of llama.cpp: llama-cpp-python turns on what only its programs use.
set(LLAMA_BUILD_COMMON OFF)
install(FILES "${CMAKE_CURRENT_SOURCE_DIR}/LICENSE" DESTINATION llama_cpp RENAME LICENSE.llama.cpp)
