# Included after project() of llama.cpp: llama-cpp-python turns on what only its programs use.
set(LLAMA_BUILD_COMMON OFF)
